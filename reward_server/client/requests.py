"""Requests of a client: a prompt, its completions and the options of the reward -> messages of the wire. Pure.

    group + options + the server's limits -> ScoreRequest, ...

A group that is within the limits is one request. A larger one is split into parts, in order. Each part repeats the
whole prompt, which the server then computes once for each part. Under recipe rewardbench a group is never split,
because the longest completion of a request decides how much the server cuts off each of its completions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from reward_server.client.server_info import ServerInfo
from reward_server.groups import CompletionInput, CompletionText, Group, Prompt
from reward_server.pb import reward_pb2 as pb
from winnow.errors import UsageError
from winnow.records import Message
from winnow.reward_options import RewardOptions, choices_of, wire_name

# Bytes of the tags and lengths around the completions of a message.
FRAME_BYTES = 64
# Bytes of the tag and length of one completion.
FIELD_BYTES = 8
# Bytes of a completion in a response besides its tokens: the numbers of CompletionScore.
SCORE_BYTES = 64
# Bytes of a token in a response: its id as a varint, and two floats.
TOKEN_BYTES = 5 + 4 + 4

TOO_LARGE_FOR_ONE_REQUEST = (
    "recipe rewardbench cuts by the longest completion of a request, and these completions do not fit into one; send "
    "its pairs as groups of two, or raise the server's max_completions or max_message_bytes"
)


def listed(completions: object) -> list[CompletionInput]:
    """Return the completions as a list. Raises UsageError if they are not iterable, or are a single text."""
    if isinstance(completions, str | bytes | Mapping) or not isinstance(completions, Iterable):
        raise UsageError(f"completions should be a list of completions, not {_shape(completions)}")
    return list(completions)


def merge_options(options: RewardOptions | None, keywords: Mapping[str, Any]) -> RewardOptions:
    """Return the options, or the defaults, with the fields that `keywords` change. Raises UsageError."""
    if options is None:
        return RewardOptions(**keywords)
    if not isinstance(options, RewardOptions):
        raise UsageError(f"options should be RewardOptions(...), not {_shape(options)}")
    return options.replace(**keywords)


def has_completions(group: Group) -> bool:
    """Return True if the group has a completion. Raises UsageError if it is not a Group."""
    if not isinstance(group, Group):
        raise UsageError(f"a group should be Group(prompt, completions), is {_shape(group)}")
    return bool(listed(group.completions))


@dataclass(frozen=True)
class GroupRequests:
    """The requests of a group, and the completions that are in none of them."""

    requests: list[pb.ScoreRequest]
    too_large: dict[int, str]
    """Index of each completion that fits into no request -> the reason; such a completion becomes `too_long`."""


def requests_of(group: Group, options: RewardOptions, limits: ServerInfo) -> GroupRequests:
    """Split a group into requests within the server's limits. Raises UsageError for a malformed group."""
    try:
        empty_request = _prompt_request(group.prompt, options)
        completions = [_completion(content, index) for index, content in enumerate(group.completions)]
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a text is not Unicode: its character {error.start} is half of a surrogate pair; take it out"
        ) from None
    capacity_bytes = limits.max_message_bytes - empty_request.ByteSize() - FRAME_BYTES
    fitting: list[tuple[pb.Completion, int]] = []
    too_large: dict[int, str] = {}
    for index, completion in enumerate(completions):
        num_bytes = _message_bytes(completion, options)
        if num_bytes <= capacity_bytes:
            fitting.append((completion, num_bytes))
        else:
            too_large[index] = (
                f"with its prompt it makes a message {num_bytes - capacity_bytes} bytes larger than the server takes; "
                "shorten it, or raise the server's max_message_bytes"
            )
    parts = list(_parts(fitting, limits.max_completions, capacity_bytes))
    if options.recipe == "rewardbench" and (too_large or len(parts) > 1):
        return GroupRequests([], dict.fromkeys(range(len(completions)), TOO_LARGE_FOR_ONE_REQUEST))
    requests = []
    for part in parts:
        request = pb.ScoreRequest()
        request.CopyFrom(empty_request)
        request.completions.extend(part)
        requests.append(request)
    return GroupRequests(requests, too_large)


def _parts(
    sized: Sequence[tuple[pb.Completion, int]], max_completions: int, capacity_bytes: int
) -> Iterator[list[pb.Completion]]:
    """Split completions, each with its size in bytes, into parts within both limits, in order.

    Greedy: with at most 3 completions and 100 bytes, sizes 60, 30, 40, 10, 10, 10 become [60, 30], [40, 10, 10], [10].
    """
    part: list[pb.Completion] = []
    part_bytes = 0
    for completion, num_bytes in sized:
        is_full = len(part) == max_completions or part_bytes + num_bytes > capacity_bytes
        if part and is_full:
            yield part
            part = []
            part_bytes = 0
        part.append(completion)
        part_bytes += num_bytes
    if part:
        yield part


def _message_bytes(completion: pb.Completion, options: RewardOptions) -> int:
    """Return the most bytes that a completion takes in its request or, with its tokens, in the response."""
    num_bytes = int(completion.ByteSize())
    if not options.want_token_logprobs:
        return num_bytes + FIELD_BYTES
    num_tokens = len(completion.token_ids.ids) or num_bytes  # a text has no more tokens than bytes
    return max(num_bytes, num_tokens * TOKEN_BYTES) + SCORE_BYTES


def _prompt_request(prompt: Prompt, options: RewardOptions) -> pb.ScoreRequest:
    """Return a request with the prompt and the options, without completions. Raises UsageError."""
    request = pb.ScoreRequest(options=_wire_options(options))
    if isinstance(prompt, str | bytes | Mapping) or not isinstance(prompt, Iterable):
        raise UsageError(f"a prompt should be a list of messages or of token ids, is {_shape(prompt)}")
    items: list[Any] = list(prompt)
    if items and all(isinstance(item, Integral) for item in items):
        request.prompt_token_ids.CopyFrom(_token_ids(items, "the prompt"))
        return request
    for item in items:
        if isinstance(item, Message):
            request.messages.messages.add(role=item.role, content=item.content)
            continue
        if not (isinstance(item, Mapping) and all(isinstance(item.get(key), str) for key in ("role", "content"))):
            raise UsageError(f"a message needs role and content, both texts; this one is {_shape(item)}")
        request.messages.messages.add(role=item["role"], content=item["content"])
    return request


def _shape(value: object) -> str:
    """Describe a value of a wrong type for an error message, without its texts, which may be long."""
    if isinstance(value, str):
        return "one text"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {type(item).__name__}" for key, item in value.items()) or "empty"
    return f"a {type(value).__name__}"


def _completion(content: CompletionInput, index: int) -> pb.Completion:
    """Return a completion as a message of the wire. Raises UsageError."""
    if isinstance(content, str):
        content = CompletionText(content)
    if isinstance(content, CompletionText) and isinstance(content.text, str):
        return pb.Completion(text=pb.CompletionText(text=content.text, is_finished=bool(content.is_finished)))
    if isinstance(content, bytes | Mapping | CompletionText) or not isinstance(content, Iterable):
        raise UsageError(
            f"completion {index} should be a text, a CompletionText or a list of token ids, is {_shape(content)}"
        )
    return pb.Completion(token_ids=_token_ids(content, f"completion {index}"))


def _token_ids(ids: Iterable[int], name: str) -> pb.TokenIds:
    try:
        return pb.TokenIds(ids=ids)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} should be token ids, whole numbers from 0 to 2**32 - 1 ({error})") from None


def _wire_options(options: RewardOptions) -> pb.ScoreOptions:
    """Return the options as a message of the wire; an option whose value is None stays unset."""
    fields: dict[str, Any] = {}
    for option, value in options:
        if choices_of(option) and value is not None:
            fields[option] = wire_name(option, value)
        else:
            fields[option] = value
    return pb.ScoreOptions(**fields)

"""What a client asks: a prompt, its completions and the options of the reward -> requests of the wire. Pure.

    group + options + the server's limits -> ScoreRequest, ...

One request where the group fits the limits; else several, in order, each with the whole prompt, which then costs once
for each of them. Under recipe rewardbench a group is never split: there the longest completion of a request decides
what is cut of all.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal, TypedDict

from reward_server.groups import CompletionInput, CompletionText, Group, Prompt
from reward_server.pb import reward_pb2 as pb
from winnow.errors import UsageError

Normalization = Literal["sum", "mean"]
EosPolicy = Literal["include", "exclude", "if_finished"]
InstructionScope = Literal["both", "instruct_only"]
Recipe = Literal["winnow", "rewardbench"]

DEFAULT_MESSAGE_BYTES = 64 * 1024 * 1024
# Lengths and tags around the completions of a message.
FRAME_BYTES = 64
# A token id as a varint, and two floats.
TOKEN_BYTES = 5 + 4 + 4


@dataclass(frozen=True)
class RewardOptions:
    """How the reward is made; proto/winnow/v1/reward.proto says what each option means. Raises UsageError.

    `eos_policy` None is the recipe's own: if_finished, or include under recipe rewardbench, which takes no other.
    """

    normalization: Normalization = "sum"
    beta: float = 1.0
    eos_policy: EosPolicy | None = None
    is_reference_free: bool = False
    want_token_logprobs: bool = False
    instruction: str = ""
    instruction_scope: InstructionScope = "both"
    recipe: Recipe = "winnow"

    def __post_init__(self) -> None:
        for option, kind in _KINDS.items():
            if not isinstance(value := getattr(self, option), kind):
                raise UsageError(f"{option} {value!r} should be {_KIND_NAMES[kind]}, is {_shape(value)}")
        if any("\ud800" <= character <= "\udfff" for character in self.instruction):
            raise UsageError("the instruction is no Unicode text: it holds half of a surrogate pair")
        for option, enum in _ENUMS.items():
            if not (option == "eos_policy" and self.eos_policy is None):
                _check_choice(option, getattr(self, option), enum)
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise UsageError(f"beta {self.beta} should be a finite number above 0")


class OptionKeywords(TypedDict, total=False):
    """The options as keyword arguments: the fields of RewardOptions."""

    normalization: Normalization
    beta: float
    eos_policy: EosPolicy | None
    is_reference_free: bool
    want_token_logprobs: bool
    instruction: str
    instruction_scope: InstructionScope
    recipe: Recipe


@dataclass(frozen=True)
class Limits:
    """What one request may hold."""

    max_completions: int
    max_message_bytes: int


NOT_AT_ONCE = (
    "recipe rewardbench cuts by the longest completion of a request, and these completions do not fit into one; send "
    "its pairs as groups of two, or raise the server's max_completions or max_message_bytes"
)

_KINDS: dict[str, Any] = {
    "beta": Real,
    "is_reference_free": bool,
    "want_token_logprobs": bool,
    "instruction": str,
}
_KIND_NAMES = {Real: "a number", bool: "True or False", str: "a text"}
_ENUMS: dict[str, Any] = {
    "normalization": pb.Normalization,
    "eos_policy": pb.EosPolicy,
    "instruction_scope": pb.InstructionScope,
    "recipe": pb.Recipe,
}


def listed(completions: Any) -> list[CompletionInput]:
    """The completions as a list. Raises UsageError for what is none, one text above all."""
    if isinstance(completions, str | bytes | Mapping) or not isinstance(completions, Iterable):
        raise UsageError(f"completions should be a list of completions, not {_shape(completions)}")
    return list(completions)


def has_completions(group: Group) -> bool:
    """Whether there is anything to ask. Raises UsageError for what is no group."""
    if not isinstance(group, Group):
        raise UsageError(f"a group should be Group(prompt, completions), is {_shape(group)}")
    return bool(listed(group.completions))


def options_of(options: RewardOptions | None, keywords: OptionKeywords) -> RewardOptions:
    """The options with what the keywords change. Raises UsageError."""
    if unknown := sorted(keywords.keys() - RewardOptions.__dataclass_fields__.keys()):
        raise UsageError(f"unknown option {', '.join(unknown)}; known: {', '.join(RewardOptions.__dataclass_fields__)}")
    return replace(options or RewardOptions(), **keywords)


def limits_of(info: pb.GetServerInfoResponse) -> Limits:
    """The limits that a server states."""
    return Limits(info.max_completions, info.max_message_bytes or DEFAULT_MESSAGE_BYTES)


@dataclass(frozen=True)
class GroupRequests:
    """The requests of a group, and why completions are in none of them, by index; these count as too long."""

    requests: list[pb.ScoreRequest]
    too_large: dict[int, str]


def requests_of(group: Group, options: RewardOptions, limits: Limits) -> GroupRequests:
    """The requests of a group, each within the limits; none where there is no completion. Raises UsageError."""
    try:
        shell = _prompt_request(group.prompt, options)
        completions = [_completion(one, index) for index, one in enumerate(group.completions)]
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a text is no Unicode: its character {error.start} is half of a surrogate pair; take it out"
        ) from None
    room = limits.max_message_bytes - shell.ByteSize() - FRAME_BYTES
    sized = [(one, _message_bytes(one, options)) for one in completions]
    too_large = {index: _too_large(size - room) for index, (_, size) in enumerate(sized) if size > room}
    pieces = list(_pieces([one for one in sized if one[1] <= room], limits.max_completions, room))
    if options.recipe == "rewardbench" and (too_large or len(pieces) > 1):
        return GroupRequests([], dict.fromkeys(range(len(completions)), NOT_AT_ONCE))
    requests = [
        pb.ScoreRequest(
            messages=shell.messages if shell.HasField("messages") else None,
            prompt_token_ids=shell.prompt_token_ids if shell.HasField("prompt_token_ids") else None,
            completions=piece,
            options=shell.options,
        )
        for piece in pieces
    ]
    return GroupRequests(requests, too_large)


def _too_large(more: int) -> str:
    """Why a completion fits into no message."""
    return (
        f"with its prompt it makes a message {more} bytes larger than the server takes; shorten it, or raise the "
        "server's max_message_bytes"
    )


def _pieces(
    sized: Sequence[tuple[pb.Completion, int]], max_completions: int, room: int
) -> Iterator[list[pb.Completion]]:
    """Completions, each with its size in bytes, in runs of at most `max_completions` that fill at most `room`."""
    piece: list[pb.Completion] = []
    used = 0
    for completion, size in sized:
        if piece and (len(piece) == max_completions or used + size > room):
            yield piece
            piece, used = [], 0
        piece.append(completion)
        used += size
    if piece:
        yield piece


def _message_bytes(completion: pb.Completion, options: RewardOptions) -> int:
    """What a completion takes of a message at most, in the request or, with its tokens, in the answer."""
    size = int(completion.ByteSize())
    if not options.want_token_logprobs:
        return size + 8
    num_tokens = len(completion.token_ids.ids) or size  # a text has no more tokens than bytes
    return max(size, num_tokens * TOKEN_BYTES) + 64


def _prompt_request(prompt: Prompt, options: RewardOptions) -> pb.ScoreRequest:
    """A request without completions. Raises UsageError."""
    request = pb.ScoreRequest(options=_wire_options(options))
    if isinstance(prompt, str | bytes | Mapping) or not isinstance(prompt, Iterable):
        raise UsageError(f"a prompt should be a list of messages or of token ids, is {_shape(prompt)}")
    items: list[Any] = list(prompt)
    if items and all(isinstance(item, Integral) for item in items):
        request.prompt_token_ids.CopyFrom(_token_ids(items, "the prompt"))
        return request
    for item in items:
        if not (isinstance(item, Mapping) and all(isinstance(item.get(key), str) for key in ("role", "content"))):
            raise UsageError(f"a message needs role and content, both texts; this one is {_shape(item)}")
        request.messages.messages.add(role=item["role"], content=item["content"])
    return request


def _shape(item: object) -> str:
    if isinstance(item, str):
        return "one text"
    if isinstance(item, Mapping):
        return ", ".join(f"{key}: {type(value).__name__}" for key, value in item.items()) or "empty"
    return f"a {type(item).__name__}"


def _completion(content: CompletionInput, index: int) -> pb.Completion:
    """A completion as a message. Raises UsageError."""
    if isinstance(content, str):
        content = CompletionText(content)
    if isinstance(content, CompletionText) and isinstance(content.text, str):
        return pb.Completion(text=pb.CompletionText(text=content.text, is_finished=bool(content.is_finished)))
    if isinstance(content, bytes | Mapping | CompletionText) or not isinstance(content, Iterable):
        raise UsageError(
            f"completion {index} should be a text, a CompletionText or a list of token ids, is {_shape(content)}"
        )
    return pb.Completion(token_ids=_token_ids(content, f"completion {index}"))


def _token_ids(ids: Iterable[int], what: str) -> pb.TokenIds:
    try:
        return pb.TokenIds(ids=ids)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} should be token ids, whole numbers from 0 to 2**32 - 1 ({error})") from None


def _wire_options(options: RewardOptions) -> pb.ScoreOptions:
    return pb.ScoreOptions(
        normalization=_enum_name("normalization", options.normalization),
        beta=options.beta,
        eos_policy=None if options.eos_policy is None else _enum_name("eos_policy", options.eos_policy),
        is_reference_free=options.is_reference_free,
        want_token_logprobs=options.want_token_logprobs,
        instruction=options.instruction,
        instruction_scope=_enum_name("instruction_scope", options.instruction_scope),
        recipe=_enum_name("recipe", options.recipe),
    )


def _enum_name(option: str, value: str) -> str:
    return f"{option}_{value}".upper()


def _check_choice(option: str, value: str, enum: Any) -> None:
    names = [name.removeprefix(f"{option.upper()}_").lower() for name in enum.keys()[1:]]
    if value not in names:
        raise UsageError(f"{option} {value!r} is none of {', '.join(names)}")

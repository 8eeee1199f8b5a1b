"""What a client asks: a prompt, its completions and the options of the reward -> requests of the wire. Pure.

    group + options + the server's limits -> ScoreRequest, ...

One request where the group fits the limits; else several, in order, each with the whole prompt, which then costs once
for each of them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

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
class CompletionText:
    """A completion as text, without EOS; `is_finished` when the policy ended it itself."""

    text: str
    is_finished: bool = True


Prompt = Sequence[Mapping[str, str]] | Sequence[int]
CompletionContent = str | CompletionText | Sequence[int]


@dataclass(frozen=True)
class Group:
    """One prompt (messages up to the assistant turn, or token ids with BOS) and its completions.

    A completion is a text, taken as finished; a `CompletionText`; or token ids as sampled, with EOS where it ended.
    """

    messages: Prompt
    completions: Sequence[CompletionContent]


@dataclass(frozen=True)
class RewardOptions:
    """How the reward is made; proto/winnow/v1/reward.proto says what each option means. Raises UsageError."""

    normalization: Normalization = "sum"
    beta: float = 1.0
    eos_policy: EosPolicy = "if_finished"
    is_reference_free: bool = False
    want_token_logprobs: bool = False
    instruction: str = ""
    instruction_scope: InstructionScope = "both"
    recipe: Recipe = "winnow"

    def __post_init__(self) -> None:
        for option, enum in _ENUMS.items():
            _check_choice(option, getattr(self, option), enum)
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise UsageError(f"beta {self.beta} should be a finite number above 0")


class OptionKeywords(TypedDict, total=False):
    """The options as keyword arguments: the fields of RewardOptions."""

    normalization: Normalization
    beta: float
    eos_policy: EosPolicy
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


_ENUMS: dict[str, Any] = {
    "normalization": pb.Normalization,
    "eos_policy": pb.EosPolicy,
    "instruction_scope": pb.InstructionScope,
    "recipe": pb.Recipe,
}


def options_of(options: RewardOptions | None, keywords: OptionKeywords) -> RewardOptions:
    """The options with what the keywords change. Raises UsageError."""
    if unknown := sorted(keywords.keys() - RewardOptions.__dataclass_fields__.keys()):
        raise UsageError(f"unknown option {', '.join(unknown)}; known: {', '.join(RewardOptions.__dataclass_fields__)}")
    return replace(options or RewardOptions(), **keywords)


def limits_of(info: pb.GetServerInfoResponse) -> Limits:
    """The limits that a server states."""
    return Limits(info.max_completions, info.max_message_bytes or DEFAULT_MESSAGE_BYTES)


def requests_of(group: Group, options: RewardOptions, limits: Limits) -> list[pb.ScoreRequest]:
    """The requests of a group, each within the limits; none where there is no completion. Raises UsageError."""
    if isinstance(group.completions, str):
        raise UsageError("completions should be a list of completions, not one text")
    shell = _prompt_request(group.messages, options)
    completions = [_completion(one) for one in group.completions]
    room = limits.max_message_bytes - shell.ByteSize() - FRAME_BYTES
    return [
        pb.ScoreRequest(
            messages=shell.messages if shell.HasField("messages") else None,
            prompt_token_ids=shell.prompt_token_ids if shell.HasField("prompt_token_ids") else None,
            completions=piece,
            options=shell.options,
        )
        for piece in _pieces(completions, options, limits.max_completions, room)
    ]


def _pieces(
    completions: Sequence[pb.Completion], options: RewardOptions, max_completions: int, room: int
) -> Iterator[list[pb.Completion]]:
    """The completions in runs of at most `max_completions` that fill at most `room` bytes."""
    piece: list[pb.Completion] = []
    used = 0
    for index, completion in enumerate(completions):
        size = _message_bytes(completion, options)
        if size > room:
            raise UsageError(
                f"completion {index} with its prompt needs a message of {size} bytes, where {max(room, 0)} are left; "
                "raise the server's max_message_bytes, or leave it out"
            )
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
    for item in prompt:
        if isinstance(item, int):
            request.prompt_token_ids.ids.append(item)
        elif isinstance(item, Mapping) and all(isinstance(item.get(key), str) for key in ("role", "content")):
            request.messages.messages.add(role=item["role"], content=item["content"])
        else:
            raise UsageError(f"a message needs role and content, both texts; this one is {_shape(item)}")
    return request


def _shape(item: object) -> str:
    if isinstance(item, Mapping):
        return ", ".join(f"{key}: {type(value).__name__}" for key, value in item.items()) or "empty"
    return f"a {type(item).__name__}"


def _completion(content: CompletionContent) -> pb.Completion:
    if isinstance(content, str):
        content = CompletionText(content)
    if isinstance(content, CompletionText):
        return pb.Completion(text=pb.CompletionText(text=content.text, is_finished=content.is_finished))
    return pb.Completion(token_ids=pb.TokenIds(ids=content))


def _wire_options(options: RewardOptions) -> pb.ScoreOptions:
    return pb.ScoreOptions(
        normalization=_enum_name("normalization", options.normalization),
        beta=options.beta,
        eos_policy=_enum_name("eos_policy", options.eos_policy),
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

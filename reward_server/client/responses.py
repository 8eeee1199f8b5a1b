"""Responses of a server: messages of the wire -> the rewards of a group, with its parts put back together. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, overload

from reward_server.client.requests import GroupRequests
from reward_server.pb import reward_pb2 as pb
from winnow.errors import ServerError
from winnow.reward_options import RewardOptions


@dataclass(frozen=True)
class ScoredCompletion:
    """The reward of one completion; logps are natural logarithms, summed over `num_tokens` scored tokens.

    `status` is "ok", or a name of `winnow.v1.Status` in lower case ("too_long", ...); then the numbers are None. The
    base model's numbers are None where reference-free, the tokens' where they were not asked for.
    """

    status: str
    error: str
    reward: float | None
    instruct_logp: float | None
    base_logp: float | None
    log_ratio: float | None
    num_tokens: int
    normalization: str
    is_eos_scored: bool
    is_truncated: bool
    token_ids: tuple[int, ...] | None
    instruct_token_logprobs: tuple[float, ...] | None
    base_token_logprobs: tuple[float, ...] | None

    @property
    def is_invalid_prompt(self) -> bool:
        """True for an invalid prompt: a mistake in the data set, which must not get a fallback reward."""
        return self.status == "invalid_conversation"


@dataclass(frozen=True)
class RewardDefinition:
    """Everything that decides a reward besides prompt and completion (`winnow.v1.RewardDefinition`).

    Rewards of equal definitions compare, within a prompt.
    """

    recipe: str
    normalization: str
    beta: float
    eos_policy: str
    is_reference_free: bool
    base_prompt: str
    instruction: str
    instruction_scope: str
    instruct_weight_hash: str
    base_weight_hash: str
    instruct_template_hash: str
    base_template_hash: str


@dataclass(frozen=True)
class ScoredGroup(Sequence[ScoredCompletion]):
    """The rewards of a group: an immutable sequence of its completions, in order, that keeps its definition.

    A slice is a ScoredGroup of the same definition.
    """

    completions: tuple[ScoredCompletion, ...] = ()
    definition: RewardDefinition | None = None
    """What the rewards were made with; None if there was nothing to score."""

    def __len__(self) -> int:
        return len(self.completions)

    def __iter__(self) -> Iterator[ScoredCompletion]:
        return iter(self.completions)

    @overload
    def __getitem__(self, index: int) -> ScoredCompletion: ...

    @overload
    def __getitem__(self, index: slice) -> "ScoredGroup": ...

    def __getitem__(self, index: int | slice) -> "ScoredCompletion | ScoredGroup":
        if isinstance(index, slice):
            return ScoredGroup(self.completions[index], self.definition)
        return self.completions[index]


def scored_group(requests: GroupRequests, responses: Sequence[pb.ScoreResponse], options: RewardOptions) -> ScoredGroup:
    """Put the responses to a group's requests together. Raises ServerError if they do not belong together."""
    scores: list[pb.CompletionScore] = []
    definitions = set()
    for request, response in zip(requests.requests, responses, strict=True):
        if len(response.completions) != len(request.completions):
            raise ServerError(
                f"the reward server answered {len(response.completions)} of {len(request.completions)} completions; "
                "run a server of this version"
            )
        scores.extend(response.completions)
        definitions.add(_parse_definition(response.definition))
    _check_options_were_followed(definitions, options)
    if len(definitions) > 1:
        raise ServerError(
            "the servers give rewards of different definitions, which do not compare; let all of them load the same "
            "models and templates"
        )
    # In rising order of the index, so that each completion lands in its place among those that were sent.
    for index, error in sorted(requests.too_large.items()):
        scores.insert(index, pb.CompletionScore(status=pb.STATUS_TOO_LONG, error=error))
    completions = tuple(_parse_score(score, options) for score in scores)
    return ScoredGroup(completions, next(iter(definitions), None))


def _check_options_were_followed(definitions: Iterable[RewardDefinition], options: RewardOptions) -> None:
    """Raise ServerError if a server ignored an option: servers that are older than the option do so silently."""
    defaults = RewardOptions()
    for name in ("recipe", "instruction"):
        value = getattr(options, name)
        if value == getattr(defaults, name):
            continue
        if any(getattr(definition, name) != value for definition in definitions):
            raise ServerError(
                f"the reward server passed over the option {name}: it is older than that; run a server of this version"
            )


def _parse_definition(definition: pb.RewardDefinition) -> RewardDefinition:
    return RewardDefinition(**{field.name: getattr(definition, field.name) for field in fields(RewardDefinition)})


def _parse_score(score: pb.CompletionScore, options: RewardOptions) -> ScoredCompletion:
    unscored = ScoredCompletion(
        status=pb.Status.Name(score.status).removeprefix("STATUS_").lower(),
        error=score.error,
        reward=None,
        instruct_logp=None,
        base_logp=None,
        log_ratio=None,
        num_tokens=score.num_tokens,
        normalization=options.normalization,
        is_eos_scored=score.is_eos_scored,
        is_truncated=score.is_truncated,
        token_ids=None,
        instruct_token_logprobs=None,
        base_token_logprobs=None,
    )
    if score.status != pb.STATUS_OK:
        return unscored
    has_base = score.HasField("base_logp")
    numbers: dict[str, Any] = {"reward": score.reward, "instruct_logp": score.instruct_logp}
    if score.normalization:  # older servers do not send it
        numbers["normalization"] = pb.Normalization.Name(score.normalization).removeprefix("NORMALIZATION_").lower()
    if has_base:
        numbers["base_logp"] = score.base_logp
        numbers["log_ratio"] = score.log_ratio
    if options.want_token_logprobs:
        numbers["token_ids"] = tuple(score.token_ids)
        numbers["instruct_token_logprobs"] = tuple(score.instruct_token_logprobs)
    if options.want_token_logprobs and has_base:
        numbers["base_token_logprobs"] = tuple(score.base_token_logprobs)
    return replace(unscored, **numbers)

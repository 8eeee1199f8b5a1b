"""Responses of a server: messages of the wire -> the rewards of a group, with its parts put back together. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from pydantic import ValidationError

from reward_server.client.requests import GroupRequests
from reward_server.pb import reward_pb2 as pb
from winnow.errors import ServerError, first_line
from winnow.reward_options import RewardOptions, RewardSpec


@dataclass(frozen=True)
class ScoredCompletion:
    """The reward of one completion, or the reason why it has none.

        status                    "ok", or a name of `winnow.v1.Status` in lower case, like "too_long"
        error                     fault and remedy; empty if the status is "ok"
        reward                    the scalar to maximise; compares within a prompt only
        instruct_logp, base_logp  log-probability of the completion, summed over its scored tokens; natural logarithm
        log_ratio                 instruct_logp - base_logp
        num_tokens                number of scored tokens, in the instruct model's vocabulary
        normalization             "sum" of the tokens' log-ratios, or their "mean"
        is_eos_scored             True if the closing EOS is among the scored tokens
        is_truncated              True if the policy did not end the turn itself
        token_ids                 ids of the scored tokens
        instruct_token_logprobs   natural log-probability of each scored token under the instruct model
        base_token_logprobs       the same under the base model

    The reward, the logps and the log_ratio are None unless the status is "ok". The base model's values are None if the
    reward is reference-free, and the tokens' values are None unless `want_token_logprobs` was set.
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
        """True if the prompt is invalid: a mistake in the data set, which must not get a fallback reward."""
        return self.status == "invalid_conversation"


class RewardDefinition(RewardSpec):
    """Everything that decides a reward besides the prompt and the completion (`winnow.v1.RewardDefinition`).

        normalization, beta, ...                       the options of RewardSpec, with the EOS policy that was used
        base_prompt                                    as in ServerInfo
        instruct_weight_hash, base_weight_hash         as in ModelInfo
        instruct_template_hash, base_template_hash     as in ModelInfo

    Within a prompt, rewards of equal definitions compare. The base model's fields are empty if the reward is
    reference-free. An option that makes no difference has its default.
    """

    base_prompt: str = ""
    instruct_weight_hash: str = ""
    base_weight_hash: str = ""
    instruct_template_hash: str = ""
    base_template_hash: str = ""


@dataclass(frozen=True)
class ScoredGroup(Sequence[ScoredCompletion]):
    """The rewards of a group: an immutable sequence of one ScoredCompletion for each completion, in order.

        completions   the elements of the sequence, as a tuple
        definition    the RewardDefinition of the rewards; None if there was nothing to score

    A slice is a ScoredGroup with the same definition.
    """

    completions: tuple[ScoredCompletion, ...] = ()
    definition: RewardDefinition | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "completions", tuple(self.completions))

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
    """Put the responses to a group's requests together. Raises ServerError if they do not fit together."""
    scores: list[pb.CompletionScore] = []
    definitions = set()
    for request, response in zip(requests.requests, responses, strict=True):
        if len(response.completions) != len(request.completions):
            raise ServerError(
                f"the reward server returned {len(response.completions)} rewards for {len(request.completions)} "
                "completions; run a server of this version"
            )
        scores.extend(response.completions)
        definitions.add(_parse_definition(response.definition))
    _check_options_were_followed(definitions, options)
    if len(definitions) > 1:
        raise ServerError(
            "the servers' rewards have different definitions, so they do not compare; let all servers load the same "
            "models and templates"
        )
    # In ascending order of the index, so that each completion lands in its place among those that were sent.
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
                f"the reward server is older than the option {name} and ignored it; run a server of this version"
            )


def _parse_definition(definition: pb.RewardDefinition) -> RewardDefinition:
    """Return a definition from the wire. Raises ServerError if it has a value that this client does not know."""
    values = {}
    for name in RewardDefinition.model_fields:
        value = getattr(definition, name)
        if value:  # an empty field makes no difference
            values[name] = value
    try:
        return RewardDefinition(**values)
    except ValidationError as error:
        raise ServerError(
            f"the reward server is of a version that this client does not know ({first_line(error)}); update the client"
        ) from None


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

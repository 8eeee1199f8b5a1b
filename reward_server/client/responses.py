"""What a server answered: messages of the wire -> the scores of a group, whose pieces are put back together. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from reward_server.client.requests import GroupRequests, RewardOptions
from reward_server.pb import reward_pb2 as pb
from winnow.errors import ServerError


@dataclass(frozen=True)
class ScoredCompletion:
    """What the server says of one completion; logps are natural logarithms, summed over `num_tokens` scored tokens.

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
        """Whether there is no score because the prompt is no conversation, which no made-up score should hide."""
        return self.status == "invalid_conversation"


@dataclass(frozen=True)
class RewardDefinition:
    """What decided a reward beside prompt and completion (`winnow.v1.RewardDefinition`); equal ones compare."""

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


class ScoredGroup(list[ScoredCompletion]):
    """The scores of a group's completions, in order; `definition` says how they were made (None: nothing to score)."""

    def __init__(
        self, completions: Iterable[ScoredCompletion] = (), definition: RewardDefinition | None = None
    ) -> None:
        super().__init__(completions)
        self.definition = definition


def scored_group(asked: GroupRequests, responses: Sequence[pb.ScoreResponse], options: RewardOptions) -> ScoredGroup:
    """The scores of a group that was asked for in one or several requests. Raises ServerError."""
    for request, response in zip(asked.requests, responses, strict=True):
        if len(response.completions) != len(request.completions):
            raise ServerError(
                f"the reward server answered {len(response.completions)} of {len(request.completions)} completions; "
                "run a server of this version"
            )
    definitions = {_definition(response.definition) for response in responses}
    _check_followed(definitions, options)
    if len(definitions) > 1:
        raise ServerError(
            "the servers give rewards of different definitions, which do not compare; let all of them load the same "
            "models and templates"
        )
    answered = [score for response in responses for score in response.completions]
    for index, error in sorted(asked.too_large.items()):
        answered.insert(index, pb.CompletionScore(status=pb.STATUS_TOO_LONG, error=error))
    return ScoredGroup((_scored(score, options) for score in answered), next(iter(definitions), None))


def _check_followed(definitions: Iterable[RewardDefinition], options: RewardOptions) -> None:
    """Raise ServerError where a server passed over an option: one that is older than the option does so in silence."""
    for name in ("recipe", "instruction"):
        asked = getattr(options, name)
        is_default = asked == getattr(RewardOptions, name)
        if not is_default and any(getattr(definition, name) != asked for definition in definitions):
            raise ServerError(
                f"the reward server passed over the option {name}: it is older than that; run a server of this version"
            )


def _definition(definition: pb.RewardDefinition) -> RewardDefinition:
    return RewardDefinition(**{field.name: getattr(definition, field.name) for field in fields(RewardDefinition)})


def _scored(score: pb.CompletionScore, options: RewardOptions) -> ScoredCompletion:
    is_ok = score.status == pb.STATUS_OK
    has_tokens = is_ok and options.want_token_logprobs
    has_base = is_ok and score.HasField("base_logp")
    return ScoredCompletion(
        status=pb.Status.Name(score.status).removeprefix("STATUS_").lower(),
        error=score.error,
        reward=score.reward if is_ok else None,
        instruct_logp=score.instruct_logp if is_ok else None,
        base_logp=score.base_logp if has_base else None,
        log_ratio=score.log_ratio if has_base else None,
        num_tokens=score.num_tokens,
        normalization=_normalization(score) if is_ok and score.normalization else options.normalization,
        is_eos_scored=score.is_eos_scored,
        is_truncated=score.is_truncated,
        token_ids=tuple(score.token_ids) if has_tokens else None,
        instruct_token_logprobs=tuple(score.instruct_token_logprobs) if has_tokens else None,
        base_token_logprobs=tuple(score.base_token_logprobs) if has_tokens and has_base else None,
    )


def _normalization(score: pb.CompletionScore) -> str:
    return pb.Normalization.Name(score.normalization).removeprefix("NORMALIZATION_").lower()

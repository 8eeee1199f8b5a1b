"""The pair of models whose log-ratio is the reward: instruct and base, each with its renderer and engine.

    group -> tokens of each completion, for either model -> log-probabilities of either model -> rewards

A completion that cannot be scored gets an outcome with a status of its own; the others go on. Both models must have one
tokenizer: with two, each model sums over tokens of its own, and that must be asked for by name.
"""

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from reward_server.engines import Logprobs, ScoringEngine, TokenGroup
from reward_server.scoring.rendering import Ids, PromptGroup, Renderer, Rendering, ScoredTokens, with_instruction
from reward_server.scoring.reward import LogRatio, Normalization, log_ratio_reward
from reward_server.scoring.spans import EosPolicy, UnscorableError

InstructionScope = Literal["both", "instruct_only"]
Recipe = Literal["winnow", "rewardbench"]
TokenPair = tuple[ScoredTokens, ScoredTokens]
# Of each work.
Groups = Sequence[Sequence[TokenGroup]]


@dataclass(frozen=True)
class Options:
    """How the reward is made.

    Recipe "rewardbench" renders and cuts by itself (reward_server/scoring/rewardbench.py). It goes with the sum,
    beta 1, every EOS and no instruction.
    """

    normalization: Normalization = "sum"
    beta: float = 1.0
    eos_policy: EosPolicy = "if_finished"
    is_reference_free: bool = False
    instruction: str = ""
    instruction_scope: InstructionScope = "both"
    recipe: Recipe = "winnow"


@dataclass(frozen=True)
class CompletionResult:
    """The answer for one completion: `status` is "ok" and the rest is set, or it is not and `error` says why."""

    status: str = "ok"
    error: str = ""
    ratio: LogRatio | None = None
    tokens: ScoredTokens | None = None
    instruct_logprobs: Logprobs | None = None
    base_logprobs: Logprobs | None = None


@dataclass(frozen=True)
class RenderedGroup:
    """A rendered group: what cannot be scored, and of the rest what the instruct and the base model read; by index."""

    options: Options
    refused: dict[int, CompletionResult]
    tokens: dict[int, TokenPair]

    @cached_property
    def instruct_groups(self) -> list[TokenGroup]:
        """What the instruct model reads: one group, or none, or several where a recipe cuts prompts differently."""
        return _token_groups([ours for ours, _ in self.tokens.values()])

    @cached_property
    def base_groups(self) -> list[TokenGroup]:
        """What the base model reads; nothing where the reward does without it."""
        return [] if self.options.is_reference_free else _token_groups([theirs for _, theirs in self.tokens.values()])

    @property
    def num_tokens(self) -> int:
        """Tokens to compute, both models' together, each prompt once."""
        groups = [*self.instruct_groups, *self.base_groups]
        return sum(len(group.prompt_ids) + sum(map(len, group.completions)) for group in groups)


@dataclass(frozen=True)
class ModelFacts:
    """What is loaded on one side of the pair."""

    name: str
    weight_hash: str
    tokenizer_hash: str
    template_hash: str
    chat_template: str
    dtype: str
    device: str


@dataclass(frozen=True)
class ScoredModel:
    """One model of the pair."""

    renderer: Renderer
    engine: ScoringEngine
    facts: ModelFacts


@dataclass(frozen=True)
class Pair:
    """The two models. Not safe for threads: one group at a time."""

    instruct: ScoredModel
    base: ScoredModel
    has_shared_tokenizer: bool
    is_base_plain: bool

    def refusal(self, group: PromptGroup, options: Options) -> str:
        """Why this pair can score no such group, or an empty text."""
        has_ids = any(isinstance(part, Ids) for part in (group.prompt, *group.completions))
        if has_ids and not self.has_shared_tokenizer:
            return "the models have different tokenizers, so token ids mean nothing to one of them; send texts"
        if isinstance(group.prompt, Ids) and self.is_base_plain:
            return "the base model reads prompts in a plain form of its own; send the prompt as messages"
        if options.recipe == "rewardbench" and not self.has_shared_tokenizer:
            return "RewardBench has one tokenizer for both models, and these have two; take recipe winnow"
        return ""

    def prepare(self, group: PromptGroup, options: Options) -> RenderedGroup:
        """Render a group. Needs no model and changes nothing, so that any thread may do it beside `score`."""
        refused: dict[int, CompletionResult] = {}
        tokens: dict[int, TokenPair] = {}
        for index, (ours, theirs) in enumerate(self._renderings(group, options)):
            if isinstance(ours, UnscorableError):
                refused[index] = CompletionResult(ours.status, str(ours))
            elif isinstance(theirs, UnscorableError):
                refused[index] = CompletionResult(theirs.status, str(theirs))
            else:
                tokens[index] = (ours, theirs)
        return RenderedGroup(options, refused, tokens)

    def score(self, works: Sequence[RenderedGroup]) -> list[list[CompletionResult]]:
        """The outcome of each completion of each group, in order. One call at a time."""
        instruct, base = self._logprobs_of_both(
            [work.instruct_groups for work in works], [work.base_groups for work in works]
        )
        return [_outcomes(*one) for one in zip(works, instruct, base, strict=True)]

    def _logprobs_of_both(self, ours: Groups, theirs: Groups) -> tuple[list[list[Logprobs]], list[list[Logprobs]]]:
        """Either model's answers: one after the other on one device, at the same time where each has its own."""
        if _devices(self.instruct.engine) & _devices(self.base.engine):
            return _logprobs(self.instruct.engine, ours), _logprobs(self.base.engine, theirs)
        with ThreadPoolExecutor(1, thread_name_prefix="base") as beside:
            base = beside.submit(_logprobs, self.base.engine, theirs)
            return _logprobs(self.instruct.engine, ours), base.result()

    def _renderings(self, group: PromptGroup, options: Options) -> Iterable[tuple[Rendering, Rendering]]:
        """What the instruct model reads of each completion, and what the base model does; or why not."""
        if options.recipe == "rewardbench":
            both = self.instruct.renderer.rewardbench_group(group)
            return zip(both, both, strict=True)
        conditioned = with_instruction(group, options.instruction)
        ours = self.instruct.renderer.scored_group(conditioned, options.eos_policy)
        is_same_prompt = not options.instruction or options.instruction_scope == "both"
        if options.is_reference_free or (is_same_prompt and self.base.renderer is self.instruct.renderer):
            return zip(ours, ours, strict=True)
        theirs = self.base.renderer.scored_group(conditioned if is_same_prompt else group, options.eos_policy)
        return zip(ours, theirs, strict=True)


def _token_groups(tokens: Sequence[ScoredTokens]) -> list[TokenGroup]:
    """The completions in order, those that follow each other with one prompt in one group."""
    runs = itertools.groupby(tokens, key=lambda one: one.prompt_ids)
    return [TokenGroup(prompt_ids, [one.span.token_ids for one in run]) for prompt_ids, run in runs]


def _devices(engine: ScoringEngine) -> set[str]:
    return set(engine.device.split(", "))


def _logprobs(engine: ScoringEngine, groups: Groups) -> list[list[Logprobs]]:
    """The log-probabilities of each work's completions, in order; all works' groups in one call."""
    flat = [group for one in groups for group in one]
    answers = engine.logprobs(flat) if flat else []
    if [len(answer) for answer in answers] != [len(group.completions) for group in flat]:
        raise RuntimeError("the engine answered other groups than it was asked for")
    of_group = iter(answers)
    return [[values for _ in one for values in next(of_group)] for one in groups]


def _outcomes(work: RenderedGroup, instruct: Sequence[Logprobs], base: Sequence[Logprobs]) -> list[CompletionResult]:
    """The outcomes of a group from the log-probabilities of what could be scored."""
    outcomes = dict(work.refused)
    for place, (index, (ours, _)) in enumerate(work.tokens.items()):
        outcomes[index] = _outcome(ours, instruct[place], base[place] if base else None, work.options)
    return [outcomes[index] for index in sorted(outcomes)]


def _outcome(tokens: ScoredTokens, instruct: Logprobs, base: Logprobs | None, options: Options) -> CompletionResult:
    own = None if base is None else base.tolist()
    ratio = log_ratio_reward(instruct.tolist(), own, normalization=options.normalization, beta=options.beta)
    if not ratio.is_finite:
        return CompletionResult(
            "non_finite", "a model gave a log-probability that is not finite; check weights and dtype"
        )
    return CompletionResult(ratio=ratio, tokens=tokens, instruct_logprobs=instruct, base_logprobs=base)

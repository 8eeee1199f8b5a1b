"""The pair of models whose log-ratio is the reward: instruct and base, each with its renderer and engine.

    group -> RenderedGroup -> log-probabilities under each model -> CompletionResult of each completion

A completion that cannot be scored gets a result with a status of its own; the others are scored. Both models must have
one tokenizer. With two, each model sums over its own tokens; the config must accept that explicitly.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from reward_server.engines import Logprobs, ModelName, ScoringEngine, TokenGroup
from reward_server.engines.caching import LogprobCache
from reward_server.groups import Group, is_token_ids
from reward_server.scoring.rendering import Renderer, Rendering, with_instruction
from reward_server.scoring.reward import CompletionResult, log_ratio_reward
from reward_server.scoring.spans import RenderedCompletion, UnscorableError
from winnow.reward_options import RewardOptions


@dataclass(frozen=True)
class RenderedGroup:
    """A rendered group. The keys of its dicts are the indices of completions.

    `refused` holds the results of completions that cannot be scored. `instruct` and `base` hold the tokens that each
    model reads of the others; `base` is empty if the reward is reference-free.
    """

    options: RewardOptions
    refused: dict[int, CompletionResult]
    instruct: dict[int, RenderedCompletion]
    base: dict[int, RenderedCompletion]

    @cached_property
    def instruct_groups(self) -> list[TokenGroup]:
        """Input of the instruct model: one group, or none, or several where a recipe cuts prompts differently."""
        return _token_groups(self.instruct)

    @cached_property
    def base_groups(self) -> list[TokenGroup]:
        """Input of the base model; empty if the reward is reference-free."""
        return _token_groups(self.base)

    @property
    def num_tokens(self) -> int:
        """Number of tokens to compute, both models together, each prompt once."""
        num_tokens = 0
        for group in [*self.instruct_groups, *self.base_groups]:
            num_tokens += len(group.prompt_ids) + sum(map(len, group.completions))
        return num_tokens


@dataclass(frozen=True)
class ModelFacts:
    """Description of a loaded model."""

    name: str
    weight_hash: str
    tokenizer_hash: str
    template_hash: str
    end_of_turn_id: int
    chat_template: str
    dtype: str
    device: str


@dataclass(frozen=True)
class ScoredModel:
    """One model of the pair; `cache`, if any, holds log-probabilities that it computed before."""

    name: ModelName
    renderer: Renderer
    engine: ScoringEngine
    facts: ModelFacts
    cache: LogprobCache | None = None

    def logprobs(self, groups: Sequence[TokenGroup]) -> tuple[list[list[Logprobs]], list[int]]:
        """Return the log-probabilities of each group's completions, and how many of each group were in the cache."""
        if self.cache is None:
            return self._compute(groups), [0] * len(groups)
        namespace = (self.name, self.facts.weight_hash, self.facts.template_hash)
        return self.cache.logprobs(self._compute, groups, namespace)

    def _compute(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        """Call the engine. Raises RuntimeError for results of another shape than the groups."""
        if not groups:
            return []
        logprobs = self.engine.logprobs(groups)
        if [len(values) for values in logprobs] != [len(group.completions) for group in groups]:
            raise RuntimeError("the engine returned results for other groups than those of the call")
        return logprobs


@dataclass(frozen=True)
class Pair:
    """The two models. Not safe for threads: one group at a time."""

    instruct: ScoredModel
    base: ScoredModel
    has_shared_tokenizer: bool
    is_base_plain: bool

    def with_cache(self, cache: LogprobCache) -> "Pair":
        """Return the pair with one cache for both models, which share its size but not its entries."""
        return replace(self, instruct=replace(self.instruct, cache=cache), base=replace(self.base, cache=cache))

    def refusal(self, group: Group, options: RewardOptions) -> str:
        """Return the reason why this pair cannot score a group of this kind; an empty text if it can."""
        has_prompt_ids = is_token_ids(group.prompt)
        has_ids = has_prompt_ids or any(map(is_token_ids, group.completions))
        if has_ids and not self.has_shared_tokenizer:
            return "the models have different tokenizers, so token ids mean nothing to one of them; send texts"
        if has_prompt_ids and self.is_base_plain:
            return "the base model reads prompts in a plain form of its own; send the prompt as messages"
        if options.recipe == "rewardbench" and not self.has_shared_tokenizer:
            return "RewardBench has one tokenizer for both models, and these have two; take recipe winnow"
        return ""

    def render(self, group: Group, options: RewardOptions) -> RenderedGroup:
        """Render a group for both models. Needs no engine; any thread may call it while another one is in `score`."""
        refused: dict[int, CompletionResult] = {}
        instruct: dict[int, RenderedCompletion] = {}
        base: dict[int, RenderedCompletion] = {}
        instruct_renderings, base_renderings = self._render_for_both(group, options)
        for index, rendering in enumerate(instruct_renderings):
            base_rendering = base_renderings[index]
            if isinstance(rendering, UnscorableError):
                refused[index] = CompletionResult(rendering.status, str(rendering))
            elif isinstance(base_rendering, UnscorableError):
                refused[index] = CompletionResult(base_rendering.status, str(base_rendering))
            else:
                instruct[index] = rendering
                if not options.is_reference_free:
                    base[index] = base_rendering
        return RenderedGroup(options, refused, instruct, base)

    def score(self, groups: Sequence[RenderedGroup]) -> tuple[list[list[CompletionResult]], list[int]]:
        """Score the groups in one batch. One call at a time.

        Returns for each group the results of its completions in order, and how many of its completions the instruct
        model's cache held.
        """
        instruct_groups = [group.instruct_groups for group in groups]
        base_groups = [group.base_groups for group in groups]
        if _devices(self.instruct.engine) & _devices(self.base.engine):
            instruct_logprobs, num_cached = _logprobs(self.instruct, instruct_groups)
            base_logprobs, _ = _logprobs(self.base, base_groups)
        else:  # each model has its own devices: both compute at the same time
            with ThreadPoolExecutor(1, thread_name_prefix="base") as thread:
                base_call = thread.submit(_logprobs, self.base, base_groups)
                instruct_logprobs, num_cached = _logprobs(self.instruct, instruct_groups)
                base_logprobs, _ = base_call.result()
        results = [
            _results(group, instruct, base)
            for group, instruct, base in zip(groups, instruct_logprobs, base_logprobs, strict=True)
        ]
        return results, num_cached

    def _render_for_both(self, group: Group, options: RewardOptions) -> tuple[list[Rendering], list[Rendering]]:
        """Render each completion for the instruct and for the base model; only once if both read the same tokens."""
        instruct_renderer = self.instruct.renderer
        if options.recipe == "rewardbench":
            renderings = instruct_renderer.render_rewardbench_group(group)
            return renderings, renderings
        instructed = with_instruction(group, options.instruction)
        renderings = instruct_renderer.render_group(instructed, options.resolved_eos_policy)
        is_same_prompt = not options.instruction or options.instruction_scope == "both"
        if options.is_reference_free or (is_same_prompt and self.base.renderer is instruct_renderer):
            return renderings, renderings
        base_group = group
        if is_same_prompt:
            base_group = instructed
        return renderings, self.base.renderer.render_group(base_group, options.resolved_eos_policy)


def _token_groups(completions: dict[int, RenderedCompletion]) -> list[TokenGroup]:
    """Group the completions in order: neighbours with the same prompt share a group."""
    groups: list[TokenGroup] = []
    scored_ids: list[list[int]] = []
    prompt_ids: list[int] | None = None
    for completion in completions.values():
        if completion.prompt_ids != prompt_ids:
            prompt_ids = completion.prompt_ids
            scored_ids = []
            groups.append(TokenGroup(prompt_ids, scored_ids))
        scored_ids.append(completion.scored_ids)
    return groups


def _logprobs(
    model: ScoredModel, token_groups: Sequence[Sequence[TokenGroup]]
) -> tuple[list[list[Logprobs]], list[int]]:
    """Compute the token groups of all rendered groups in one call of the model.

    Returns for each rendered group the log-probabilities of all its completions, and how many of these were cached.
    """
    logprobs, num_cached = model.logprobs(list(chain.from_iterable(token_groups)))
    logprobs_of_groups: list[list[Logprobs]] = []
    num_cached_of_groups: list[int] = []
    start = 0
    for groups in token_groups:
        end = start + len(groups)
        logprobs_of_groups.append(list(chain.from_iterable(logprobs[start:end])))
        num_cached_of_groups.append(sum(num_cached[start:end]))
        start = end
    return logprobs_of_groups, num_cached_of_groups


def _devices(engine: ScoringEngine) -> set[str]:
    return set(engine.device.split(", "))


def _results(
    group: RenderedGroup, instruct_logprobs: Sequence[Logprobs], base_logprobs: Sequence[Logprobs]
) -> list[CompletionResult]:
    """Return the result of each completion, in order, from the log-probabilities of those that were not refused."""
    results = dict(group.refused)
    for position, (index, rendered) in enumerate(group.instruct.items()):
        base = None
        if group.base:
            base = base_logprobs[position].tolist()
        results[index] = log_ratio_reward(
            instruct_logprobs[position].tolist(),
            base,
            normalization=group.options.normalization,
            beta=group.options.beta,
            rendered=rendered,
        )
    return [results[index] for index in sorted(results)]

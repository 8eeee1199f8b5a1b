"""The pair of models whose log-ratio is the reward: instruct and base, each with its renderer and engine.

    group -> tokens of each completion, for either model -> log-probabilities of either model -> rewards

A completion that cannot be scored gets an outcome with a status of its own; the others go on. Both models must have one
tokenizer: with two, each model sums over tokens of its own, and that must be asked for by name.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from reward_server.engines import Logprobs, ScoringEngine, TokenGroup
from reward_server.engines.loading import load_engines
from reward_server.fingerprint import tokenizer_hash, weight_hash
from reward_server.rendering import Ids, Limits, PromptGroup, Renderer, Rendering, ScoredTokens, with_instruction
from reward_server.reward import LogRatio, Normalization, log_ratio_reward
from reward_server.spans import EosPolicy, UnscorableError
from winnow.chat import Chat, load_tokenizer
from winnow.errors import ChatError, ModelError, UsageError
from winnow.models import check_checkpoint, check_model_path, max_positions
from winnow.records import Message
from winnow.serve_config import ServeConfig

InstructionScope = Literal["both", "instruct_only"]
Recipe = Literal["winnow", "rewardbench"]
TokenPair = tuple[ScoredTokens, ScoredTokens]
# Of each work.
Groups = Sequence[Sequence[TokenGroup]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How the reward is made.

    Recipe "rewardbench" renders and cuts by itself (reward_server/rewardbench.py) and goes with the sum, beta 1, every
    EOS and no instruction.
    """

    normalization: Normalization = "sum"
    beta: float = 1.0
    eos_policy: EosPolicy = "if_finished"
    is_reference_free: bool = False
    instruction: str = ""
    instruction_scope: InstructionScope = "both"
    recipe: Recipe = "winnow"


@dataclass(frozen=True)
class Outcome:
    """The answer for one completion: `status` is "ok" and the rest is set, or it is not and `error` says why."""

    status: str = "ok"
    error: str = ""
    ratio: LogRatio | None = None
    tokens: ScoredTokens | None = None
    instruct_logprobs: Logprobs | None = None
    base_logprobs: Logprobs | None = None


@dataclass(frozen=True)
class Work:
    """A rendered group: what cannot be scored, and of the rest what the instruct and the base model read; by index."""

    options: Options
    refused: dict[int, Outcome]
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
class Side:
    """One model of the pair."""

    renderer: Renderer
    engine: ScoringEngine
    facts: ModelFacts


@dataclass(frozen=True)
class Pair:
    """The two models. Not safe for threads: one group at a time."""

    instruct: Side
    base: Side
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

    def prepare(self, group: PromptGroup, options: Options) -> Work:
        """Render a group. Needs no model and changes nothing, so that any thread may do it beside `score`."""
        refused: dict[int, Outcome] = {}
        tokens: dict[int, TokenPair] = {}
        for index, (ours, theirs) in enumerate(self._renderings(group, options)):
            if isinstance(ours, UnscorableError):
                refused[index] = Outcome(ours.status, str(ours))
            elif isinstance(theirs, UnscorableError):
                refused[index] = Outcome(theirs.status, str(theirs))
            else:
                tokens[index] = (ours, theirs)
        return Work(options, refused, tokens)

    def score(self, works: Sequence[Work]) -> list[list[Outcome]]:
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


def open_pair(config: ServeConfig, starting: Callable[[], list[ScoringEngine]] | None = None) -> Pair:
    """Load both models, or wait for engines that are `starting`. Raises UsageError and ModelError with the ways out."""
    models = (config.instruct, config.base)
    check_models(config)
    tokenizers = [load_tokenizer(model) for model in models]
    hashes = [tokenizer_hash(tokenizer) for tokenizer in tokenizers]
    check_tokenizers(config, *hashes)
    chats = _chats(config, tokenizers, is_shared=hashes[0] == hashes[1])
    for chat in chats:
        check_template(chat)
    engines = starting() if starting else load_engines(config)
    longest = max_tokens(config, [engine.max_tokens for engine in engines])
    renderers = _renderers(chats, engines, longest, is_shared=hashes[0] == hashes[1])
    sides = [
        Side(renderer, engine, _facts(model, renderer.chat, engine, own_hash))
        for model, renderer, engine, own_hash in zip(models, renderers, engines, hashes, strict=True)
    ]
    check_weights(*(side.facts for side in sides))
    return Pair(sides[0], sides[1], hashes[0] == hashes[1], config.base_prompt == "plain")


def _chats(config: ServeConfig, tokenizers: Sequence[Any], *, is_shared: bool) -> list[Chat]:
    """How either model's conversations are rendered. A shared tokenizer is the instruct model's: so is its template."""
    theirs = tokenizers[0] if is_shared else tokenizers[1]
    base_template = "plain" if config.base_prompt == "plain" else config.chat_template
    return [Chat(tokenizers[0], config.chat_template), Chat(theirs, base_template)]


def check_models(config: ServeConfig) -> None:
    """Raise UsageError or ModelError for what the models' files say before any weights are loaded, within milliseconds.

    Of a hub id that is no more than the limit of a copy that is here.
    """
    models = (config.instruct, config.base)
    for model in models:
        check_model_path(model)
    for model in models:
        check_checkpoint(model)
    if config.max_tokens is not None:
        max_tokens(config, [max_positions(model) for model in models])


def check_weights(instruct: ModelFacts, base: ModelFacts) -> None:
    """Say in the log where the two models are one."""
    if instruct.weight_hash == base.weight_hash:
        log.warning(
            "%s and %s hold the same weights: A REWARD IS 0 wherever both read the same tokens; give two models",
            instruct.name,
            base.name,
        )


def check_template(chat: Chat) -> None:
    """Raise ModelError unless the template renders a conversation and closes an assistant turn with EOS."""
    name = chat.tokenizer.name_or_path
    if chat.tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {name!r} has no EOS; set eos_token in its tokenizer_config.json")
    try:
        pair = chat.scored_pair([Message(role="user", content="a")], "b")
    except ChatError as error:
        raise ModelError(f"chat_template {chat.template} does not fit {name!r}: {error}") from error
    if not pair.has_eos:
        raise ModelError(
            f"chat_template {chat.template} does not close an assistant turn with the EOS of {name!r}, "
            f"{chat.tokenizer.eos_token}; set eos_token in its tokenizer_config.json, or take another template"
        )


def check_tokenizers(config: ServeConfig, instruct_hash: str, base_hash: str) -> None:
    """Raise ModelError for tokenizers that differ, unless the config accepts that; then say so in the log."""
    if instruct_hash == base_hash:
        return
    what = f"the tokenizers of {config.instruct!r} ({instruct_hash[:12]}) and {config.base!r} ({base_hash[:12]}) differ"
    if not config.allow_different_tokenizers:
        raise ModelError(
            f"{what}; give a base model with the instruct model's tokenizer, or set allow_different_tokenizers: true, "
            "and each model sums over tokens of its own"
        )
    log.warning("%s: EACH MODEL SCORES TOKENS OF ITS OWN; the rewards are not those of a shared tokenizer", what)


def max_tokens(config: ServeConfig, limits: Sequence[int | None]) -> int:
    """The longest conversation: as configured, at most what both models were made for. Raises UsageError beyond it."""
    own = min((limit for limit in limits if limit), default=None)
    if config.max_tokens is not None and own is not None and config.max_tokens > own:
        raise UsageError(f"max_tokens {config.max_tokens} is more than the models were made for; take at most {own}")
    return config.max_tokens or own or config.token_budget


def _renderers(
    chats: Sequence[Chat], engines: Sequence[ScoringEngine], longest: int, *, is_shared: bool
) -> list[Renderer]:
    """A renderer for each model; one for both where they read the same tokens."""
    sizes = [engine.vocab_size for engine in engines]
    if not is_shared:
        return [Renderer(chat, Limits(size, longest)) for chat, size in zip(chats, sizes, strict=True)]
    instruct, base = (Renderer(chat, Limits(min(sizes), longest)) for chat in chats)
    return [instruct, instruct if base.chat.template_hash == instruct.chat.template_hash else base]


def _facts(model: str, chat: Chat, engine: ScoringEngine, own_hash: str) -> ModelFacts:
    facts = ModelFacts(
        name=model,
        weight_hash=weight_hash(model),
        tokenizer_hash=own_hash,
        template_hash=chat.template_hash,
        chat_template=chat.template,
        dtype=engine.dtype,
        device=engine.device,
    )
    log.info("%s: %s on %s, weights %s", facts.name, facts.dtype, facts.device, facts.weight_hash)
    return facts


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


def _outcomes(work: Work, instruct: Sequence[Logprobs], base: Sequence[Logprobs]) -> list[Outcome]:
    """The outcomes of a group from the log-probabilities of what could be scored."""
    outcomes = dict(work.refused)
    for place, (index, (ours, _)) in enumerate(work.tokens.items()):
        outcomes[index] = _outcome(ours, instruct[place], base[place] if base else None, work.options)
    return [outcomes[index] for index in sorted(outcomes)]


def _outcome(tokens: ScoredTokens, instruct: Logprobs, base: Logprobs | None, options: Options) -> Outcome:
    own = None if base is None else base.tolist()
    ratio = log_ratio_reward(instruct.tolist(), own, normalization=options.normalization, beta=options.beta)
    if not ratio.is_finite:
        return Outcome("non_finite", "a model gave a log-probability that is not finite; check its weights and dtype")
    return Outcome(ratio=ratio, tokens=tokens, instruct_logprobs=instruct, base_logprobs=base)

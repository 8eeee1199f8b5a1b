"""From the config to the pair: the models are checked, loaded and put together; what does not fit is refused by name.

    files -> tokenizers -> templates -> engines -> Pair

What is cheap to know comes first: loading large weights takes minutes.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from reward_server.engines import ScoringEngine
from reward_server.engines.loading import load_engines
from reward_server.scoring.fingerprint import tokenizer_hash, weight_hash
from reward_server.scoring.model_pair import ModelFacts, Pair, ScoredModel
from reward_server.scoring.rendering import Limits, Renderer
from winnow.chat import Chat, load_tokenizer
from winnow.checkpoints import check_checkpoint, max_positions
from winnow.errors import ChatError, ModelError, UsageError
from winnow.models import check_model_path
from winnow.records import Message
from winnow.serve_config import ServeConfig

log = logging.getLogger(__name__)


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
        ScoredModel(renderer, engine, _facts(model, renderer.chat, engine, own_hash))
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

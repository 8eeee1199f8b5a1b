"""From the config to the pair: check the models' files, load tokenizers and templates, and add the engines.

    check_models -> load_chats -> make_pair, with the engines that serving/server.py starts

The checks that take milliseconds come first, because loading large weights takes minutes. An error names the model that
does not fit, and the remedy.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reward_server.engines import ScoringEngine
from reward_server.scoring.model_pair import ModelFacts, Pair, ScoredModel
from reward_server.scoring.rendering import Limits, Renderer
from winnow.chat import Chat, load_tokenizer, make_chat
from winnow.chat.tokenizer_hash import tokenizer_difference, tokenizer_hash
from winnow.checkpoints import check_checkpoint, generation_eos_ids, max_positions
from winnow.errors import ModelError, UsageError
from winnow.fingerprint import weight_hash
from winnow.models import check_model_path
from winnow.serve_config import ServeConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairChats:
    """The tokenizers of both models with their templates, and the tokenizers' hashes.

    Models with equal tokenizers share the instruct model's tokenizer, with its end of turn and the template that comes
    with it: the base model's may name another EOS, or have no template.
    """

    instruct: Chat
    base: Chat
    instruct_tokenizer_hash: str
    base_tokenizer_hash: str

    @property
    def has_shared_tokenizer(self) -> bool:
        """True if both models read the same token ids."""
        return self.instruct_tokenizer_hash == self.base_tokenizer_hash


def check_models(config: ServeConfig) -> None:
    """Raise UsageError or ModelError for faults of the models' files. Takes milliseconds.

    For a hub id, only the position limit of a local copy is checked.
    """
    models = (config.instruct, config.base)
    for model in models:
        check_model_path(model)
    for model in models:
        check_checkpoint(model)
    if config.max_tokens is not None:
        resolve_max_tokens(config, [max_positions(model) for model in models])


def load_chats(config: ServeConfig) -> PairChats:
    """Load the tokenizers and templates of both models. Raises UsageError and ModelError if they do not fit."""
    instruct_tokenizer = _load_tokenizer(config, config.instruct)
    base_tokenizer = _load_tokenizer(config, config.base)
    instruct_hash = tokenizer_hash(instruct_tokenizer)
    base_hash = tokenizer_hash(base_tokenizer)
    instruct = make_chat(config, instruct_tokenizer, generation_eos_ids(config.instruct))
    instruct.check_end_of_turn()
    base_eos_ids = generation_eos_ids(config.base)
    if instruct_hash == base_hash:
        base_tokenizer = _with_eos(instruct_tokenizer, instruct.end_of_turn)
        base_eos_ids = sorted(instruct.stop_ids)
    else:
        refuse_different_tokenizers(config, tokenizer_difference(instruct_tokenizer, base_tokenizer))
    base = instruct
    if config.base_prompt == "plain":
        base = make_chat(config, base_tokenizer, base_eos_ids, template="plain")
    elif instruct_hash != base_hash:
        base = make_chat(config, base_tokenizer, base_eos_ids)
    base.check_end_of_turn()
    return PairChats(instruct, base, instruct_hash, base_hash)


def _with_eos(tokenizer: Any, eos_token: str) -> Any:
    """Return the tokenizer with this EOS, which template `plain` writes at the end of a turn."""
    if tokenizer.eos_token == eos_token:
        return tokenizer
    tokenizer = copy.copy(tokenizer)
    tokenizer.eos_token = eos_token
    return tokenizer


def _load_tokenizer(config: ServeConfig, model: str) -> Any:
    """Load a model's tokenizer, with the config's `eos_token`. Raises ModelError if it lacks that token."""
    tokenizer = load_tokenizer(model)
    if config.eos_token is None:
        return tokenizer
    if config.eos_token not in tokenizer.get_vocab():
        raise ModelError(f"eos_token {config.eos_token!r} is not a token of {model!r}; name the one that closes a turn")
    return _with_eos(tokenizer, config.eos_token)


def make_pair(config: ServeConfig, chats: PairChats, engines: Sequence[ScoringEngine]) -> Pair:
    """Put the pair together; `engines` are those of the instruct and the base model, in this order.

    Raises UsageError and ModelError.
    """
    instruct_engine, base_engine = engines
    max_tokens = resolve_max_tokens(config, [engine.max_tokens for engine in engines])
    instruct_limits = Limits(instruct_engine.vocab_size, max_tokens)
    base_limits = Limits(base_engine.vocab_size, max_tokens)
    if chats.has_shared_tokenizer:
        instruct_limits = Limits(min(instruct_engine.vocab_size, base_engine.vocab_size), max_tokens)
        base_limits = instruct_limits
    instruct_renderer = Renderer(chats.instruct, instruct_limits)
    base_renderer = Renderer(chats.base, base_limits)
    if chats.has_shared_tokenizer and chats.base.template_hash == chats.instruct.template_hash:
        base_renderer = instruct_renderer  # one renderer, because both models read the same tokens
    instruct_facts = _facts(config.instruct, instruct_renderer.chat, instruct_engine, chats.instruct_tokenizer_hash)
    base_facts = _facts(config.base, base_renderer.chat, base_engine, chats.base_tokenizer_hash)
    warn_of_equal_weights(instruct_facts, base_facts)
    return Pair(
        instruct=ScoredModel("instruct", instruct_renderer, instruct_engine, instruct_facts),
        base=ScoredModel("base", base_renderer, base_engine, base_facts),
        has_shared_tokenizer=chats.has_shared_tokenizer,
        is_base_plain=config.base_prompt == "plain",
    )


def warn_of_equal_weights(instruct: ModelFacts, base: ModelFacts) -> None:
    """Warn in the log if both models have the same weights."""
    if instruct.weight_hash == base.weight_hash:
        log.warning(
            "%s and %s hold the same weights: A REWARD IS 0 wherever both read the same tokens; give two models",
            instruct.name,
            base.name,
        )


def refuse_different_tokenizers(config: ServeConfig, difference: str) -> None:
    """Raise ModelError for tokenizers with this difference; if the config accepts that, warn in the log instead."""
    error = f"the tokenizers of {config.instruct!r} and {config.base!r} differ: {difference}"
    if not config.allow_different_tokenizers:
        raise ModelError(
            f"{error}; give a base model with the instruct model's tokenizer, or set allow_different_tokenizers: "
            "true, and each model sums over its own tokens"
        )
    log.warning("%s: EACH MODEL SCORES ITS OWN TOKENS; the rewards are not those of a shared tokenizer", error)


def resolve_max_tokens(config: ServeConfig, limits: Sequence[int | None]) -> int:
    """Return the most tokens of a conversation: the config's limit, else the smaller one of the models' `limits`.

    A limit of None is unknown; if all are unknown, the config's `token_budget` is the limit. Raises UsageError for a
    config that exceeds the models' limits.
    """
    model_limit = min((limit for limit in limits if limit), default=None)
    if config.max_tokens is not None and model_limit is not None and config.max_tokens > model_limit:
        raise UsageError(
            f"max_tokens {config.max_tokens} is more than the models were made for; take at most {model_limit}"
        )
    return config.max_tokens or model_limit or config.token_budget


def _facts(model: str, chat: Chat, engine: ScoringEngine, model_tokenizer_hash: str) -> ModelFacts:
    """Return the description of a loaded model, and write it to the log."""
    facts = ModelFacts(
        name=model,
        weight_hash=weight_hash(model),
        tokenizer_hash=model_tokenizer_hash,
        template_hash=chat.template_hash,
        end_of_turn_id=chat.end_of_turn_id,
        chat_template=chat.template,
        dtype=engine.dtype,
        device=engine.device,
    )
    log.info("%s: %s on %s, weights %s", facts.name, facts.dtype, facts.device, facts.weight_hash)
    return facts

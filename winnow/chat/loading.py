"""A config and a checkpoint -> Chat: the checkpoint's tokenizer with the config's template and settings."""

from collections.abc import Sequence
from typing import Any

from winnow.chat.conversation import Chat
from winnow.chat.tokenizer import load_tokenizer
from winnow.chat_config import ChatConfig
from winnow.checkpoints import generation_eos_ids
from winnow.run_config import PolicyConfig


def load_chat(policy: PolicyConfig, model: str) -> Chat:
    """Return the renderer of a policy's conversations, with the tokenizer of one of its checkpoints.

    Raises ModelError if its template does not close a turn with a token at which sampling stops.
    """
    tokenizer = load_tokenizer(model, policy.eos_token, policy.added_tokens)
    chat = make_chat(policy, tokenizer, generation_eos_ids(model), system_prompt=policy.system_prompt)
    chat.check_end_of_turn()
    return chat


def make_chat(
    config: ChatConfig,
    tokenizer: Any,
    eos_ids: Sequence[int],
    *,
    template: str | None = None,
    system_prompt: str | None = None,
) -> Chat:
    """Return the renderer for a tokenizer, of a model whose generation stops at `eos_ids`, too.

    `template` takes the place of the config's `chat_template`.
    """
    return Chat(
        tokenizer,
        template or config.chat_template,
        system_prompt,
        template_kwargs=config.chat_template_kwargs,
        template_date=config.template_date,
        allow_changed_messages=config.allow_changed_messages,
        generation_eos_ids=eos_ids,
    )

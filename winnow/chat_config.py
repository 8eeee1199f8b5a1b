"""The settings of a chat template, which a policy and a pair of scoring models have in common.

chat_template: tokenizer:tool_use      chat_template_kwargs: {enable_thinking: false}      eos_token: <end_of_turn>
"""

from datetime import date
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from winnow.config import Section

# The date that Llama 3.1 and 3.2 write if nobody tells them another.
DEFAULT_TEMPLATE_DATE = date(2024, 7, 26)
# What a template receives from winnow, and the parameters of transformers' apply_chat_template.
RESERVED_VARIABLES = {
    *("messages", "conversation", "tools", "documents", "date_string", "strftime_now", "document_bos"),
    *("chat_template", "add_generation_prompt", "continue_final_message", "tokenizer_kwargs"),
    *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    "return_assistant_tokens_mask",
}


def _check_variables(variables: dict[str, Any]) -> dict[str, Any]:
    """Raise ValueError for a variable of a template that is set elsewhere."""
    reserved = sorted(RESERVED_VARIABLES & variables.keys())
    if reserved:
        raise ValueError(
            f"{', '.join(reserved)} cannot be set here; a date is set by template_date, the rest by winnow"
        )
    return variables


class ChatConfig(Section):
    """The chat template of conversations, and what it may do to them."""

    chat_template: str
    """A name in winnow/templates, `tokenizer`, `tokenizer:NAME` for one of several, or a .jinja file."""
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_check_variables)] = Field(default={})
    """Variables for the template, like {enable_thinking: false} for Qwen3's."""
    eos_token: str | None = Field(default=None, min_length=1)
    """Token that closes an assistant turn, where the template writes another than the tokenizer's own EOS."""
    template_date: date = DEFAULT_TEMPLATE_DATE
    """The date for a template that writes today's; never the clock's, so that a conversation keeps its token ids."""
    allow_changed_messages: bool = False
    """Accept a template that leaves out, adds or changes text of a conversation, like a system message or reasoning."""

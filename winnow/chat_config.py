"""The settings of a chat template, which a policy and a pair of scoring models have in common.

chat_template: tokenizer:tool_use      template_date: 2024-07-26      eos_token: <end_of_turn>
"""

from datetime import date

from winnow.config import Section

# The date that Llama 3.1 and 3.2 write if nobody tells them another.
DEFAULT_TEMPLATE_DATE = date(2024, 7, 26)


class ChatConfig(Section):
    """The chat template of conversations, and what it may do to them."""

    chat_template: str
    """A name in winnow/templates, `tokenizer`, `tokenizer:NAME` for one of several, or a .jinja file."""
    eos_token: str | None = None
    """Token that closes an assistant turn, where the template writes another than the tokenizer's own EOS."""
    template_date: date = DEFAULT_TEMPLATE_DATE
    """The date for a template that writes today's; never the clock's, so that a conversation keeps its token ids."""
    allow_changed_messages: bool = False
    """Accept a template that leaves out, adds or changes text of a conversation, like a system message or reasoning."""

"""Messages -> text and token ids, with the spans that carry loss or score. Nothing else renders a conversation.

    text       = template(messages)           jinja: lab, mixtral, mixtral-hf, plain, tokenizer[:NAME], or a file
    token_ids  = ids(prompt) + ids(assistant turn) + ...   a prompt's ids are a prefix of every continuation's ids
    loss_mask  = True on an assistant turn's text through its end of turn, False elsewhere

Prompts for sampling, completions for scoring, rows for training and questions for evaluation are all rendered here, so
that they agree token for token:

    tokenizer.py      a model folder -> its tokenizer
    templates.py      the name of a template -> its jinja text
    end_of_turn.py    which token closes an assistant turn, and at which ids sampling stops
    turns.py          where each assistant turn stands in a rendered text
    encoding.py       text -> token ids, never with a token across the border of an assistant turn
    conversation.py   Chat, which joins them
    loading.py        a policy's config -> its Chat
"""

from winnow.chat.conversation import Chat, RenderedConversation, check_messages
from winnow.chat.loading import load_chat, make_chat
from winnow.chat.tokenizer import load_tokenizer

__all__ = ["Chat", "RenderedConversation", "check_messages", "load_chat", "load_tokenizer", "make_chat"]

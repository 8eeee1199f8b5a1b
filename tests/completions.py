"""Completions for tests: stored ones for the stages that read them, and the token ids of a text."""

from collections.abc import Sequence

from winnow.chat import Chat
from winnow.errors import ChatError
from winnow.records import Completion, Message


def stored_completion(prompt_id: str, completion_id: int, text: str) -> Completion:
    """Return a finished completion whose text gives its ids back; the ids themselves are made up."""
    return Completion(
        prompt_id=prompt_id,
        completion_id=completion_id,
        text=text,
        token_ids=(7, 1),
        tokenizer_hash="made up",
        has_exact_text=True,
        num_tokens=2,
        is_finished=True,
    )


def encode_completion(chat: Chat, messages: Sequence[Message], completion: str) -> tuple[list[int], list[int]]:
    """Return the token ids of a prompt and of its completion. Raises ChatError for a control token in either."""
    prompt_ids, completion_ids = chat.encode_completions(messages, [completion])
    if isinstance(completion_ids[0], ChatError):
        raise completion_ids[0]
    return prompt_ids, completion_ids[0]

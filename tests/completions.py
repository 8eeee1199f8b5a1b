"""Stored completions for tests of the stages that read them."""

from winnow.records import Completion


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

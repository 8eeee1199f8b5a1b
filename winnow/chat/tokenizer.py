"""A model folder or hub id -> its tokenizer, and the control tokens, which no message or completion may hold."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from winnow.checkpoints import has_tokenizer
from winnow.errors import ModelError
from winnow.models import check_model_path, load_failure


def load_tokenizer(model: str, eos_token: str | None = None, added_tokens: Sequence[str] = ()) -> Any:
    """Load the tokenizer of a local model folder or hub id. Raises ModelError if it has none.

    `eos_token` and `added_tokens` become special tokens if the tokenizer does not have them yet: a base model learns
    the LAB form's headers in SFT, and its embedding grows with them.
    """
    from transformers import AutoTokenizer

    check_model_path(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer could be loaded from {model!r}: {_tokenizer_failure(model, error)}") from error
    if eos_token is not None and tokenizer.eos_token != eos_token:
        tokenizer.add_special_tokens({"eos_token": eos_token})
    missing = [token for token in added_tokens if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(missing, special_tokens=True)
    return tokenizer


def control_tokens(tokenizer: Any, stop_ids: Iterable[int], structure: str) -> dict[int, str]:
    """Return by id the tokens that no message may hold.

    These are the tokenizer's special tokens, and of its other added tokens those at which generation stops and those in
    `structure`, which is what a template writes around messages: DeepSeek's headers are added tokens that are not
    special. A token like <think> may stand in a message.
    """
    tokens = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    stops = set(stop_ids)
    for token_id, token in tokenizer.added_tokens_decoder.items():
        is_structure = token.content.strip() != "" and token.content in structure
        if token.special or token_id in stops or is_structure:
            tokens[token_id] = token.content
    return tokens


def document_bos(tokenizer: Any) -> str:
    """Return the BOS if the tokenizer puts it before a text by itself, else an empty text."""
    if tokenizer.bos_token is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        return str(tokenizer.bos_token)
    return ""


def pattern_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the tokens, the longest first; without tokens it never matches."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _tokenizer_failure(model: str, error: Exception) -> str:
    reason = load_failure(model, error)
    remedy = "give a folder that holds a model and its tokenizer"
    if not Path(model).is_dir():
        return reason
    if has_tokenizer(Path(model)):
        return f"its tokenizer's files cannot be read ({reason}); {remedy}"
    return f"it holds no tokenizer's files; {remedy}"

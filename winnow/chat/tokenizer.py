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


def control_tokens(tokenizer: Any, stop_ids: Iterable[int] = ()) -> dict[int, str]:
    """Return a tokenizer's special tokens by id, with those of its added tokens at which generation stops."""
    tokens = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    stops = set(stop_ids)
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.special or token_id in stops:
            tokens[token_id] = token.content
    return tokens


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

"""Training rows on disk: JSONL files of `{"messages": [...], "metadata": {...}}`, and whether they have changed."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from winnow.errors import UsageError
from winnow.rows import read_jsonl


def read_rows(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The rows of all files, in order. Raises UsageError for a missing file, InputError for a malformed line."""
    return [row for path in paths for _, row in read_jsonl(path)]


def file_hash(path: str | Path) -> str:
    """Sixteen hex digits of the SHA-256 of a file's bytes. Raises UsageError when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give the path of a JSONL file") from None

"""Reading and writing of rows: JSONL for people, Parquet for bulk. Writes are atomic: temporary name, then rename.

read_jsonl("prompts.jsonl")  ->  (1, {"messages": ...}), (2, ...)     line numbers from 1
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from winnow.errors import InputError, UsageError
from winnow.records import Row

RowType = TypeVar("RowType", bound=Row)

_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: its path holds either the old or the new text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:  # if the disk is full, the system's error does not name the file
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value, indented."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Row | dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    lines = []
    for row in rows:
        value = row
        if isinstance(row, Row):
            value = row.model_dump(mode="json")
        lines.append(json.dumps(value, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of each non-empty line. Raises UsageError, and InputError with file and line."""
    for line_number, line in read_lines(path):
        yield line_number, parse_line(line, f"{path} line {line_number}")


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield line number and text of each non-empty line, for `parse_line`. Raises UsageError."""
    try:
        # `surrogateescape` lets bytes that are not UTF-8 pass, so that `parse_line` can report their line.
        file = Path(path).open(encoding="utf-8-sig", errors="surrogateescape")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give the path of a JSONL file") from None
    with file:
        for line_number, line in enumerate(file, start=1):
            if line.strip():
                yield line_number, line.rstrip("\r\n")


def parse_line(line: str, location: str) -> dict[str, Any]:
    """Return the object of a line. Raises InputError, which begins with `location`."""
    try:
        line.encode()
    except UnicodeEncodeError as error:  # `surrogateescape` made halves of surrogate pairs of those bytes
        byte = ord(line[error.start]) - 0xDC00
        raise InputError(
            f"{location}: not UTF-8 text (byte 0x{byte:02x} at column {error.start + 1}); save it as UTF-8"
        ) from None
    try:
        value = json.loads(line)
        if "\\ud" in line.lower():  # an escape may stand for half of a surrogate pair, which no file can hold
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(
            f"{location}: not valid JSON ({error.msg.removesuffix(' at')} at column {error.colno})"
        ) from None
    except UnicodeEncodeError:
        raise InputError(f"{location}: an escape \\ud... is half of a surrogate pair, not a character") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or too deep nesting
        raise InputError(f"{location}: JSON that cannot be read ({str(error).partition(';')[0]})") from None
    if not isinstance(value, dict):
        raise InputError(f"{location}: should be a JSON object, is {kind_of(value)}")
    return value


def count_lines(path: str | Path) -> int:
    """Count the non-empty lines of a file. Raises UsageError."""
    return sum(1 for _ in read_lines(path))


def draw_lines(path: str | Path, num_lines: int, seed: int) -> list[tuple[int, str]]:
    """Draw `num_lines` of a file's non-empty lines, each set of them equally likely; return them in file order.

    The file is read once and never held whole: line n takes the place of a random kept line with probability
    num_lines / n (reservoir sampling). Raises UsageError.
    """
    random = Random(seed)
    kept: list[tuple[int, str]] = []
    for index, line in enumerate(read_lines(path)):
        if index < num_lines:
            kept.append(line)
            continue
        place = random.randrange(index + 1)
        if place < num_lines:
            kept[place] = line
    return sorted(kept)


def read_jsonl_files(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Return the objects of all files, in order. Raises UsageError or InputError as `read_jsonl` does."""
    rows = []
    for path in paths:
        rows += [row for _, row in read_jsonl(path)]
    return rows


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes in hex. Raises UsageError if the file cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give the path of a readable file") from None


def check_json(value: Any, location: str) -> None:
    """Raise InputError for a value with a NaN or an infinity, or nested too deeply: JSON cannot hold those.

    Python reads them from JSON, and 1e999 as infinity; other readers do not. The message begins with `location`.
    """
    try:
        json.dumps(value, allow_nan=False)
    except RecursionError:
        raise InputError(f"{location}: nested too deeply to be written") from None
    except ValueError:
        place, number = next(_non_finite_numbers(value))
        word = json.dumps(number)
        raise InputError(f"{location}: {place} is {word}, which JSON has no word for; write null or a number") from None


def kind_of(value: object) -> str:
    """Return the words for the kind of a JSON value in error messages: "a text", "null"."""
    if value is None:
        return "null"
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of one class as a Parquet file (zstd). A tuple of whole numbers becomes a list of int32."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    table = pa.Table.from_pylist([row.model_dump() for row in rows])
    schema = table.schema
    for index, field in enumerate(schema):
        if type(rows[0]).model_fields[field.name].annotation == tuple[int, ...]:
            # Token ids fit into 32 bits; Arrow would take 64, and no type at all if every list is empty.
            schema = schema.set(index, field.with_type(pa.list_(pa.int32())))
    pq.write_table(table.cast(schema), partial, compression="zstd")
    partial.replace(path)


def read_parquet(path: Path, row_type: type[RowType]) -> list[RowType]:
    """Return the rows of a Parquet file, or of every Parquet file of a folder in the order of their names."""
    import pyarrow.parquet as pq

    files = [path]
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
    rows = []
    for file in files:
        rows += [row_type.model_validate(row) for row in pq.read_table(file).to_pylist()]
    return rows


def _non_finite_numbers(value: Any) -> Iterator[tuple[str, float]]:
    """Yield place and value of each number that is NaN or infinite: ("extra.scores[2]", nan).

    A stack instead of recursion: JSON may be nested more deeply than Python's functions.
    """
    stack = [("", value)]
    while stack:
        place, item = stack.pop()
        if isinstance(item, dict):
            children = [(f"{place}.{key}".removeprefix("."), child) for key, child in item.items()]
            stack += reversed(children)
        elif isinstance(item, list):
            children = [(f"{place}[{index}]", child) for index, child in enumerate(item)]
            stack += reversed(children)
        elif isinstance(item, float) and not math.isfinite(item):
            yield place, item

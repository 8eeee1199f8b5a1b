"""Reading and writing rows: JSONL for people, Parquet for bulk. Files appear whole: temporary name, then rename.

read_jsonl("prompts.jsonl")  ->  (1, {"messages": ...}), (2, ...)     line numbers from 1
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from winnow.errors import InputError, UsageError
from winnow.records import Row

Kind = TypeVar("Kind", bound=Row)

_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def write_text(path: Path, text: str) -> None:
    """Write a file whole: what is seen under its name is either the old or the new text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:  # a full disk, of which the system's own error names no file
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value, indented."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Row | dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    values = (row.model_dump(mode="json") if isinstance(row, Row) else row for row in rows)
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each non-empty line. Raises InputError naming file and line."""
    try:
        # Opened here so that a missing file is one clear error; what is no UTF-8 is found by line.
        file = Path(path).open(encoding="utf-8-sig", errors="surrogateescape")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give the path of a JSONL file") from None
    with file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parse_line(line.rstrip("\r\n"), f"{path} line {number}")


def check_json(value: Any, where: str) -> None:
    """Raise InputError for what was read as JSON and cannot be written as such: NaN and infinities.

    Python reads and writes them; other readers of JSON do not. A number beyond a double, as 1e999, is read as one too.
    """
    try:
        json.dumps(value, allow_nan=False)
    except RecursionError:
        raise InputError(f"{where}: brackets within brackets, too deep to be written") from None
    except ValueError:
        place, number = next(_non_finite(value))
        word = json.dumps(number)
        raise InputError(f"{where}: {place} is {word}, which JSON has no word for; write null or a number") from None


def kind_of(value: object) -> str:
    """What a value of JSON is, as a message says it."""
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of one class as a Parquet file (zstd)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    pq.write_table(pa.Table.from_pylist([row.model_dump() for row in rows]), partial, compression="zstd")
    partial.replace(path)


def read_parquet(path: Path, kind: type[Kind]) -> list[Kind]:
    """Rows of a Parquet file, or of every Parquet file of a folder in the order of their names."""
    import pyarrow.parquet as pq

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    return [kind.model_validate(row) for file in files for row in pq.read_table(file).to_pylist()]


def _parse_line(line: str, where: str) -> dict[str, Any]:
    try:
        line.encode()
    except UnicodeEncodeError as error:  # bytes that were no UTF-8 were read as halves of surrogate pairs
        byte = ord(line[error.start]) - 0xDC00
        raise InputError(
            f"{where}: not UTF-8 text (byte 0x{byte:02x} at column {error.start + 1}); save it as UTF-8"
        ) from None
    try:
        value = json.loads(line)
        if "\\ud" in line.lower():  # only an escape can bring half of a surrogate pair, which no file can hold
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg.removesuffix(' at')} at column {error.colno})") from None
    except UnicodeEncodeError:
        raise InputError(f"{where}: an escape \\ud... is half of a surrogate pair, which is no character") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets
        raise InputError(f"{where}: JSON that cannot be read ({str(error).partition(';')[0]})") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: should be a JSON object, is {kind_of(value)}")
    return value


def _non_finite(value: Any) -> Iterator[tuple[str, float]]:
    """Place and value of each number that is NaN or infinite: ("extra.scores[2]", nan)."""
    left = [("", value)]
    while left:
        place, one = left.pop()
        if isinstance(one, dict):
            left += [(f"{place}.{key}".removeprefix("."), inner) for key, inner in reversed(one.items())]
        elif isinstance(one, list):
            left += [(f"{place}[{index}]", one[index]) for index in reversed(range(len(one)))]
        elif isinstance(one, float) and not math.isfinite(one):
            yield place, one

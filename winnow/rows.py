"""Reading and writing rows: JSONL for people, Parquet for bulk. Files appear whole: temporary name, then rename.

read_jsonl("prompts.jsonl")  ->  (1, {"messages": ...}), (2, ...)     line numbers from 1
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from winnow.errors import InputError, UsageError
from winnow.records import Row

Kind = TypeVar("Kind", bound=Row)


def write_text(path: Path, text: str) -> None:
    """Write a file whole: what is seen under its name is either the old or the new text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


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
        file = Path(path).open(encoding="utf-8-sig")  # noqa: SIM115 - opened here so that a missing file is one clear error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give the path of a JSONL file") from None
    with file:
        for number, line in enumerate(_decoded(file, path), start=1):
            if line.strip():
                yield number, _parse_line(line, f"{path} line {number}")


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


def _decoded(file: Iterable[str], path: str | Path) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None


def _parse_line(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
        if "\\ud" in line.lower():  # only an escape can bring half of a surrogate pair, which no file can hold
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from None
    except UnicodeEncodeError:
        raise InputError(f"{where}: an escape \\ud... is half of a surrogate pair, which is no character") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets
        raise InputError(f"{where}: JSON that cannot be read ({str(error).partition(';')[0]})") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: should be a JSON object, is {type(value).__name__}")
    return value

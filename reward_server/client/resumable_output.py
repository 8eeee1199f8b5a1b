"""A JSONL output that is written row by row and survives a kill: its finished rows are in a file, renamed at the end.

out.jsonl.part          the finished rows, in order; a last line that a kill cut short is dropped
out.jsonl.from.json     the origin of the rows; a run with another origin is refused, and the difference is shown
out.jsonl               appears whole; its origin stays next to it
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from winnow.errors import UsageError, WinnowError
from winnow.rows import write_json

# The origin of an output, in sections: {"options": {"beta": 1.0, ...}, ...}.
Origin = Mapping[str, Mapping[str, Any]]


class PartialOutput:
    """The file of an output's finished rows, of which there are `num_rows`."""

    def __init__(self, path: Path, file: IO[bytes], num_rows: int) -> None:
        self.path = path
        self.num_rows = num_rows
        self._file = file

    def append(self, row: dict[str, Any]) -> None:
        """Add a finished row; it is in the file when this returns. Raises WinnowError if the disk is full."""
        unwritten = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        try:
            # Without the file's buffer, which at close would repeat a write that failed here.
            while unwritten:
                num_bytes = os.write(self._file.fileno(), unwritten)
                unwritten = unwritten[num_bytes:]
        except OSError as error:
            raise self._unwritable(error) from None
        self.num_rows += 1

    def finish(self) -> None:
        """Give the output its name. Raises WinnowError if the disk is full."""
        try:
            os.fsync(self._file.fileno())
            partial_path(self.path).replace(self.path)
        except OSError as error:
            raise self._unwritable(error) from None

    @property
    def kept_message(self) -> str:
        """The end of an error message: how many rows are kept, and how to resume; empty if there are none.

        The rows are counted in the file, because an interruption may come between a row and its count.
        """
        num_rows = _num_lines(partial_path(self.path))
        if num_rows == 0:
            return ""
        rows = "1 finished row is" if num_rows == 1 else f"{num_rows} finished rows are"
        return f"; {rows} kept in {partial_path(self.path)}: continue with --resume"

    def _unwritable(self, error: OSError) -> WinnowError:
        return WinnowError(
            f"{partial_path(self.path)} cannot be written: {error.strerror}; make room, or set another output"
            f"{self.kept_message}"
        )


@contextmanager
def open_partial(
    path: Path, origin: Origin, *, is_resumed: bool, on_finished_row: Callable[[dict[str, Any]], None]
) -> Iterator[PartialOutput]:
    """Yield the partial output of `path`; call `on_finished_row` with each row that an earlier run has finished.

    Raises UsageError if there are rows of an earlier run and `is_resumed` is false, if they have another origin, or if
    another process writes them.
    """
    with _opened(path) as file:
        _lock(file, path)
        num_rows = 0
        if file.tell():
            if not is_resumed:
                raise UsageError(
                    f"{partial_path(path)} holds rows of a run that was stopped; continue with --resume or delete it"
                )
            num_rows = _keep_whole_rows(file, on_finished_row)
        try:
            if num_rows:
                check_origin(path, partial_path(path), origin)
            else:
                _write_origin(path, origin)
            yield PartialOutput(path, file, num_rows)
        except BaseException:
            is_empty = os.fstat(file.fileno()).st_size == 0
            if is_empty:  # nothing to resume
                partial_path(path).unlink(missing_ok=True)
                origin_path(path).unlink(missing_ok=True)
            raise


def partial_path(path: Path) -> Path:
    """Return the path of the finished rows of an output."""
    return path.with_name(path.name + ".part")


def origin_path(path: Path) -> Path:
    """Return the path of the origin of an output's rows."""
    return path.with_name(path.name + ".from.json")


def check_origin(path: Path, rows_path: Path, origin: Origin) -> None:
    """Raise UsageError if the rows in `rows_path` have another origin, as far as the sections of `origin` go."""
    stored = _read_origin(path, rows_path)
    old = _flat({section: stored.get(section, {}) for section in origin})
    new = _flat(origin)
    changes = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            changes.append(f"{key}: {old.get(key)!r} -> {new.get(key)!r}")
    if changes:
        raise UsageError(
            f"{rows_path} was made from something else ({'; '.join(changes)}); undo the change, delete it to start "
            "from scratch, or set another output"
        )


def _read_origin(path: Path, rows_path: Path) -> Origin:
    try:
        origin = json.loads(origin_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        origin = None
    if not isinstance(origin, dict) or not all(isinstance(section, dict) for section in origin.values()):
        raise UsageError(
            f"{origin_path(path)}, which holds the origin of {rows_path}, cannot be read, so --resume cannot check "
            f"it; keep {rows_path} as it is, or delete it to start from scratch"
        )
    return origin


def _write_origin(path: Path, origin: Origin) -> None:
    try:
        write_json(origin_path(path), origin)
    except OSError as error:
        raise UsageError(f"{origin_path(path)} cannot be written: {error.strerror}; set another output") from None


def _flat(origin: Origin) -> dict[str, Any]:
    values = {}
    for section, section_values in origin.items():
        for key, value in section_values.items():
            values[f"{section}.{key}"] = value
    return values


def _opened(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return partial_path(path).open("a+b")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; set another output") from None


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{path} is being written by another process; wait for it or set another output") from None


def _keep_whole_rows(file: IO[bytes], on_finished_row: Callable[[dict[str, Any]], None]) -> int:
    """Cut off everything after the last whole row. Return the number of rows."""
    file.seek(0)
    num_bytes = 0
    num_rows = 0
    for line in file:
        row = _whole_row(line)
        if row is None:
            break
        on_finished_row(row)
        num_bytes += len(line)
        num_rows += 1
    file.truncate(num_bytes)
    return num_rows


def _whole_row(line: bytes) -> dict[str, Any] | None:
    """Return the row of a line; None if the line was cut short."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _num_lines(path: Path) -> int:
    """Count the whole lines of a file, which may be larger than memory; 0 if there is no file."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)

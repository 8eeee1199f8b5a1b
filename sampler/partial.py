"""An output that is written row by row and survives a kill: finished rows beside it, renamed when all are there.

out.jsonl.part          the finished rows, in order; a last line that a kill cut short is dropped
out.jsonl.part.json     what they were made from; another input or option is refused, with the difference shown
out.jsonl               appears whole
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from winnow.errors import UsageError
from winnow.rows import write_json


class PartialOutput:
    """The finished rows of an output; `num_rows` of them were there when it was opened."""

    def __init__(self, path: Path, file: IO[bytes], num_rows: int) -> None:
        self.path = path
        self.num_rows = num_rows
        self._file = file

    def append(self, row: dict[str, Any]) -> None:
        """Add a finished row; it is in the file when this returns."""
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def finish(self) -> None:
        """Give the output its name."""
        os.fsync(self._file.fileno())
        part_path(self.path).replace(self.path)
        header_path(self.path).unlink()


@contextmanager
def open_partial(
    path: Path, header: dict[str, Any], *, is_resumed: bool, seen: Callable[[dict[str, Any]], None]
) -> Iterator[PartialOutput]:
    """The partial output of `path`, made from what `header` says; `seen` is shown each row that is finished already.

    Raises UsageError where rows of an earlier run are in the way, were made from something else, or are being written.
    """
    with _opened(path) as file:
        _lock(file, path)
        if file.tell() and not is_resumed:
            raise UsageError(
                f"{part_path(path)} holds rows of a run that was stopped; go on with --resume or delete it"
            )
        num_rows = _keep_whole_rows(file, seen) if file.tell() else 0
        if num_rows:
            _check_header(path, header)
        else:
            write_json(header_path(path), header)
        try:
            yield PartialOutput(path, file, num_rows)
        except BaseException:
            if not os.fstat(file.fileno()).st_size:  # nothing to go on with
                part_path(path).unlink(missing_ok=True)
                header_path(path).unlink(missing_ok=True)
            raise


def part_path(path: Path) -> Path:
    """Where the finished rows of an output lie."""
    return path.with_name(path.name + ".part")


def header_path(path: Path) -> Path:
    """Where it says what they were made from."""
    return path.with_name(path.name + ".part.json")


def _opened(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return part_path(path).open("a+b")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; set another output") from None


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{path} is being written by another process; wait for it or set another output") from None


def _keep_whole_rows(file: IO[bytes], seen: Callable[[dict[str, Any]], None]) -> int:
    """The number of whole rows; what follows the last of them is cut off."""
    file.seek(0)
    end = num_rows = 0
    for line in file:
        row = _whole_row(line)
        if row is None:
            break
        seen(row)
        end, num_rows = end + len(line), num_rows + 1
    file.truncate(end)
    return num_rows


def _whole_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _check_header(path: Path, header: dict[str, Any]) -> None:
    """Raise UsageError where the finished rows were made from something else."""
    try:
        before = json.loads(header_path(path).read_text())
    except (OSError, ValueError):
        raise UsageError(f"{header_path(path)} cannot be read; delete {part_path(path)} to begin anew") from None
    changed = [
        f"{key}: {before.get(key)!r} -> {header.get(key)!r}"
        for key in sorted(before.keys() | header.keys())
        if before.get(key) != header.get(key)
    ]
    if changed:
        raise UsageError(
            f"{part_path(path)} was made from something else ({'; '.join(changed)}); undo that, or delete it to begin "
            "anew"
        )

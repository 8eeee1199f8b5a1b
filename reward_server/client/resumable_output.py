"""An output that is written row by row and survives a kill: finished rows beside it, renamed when all are there.

out.jsonl.part          the finished rows, in order; a last line that a kill cut short is dropped
out.jsonl.from.json     what they are made from; another input or option is refused, with the difference shown
out.jsonl               appears whole; what it was made from stays beside it
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

# What an output is made from, in sections: {"options": {"beta": 1.0, ...}, ...}.
Origin = Mapping[str, Mapping[str, Any]]


class PartialOutput:
    """The finished rows of an output; `num_rows` of them are there."""

    def __init__(self, path: Path, file: IO[bytes], num_rows: int) -> None:
        self.path = path
        self.num_rows = num_rows
        self._file = file

    def append(self, row: dict[str, Any]) -> None:
        """Add a finished row; it is in the file when this returns. Raises WinnowError where the disk takes no more."""
        left = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        try:
            while left:  # past the file's buffer, which would try to write what failed once more when it is closed
                left = left[os.write(self._file.fileno(), left) :]
        except OSError as error:
            raise self._unwritable(error) from None
        self.num_rows += 1

    def finish(self) -> None:
        """Give the output its name. Raises WinnowError where the disk takes no more."""
        try:
            os.fsync(self._file.fileno())
            part_path(self.path).replace(self.path)
        except OSError as error:
            raise self._unwritable(error) from None

    @property
    def kept(self) -> str:
        """What an error should say of the rows that are finished; empty where there are none.

        Counted in the file: an interruption may fall between a row and its count.
        """
        num_rows = _num_lines(part_path(self.path))
        if not num_rows:
            return ""
        rows = "1 finished row is" if num_rows == 1 else f"{num_rows} finished rows are"
        return f"; {rows} kept in {part_path(self.path)}: go on with --resume"

    def _unwritable(self, error: OSError) -> WinnowError:
        return WinnowError(
            f"{part_path(self.path)} cannot be written: {error.strerror}; make room, or set another output{self.kept}"
        )


@contextmanager
def open_partial(
    path: Path, origin: Origin, *, is_resumed: bool, seen: Callable[[dict[str, Any]], None]
) -> Iterator[PartialOutput]:
    """The partial output of `path`, made from what `origin` says; `seen` is shown each row that is finished already.

    Raises UsageError where rows of an earlier run are in the way, were made from something else, or are being written.
    """
    with _opened(path) as file:
        _lock(file, path)
        if file.tell() and not is_resumed:
            raise UsageError(
                f"{part_path(path)} holds rows of a run that was stopped; go on with --resume or delete it"
            )
        num_rows = _keep_whole_rows(file, seen) if file.tell() else 0
        try:
            if num_rows:
                check_origin(path, part_path(path), origin)
            else:
                _write_origin(path, origin)
            yield PartialOutput(path, file, num_rows)
        except BaseException:
            if not os.fstat(file.fileno()).st_size:  # nothing to go on with
                part_path(path).unlink(missing_ok=True)
                origin_path(path).unlink(missing_ok=True)
            raise


def part_path(path: Path) -> Path:
    """Where the finished rows of an output lie."""
    return path.with_name(path.name + ".part")


def origin_path(path: Path) -> Path:
    """Where it says what they are made from."""
    return path.with_name(path.name + ".from.json")


def check_origin(path: Path, rows_path: Path, origin: Origin) -> None:
    """Raise UsageError where the rows in `rows_path` were made from something else, in any section of `origin`."""
    before = _read_origin(path, rows_path)
    old, new = _flat({section: before.get(section, {}) for section in origin}), _flat(origin)
    changed = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise UsageError(
            f"{rows_path} was made from something else ({'; '.join(changed)}); undo that, delete it to begin anew, or "
            "set another output"
        )


def _read_origin(path: Path, rows_path: Path) -> Origin:
    try:
        origin = json.loads(origin_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        origin = None
    if not isinstance(origin, dict) or not all(isinstance(section, dict) for section in origin.values()):
        raise UsageError(
            f"{origin_path(path)}, which says what {rows_path} was made from, cannot be read, so --resume cannot check "
            f"it; keep {rows_path} as it is, or delete it to begin anew"
        )
    return origin


def _write_origin(path: Path, origin: Origin) -> None:
    try:
        write_json(origin_path(path), origin)
    except OSError as error:
        raise UsageError(f"{origin_path(path)} cannot be written: {error.strerror}; set another output") from None


def _flat(origin: Origin) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, values in origin.items() for key, value in values.items()}


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


def _num_lines(path: Path) -> int:
    """The whole lines of a file, which may be larger than memory; none where it is not there."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def _whole_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None

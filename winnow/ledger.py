"""The append-only record of a run: what finished, from what inputs, how long it took. `--resume` reads nothing else.

    {"piece": "round-01/sample/003", "inputs": "9f0c...", "seconds": 12.4, "finished_at": "...", ...facts}

A piece is a unit of a run's work. Its entry is written last, after its files have appeared. A piece without an entry is
done again and overwrites its files.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Ledger:
    """The ledger file of one run, with one entry per line. A line that a kill cut short is ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[dict[str, Any]]:
        """Return every complete entry, oldest first."""
        if not self.path.exists():
            return []
        entries: list[dict[str, Any]] = []
        for line in self.path.read_text().splitlines():
            entry = _parse_entry(line)
            if entry is not None:
                entries.append(entry)
        return entries

    def pieces(self) -> frozenset[str]:
        """Return the names of the finished pieces."""
        return frozenset(entry["piece"] for entry in self.entries())

    def entry(self, piece: str) -> dict[str, Any] | None:
        """Return the newest entry of a piece; None if it has none."""
        newest = {entry["piece"]: entry for entry in self.entries()}
        return newest.get(piece)

    def inputs_of(self, piece: str) -> str | None:
        """Return the inputs of a piece's newest entry; None if it has none."""
        entry = self.entry(piece)
        if entry is None:
            return None
        inputs: str = entry["inputs"]
        return inputs

    def is_finished(self, piece: str, inputs: str) -> bool:
        """Tell whether a piece was finished from exactly these inputs."""
        return self.inputs_of(piece) == inputs

    @contextmanager
    def record(self, piece: str, inputs: str) -> Iterator[dict[str, Any]]:
        """Time the block, then write the piece's entry with the facts that the block put into the yielded dict.

        A block that raises leaves no entry.
        """
        facts: dict[str, Any] = {}
        start = time.monotonic()
        yield facts
        seconds = round(time.monotonic() - start, 3)
        finished_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._append({"piece": piece, "inputs": inputs, "seconds": seconds, "finished_at": finished_at, **facts})

    def _append(self, entry: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if file.tell() and not self._ends_in_newline():
                file.write(b"\n")
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _ends_in_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def _parse_entry(line: str) -> dict[str, Any] | None:
    """Return the entry of a line; None for a line that was cut short."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    if isinstance(entry, dict) and "piece" in entry:
        return entry
    return None

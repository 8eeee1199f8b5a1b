"""The append-only record of a run: what finished, from what inputs, how long it took. `--resume` reads nothing else.

    {"piece": "round-01/sample/003", "inputs": "9f0c...", "seconds": 12.4, "finished_at": "...", ...facts}

A piece's line is written last, after its files have appeared; a piece without a line is done again, over its own files.
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
    """One run's ledger file. A line that a kill cut short counts as never written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        """Every whole line, oldest first."""
        if not self.path.exists():
            return []
        return [line for text in self.path.read_text().splitlines() if (line := _whole(text))]

    def line(self, piece: str) -> dict[str, Any] | None:
        """The newest line of a piece."""
        return next((line for line in reversed(self.lines()) if line["piece"] == piece), None)

    def is_finished(self, piece: str, inputs: str) -> bool:
        """Whether a piece was finished from just these inputs."""
        line = self.line(piece)
        return line is not None and line["inputs"] == inputs

    @contextmanager
    def record(self, piece: str, inputs: str) -> Iterator[dict[str, Any]]:
        """Time the work done inside; when it ends well, write its line with the facts put into the yielded dict."""
        facts: dict[str, Any] = {}
        start = time.monotonic()
        yield facts
        seconds = round(time.monotonic() - start, 3)
        finished_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._append({"piece": piece, "inputs": inputs, "seconds": seconds, "finished_at": finished_at, **facts})

    def _append(self, line: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if file.tell() and not self._ends_in_newline():
                file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _ends_in_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def _whole(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and "piece" in line else None

"""The results of finished requests in an append-only file, so that a killed job repeats nothing that was paid.

    {"key": "9f0c...", "result": {...}}      one line for each; the key is a hash of all that decides the result

A line that a kill cut short is dropped. The first result of a key stays, also if two equal requests are sent at once.
"""

import json
import threading
from pathlib import Path
from typing import Any


class FinishedRequests:
    """The results in a file by key; threads may share it. The file appears with the first result."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._results: dict[str, dict[str, Any]] = {}
        if path.exists():
            self._read()

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the result of a finished request; None if there is none."""
        with self._lock:
            return self._results.get(key)

    def keep(self, key: str, result: dict[str, Any]) -> dict[str, Any]:
        """Write a result and return it; return the earlier result of the key if it has one."""
        with self._lock:
            if key in self._results:
                return self._results[key]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "result": result}, ensure_ascii=False) + "\n")
            self._results[key] = result
            return result

    def _read(self) -> None:
        """Read every whole line, and cut off the line that a kill cut short. A damaged line is left as it is."""
        content = self.path.read_bytes()
        num_bytes = content.rfind(b"\n") + 1
        for line in content[:num_bytes].splitlines():
            try:
                row = json.loads(line)
                self._results.setdefault(row["key"], row["result"])
            except (ValueError, KeyError, TypeError):
                continue  # its request is sent again
        if num_bytes < len(content):
            with self.path.open("r+b") as file:
                file.truncate(num_bytes)

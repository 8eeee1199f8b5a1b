"""The data of a loaded task: how it differs from the official data, and the hash of its items and examples.

Results on data that differs are stamped "unofficial data", with the differences.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.suites.definition import SuiteTask

MARKER = "winnow-import.json"


def data_problems(task: SuiteTask, loaded: Mapping[str, Any], data: Path | None) -> list[str]:
    """Return how the data differs from the official data: tasks, rows of splits, notes of `winnow import-data`."""
    problems: list[str] = []
    missing = sorted(set(task.splits) - set(loaded["tasks"]))
    if missing:
        problems.append(f"{len(missing)} of {len(task.splits)} tasks are missing, like {missing[0]}")
    for name, splits in task.splits.items():
        if name in loaded["tasks"]:
            problems += _row_problems(name, splits, loaded["tasks"][name].dataset)
    if data is not None and (data / task.dataset / MARKER).is_file():
        problems += json.loads((data / task.dataset / MARKER).read_text())["notes"]
    return problems


def data_hash(loaded: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all items and examples of a loaded task or group, as its prompts read them."""
    hasher = hashlib.sha256()
    for name, task in sorted(loaded["tasks"].items()):
        hasher.update(name.encode())
        for rows in (task.eval_docs, task.sampler.df):
            for row in rows:
                hasher.update(json.dumps(row, sort_keys=True, default=str).encode())
    return hasher.hexdigest()


def _row_problems(name: str, splits: Mapping[str, int], dataset: Mapping[str, Any]) -> Iterator[str]:
    for split, num_official in splits.items():
        num_rows = len(dataset[split])
        if num_rows != num_official:
            yield f"{name}: {split} has {num_rows} of {num_official} rows"

"""The card suite and the published rows, read from card.yaml and published.yaml beside this module.

card_suite().tasks   -> mmlu 5, arc_challenge 25, hellaswag 10, winogrande 5, gsm8k 5, with the facts that are checked
published_rows()     -> what the model cards say, with its provenance
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from eval.task_files import files_of_task
from eval.task_metrics import suggestion
from winnow.errors import UsageError
from winnow.records import Row, digest
from winnow.rows import file_sha256

FOLDER = Path(__file__).parent


class SuiteTask(Row):
    """One benchmark of a suite: an official task of lm-eval, its shots and metrics, and the rows of its data."""

    name: str
    files: str
    task_hash: str
    dataset: str
    num_fewshot: int
    metrics: tuple[str, ...]
    splits: dict[str, dict[str, int]]

    def task_files(self) -> list[Path]:
        """Return the official files of the task, sorted."""
        return sorted(official_tasks().glob(self.files))

    def installed_hash(self) -> str:
        """Return the hash of the installed task files, with all that they include and call."""
        files: set[Path] = set()
        for path in self.task_files():
            files |= files_of_task(path)
        root = official_tasks()
        return digest([[path.relative_to(root).as_posix(), file_sha256(path)] for path in sorted(files)])


class Suite(Row):
    """A list of benchmarks, and the version of lm-eval that their hashes belong to."""

    lm_eval: str
    tasks: tuple[SuiteTask, ...]


class PublishedRow(Row):
    """The numbers of one model card, in percent."""

    model: str
    mmlu: float
    arc_challenge: float | None = None
    hellaswag: float | None = None
    winogrande: float | None = None
    gsm8k: float | None = None


class PublishedRows(Row):
    """The rows of the model cards, and where they come from."""

    provenance: str
    rows: tuple[PublishedRow, ...]


def card_suite() -> Suite:
    """Return the benchmarks of the model cards."""
    return Suite.model_validate(_read("card.yaml"))


def published_rows() -> PublishedRows:
    """Return the numbers of the public model cards."""
    return PublishedRows.model_validate(_read("published.yaml"))


def choose_tasks(suite: Suite, names: Sequence[str]) -> list[SuiteTask]:
    """Return the named tasks of a suite in its order; all of them without names. Raises UsageError for a wrong name."""
    known = [task.name for task in suite.tasks]
    for name in names:
        if name not in known:
            raise UsageError(f"the card suite has no task {name!r}; {suggestion(name, known)}")
    return [task for task in suite.tasks if not names or task.name in names]


def official_tasks() -> Path:
    """Return the folder of lm-eval's own task files. Raises UsageError if lm-eval is not installed."""
    package = find_spec("lm_eval")
    if package is None or package.submodule_search_locations is None:
        raise UsageError("lm-eval is not installed; run pip install 'winnow-rlaif[eval]'")
    return Path(next(iter(package.submodule_search_locations))) / "tasks"


def _read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())

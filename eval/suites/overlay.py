"""Task files that include lm-eval's official ones and change nothing but the place of their data.

    gsm8k.yaml    include: .../lm_eval/tasks/gsm8k/gsm8k.yaml
                  dataset_path: DIR/openai/gsm8k             (with a data folder)

lm-eval indexes a folder of these in a fraction of a second, against many seconds for all its tasks. The data folder is
laid out as `hf download --repo-type dataset ID --local-dir DIR/ID` lays it out: README.md names the files of each
configuration and split.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.benchmarks import load_task
from eval.suites.definition import SuiteTask
from winnow.errors import UsageError, WinnowError


def write_overlay(tasks: Sequence[SuiteTask], data: Path | None, folder: Path) -> None:
    """Write a task file for each official one. Raises UsageError for a data set that the data folder lacks."""
    for task in tasks:
        if data is not None and not (data / task.dataset / "README.md").is_file():
            raise UsageError(
                f"{data} holds no data for {task.name}: {data / task.dataset / 'README.md'} is missing; run "
                f"hf download --repo-type dataset {task.dataset} --local-dir {data / task.dataset}, or winnow "
                "import-data, or leave the task out with --tasks"
            )
        for path in task.task_files():
            content: dict[str, Any] = {"include": str(path)}
            if data is not None and not path.read_text().startswith("group:"):
                content["dataset_path"] = str((data / task.dataset).resolve())
            (folder / f"{task.name}-{path.name}").write_text(yaml.safe_dump(content))


def load_suite_task(manager: Any, task: SuiteTask, data: Path | None) -> Any:
    """Load a task of the suite. Raises UsageError that names a split that the data folder lacks."""
    try:
        return load_task(manager, task.name)
    except WinnowError as error:
        if data is not None:
            _name_missing_splits(task, data / task.dataset)
        raise error


def _name_missing_splits(task: SuiteTask, folder: Path) -> None:
    """Raise UsageError for the first split that a data set lacks."""
    from datasets import get_dataset_split_names
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in task.task_files():
        content = load_yaml(path, resolve_func=False)
        name = content.get("task")
        if not isinstance(name, str) or name not in task.splits:
            continue
        config = content.get("dataset_name")
        try:
            present = get_dataset_split_names(str(folder), config_name=config)
        except (ValueError, OSError):
            raise UsageError(
                f"{folder} lacks the configuration {config or 'default'!r} of {name}; complete it"
            ) from None
        missing = [split for split in task.splits[name] if split not in present]
        if missing:
            raise UsageError(
                f"{folder} lacks the split {missing[0]} of {name}, which has {task.splits[name][missing[0]]} rows; "
                "complete it, or set rows of the items aside: winnow import-data --shots-from-eval"
            )

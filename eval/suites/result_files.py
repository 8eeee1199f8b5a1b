"""The results of a suite in lm-eval's format, with a block "winnow" of what lm-eval does not record.

results.json           results, groups, configs, n-shot, n-samples, task_hashes, lm_eval_version, config, winnow
samples_TASK.jsonl     lm-eval's sample rows
winnow.tasks.TASK      key, identity (weights, data, settings, version), data_problems, num_truncated,
                       num_requests, mean_by_subject
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from eval.suites.definition import SuiteTask
from eval.task_settings import FEWSHOT_SEED, TaskSettings
from winnow.records import digest
from winnow.rows import write_text

if TYPE_CHECKING:
    from eval.harness import TaskRun

FUNCTION = re.compile(r"(?:<function |def )(\w+)")
# Parts of lm-eval's results that hold an entry for each task.
TASK_PARTS = (
    *("results", "groups", "group_subtasks", "configs", "versions"),
    *("n-shot", "higher_is_better", "n-samples", "task_hashes"),
)


@dataclass(frozen=True)
class TaskFacts:
    """What a task's results depend on, and how its data differs from the official data."""

    identity: dict[str, Any]
    data_problems: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Sixteen hex digits that are equal for equal weights, data, settings and versions."""
        return digest(self.identity)


def write_task_results(
    folder: Path,
    model: str,
    lm: Any,
    task: SuiteTask,
    settings: TaskSettings,
    facts: TaskFacts,
    task_run: "TaskRun",
) -> None:
    """Write the results and samples of one task."""
    samples = task_run.output["samples"]
    results = {part: task_run.output.get(part, {}) for part in TASK_PARTS}
    results["configs"] = {leaf: _without_origin(config) for leaf, config in results["configs"].items()}
    results["task_hashes"] = {leaf: _task_hash(rows) for leaf, rows in samples.items()}
    results["config"] = {
        "model": "vllm" if facts.identity["engine"] == "vllm" else "hf",
        "model_args": {"pretrained": model, "add_bos_token": facts.identity["add_bos_token"]},
        "model_dtype": _dtype(lm, facts),
        "batch_size": lm.batch_size,
        "limit": settings.limit,
        "gen_kwargs": dict(settings.generation_arguments),
        "fewshot_seed": FEWSHOT_SEED,
    }
    results["model_name"] = model
    results["lm_eval_version"] = version("lm_eval")
    results["chat_template_sha"] = _hash(lm.chat_template(True)) if settings.is_chat else None
    results["winnow"] = {"tasks": {task.name: _facts_block(task, facts, task_run)}}
    for leaf, rows in samples.items():
        lines = [json.dumps(_sample(row), ensure_ascii=False, default=_plain) for row in rows]
        write_text(folder / f"samples_{leaf}_card.jsonl", "".join(f"{line}\n" for line in lines))
    text = json.dumps(results, indent=2, ensure_ascii=False, default=_plain)
    write_text(task_path(folder, task.name), f"{text}\n")


def task_path(folder: Path, task: str) -> Path:
    """Return the path of the results of one task."""
    return folder / f"task_{task}.json"


def results_path(folder: Path) -> Path:
    """Return the path of the results of all tasks."""
    return folder / "results_card.json"


def merge_results(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the results of several tasks as the content of one results file."""
    merged: dict[str, Any] = {}
    for path in paths:
        results = json.loads(path.read_text())
        if not merged:
            merged = results
            continue
        for part in TASK_PARTS:
            merged[part] |= results[part]
        merged["winnow"]["tasks"] |= results["winnow"]["tasks"]
    return merged


def read_identity(path: Path) -> dict[str, Any] | None:
    """Return the identity of a task's stored results; None if there are none."""
    if not path.is_file():
        return None
    [facts] = json.loads(path.read_text())["winnow"]["tasks"].values()
    identity: dict[str, Any] = facts["identity"]
    return identity


def _facts_block(task: SuiteTask, facts: TaskFacts, task_run: "TaskRun") -> dict[str, Any]:
    """Return what winnow records about a task's results."""
    results = task_run.output["results"]
    block: dict[str, Any] = {
        "key": facts.key,
        "identity": facts.identity,
        "data_problems": facts.data_problems,
        "num_requests": task_run.requests.num_requests,
        "num_truncated": task_run.requests.num_truncated,
        "metrics": list(task.metrics),
    }
    if len(task.splits) > 1:
        block["mean_by_subject"] = {
            metric: fmean(results[leaf][metric] for leaf in task.splits) for metric in task.metrics
        }
    return block


def _without_origin(config: Mapping[str, Any]) -> Any:
    """Return a task's config without the file that it was read from: an overlay, which no longer exists."""
    metadata = {key: value for key, value in (config.get("metadata") or {}).items() if key != "config_source"}
    return _named_functions({**config, "metadata": metadata})


def _named_functions(tree: Any) -> Any:
    """Return a tree with the names of its functions, for which lm-eval writes an address or the source."""
    if isinstance(tree, dict):
        return {key: _named_functions(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_named_functions(value) for value in tree]
    match = FUNCTION.match(str(tree))
    if match is None:
        return tree
    return f"function {match[1]}"


def _task_hash(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return lm-eval's hash of the items and prompts of a task."""
    return _hash("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows))


def _hash(text: str) -> str:
    from lm_eval.utils import hash_string

    return str(hash_string(text))


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sample row as lm-eval writes it."""
    from lm_eval.utils import sanitize_list

    arguments: dict[str, Any] = {}
    for number, parts in enumerate(row["arguments"]):
        arguments[f"gen_args_{number}"] = {f"arg_{index}": part for index, part in enumerate(parts)}
    return {
        **row,
        "resps": sanitize_list(row["resps"]),
        "filtered_resps": sanitize_list(row["filtered_resps"]),
        "arguments": arguments,
        "target": str(row["target"]),
    }


def _dtype(lm: Any, facts: TaskFacts) -> str:
    model = getattr(lm, "_model", None)
    return str(getattr(model, "dtype", facts.identity["dtype"]))


def _plain(value: Any) -> Any:
    """Return a value of lm-eval's output in JSON's types."""
    from lm_eval.utils import handle_non_serializable

    return handle_non_serializable(value)

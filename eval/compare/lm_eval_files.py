"""lm-eval's output -> task results.

results_DATE.json        {"results": {task: {"acc,none", "acc_stderr,none"}}, "group_subtasks", "n-shot", "n-samples",
                          "config": {"limit", "gen_kwargs", ...}, "lm_eval_version", "chat_template_sha", ...}
samples_TASK_DATE.jsonl  {"doc_id", "filter", "doc_hash", "prompt_hash", "acc": 1.0, ...}   with --log_samples

A group with a metric of its own, like MMLU, is one task whose items are those of its members; the members are left out.
A result whose value is not the mean of its items, like a corpus F1, has no items here and is compared unpaired.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from eval.compare.results import TaskResult, subject_of
from winnow.errors import InputError, UsageError
from winnow.records import digest
from winnow.rows import read_jsonl

# lm-eval sums in another order than fmean.
ROUNDING = 1e-6

Rows = list[dict[str, Any]]


def read_lm_eval(path: Path) -> dict[tuple[str, str], TaskResult]:
    """Read results_DATE.json with the samples beside it. Raises UsageError for a file that is none of lm-eval's."""
    output = _read_output(path)
    date = path.stem.removeprefix("results_")
    members = output.get("group_subtasks") or {}
    samples: dict[str, Rows] = {}
    for task in output["results"]:
        samples_path = path.with_name(f"samples_{task}_{date}.jsonl")
        if samples_path.is_file():
            samples[task] = [row for _, row in read_jsonl(samples_path)]
    results: dict[tuple[str, str], TaskResult] = {}
    for task, metric in _reported(output, members):
        results[task, metric] = _task_result(output, task, metric, samples, path)
    return results


def result_files(folder: Path) -> list[Path]:
    """Return lm-eval's result files of a folder, which holds one folder per model."""
    return sorted(folder.rglob("results_*.json"))


def item_id(task: str, row: Mapping[str, Any]) -> str:
    """Return the id of an item: its task, its position and a hash of its content and prompt."""
    content = hashlib.sha256(f"{row['doc_hash']}{row['prompt_hash']}".encode()).hexdigest()[:16]
    return f"{task}/{row['doc_id']}/{content}"


def is_mean_of(items: Mapping[str, float], value: float) -> bool:
    """Tell whether a value is the mean of its items, or the unweighted mean of its subjects."""
    if not items:
        return False
    subjects: dict[str, list[float]] = {}
    for item, item_value in items.items():
        subjects.setdefault(subject_of(item), []).append(item_value)
    by_subject = fmean([fmean(values) for values in subjects.values()])
    return min(abs(fmean(items.values()) - value), abs(by_subject - value)) < ROUNDING


def _read_output(path: Path) -> dict[str, Any]:
    try:
        output = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give a result file of lm-eval") from None
    except ValueError:
        raise InputError(f"{path}: not valid JSON; give a result file that lm-eval wrote") from None
    if not isinstance(output, dict) or not isinstance(output.get("results"), dict):
        raise InputError(f'{path}: no "results", so it is not a result file of lm-eval; give results_DATE.json')
    return output


def _reported(output: Mapping[str, Any], members: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Yield each task with each of its metrics, without those that a group reports for its members."""
    covered: set[tuple[str, str]] = set()
    for group in members:
        for metric in _metrics(output["results"].get(group, {})):
            covered |= {(member, metric) for member in _descendants(group, members)}
    for task, values in output["results"].items():
        for metric in _metrics(values):
            if (task, metric) not in covered:
                yield task, metric


def _metrics(values: Mapping[str, Any]) -> list[str]:
    """Return the metrics of a task that have a number: "acc,none"."""
    metrics: list[str] = []
    for key, value in values.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if "," in key and "_stderr," not in key and is_number:
            metrics.append(key)
    return metrics


def _descendants(group: str, members: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the members of a group, and theirs."""
    for member in members.get(group, ()):
        yield member
        yield from _descendants(member, members)


def _leaves(task: str, members: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the tasks with items: the members of a group below its subgroups, or the task itself."""
    if not members.get(task):
        return [task]
    return list(dict.fromkeys(member for member in _descendants(task, members) if not members.get(member)))


def _task_result(
    output: Mapping[str, Any], task: str, metric: str, samples: Mapping[str, Rows], path: Path
) -> TaskResult:
    values = output["results"][task]
    name, _, filter_name = metric.partition(",")
    stderr = values.get(f"{name}_stderr,{filter_name}")
    leaves = _leaves(task, output.get("group_subtasks") or {})
    value = float(values[metric])
    if not math.isfinite(value):
        raise InputError(f"{path}: {task} {metric} is {value}, which cannot be compared; evaluate the task again")
    items: dict[str, float] = {}
    contents: dict[str, str] = {}
    if all(leaf in samples for leaf in leaves):
        for leaf in leaves:
            _collect(leaf, metric, samples[leaf], items, contents)
    if not is_mean_of(items, value):
        items = {}
        contents = {}
    return TaskResult(
        task=task,
        metric=metric,
        value=value,
        stderr=float(stderr) if isinstance(stderr, (int, float)) else None,
        num_items=_num_items(output, leaves),
        items=items,
        content_hashes=contents,
        task_hash=_task_hash(output, leaves),
        is_higher_better=(output.get("higher_is_better") or {}).get(task, {}).get(name),
        conditions={**_conditions(output, leaves), **_suite_conditions(output, task)},
    )


def _collect(task: str, metric: str, rows: Rows, items: dict[str, float], contents: dict[str, str]) -> None:
    """Add the values of a task's items under one filter; an item without a number, or without hashes, is left out."""
    name, _, filter_name = metric.partition(",")
    for row in rows:
        value = row.get(name)
        is_hashed = "doc_hash" in row and "prompt_hash" in row  # lm-eval before 0.4.3 wrote none
        if row.get("filter", "none") == filter_name and is_hashed and isinstance(value, (int, float)):
            key = item_id(task, row)
            items[key] = float(value)
            contents[f"{task}/{row['doc_id']}"] = row["doc_hash"]


def _num_items(output: Mapping[str, Any], leaves: Sequence[str]) -> int | None:
    counts = output.get("n-samples") or {}
    if not all(leaf in counts for leaf in leaves):
        return None
    return sum(int(counts[leaf]["effective"]) for leaf in leaves)


def _task_hash(output: Mapping[str, Any], leaves: Sequence[str]) -> str | None:
    """Return a hash of all items and prompts; None where lm-eval logged no samples."""
    hashes = output.get("task_hashes") or {}
    if not all(leaf in hashes for leaf in leaves):
        return None
    return digest([hashes[leaf] for leaf in leaves])


def _conditions(output: Mapping[str, Any], leaves: Sequence[str]) -> dict[str, Any]:
    """Return what decides whether a result compares, as far as the file records it."""
    conditions: dict[str, Any] = {}
    shots = output.get("n-shot") or {}
    known_shots = {shots[name] for name in leaves if name in shots}
    if len(known_shots) == 1:
        conditions["shots"] = known_shots.pop()
    config = output.get("config") or {}
    for key, label in (("limit", "limit"), ("gen_kwargs", "generation arguments"), ("fewshot_seed", "few-shot seed")):
        if key in config:
            conditions[label] = config[key]
    top_level = (
        ("chat_template_sha", "chat template"),
        ("system_instruction_sha", "system instruction"),
        ("lm_eval_version", "lm-eval version"),
    )
    for key, label in top_level:
        if key in output:
            conditions[label] = output[key]
    if output.get("chat_template_sha") is not None:
        conditions["few-shot examples as turns"] = output.get("fewshot_as_multiturn")
    versions = output.get("versions") or {}
    if all(leaf in versions for leaf in leaves):
        conditions["task version"] = sorted({str(versions[leaf]) for leaf in leaves})
    return conditions


def _suite_conditions(output: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return what `winnow eval --suite` records besides: how the data differs from the official, and the settings."""
    facts = output.get("winnow", {}).get("tasks", {}).get(task)
    if facts is None:
        return {}
    identity = facts["identity"]
    return {
        "unofficial data": "; ".join(facts["data_problems"]) or None,
        "BOS": identity["add_bos_token"],
        "dtype": identity["dtype"],
        "engine": identity["engine"],
        "examples": identity["examples_from"],
    }

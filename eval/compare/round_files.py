"""The benchmarks in the eval folder of a round -> task results.

results.json            {"benchmarks": [{"task", "metric", "value", "stderr", "n", "higher_is_better"}], ...}
benchmark_items.jsonl   {"task", "metric", "item_id", "value"}
../../config.json       the run's shots and limits, where the folder still lies in its run
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from eval.benchmarks import BenchmarkItem
from eval.compare.lm_eval_files import is_mean_of
from eval.compare.results import TaskResult
from eval.judging.questions import first_problem, parse_rows
from winnow.errors import InputError
from winnow.records import EvalResult

RESULTS = TypeAdapter(tuple[EvalResult, ...])


def read_round(folder: Path) -> dict[tuple[str, str], TaskResult]:
    """Read the benchmarks of a round. Raises InputError for a file at fault."""
    path = folder / "results.json"
    try:
        benchmarks = RESULTS.validate_python(json.loads(path.read_text(encoding="utf-8"))["benchmarks"])
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f'{path}: no JSON object with "benchmarks"; give the eval folder of a round') from None
    items = _read_items(folder / "benchmark_items.jsonl")
    conditions = _read_conditions(folder)
    results: dict[tuple[str, str], TaskResult] = {}
    for benchmark in benchmarks:
        key = (benchmark.task, benchmark.metric)
        values = items[key]
        if not is_mean_of(values, benchmark.value):
            values = {}
        results[key] = TaskResult(
            *key,
            benchmark.value,
            benchmark.stderr,
            benchmark.n,
            values,
            is_higher_better=benchmark.higher_is_better,
            conditions={**conditions.get(key, {}), **_shots(benchmark)},
        )
    return results


def _shots(benchmark: EvalResult) -> dict[str, Any]:
    """Return the shots that a result records; older ones leave them to the config."""
    if benchmark.num_fewshot is None:
        return {}
    return {"shots": benchmark.num_fewshot}


def _read_items(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    items: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    if path.is_file():
        for _, row in parse_rows(path, BenchmarkItem):
            items[row.task, row.metric][row.item_id] = row.value
    return items


def _read_conditions(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the settings of each benchmark; the policy's chat format may stand for a chat template."""
    path = folder.resolve().parent.parent / "config.json"
    if not path.is_file():
        return {}
    conditions: dict[tuple[str, str], dict[str, Any]] = {}
    for benchmark in json.loads(path.read_text(encoding="utf-8")).get("evaluation", {}).get("benchmarks", ()):
        key = (benchmark["task"], benchmark["metric"])
        conditions[key] = {"limit": benchmark["limit"], "chat template": None, "system instruction": None}
        if benchmark.get("chat_template"):
            conditions[key]["chat template"] = "the policy's"
        if benchmark["num_fewshot"] is not None:  # unset: the task's own number
            conditions[key]["shots"] = benchmark["num_fewshot"]
    return conditions

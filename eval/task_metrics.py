"""The metrics that a task's file defines, as lm-eval names them: "acc,none", "exact_match,strict-match".

check_metric(benchmark, entry)   an entry of lm-eval's index -> UsageError for a wrong name, before the task runs
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from winnow.errors import UsageError
from winnow.run_config import BenchmarkConfig


def check_metric(benchmark: BenchmarkConfig, entry: Any) -> bool:
    """Raise UsageError for a metric or filter that a task's file does not define, and for an unsuitable guard.

    Return False if only the evaluation knows the metrics, because a function makes them.
    """
    if entry.kind.name == "TAG":
        raise UsageError(
            f"{benchmark.task} is a tag of several tasks, and has no metrics; name its tasks: "
            f"{', '.join(sorted(entry.tags))}"
        )
    task = entry.cfg or {}
    if not _has_plain_metrics(entry.kind.name, task):
        return False
    known = list(_metrics(entry.kind.name, task))
    if benchmark.metric not in known:
        raise unknown_metric_error(benchmark, known)
    if benchmark.is_guard:
        _check_guard_metric(benchmark, task)
    return True


def unknown_metric_error(benchmark: BenchmarkConfig, known: Iterable[str]) -> UsageError:
    """Return the error of a metric that a task does not have, with the closest names."""
    return UsageError(
        f"task {benchmark.task} has no metric {benchmark.metric!r}; {suggestion(benchmark.metric, known)}"
    )


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the names that are like `name`, or all that there are, as the end of an error."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are: {', '.join(names[:20]) or 'none'}"


def _check_guard_metric(benchmark: BenchmarkConfig, task: Mapping[str, Any]) -> None:
    """Raise UsageError for a guard whose task aggregates the metric otherwise than by the mean."""
    name = benchmark.metric.partition(",")[0]
    for entry in task.get("metric_list") or []:
        aggregation = entry.get("aggregation", "mean")
        if entry["metric"] == name and aggregation != "mean":
            raise UsageError(
                f"{benchmark.task} {benchmark.metric} is a guard, but the task aggregates it by {aggregation}, not by "
                "the mean, so that a loss cannot be tested item by item; choose another metric, or set is_guard: false"
            )


def _has_plain_metrics(kind: str, task: Mapping[str, Any]) -> bool:
    """Tell whether a task's file alone decides the names of its metrics; a function of it may make further ones."""
    if kind == "GROUP":
        return bool(task.get("aggregate_metric_list"))
    names = [entry.get("metric") for entry in task.get("metric_list") or []]
    has_functions = any(not isinstance(name, str) or "." in name for name in names)
    return kind == "TASK" and not has_functions and task.get("process_results") is None


def _metrics(kind: str, task: Mapping[str, Any]) -> Iterator[str]:
    """Yield the metrics of a task or group as lm-eval names them."""
    if kind == "GROUP":
        for entry in task["aggregate_metric_list"]:
            filters = entry.get("filter_list", "none")
            if isinstance(filters, str):
                filters = [filters]
            yield from (f"{entry['metric']},{name}" for name in filters)
        return
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    metrics = DEFAULT_METRIC_REGISTRY.get(task.get("output_type", "generate_until"), [])
    if task.get("metric_list"):
        metrics = [entry["metric"] for entry in task["metric_list"]]
    filters = ["none"]
    if task.get("filter_list"):
        filters = [entry["name"] for entry in task["filter_list"]]
    for metric in metrics:
        yield from (f"{metric},{name}" for name in filters)

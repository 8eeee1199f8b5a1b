"""The table of a suite's results on the terminal, and the published rows below it.

    mmlu             5 shots   acc        63.59 +-0.39   14042 items
    mmlu, mean of subjects     acc        64.10
    stamps: limit, unofficial data, cut prompts, chat template

The published rows are shown and never compared: nobody knows the items and settings behind them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from eval.suites.definition import PublishedRow, card_suite, published_rows

MAX_PROBLEMS = 3


def suite_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that show the results of a suite, with all that makes them differ from official ones."""
    yield f"{results['model_name']}, lm-eval {results['lm_eval_version']}"
    for name, facts in results["winnow"]["tasks"].items():
        yield from _task_lines(results, name, facts)
    yield from _stamps(results)
    yield ""
    yield from _published_lines()


def _task_lines(results: Mapping[str, Any], name: str, facts: Mapping[str, Any]) -> Iterator[str]:
    values = results["results"][name]
    num_items = _num_items(results, name)
    for metric in facts["metrics"]:
        measure, _, filter_name = metric.partition(",")
        stderr = values.get(f"{measure}_stderr,{filter_name}")
        shown = f"{100 * values[metric]:.2f}"
        if isinstance(stderr, float):
            shown += f" +-{100 * stderr:.2f}"
        shots = f"{facts['identity']['num_fewshot']} shots"
        yield f"  {name:<24} {shots:>8}  {_metric_name(metric):<28} {shown:>15}  {num_items} items"
    for metric, mean in facts.get("mean_by_subject", {}).items():
        yield f"  {name + ', mean of subjects':<24} {'':>7}  {_metric_name(metric):<28} {100 * mean:>9.2f}"


def _metric_name(metric: str) -> str:
    return metric.removesuffix(",none").replace(",", " ")


def _num_items(results: Mapping[str, Any], name: str) -> int:
    """Return the number of items of a task or group."""
    counts = results["n-samples"]
    children = results["group_subtasks"].get(name) or []
    if name in counts and not children:
        return int(counts[name]["effective"])
    return sum(_num_items(results, child) for child in children)


def _stamps(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for everything in which the results differ from official ones."""
    limit = results["config"]["limit"]
    if limit is not None:
        yield f"limit: the first {limit} items of each task; no official results"
    for name, facts in results["winnow"]["tasks"].items():
        problems = facts["data_problems"]
        if problems:
            hidden = len(problems) - MAX_PROBLEMS
            more = [f"and {hidden} more"] if hidden > 0 else []
            yield f"unofficial data: {name}: {'; '.join([*problems[:MAX_PROBLEMS], *more])}"
    for name, facts in results["winnow"]["tasks"].items():
        if facts["num_truncated"]:
            yield (
                f"cut prompts: {name}: {facts['num_truncated']} of {facts['num_requests']} prompts do not fit the "
                "model's positions and were cut on the left"
            )
    if results["chat_template_sha"] is not None:
        yield "chat template: the prompts are conversations; the published rows are plain text"


def _published_lines() -> Iterator[str]:
    published = published_rows()
    names = [task.name for task in card_suite().tasks]
    yield "published on model cards, not comparable item by item:"
    yield f"  {'':<18}" + "".join(f"{name:>15}" for name in names)
    for row in published.rows:
        yield f"  {row.model:<18}" + "".join(f"{_number(row, name):>15}" for name in names)
    yield f"  ({published.provenance})"


def _number(row: PublishedRow, name: str) -> str:
    value = getattr(row, name)
    return "-" if value is None else f"{value:.2f}"

"""The configured lm-eval tasks on one checkpoint.

EvalResult       one row per configured task: value, stderr and n as lm-eval reports them
BenchmarkItem    one row per item of a task; the paired tests of two checkpoints read these rows

Tasks come with lm-eval, or from the YAML files of `task_dir` (then nothing is fetched). A relative `data_files`
path in a YAML file starts at the working directory. Prompts are plain few-shot text, as on the model cards. A chat
template would change the scores; a task that needs the policy's chat format writes it in its `doc_to_text`. lm-eval's
response cache is never used, because it ignores the model. Few-shot examples come from the task's sampler with
lm-eval's default seed.
"""

import difflib
import hashlib
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from winnow.chat import Chat
from winnow.config import Dtype
from winnow.errors import InputError, UsageError, WinnowError, first_line
from winnow.models import load_causal_lm
from winnow.records import EvalResult, Row
from winnow.run_config import BenchmarkConfig, EvaluationConfig


class BenchmarkItem(Row):
    """One metric of one item. `item_id` names the item's position, content and prompt: equal ids may be paired."""

    task: str
    metric: str
    item_id: str
    value: float


@dataclass(frozen=True)
class BenchmarkRun:
    """The results of one checkpoint on all configured tasks."""

    results: list[EvalResult]
    items: list[BenchmarkItem]


def run_benchmarks(config: EvaluationConfig, model: str, chat: Chat, dtype: Dtype, label: str) -> BenchmarkRun:
    """Load a checkpoint and run every task on it; `label` begins the titles of the progress bars.

    Raises UsageError for an unknown task or metric, ModelError for an unusable model.
    """
    if not config.benchmarks:
        return BenchmarkRun([], [])
    from eval.harness import evaluate, open_lm, quiet
    from sampler.engines.transformers import isolated_random_state

    with quiet(), isolated_random_state(0):
        tasks = load_tasks(config)
        lm = open_lm(load_causal_lm(model, dtype=dtype, use="evaluation").eval(), chat.tokenizer, config.batch_size)
        results: list[EvalResult] = []
        items: list[BenchmarkItem] = []
        for benchmark in config.benchmarks:
            output = evaluate(
                lm, tasks[benchmark.task], benchmark.num_fewshot, benchmark.limit, f"{label}: {benchmark.task}"
            )
            result = _result(benchmark, output)
            task_items = list(_items(benchmark, output["samples"]))
            if benchmark.is_guard:
                check_guard(result, task_items)
            results.append(result)
            items.extend(task_items)
    return BenchmarkRun(results, items)


def load_tasks(config: EvaluationConfig) -> dict[str, Any]:
    """Load each configured task with its data. Raises UsageError for an unknown task, with the closest names."""
    manager = task_manager(config)
    for benchmark in config.benchmarks:
        check_task(config, benchmark.task, manager)
    return {benchmark.task: _load(manager, benchmark.task) for benchmark in config.benchmarks}


def task_manager(config: EvaluationConfig) -> Any:
    """Return lm-eval's index of the tasks, which takes seconds for lm-eval's own. Raises UsageError for no folder."""
    from lm_eval.tasks import TaskManager

    if config.task_dir is not None and not Path(config.task_dir).is_dir():
        raise UsageError(f"evaluation.task_dir {config.task_dir!r} is not a folder; give one with lm-eval task files")
    return TaskManager(include_defaults=config.task_dir is None, include_path=config.task_dir)


def check_task(config: EvaluationConfig, task: str, manager: Any) -> None:
    """Raise UsageError for a task that lm-eval's index does not hold, with the closest names."""
    if task not in manager.all_tasks:
        source = config.task_dir or "lm-eval's tasks"
        raise UsageError(f"no task {task!r} in {source}; {_suggestion(task, manager.all_tasks)}")


def unknown_metric_error(benchmark: BenchmarkConfig, known: Iterable[str]) -> UsageError:
    """Return the error of a metric that a task does not have, with the closest names."""
    suggestion = _suggestion(benchmark.metric, known)
    return UsageError(f"task {benchmark.task} has no metric {benchmark.metric!r}; {suggestion}")


def check_guard(result: EvalResult, items: Sequence[BenchmarkItem]) -> None:
    """Raise UsageError unless the metric has a direction and is the mean of one number for each item.

    A loss is tested item by item. Perplexity, F1 or BLEU have no such number, or combine them in another way.
    """
    name = f"evaluation.benchmarks: {result.task} {result.metric}"
    remedy = "choose another metric, or set is_guard: false"
    if result.higher_is_better is None:
        raise UsageError(f"{name} is a guard, but its task does not say whether higher is better; {remedy}")
    if len(items) != result.n or not items:
        raise UsageError(
            f"{name} is a guard, but {len(items)} of its {result.n} items have a value of their own; {remedy}"
        )
    mean = fmean(item.value for item in items)
    if not math.isclose(mean, result.value, rel_tol=1e-6, abs_tol=1e-9):
        raise UsageError(
            f"{name} is a guard, but its value {result.value:g} is not its items' mean, {mean:g}; {remedy}"
        )


def data_files(task_dir: str | Path) -> list[Path]:
    """Return the files that decide a local benchmark, sorted: a folder's task files and the data files they name."""
    files: set[Path] = set()
    for path in sorted(Path(task_dir).glob("**/*")):
        if path.is_file():
            files.add(path)
        if path.suffix == ".yaml":
            dataset_arguments = _read_task(path).get("dataset_kwargs") or {}
            names = strings_of(dataset_arguments.get("data_files"))
            files |= {Path(name) for name in names if Path(name).is_file()}
    return sorted(files)


def strings_of(tree: Any) -> Iterator[str]:
    """Yield the strings of nested mappings and lists."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for child in tree.values():
            yield from strings_of(child)
    elif isinstance(tree, list):
        for child in tree:
            yield from strings_of(child)


def _result(benchmark: BenchmarkConfig, output: Mapping[str, Any]) -> EvalResult:
    """Read a task's result from the output of lm-eval's evaluator. Raises UsageError for an unknown metric."""
    values = output["results"].get(benchmark.task, {})
    if benchmark.metric not in values:
        known = [key for key in values if "," in key and "_stderr," not in key]
        raise unknown_metric_error(benchmark, known)
    metric, _, filter_name = benchmark.metric.partition(",")
    stderr: float | None = None
    reported = values.get(f"{metric}_stderr,{filter_name}")
    if isinstance(reported, numbers.Real):  # lm-eval writes "N/A" for a metric without a standard error
        stderr = float(reported)
    num_items = 0
    for rows in output["samples"].values():  # one row per item and filter
        num_items += len({row["doc_id"] for row in rows})
    return EvalResult(
        task=benchmark.task,
        metric=benchmark.metric,
        value=float(values[benchmark.metric]),
        stderr=stderr,
        n=num_items,
        higher_is_better=output["higher_is_better"].get(benchmark.task, {}).get(metric),
    )


def _items(
    benchmark: BenchmarkConfig, rows_of_task: Mapping[str, Iterable[Mapping[str, Any]]]
) -> Iterator[BenchmarkItem]:
    """Yield the items' values in the order of the data; skip items for which the metric is not a number."""
    metric, _, filter_name = benchmark.metric.partition(",")
    for task, rows in rows_of_task.items():  # a group of tasks has several
        for row in rows:
            value = row.get(metric)
            if row["filter"] == filter_name and isinstance(value, numbers.Real):
                content = hashlib.sha256(f"{row['doc_hash']}{row['prompt_hash']}".encode()).hexdigest()[:16]
                item_id = f"{task}/{row['doc_id']}/{content}"
                yield BenchmarkItem(task=benchmark.task, metric=benchmark.metric, item_id=item_id, value=float(value))


def _load(manager: Any, task: str) -> Any:
    try:
        return manager.load([task])
    except FileNotFoundError as error:
        raise UsageError(f"task {task}: its data is missing: {first_line(error)}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WinnowError(f"task {task} cannot be loaded: {first_line(error)}") from error


def _suggestion(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are: {', '.join(names[:20]) or 'none'}"


class _TaskLoader(yaml.SafeLoader):
    """A loader for lm-eval's task files; it ignores the values of tags such as `!function`."""


_TaskLoader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _read_task(path: Path) -> dict[str, Any]:
    try:
        task = yaml.load(path.read_text(), Loader=_TaskLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {first_line(error)}") from None
    if not isinstance(task, dict):
        return {}
    return task

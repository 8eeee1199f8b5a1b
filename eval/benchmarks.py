"""The configured lm-eval tasks on one checkpoint.

EvalResult       one row per configured task: value, stderr and n as lm-eval gives them
BenchmarkItem    one row per item of it, which the paired tests of two checkpoints read

Tasks are lm-eval's own, or the YAML files of `task_dir` (then nothing is fetched); a relative `data_files` path in them
starts at the working directory. Prompts are plain few-shot text, as on the model cards: no chat template, which would
change scores; a task that wants the policy's own form spells it in its `doc_to_text`. lm-eval's response cache is never
used, since it ignores the model. Few-shot examples come from the task's own sampler with lm-eval's own seed.
"""

import difflib
import hashlib
import numbers
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from winnow.chat import Chat
from winnow.config import Dtype
from winnow.errors import InputError, UsageError, WinnowError, first_line
from winnow.models import load_causal_lm
from winnow.records import EvalResult, Row
from winnow.run_config import BenchmarkConfig, EvaluationConfig


class BenchmarkItem(Row):
    """One metric of one item. `item_id` names the item's place, content and prompt: equal ids may be paired."""

    task: str
    metric: str
    item_id: str
    value: float


@dataclass(frozen=True)
class BenchmarkRun:
    """One checkpoint on all configured tasks."""

    results: list[EvalResult]
    items: list[BenchmarkItem]


def run_benchmarks(config: EvaluationConfig, model: str, chat: Chat, dtype: Dtype, label: str) -> BenchmarkRun:
    """Load a checkpoint and run every task on it. Raises UsageError for a task or metric that is not there."""
    if not config.benchmarks:
        return BenchmarkRun([], [])
    from eval.harness import open_lm, quiet
    from sampler.engines.transformers import own_random_state

    with quiet(), own_random_state(0):
        tasks = load_tasks(config)
        lm = open_lm(load_causal_lm(model, dtype=dtype).eval(), chat.tokenizer, config.batch_size)
        runs = [_run(lm, benchmark, tasks[benchmark.task], label) for benchmark in config.benchmarks]
    return BenchmarkRun([result for result, _ in runs], [item for _, items in runs for item in items])


def load_tasks(config: EvaluationConfig) -> dict[str, Any]:
    """Each configured task, loaded with its data. Raises UsageError naming close matches of an unknown one."""
    from lm_eval.tasks import TaskManager

    if config.task_dir is not None and not Path(config.task_dir).is_dir():
        raise UsageError(f"evaluation.task_dir {config.task_dir!r} is no folder; give one with lm-eval task files")
    is_local = config.task_dir is not None
    manager = TaskManager(include_defaults=not is_local, include_path=config.task_dir)
    where = config.task_dir or "lm-eval's tasks"
    for benchmark in config.benchmarks:
        if benchmark.task not in manager.all_tasks:
            raise UsageError(f"no task {benchmark.task!r} in {where}; {_suggestion(benchmark.task, manager.all_tasks)}")
    return {benchmark.task: _load(manager, benchmark.task) for benchmark in config.benchmarks}


def data_files(task_dir: str | Path) -> list[Path]:
    """The task files of a folder, and the local data files that they name, sorted: what decides a local benchmark."""
    files: set[Path] = set()
    for path in sorted(Path(task_dir).glob("**/*")):
        if path.is_file():
            files.add(path)
        if path.suffix == ".yaml":
            named = (_read_task(path).get("dataset_kwargs") or {}).get("data_files")
            files |= {Path(name) for name in _leaves(named) if Path(name).is_file()}
    return sorted(files)


def _run(lm: Any, benchmark: BenchmarkConfig, loaded: Any, label: str) -> tuple[EvalResult, list[BenchmarkItem]]:
    from eval.harness import evaluate

    found = evaluate(lm, loaded, benchmark.num_fewshot, benchmark.limit, f"{label}: {benchmark.task}")
    metric, _, filter_name = benchmark.metric.partition(",")
    items = list(_items(benchmark, metric, filter_name, found["samples"]))
    return _result(benchmark, metric, filter_name, found), items


def _result(benchmark: BenchmarkConfig, metric: str, filter_name: str, found: Mapping[str, Any]) -> EvalResult:
    scores = found["results"].get(benchmark.task, {})
    if benchmark.metric not in scores:
        known = [key for key in scores if "," in key and "_stderr," not in key]
        raise UsageError(
            f"task {benchmark.task} has no metric {benchmark.metric!r}; {_suggestion(benchmark.metric, known)}"
        )
    stderr = scores.get(f"{metric}_stderr,{filter_name}")
    return EvalResult(
        task=benchmark.task,
        metric=benchmark.metric,
        value=float(scores[benchmark.metric]),
        stderr=float(stderr) if isinstance(stderr, numbers.Real) else None,
        n=sum(len({sample["doc_id"] for sample in samples}) for samples in found["samples"].values()),
    )


def _items(
    benchmark: BenchmarkConfig, metric: str, filter_name: str, samples: Mapping[str, Iterable[Mapping[str, Any]]]
) -> Iterator[BenchmarkItem]:
    """The items' values, in the order of the data; a metric that is no number per item gives none."""
    for leaf, rows in samples.items():
        for row in rows:
            value = row.get(metric)
            if row["filter"] == filter_name and isinstance(value, numbers.Real):
                content = hashlib.sha256(f"{row['doc_hash']}{row['prompt_hash']}".encode()).hexdigest()[:16]
                item_id = f"{leaf}/{row['doc_id']}/{content}"
                yield BenchmarkItem(task=benchmark.task, metric=benchmark.metric, item_id=item_id, value=float(value))


def _load(manager: Any, task: str) -> Any:
    try:
        return manager.load([task])
    except FileNotFoundError as error:
        raise UsageError(f"task {task}: its data is not there: {first_line(error)}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WinnowError(f"task {task} cannot be loaded: {first_line(error)}") from error


def _suggestion(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(names[:20]) or 'none'}"


class _TaskLoader(yaml.SafeLoader):
    """Reads lm-eval's task files; what a tag like `!function` names is passed over."""


_TaskLoader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _read_task(path: Path) -> dict[str, Any]:
    try:
        task = yaml.load(path.read_text(), Loader=_TaskLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {first_line(error)}") from None
    return task if isinstance(task, dict) else {}


def _leaves(tree: Any) -> Iterator[str]:
    """The strings of nested mappings and lists."""
    if isinstance(tree, str):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _leaves(child)

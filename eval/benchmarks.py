"""The configured lm-eval tasks on one checkpoint.

EvalResult       one row per configured task: value, stderr and n as lm-eval reports them
BenchmarkItem    one row per item of a task; the paired tests of two checkpoints read these rows

Tasks come with lm-eval, or from the YAML files of `task_dir`, which come first. A relative `data_files` path in a YAML
file starts at the working directory. Prompts are plain few-shot text, as on the model cards, unless `chat_template`
asks for the policy's chat format. Names, metrics and shots are checked before a model is loaded, and two metrics of a
task with the same settings are read from one evaluation of it.
"""

import hashlib
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from eval.quiet import quiet
from eval.task_metrics import check_metric, suggestion, unknown_metric_error
from eval.task_settings import TaskSettings, apply_settings, num_shots
from winnow.chat import Chat
from winnow.config import Dtype
from winnow.errors import UsageError, WinnowError, first_line
from winnow.models import load_causal_lm
from winnow.records import EvalResult, Message, Row, digest
from winnow.run_config import BenchmarkConfig, EvaluationConfig

if TYPE_CHECKING:
    from eval.harness import TaskRun


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

    Raises UsageError for an unknown task or metric or too many shots, ModelError for an unusable model.
    """
    if not config.benchmarks:
        return BenchmarkRun([], [])
    from eval.harness import TaskRun, evaluate, open_lm
    from sampler.engines.transformers import isolated_random_state

    with quiet(), isolated_random_state(0):
        tasks = load_tasks(config)
        loaded_model = load_causal_lm(model, dtype=dtype, use="evaluation").eval()
        lm = open_lm(loaded_model, chat.tokenizer, config.batch_size, add_bos_token=config.add_bos_token)
        lm.apply_chat_template = _lm_eval_template(chat)
        task_runs: dict[str, TaskRun] = {}
        results: list[EvalResult] = []
        items: list[BenchmarkItem] = []
        for benchmark in config.benchmarks:
            key = settings_key(benchmark)
            if key not in task_runs:
                title = f"{label}: {benchmark.task}"
                task_runs[key] = evaluate(lm, tasks[key], settings_of(benchmark), title)
                _warn_of_truncation(task_runs[key], title)
            result = _result(benchmark, task_runs[key], tasks[key])
            task_items = list(_items(benchmark, task_runs[key].output["samples"]))
            if benchmark.is_guard:
                check_guard(result, task_items)
            results.append(result)
            items.extend(task_items)
    return BenchmarkRun(results, items)


def settings_of(benchmark: BenchmarkConfig) -> TaskSettings:
    """Return the settings of a configured task."""
    return TaskSettings(benchmark.num_fewshot, benchmark.limit, benchmark.chat_template, benchmark.generation_arguments)


def settings_key(benchmark: BenchmarkConfig) -> str:
    """Return a text that is equal for the metrics of one evaluation of a task."""
    return digest(benchmark.model_dump(mode="json", exclude={"metric", "is_guard"}))


def load_tasks(config: EvaluationConfig) -> dict[str, Any]:
    """Load each configured task with its data and settings, by `settings_key`, once for all its metrics.

    Raises UsageError for an unknown task or metric, with the closest names, and for too many shots.
    """
    manager = task_manager(config)
    for benchmark in config.benchmarks:
        check_task(config, benchmark.task, manager)
        check_metric(benchmark, manager.task_index[benchmark.task])
    tasks: dict[str, Any] = {}
    for benchmark in config.benchmarks:
        key = settings_key(benchmark)
        if key not in tasks:
            tasks[key] = load_task(manager, benchmark.task)
            apply_settings(benchmark.task, tasks[key], settings_of(benchmark))
    return tasks


def task_manager(config: EvaluationConfig) -> Any:
    """Return lm-eval's index of the tasks. Raises UsageError for a missing folder.

    lm-eval's own tasks are indexed, which takes seconds, only if `task_dir` does not hold all that the config names.
    """
    from lm_eval.tasks import TaskManager

    if config.task_dir is None:
        return TaskManager()
    if not Path(config.task_dir).is_dir():
        raise UsageError(f"evaluation.task_dir {config.task_dir!r} is not a folder; give one with lm-eval task files")
    local = TaskManager(include_defaults=False, include_path=config.task_dir)
    names = [benchmark.task for benchmark in config.benchmarks]
    if _holds_all(local.task_index, names):
        return local
    return TaskManager(include_path=config.task_dir)


def check_task(config: EvaluationConfig, task: str, manager: Any) -> None:
    """Raise UsageError for a task that lm-eval's index does not hold, with the closest names."""
    if task not in manager.all_tasks:
        source = "lm-eval's tasks"
        if config.task_dir is not None:
            source = f"{config.task_dir} and {source}"
        raise UsageError(f"no task {task!r} in {source}; {suggestion(task, manager.all_tasks)}")


def load_task(manager: Any, task: str) -> Any:
    """Load a task or group with its data. Raises UsageError for missing data, WinnowError for a faulty task file."""
    from datasets.exceptions import DatasetsError

    try:
        return manager.load([task])
    except FileNotFoundError as error:
        raise UsageError(f"task {task}: its data is missing: {first_line(error)}") from None
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError, DatasetsError) as error:
        raise WinnowError(f"task {task} cannot be loaded: {first_line(error)}") from error


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


def _holds_all(index: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Tell whether an index holds tasks, and all that groups among them consist of."""
    for name in names:
        if name not in index:
            return False
        children = (index[name].cfg or {}).get("task")
        if isinstance(children, list):
            child_names = [child.get("task", "") if isinstance(child, dict) else child for child in children]
            is_inline = [isinstance(child, dict) and "dataset_path" in child for child in children]
            references = [child for child, inline in zip(child_names, is_inline, strict=True) if not inline]
            if not _holds_all(index, references):
                return False
    return True


def _lm_eval_template(chat: Chat) -> Callable[..., str]:
    """Return the chat template in the form that lm-eval calls."""

    def render(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        turns = [Message.model_validate(dict(message)) for message in messages]
        if add_generation_prompt:
            return chat.prompt_text(turns)
        return chat.prompt_text(turns[:-1]) + turns[-1].content  # the task begins the answer

    return render


def _warn_of_truncation(task_run: "TaskRun", label: str) -> None:
    requests = task_run.requests
    if requests.num_truncated:
        print(
            f"warning: {label}: {requests.num_truncated} of {requests.num_requests} prompts do not fit the model's "
            "positions and were cut on the left; lower num_fewshot",
            file=sys.stderr,
        )


def _result(benchmark: BenchmarkConfig, task_run: "TaskRun", loaded: Mapping[str, Any]) -> EvalResult:
    """Read a task's result from the output of lm-eval's evaluator. Raises UsageError for an unknown metric."""
    output = task_run.output
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
        num_fewshot=max(num_shots(task) for task in loaded["tasks"].values()),
        num_truncated=task_run.requests.num_truncated,
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

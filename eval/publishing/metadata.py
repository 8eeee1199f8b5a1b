"""Results as metadata of the hub, through huggingface_hub's own functions.

model-index            in the card's front matter: every result, in percent; it has no field for an interval
.eval_results/*.yaml   results that a benchmark's page on the hub lists; of the card suite only GSM8K has one
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from eval.compare.results import TaskResult
from eval.judging.judged_scores import JudgedScore
from eval.publishing.card_tasks import CARD_TASKS, CardTask
from eval.publishing.content import CardContent

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
GSM8K = next(card_task for card_task in CARD_TASKS if card_task.task == "gsm8k")
# The id of the task in the benchmark's repository on the hub.
GSM8K_ID = "gsm8k"


def front_matter(content: CardContent) -> str:
    """Return the YAML of a card's front matter, with the model-index."""
    from huggingface_hub import ModelCardData

    base_model = None
    if content.start_model and HUB_ID.fullmatch(content.start_model) and not Path(content.start_model).exists():
        base_model = content.start_model
    results = model_index_results(content)
    data = ModelCardData(
        model_name=content.name,
        base_model=base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["winnow", "rejection-sampling"],
        eval_results=results or None,
    )
    if not results:
        del data.model_name  # without results the hub's field for the name does not exist
    return str(data.to_yaml())


def model_index_results(content: CardContent) -> list["EvalResult"]:
    """Return the results of the model-index."""
    results = [_task_entry(result) for result in content.tasks]
    if content.judged is not None:
        results.append(_judged_entry(content.judged))
    return results


def hub_eval_results(content: CardContent) -> dict[str, str]:
    """Return file name -> YAML of the results for .eval_results/: GSM8K on its whole test split, a file per variant.

    Nothing for a run with task files of its own, whose GSM8K need not be the benchmark's.
    """
    from huggingface_hub import eval_result_entries_to_yaml

    files: dict[str, str] = {}
    if content.has_own_tasks:
        return files
    for result in content.tasks:
        if result.task == GSM8K.task and result.num_items == GSM8K.num_items:
            variant = result.metric.partition(",")[2]
            rows = eval_result_entries_to_yaml([_hub_entry(result)])
            files[f"gsm8k-{variant}.yaml"] = yaml.safe_dump(rows, sort_keys=False)
    return files


def card_task_of(task: str) -> CardTask | None:
    """Return the task of the recipe's cards with this name in lm-eval."""
    for card_task in CARD_TASKS:
        if card_task.task == task:
            return card_task
    return None


def settings_text(result: TaskResult) -> str:
    """Return how a task was evaluated, in words: "5-shot, strict-match, lm-eval 0.4.13"."""
    conditions = result.conditions
    words: list[str] = []
    if "shots" in conditions:
        words.append(f"{conditions['shots']}-shot")
    words.append(result.metric)
    if "lm-eval version" in conditions:
        words.append(f"lm-eval {conditions['lm-eval version']}")
    if conditions.get("chat template") is not None:
        words.append("chat template")
    if conditions.get("limit") is not None:
        words.append(f"limit {conditions['limit']}")
    return ", ".join(words)


def _task_entry(result: TaskResult) -> "EvalResult":
    from huggingface_hub import EvalResult

    card_task = card_task_of(result.task)
    metric = result.metric.partition(",")[0]
    value = result.value
    if 0 <= value <= 1:
        value = round(100 * value, 2)
    shots = result.conditions.get("shots")
    return EvalResult(
        task_type="text-generation",
        dataset_type=card_task.dataset if card_task else result.task,
        dataset_name=card_task.name.removesuffix(" strict") if card_task else result.task,
        dataset_config=card_task.configuration if card_task else None,
        dataset_split=card_task.split if card_task else None,
        dataset_args={"num_few_shot": shots} if shots is not None else None,
        metric_type=metric,
        metric_value=value,
        metric_name=settings_text(result),
    )


def _judged_entry(judged: JudgedScore) -> "EvalResult":
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="text-generation",
        dataset_type="mt_bench",
        dataset_name="MT-Bench",
        metric_type="score",
        metric_value=round(judged.mean, 2),
        metric_name=f"judged by {judged.judge}, 1 to 10",
    )


def _hub_entry(result: TaskResult) -> "EvalResultEntry":
    from huggingface_hub import EvalResultEntry

    return EvalResultEntry(
        dataset_id=GSM8K.dataset, task_id=GSM8K_ID, value=round(100 * result.value, 2), notes=settings_text(result)
    )

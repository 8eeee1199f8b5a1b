"""Results in the format of Every Eval Ever 0.3.0, which holds standard errors, intervals and judges.

    {"schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "eval_library", "model_info",
     "evaluation_results": [{"evaluation_name", "source_data", "metric_config",
                             "score_details": {"score", "uncertainty": {"standard_error", "confidence_interval"}}}]}

The schema is that of github.com/evaleval/every_eval_ever. A result whose metric has no known direction has no place in
it, because `lower_is_better` is required.
"""

from collections.abc import Iterator
from typing import Any

from eval.compare.results import TaskResult
from eval.judging.judged_scores import JudgedScore
from eval.publishing.content import CardContent
from eval.publishing.intervals import PublishedInterval, normal_interval, task_interval
from eval.publishing.metadata import card_task_of
from eval.statistics.intervals import LEVEL
from winnow import __version__

SCHEMA_VERSION = "0.3.0"
JUDGE_PROMPTS = "FastChat's single-answer prompts: a rating from 1 to 10, as [[rating]]"


def every_eval_ever(content: CardContent, organization: str, timestamp: int) -> dict[str, Any]:
    """Return the record of a model; `timestamp` is the time at which it is made, in seconds since 1970."""
    results = [_task_record(result) for result in content.tasks if direction_of(result) is not None]
    if content.judged is not None:
        results += _judged_records(content.judged)
    versions = {str(result.conditions["lm-eval version"]) for result in content.tasks if _has_version(result)}
    library: dict[str, Any] = {"name": "winnow", "version": __version__}
    if versions:
        library["additional_details"] = {"lm_eval_version": ", ".join(sorted(versions))}
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"winnow/{content.name}/{timestamp}",
        "retrieved_timestamp": str(timestamp),
        "source_metadata": {
            "source_name": "winnow",
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            "evaluator_relationship": "first_party",
        },
        "eval_library": library,
        "model_info": _model_info(content.name, "self_deployed"),
        "evaluation_results": results,
    }


def direction_of(result: TaskResult) -> bool | None:
    """Tell whether a higher value is better, as recorded or as lm-eval registers the metric; None if unknown."""
    if result.is_higher_better is not None:
        return result.is_higher_better
    import lm_eval.api.metrics  # noqa: F401 - fills the registry
    from lm_eval.api.registry import HIGHER_IS_BETTER_REGISTRY

    direction: bool | None = HIGHER_IS_BETTER_REGISTRY.get(result.metric.partition(",")[0], None)
    return direction


def _task_record(result: TaskResult) -> dict[str, Any]:
    num_items = len(result.items) or result.num_items
    source: dict[str, Any] = {"dataset_name": result.task, "source_type": "other"}
    card_task = card_task_of(result.task)
    if card_task is not None:
        source = {
            "dataset_name": card_task.name,
            "source_type": "hf_dataset",
            "hf_repo": card_task.dataset,
            "hf_split": card_task.split,
        }
        if num_items:
            source["samples_number"] = num_items
    metric_config: dict[str, Any] = {"metric_name": result.metric, "lower_is_better": not direction_of(result)}
    if 0 <= result.value <= 1:
        metric_config |= {"score_type": "continuous", "min_score": 0, "max_score": 1}
    record: dict[str, Any] = {
        "evaluation_name": result.task,
        "source_data": source,
        "metric_config": metric_config,
        "score_details": {
            "score": result.value,
            "uncertainty": _uncertainty(result.stderr, task_interval(result), num_items),
        },
    }
    if result.conditions:
        conditions = {key: str(value) for key, value in result.conditions.items()}
        record["generation_config"] = {"additional_details": conditions}
    return record


def _judged_records(judged: JudgedScore) -> Iterator[dict[str, Any]]:
    """Yield the mean, and the mean of each category."""
    num_readable = judged.num_judgments - judged.num_unparsable
    yield _judged_record(judged, "mt_bench", judged.mean, judged.stderr, num_readable)
    for category, mean in judged.by_category.items():
        yield _judged_record(judged, f"mt_bench/{category}", mean, judged.by_category_stderr.get(category), None)


def _judged_record(
    judged: JudgedScore, name: str, mean: float, stderr: float | None, num_verdicts: int | None
) -> dict[str, Any]:
    details = {"unreadable_verdicts": str(judged.num_unparsable), "verdicts": str(judged.num_judgments)}
    return {
        "evaluation_name": name,
        "source_data": {"dataset_name": "MT-Bench", "source_type": "other"},
        "metric_config": {
            "metric_name": "judged score",
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 1,
            "max_score": 10,
            "llm_scoring": {
                "judges": [{"model_info": _model_info(judged.judge, "unknown")}],
                "input_prompt": JUDGE_PROMPTS,
            },
        },
        "score_details": {
            "score": mean,
            "details": details,
            "uncertainty": _uncertainty(stderr, normal_interval(mean, stderr), num_verdicts),
        },
    }


def _uncertainty(stderr: float | None, interval: PublishedInterval | None, num_samples: int | None) -> dict[str, Any]:
    uncertainty: dict[str, Any] = {}
    if stderr is not None:
        uncertainty["standard_error"] = {"value": stderr, "method": "analytic"}
    if interval is not None:
        low, high = interval.interval
        uncertainty["confidence_interval"] = {
            "lower": low,
            "upper": high,
            "confidence_level": LEVEL,
            "method": interval.method,
        }
    if num_samples:
        uncertainty["num_samples"] = num_samples
    return uncertainty


def _model_info(name: str, deployment: str) -> dict[str, Any]:
    details = {"deployment_type": deployment, "model_availability": "unknown"}
    return {"name": name, "id": name, "additional_details": details}


def _has_version(result: TaskResult) -> bool:
    return "lm-eval version" in result.conditions

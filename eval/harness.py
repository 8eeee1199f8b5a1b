"""lm-eval's Hugging Face model and its evaluator, with winnow's progress bar instead of lm-eval's own output.

    with quiet():
        lm = open_lm(model, tokenizer, batch_size=8)
        output = evaluate(lm, loaded, num_fewshot=5, limit=None, label="round 1: arc_challenge")

Importing this module loads torch and lm-eval. lm-eval alone decides the requests to the model and their scores.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import lm_eval.api.task as lm_eval_task
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM

from winnow.progress import progress

# lm-eval's default (lm_eval/defaults.py), so that the few-shot examples are the same as on its command line.
FEWSHOT_SEED = 1234
# Batches per step of the bar; lm-eval sorts requests by length within a step.
BATCHES_PER_STEP = 16
REQUEST_TYPES = ("loglikelihood", "generate_until")


def open_lm(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """Wrap a loaded model as lm-eval's model."""
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def evaluate(lm: Any, loaded: Any, num_fewshot: int, limit: int | None, label: str) -> dict[str, Any]:
    """Evaluate tasks that lm-eval's TaskManager loaded; plain prompts, no chat template, no cache.

    Return lm-eval's output: "results" holds the metrics of each task, "samples" a row per item and filter.
    """
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(FEWSHOT_SEED)
    with watched(lm, label):
        return dict(evaluator.evaluate(lm=lm, task_dict=loaded, limit=limit))


@contextmanager
def watched(lm: Any, label: str) -> Iterator[None]:
    """Show a progress bar while lm-eval's evaluator sends requests to the model, which computes them in steps."""
    for name in REQUEST_TYPES:
        setattr(lm, name, functools.partial(_stepwise, getattr(lm, name), BATCHES_PER_STEP * lm.batch_size, label))
    try:
        yield
    finally:
        for name in REQUEST_TYPES:
            delattr(lm, name)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval's log lines below errors, and the progress bars of lm-eval and datasets."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    has_bars = not datasets.are_progress_bars_disabled()
    bar = lm_eval_task.tqdm
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    lm_eval_task.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        lm_eval_task.tqdm = bar
        logger.setLevel(level)
        if has_bars:
            datasets.enable_progress_bars()


def _stepwise(compute: Callable[..., list[Any]], step_size: int, label: str, requests: Sequence[Any]) -> list[Any]:
    """Compute the requests `step_size` at a time, with a progress bar."""
    results: list[Any] = []
    with progress(label, len(requests), "requests") as advance:
        for start in range(0, len(requests), step_size):
            results += compute(requests[start : start + step_size], disable_tqdm=True)
            advance(len(results) - start)
    return results

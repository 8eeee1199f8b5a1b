"""lm-eval's Hugging Face model and its evaluator, with winnow's progress bar instead of lm-eval's own output.

    with quiet():
        lm = open_lm(model, tokenizer, batch_size=8)
        found = evaluate(lm, loaded, num_fewshot=5, limit=None, label="round 1: arc_challenge")

Importing this loads torch and lm-eval. What is asked of the model, and how it is scored, is lm-eval's own.
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

# lm-eval's own default (lm_eval/defaults.py), so that few-shot examples are those of its command line.
FEWSHOT_SEED = 1234
# Batches per step of the bar; lm-eval sorts requests by length within a step.
BATCHES_PER_STEP = 16
REQUEST_TYPES = ("loglikelihood", "generate_until")


def open_lm(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's view of a loaded model."""
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def evaluate(lm: Any, loaded: Any, num_fewshot: int, limit: int | None, label: str) -> dict[str, Any]:
    """lm-eval's results and samples of tasks that its TaskManager loaded; plain prompts, no chat template, no cache."""
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(FEWSHOT_SEED)
    with watched(lm, label):
        return dict(evaluator.evaluate(lm=lm, task_dict=loaded, limit=limit))


@contextmanager
def watched(lm: Any, label: str) -> Iterator[None]:
    """Let the model answer requests step by step under a bar, which lm-eval's evaluator knows nothing of."""
    for name in REQUEST_TYPES:
        setattr(lm, name, functools.partial(_stepwise, getattr(lm, name), BATCHES_PER_STEP * lm.batch_size, label))
    try:
        yield
    finally:
        for name in REQUEST_TYPES:
            delattr(lm, name)


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines of lm-eval below errors, and none of its or datasets' progress bars."""
    logger = logging.getLogger("lm_eval")
    level, had_bars, bar = logger.level, not datasets.are_progress_bars_disabled(), lm_eval_task.tqdm
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    lm_eval_task.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        lm_eval_task.tqdm = bar
        logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()


def _stepwise(answer: Callable[..., list[Any]], step: int, label: str, requests: Sequence[Any]) -> list[Any]:
    answers: list[Any] = []
    with progress(label, len(requests), "requests") as advance:
        for start in range(0, len(requests), step):
            answers += answer(requests[start : start + step], disable_tqdm=True)
            advance(len(answers) - start)
    return answers

"""Silence of lm-eval and datasets, while winnow shows its progress bar and counts what their log lines would say."""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval's log lines below errors, and the progress bars of lm-eval and datasets."""
    import datasets
    import lm_eval.api.task as lm_eval_task

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

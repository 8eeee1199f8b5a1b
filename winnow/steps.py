"""How many optimizer steps an SFT job takes, before it is started.

    steps = ceil(num_epochs * ceil(num_rows / batch_size)), or max_steps where that is set

LAB's first phase: 4 * ceil(630000 / 3840) = 660 steps, fewer than its warm-up of 800.
"""

import math

from winnow.run_config import TrainConfig


def num_steps(num_rows: int, config: TrainConfig) -> int:
    """Optimizer steps of a job; the last batch of a pass may be smaller than the others.

    >>> num_steps(630_000, TrainConfig(learning_rate=1e-6, num_epochs=4, batch_size=3840))
    660
    """
    if config.max_steps is not None:
        return config.max_steps
    return math.ceil(config.num_epochs * math.ceil(num_rows / config.batch_size))


def warmup_warning(steps: int, config: TrainConfig) -> str | None:
    """What to tell when the learning rate never reaches its peak."""
    if config.warmup_steps < max(steps, 1):
        return None
    return (
        f"warm-up of {config.warmup_steps} steps is not shorter than training ({steps} steps); "
        "the learning rate never reaches its peak"
    )

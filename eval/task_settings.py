"""The settings of a task that lm-eval's TaskManager has loaded, applied as lm-eval's command line applies its flags.

    num_fewshot            unset: the task's number, else 0; a task that sets 0 keeps 0
    generation_arguments   added to the task's generation_kwargs
    few-shot examples      lm-eval's sampler with its default seed, so that they are the same as on its command line

check_shots counts the pool of examples, so that too many shots are an error before the task runs. No torch is needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from winnow.errors import UsageError

# lm-eval's default (lm_eval/defaults.py).
FEWSHOT_SEED = 1234


@dataclass(frozen=True)
class TaskSettings:
    """The settings of one evaluation of a task; None: the task's own, or all items."""

    num_fewshot: int | None = None
    limit: int | None = None
    is_chat: bool = False
    generation_arguments: Mapping[str, Any] = field(default_factory=dict)


def apply_settings(name: str, loaded: Any, settings: TaskSettings) -> None:
    """Set the shots and the generation arguments of a loaded task or group.

    Raises UsageError if it has too few examples, or if it generates nothing and has generation arguments.
    """
    generates = False
    for task in loaded["tasks"].values():
        _set_shots(task, settings.num_fewshot)
        check_shots(task)
        if settings.generation_arguments and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=dict(settings.generation_arguments), update=True)
            generates = True
    if settings.generation_arguments and not generates:
        raise UsageError(f"task {name} generates nothing; take its generation_arguments out")


def check_shots(task: Any) -> None:
    """Raise UsageError if a task has fewer examples than shots; an item is never an example of itself."""
    num_fewshot = num_shots(task)
    sampler = getattr(task, "sampler", None)
    if not num_fewshot or sampler is None:
        return
    num_examples = len(sampler.fewshot_indices or sampler.df)
    # lm-eval takes the item out of the pool exactly if these are equal, also if both are unset.
    is_pool_of_items = task.fewshot_cfg.split == task.config.test_split
    num_needed = num_fewshot + int(is_pool_of_items)
    if num_examples < num_needed:
        raise UsageError(
            f"task {task.task_name}: {num_fewshot} shots need {num_needed} examples, and {fewshot_split(task)} has "
            f"{num_examples}; lower num_fewshot, or add examples"
        )


def num_shots(task: Any) -> int:
    """Return the number of solved examples before each item of a task."""
    return task.get_config("num_fewshot") or 0


def fewshot_split(task: Any) -> str:
    """Return the split that a task takes its examples from, by lm-eval's rule."""
    config = task.config
    split = task.fewshot_cfg.split or config.training_split or config.validation_split or config.test_split
    return str(split)


def _set_shots(task: Any, num_fewshot: int | None) -> None:
    own_number = task.get_config("num_fewshot")
    if num_fewshot is not None and own_number != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif own_number is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(FEWSHOT_SEED)

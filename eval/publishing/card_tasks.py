"""The tasks of the recipe's cards, from the card suite, with the words of the cards' table and of the hub for each.

name           task    metric                      shots   items   data set, configuration, split
GSM8K strict   gsm8k   exact_match,strict-match        5    1319   openai/gsm8k, main, test
"""

from dataclasses import dataclass

from eval.suites.definition import SuiteTask, card_suite


@dataclass(frozen=True)
class CardTask:
    """A column of the cards' table; `num_items` are those of the whole split."""

    name: str
    task: str
    metric: str
    shots: int
    num_items: int
    dataset: str
    configuration: str
    split: str


def _card_tasks() -> tuple[CardTask, ...]:
    tasks = {task.name: task for task in card_suite().tasks}
    return (
        _card_task("MMLU", tasks["mmlu"], "all", "test"),
        _card_task("ARC-C", tasks["arc_challenge"], "ARC-Challenge", "test"),
        _card_task("HellaSwag", tasks["hellaswag"], "default", "validation"),
        _card_task("Winogrande", tasks["winogrande"], "winogrande_xl", "validation"),
        _card_task("GSM8K strict", tasks["gsm8k"], "main", "test"),
    )


def _card_task(name: str, task: SuiteTask, configuration: str, split: str) -> CardTask:
    """Return the column of a task with its first metric."""
    return CardTask(
        name=name,
        task=task.name,
        metric=task.metrics[0],
        shots=task.num_fewshot,
        num_items=sum(num_rows[split] for num_rows in task.splits.values()),
        dataset=task.dataset,
        configuration=configuration,
        split=split,
    )


CARD_TASKS = _card_tasks()

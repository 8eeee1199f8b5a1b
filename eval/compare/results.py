"""A result as the comparison sees it: tasks with a value per item, and a judged score with a value per turn.

    item id     task/position/hash of content and prompt     "mmlu_law/3/9f2c..."; equal ids may be paired
    turn        (question_id, turn)                           its score is the mean over runs

A condition is what decides whether two results compare: the shots, the limit, the chat template. One that a result does
not record is missing from its conditions, and the comparison says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eval.judging.questions import QuestionId

Turn = tuple[QuestionId, int]


@dataclass(frozen=True)
class TaskResult:
    """One metric of one task; `items` is empty where the result has no values per item, or is not their mean."""

    task: str
    metric: str
    value: float
    stderr: float | None
    num_items: int | None
    items: Mapping[str, float] = field(default_factory=dict)
    content_hashes: Mapping[str, str] = field(default_factory=dict)
    task_hash: str | None = None
    is_higher_better: bool | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgedResult:
    """The verdicts of one judge on one model; lengths are in characters, by question, and empty without answers."""

    judge: str
    mean: float
    stderr: float | None
    scores: Mapping[Turn, float]
    prompts: Mapping[Turn, str]
    num_unreadable: int
    lengths: Mapping[QuestionId, float] = field(default_factory=dict)

    @property
    def questions(self) -> frozenset[QuestionId]:
        """The questions that were judged, readable or not."""
        return frozenset(question for question, _ in self.prompts)


@dataclass(frozen=True)
class ResultSet:
    """All results of one model under the name that the table shows; task results by (task, metric)."""

    name: str
    tasks: Mapping[tuple[str, str], TaskResult]
    judged: JudgedResult | None = None


def subject_of(item_id: str) -> str:
    """Return the task of an item; in a group like MMLU it is the subject.

    >>> subject_of("mmlu_law/3/9f2c")
    'mmlu_law'
    """
    return item_id.rsplit("/", 2)[0]

"""Judges: a question's answers so far -> a verdict from 1 to 10 on the newest one. One Protocol, two judges.

reference-judge    a rule, without a model (reference_judge.py)
llm                a language model behind an OpenAI-compatible endpoint, with FastChat's prompts (llm_judge.py)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from eval.judging.questions import Question


@dataclass(frozen=True)
class Verdict:
    """A judge's word on one turn: `score` from 1 to 10, or None where it could not be read."""

    score: float | None
    explanation: str
    prompt_name: str
    prompt: str = ""


class Judge(Protocol):
    """Scores answers."""

    @property
    def name(self) -> str:
        """What results call this judge."""
        ...

    @property
    def num_parallel(self) -> int:
        """How many verdicts may be asked for at a time."""
        ...

    def judge(self, question: Question, answers: Sequence[str], reference: Sequence[str] | None) -> Verdict:
        """The verdict on the last of `answers`, which holds one answer per turn so far."""
        ...

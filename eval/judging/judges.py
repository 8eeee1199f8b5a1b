"""The Protocol of judges: the answers to a question -> a verdict from 1 to 10 on the last answer.

reference-judge    a rule, without a model (reference_judge.py)
llm                a language model behind an OpenAI-compatible endpoint, with FastChat's prompts (llm_judge.py)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from eval.judging.questions import Question


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one turn: `score` is from 1 to 10, or None if the verdict is unreadable."""

    score: float | None
    explanation: str
    prompt_name: str
    prompt: str = ""


class Judge(Protocol):
    """A judge of answers."""

    @property
    def name(self) -> str:
        """The judge's name in results."""
        ...

    @property
    def num_parallel(self) -> int:
        """The number of threads that may call `judge` at the same time."""
        ...

    def check(self) -> None:
        """Raise WinnowError if the judge cannot judge anything; called before answers are generated."""
        ...

    def judge(
        self, question: Question, answers: Sequence[str], reference: Sequence[str] | None, repetition: str = ""
    ) -> Verdict:
        """Return the verdict on the last of `answers`, which holds one answer per turn so far.

        Verdicts of the same answers with several names of `repetition` are independent of each other.
        """
        ...

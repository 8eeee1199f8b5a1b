"""FastChat's files of pairwise judgments -> checked rows -> wins, ties and losses by pair and judge.

{"question_id", "model_1", "model_2", "g1_winner", "g2_winner", "judge": [name, prompt], "g1_user_prompt",
 "g1_judgment", "g2_user_prompt", "g2_judgment", "turn"}

both games have the same winner      a win of that model: 1 for model_1, 0 for model_2
both games are ties                  a tie: 1/2
the games differ                     inconsistent: a tie, as in FastChat, and counted
a game is an "error"                 unreadable: left out, and counted

win rate = mean of these values, ties as half a win; its standard error is over questions
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from eval.judging.judged_scores import WARNED_UNREADABLE_SHARE
from eval.judging.questions import QuestionId, parse_rows
from eval.statistics.estimates import Estimate, clustered_estimate
from winnow.errors import InputError, WinnowError

Winner = Literal["model_1", "model_2", "tie", "error"]
PAIR_KEYS = frozenset({"g1_winner", "g2_winner"})


class PairJudgment(BaseModel):
    """One row of a FastChat pairwise file; FastChat has no `run_id`, it is optional."""

    model_config = ConfigDict(frozen=True)

    question_id: QuestionId
    model_1: str
    model_2: str
    g1_winner: Winner
    g2_winner: Winner
    judge: tuple[str, str]
    g1_user_prompt: str = ""
    g1_judgment: str = ""
    g2_user_prompt: str = ""
    g2_judgment: str = ""
    turn: Literal[1, 2]
    run_id: int = 0

    @property
    def is_unreadable(self) -> bool:
        """True if a game has no verdict."""
        return "error" in (self.g1_winner, self.g2_winner)

    @property
    def is_consistent(self) -> bool:
        """True if both games have the same result."""
        return self.g1_winner == self.g2_winner

    @property
    def value(self) -> float:
        """The result for model_1: 1, 1/2 or 0."""
        if not self.is_consistent or self.g1_winner == "tie":
            return 0.5
        return 1.0 if self.g1_winner == "model_1" else 0.0


@dataclass(frozen=True)
class PairResult:
    """The judgments of one pair by one judge; `win_rate` is None if no judgment is readable."""

    models: tuple[str, str]
    judge: str
    num_wins: int
    num_ties: int
    num_losses: int
    num_inconsistent: int
    num_unreadable: int
    win_rate: Estimate | None

    @property
    def num_judgments(self) -> int:
        """The number of rows."""
        return self.num_wins + self.num_ties + self.num_losses + self.num_unreadable


def read_pair_judgments(path: str | Path) -> list[PairJudgment]:
    """Read a file. Raises InputError with file and line for a row at fault, or one that is there twice."""
    locations: dict[tuple[object, ...], str] = {}
    judgments: list[PairJudgment] = []
    for location, row in parse_rows(path, PairJudgment):
        pair = frozenset((row.model_1, row.model_2))
        if len(pair) == 1:
            raise InputError(f"{location}: model_1 and model_2 are both {row.model_1!r}")
        key = (pair, row.judge[0], row.question_id, row.turn, row.run_id)
        if key in locations:
            raise InputError(
                f"{location}: a second judgment of question_id {row.question_id!r}, turn {row.turn}, run {row.run_id} "
                f"of {row.model_1!r} and {row.model_2!r} by {row.judge[0]!r} (the first: {locations[key]})"
            )
        locations[key] = location
        judgments.append(row)
    if not judgments:
        raise InputError(f"{path} holds no judgment")
    return judgments


def pair_results(judgments: Sequence[PairJudgment]) -> list[PairResult]:
    """Return the result of each pair by each judge, in the order in which they first occur."""
    groups: dict[tuple[tuple[str, str], str], list[PairJudgment]] = {}
    for row in judgments:
        groups.setdefault(((row.model_1, row.model_2), row.judge[0]), []).append(row)
    return [pair_result(models, judge, rows) for (models, judge), rows in groups.items()]


def pair_result(models: tuple[str, str], judge: str, rows: Sequence[PairJudgment]) -> PairResult:
    """Compute the result of one pair by one judge."""
    readable = [row for row in rows if not row.is_unreadable]
    values = {(row.question_id, row.turn, row.run_id): row.value for row in readable}
    win_rate = clustered_estimate(values, lambda key: key[0]) if values else None
    results = list(values.values())
    return PairResult(
        models=models,
        judge=judge,
        num_wins=results.count(1.0),
        num_ties=results.count(0.5),
        num_losses=results.count(0.0),
        num_inconsistent=sum(1 for row in readable if not row.is_consistent),
        num_unreadable=len(rows) - len(readable),
        win_rate=win_rate,
    )


def pair_warning(result: PairResult, max_unreadable: float) -> str | None:
    """Return a warning for a share of unreadable judgments above 2 percent, else None.

    Raises WinnowError for a share above `max_unreadable`, and if no judgment is readable.
    """
    share = result.num_unreadable / result.num_judgments
    text = (
        f"{result.models[0]} and {result.models[1]}: {result.num_unreadable} of {result.num_judgments} judgments of "
        f"{result.judge} are unreadable"
    )
    if share > max_unreadable or result.win_rate is None:
        raise WinnowError(
            f"{text} ({share:.1%}, at most {max_unreadable:.1%} allowed); read the rows with the winner error, or set "
            "--max-unreadable to allow more"
        )
    if share > WARNED_UNREADABLE_SHARE:
        return f"warning: {text} and left out"
    return None

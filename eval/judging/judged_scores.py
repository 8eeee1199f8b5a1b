"""Judgments -> scores. Pure.

    mean of a run      mean over all its readable verdicts, both turns pooled, as FastChat does
    mean, min, max     over runs;  sd: the sample standard deviation over runs, None for a single run
    by_category        mean over the readable verdicts of all runs, for each category of questions
    by_turn            the same for each turn
    stderr             standard error over questions of the mean and of both tables
                       (`clustered_estimate`, eval/statistics/estimates.py)

An unreadable verdict (score -1 in the file) is left out of every mean, and counted; a share above the allowed one
is refused by `check_readable`, since judges fail on hard questions first. A turn without an answer has no verdict.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pydantic import BaseModel, ConfigDict, Field

from eval.judging.questions import QuestionId
from eval.statistics.estimates import clustered_estimate
from winnow.errors import InputError, WinnowError
from winnow.records import Row

UNREADABLE = -1.0
WARNED_UNREADABLE_SHARE = 0.02


class Judgment(BaseModel):
    """One row of a FastChat judgment file: the verdict on one turn. FastChat has no `run_id`; it is optional."""

    model_config = ConfigDict(frozen=True)

    question_id: QuestionId
    model: str
    judge: tuple[str, str]
    user_prompt: str
    judgment: str
    score: float
    turn: int
    run_id: int = 0


class JudgedScore(Row):
    """A checkpoint's judged score on a question set, on the scale 1 to 10; lengths in characters, of answers made."""

    judge: str
    mean: float
    min: float
    max: float
    sd: float | None
    runs: tuple[float, ...]
    by_category: dict[str, float]
    by_turn: dict[str, float]
    num_judgments: int
    num_unparsable: int
    mean_answer_chars: float | None
    num_unanswered: int = 0
    stderr: float | None = None
    by_category_stderr: dict[str, float | None] = Field(default_factory=dict)
    by_turn_stderr: dict[str, float | None] = Field(default_factory=dict)

    @property
    def unreadable_share(self) -> float:
        """The share of verdicts that are unreadable."""
        return self.num_unparsable / self.num_judgments


@dataclass(frozen=True)
class GroupScore:
    """The verdicts of one category or turn: mean and standard error of the readable ones, None without any."""

    mean: float | None
    stderr: float | None
    num_judgments: int
    num_unparsable: int


def mean_score(judgments: Iterable[Judgment]) -> float | None:
    """Return the mean of the readable verdicts; None if no verdict is readable."""
    scores = [judgment.score for judgment in judgments if judgment.score != UNREADABLE]
    if not scores:
        return None
    return fmean(scores)


def group_score(judgments: Sequence[Judgment]) -> GroupScore:
    """Compute mean and standard error over the readable ones of these judgments."""
    readable = [judgment for judgment in judgments if judgment.score != UNREADABLE]
    return GroupScore(
        mean=mean_score(readable),
        stderr=_stderr(readable),
        num_judgments=len(judgments),
        num_unparsable=len(judgments) - len(readable),
    )


def _stderr(readable: Sequence[Judgment]) -> float | None:
    """Return the standard error over questions: the turns and runs of a question share its difficulty."""
    scores = {(judgment.question_id, judgment.turn, judgment.run_id): judgment.score for judgment in readable}
    if not scores:
        return None
    return clustered_estimate(scores, lambda key: key[0]).stderr


def group_scores(judgments: Sequence[Judgment], keys: Sequence[str]) -> dict[str, GroupScore]:
    """Return key -> score of its judgments, in the order of first occurrence."""
    judgments_of: dict[str, list[Judgment]] = defaultdict(list)
    for key, judgment in zip(keys, judgments, strict=True):
        judgments_of[key].append(judgment)
    return {key: group_score(rows) for key, rows in judgments_of.items()}


def scores_by_category(
    judgments: Sequence[Judgment], categories: Mapping[QuestionId, str] | None
) -> dict[str, GroupScore]:
    """Return the score of each category; nothing without categories. Raises InputError for an unknown question."""
    if categories is None:
        return {}
    keys: list[str] = []
    for judgment in judgments:
        if judgment.question_id not in categories:
            raise InputError(
                f"a judgment of question_id {judgment.question_id!r}, which the question set does not have; give the "
                "questions that were judged"
            )
        keys.append(categories[judgment.question_id])
    return group_scores(judgments, keys)


def scores_by_turn(judgments: Sequence[Judgment]) -> dict[str, GroupScore]:
    """Return the score of each turn."""
    return group_scores(judgments, [str(judgment.turn) for judgment in judgments])


def summarize(
    judgments: Sequence[Judgment],
    categories: Mapping[QuestionId, str] | None,
    answer_chars: Sequence[int],
    num_unanswered: int = 0,
) -> JudgedScore:
    """Compute all scores of one checkpoint by one judge. Raises WinnowError if no verdict of a run is readable.

    `answer_chars` are the lengths of the answers that were made, `num_unanswered` is the number of turns without one.
    """
    _check_single(judgments)
    unreadable = [judgment for judgment in judgments if judgment.score == UNREADABLE]
    run_means: list[float] = []
    for score in group_scores(judgments, [str(judgment.run_id) for judgment in judgments]).values():
        if score.mean is not None:
            run_means.append(score.mean)
    if len(run_means) < len({judgment.run_id for judgment in judgments}) or not run_means:
        last_reply = f"; its last reply: {unreadable[-1].judgment[:200]!r}" if unreadable else ""
        raise WinnowError(
            f"the judge gave no readable verdict in a whole run; check judge.model and judge.prompts{last_reply}"
        )
    by_category = scores_by_category(judgments, categories)
    by_turn = scores_by_turn(judgments)
    return JudgedScore(
        judge=judgments[0].judge[0],
        mean=fmean(run_means),
        min=min(run_means),
        max=max(run_means),
        sd=stdev(run_means) if len(run_means) > 1 else None,
        runs=tuple(run_means),
        by_category=_means(by_category),
        by_turn=_means(by_turn),
        num_judgments=len(judgments),
        num_unparsable=len(unreadable),
        mean_answer_chars=fmean(answer_chars) if answer_chars else None,
        num_unanswered=num_unanswered,
        stderr=group_score(judgments).stderr,
        by_category_stderr=_stderrs(by_category),
        by_turn_stderr=_stderrs(by_turn),
    )


def unreadable_warning(score: JudgedScore, label: str) -> str | None:
    """Return a warning for a share of unreadable verdicts above 2 percent, else None."""
    if score.unreadable_share <= WARNED_UNREADABLE_SHARE:
        return None
    return (
        f"warning: {label}: {score.num_unparsable} of {score.num_judgments} verdicts of the judge {score.judge} are "
        "unreadable and left out of the judged score"
    )


def check_readable(score: JudgedScore, max_unreadable: float, label: str, setting: str) -> None:
    """Raise WinnowError if the share of unreadable verdicts exceeds `max_unreadable`, the value of a named setting."""
    if score.unreadable_share <= max_unreadable:
        return
    raise WinnowError(
        f"{label}: {score.num_unparsable} of {score.num_judgments} verdicts of the judge {score.judge} are unreadable "
        f"({score.unreadable_share:.1%}, at most {max_unreadable:.1%} allowed); a mean of the others is biased. Read "
        f"the rows with score -1, or set {setting} to allow more"
    )


def _check_single(judgments: Sequence[Judgment]) -> None:
    """Raise InputError if the judgments are of several models or by several judges: their mean says nothing."""
    for kind, names in (
        ("models", {judgment.model for judgment in judgments}),
        ("judges", {judgment.judge[0] for judgment in judgments}),
    ):
        if len(names) > 1:
            raise InputError(f"judgments of several {kind} ({', '.join(sorted(names))}); summarize each alone")


def _means(scores: Mapping[str, GroupScore]) -> dict[str, float]:
    """Return key -> mean; omit keys without a mean."""
    return {key: score.mean for key, score in scores.items() if score.mean is not None}


def _stderrs(scores: Mapping[str, GroupScore]) -> dict[str, float | None]:
    """Return key -> standard error of each key that has a mean."""
    return {key: score.stderr for key, score in scores.items() if score.mean is not None}

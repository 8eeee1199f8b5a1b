"""Judgments -> scores. Pure.

    mean of a run      mean over all its readable verdicts, both turns pooled, as FastChat does
    mean, min, max     over runs;  sd: the sample standard deviation over runs, None for a single run
    by_category        mean over the readable verdicts of all runs, for each category of questions
    by_turn            the same for each turn

An unreadable verdict (score -1 in the file) is left out of every mean, and counted. So is a turn without an answer,
which has no verdict.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from pydantic import BaseModel, ConfigDict

from eval.judging.questions import QuestionId
from winnow.errors import WinnowError
from winnow.records import Row

UNREADABLE = -1.0


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
    mean_answer_chars: float
    num_unanswered: int = 0


def mean_score(judgments: Iterable[Judgment]) -> float | None:
    """Return the mean of the readable verdicts; None if no verdict is readable."""
    scores = [judgment.score for judgment in judgments if judgment.score != UNREADABLE]
    if not scores:
        return None
    return fmean(scores)


def summarize(
    judgments: Sequence[Judgment],
    categories: Mapping[QuestionId, str],
    answer_chars: Sequence[int],
    num_unanswered: int = 0,
) -> JudgedScore:
    """Compute all scores of one checkpoint. Raises WinnowError if no verdict of a run is readable.

    `answer_chars` are the lengths of the answers that were made, `num_unanswered` is the number of turns without one.
    """
    means = _means(judgments, [str(judgment.run_id) for judgment in judgments])
    unreadable = [judgment for judgment in judgments if judgment.score == UNREADABLE]
    if len(means) < len({judgment.run_id for judgment in judgments}) or not means:
        last_reply = f"; its last reply: {unreadable[-1].judgment[:200]!r}" if unreadable else ""
        raise WinnowError(
            f"the judge gave no readable verdict in a whole run; check judge.model and judge.prompts{last_reply}"
        )
    run_means = tuple(means.values())
    return JudgedScore(
        judge=judgments[0].judge[0],
        mean=fmean(run_means),
        min=min(run_means),
        max=max(run_means),
        sd=stdev(run_means) if len(run_means) > 1 else None,
        runs=run_means,
        by_category=_means(judgments, [categories[judgment.question_id] for judgment in judgments]),
        by_turn=_means(judgments, [str(judgment.turn) for judgment in judgments]),
        num_judgments=len(judgments),
        num_unparsable=len(unreadable),
        mean_answer_chars=fmean(answer_chars),
        num_unanswered=num_unanswered,
    )


def _means(judgments: Sequence[Judgment], keys: Sequence[str]) -> dict[str, float]:
    """Return key -> mean of its readable verdicts, in the order of first occurrence; omit keys without a mean."""
    judgments_of: dict[str, list[Judgment]] = defaultdict(list)
    for key, judgment in zip(keys, judgments, strict=True):
        judgments_of[key].append(judgment)
    means = {key: mean_score(rows) for key, rows in judgments_of.items()}
    return {key: mean for key, mean in means.items() if mean is not None}

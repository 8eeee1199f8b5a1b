"""Judgments -> scores. Pure.

    mean of a run      mean over all its readable verdicts, both turns pooled, as FastChat does
    mean, min, max     over runs;  sd: the runs' sample standard deviation, None of a single run
    by_category,       mean over the readable verdicts of all runs
    by_turn

A verdict that cannot be read (score -1 in the file) is left out of every mean, and counted.
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
    """One row of a FastChat judgment file: the verdict on one turn. `run_id` is ours, and optional."""

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
    """A checkpoint's judged score on a question set, on the scale 1 to 10; lengths in characters."""

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


def mean_score(judgments: Iterable[Judgment]) -> float | None:
    """Mean of the readable verdicts; None when there is none."""
    scores = [judgment.score for judgment in judgments if judgment.score != UNREADABLE]
    return fmean(scores) if scores else None


def summarize(
    judgments: Sequence[Judgment], categories: Mapping[QuestionId, str], answer_chars: Sequence[int]
) -> JudgedScore:
    """All scores of one checkpoint. Raises WinnowError when no verdict of a run could be read."""
    runs = _means(judgments, [str(judgment.run_id) for judgment in judgments])
    unread = [judgment for judgment in judgments if judgment.score == UNREADABLE]
    if len(runs) < len({judgment.run_id for judgment in judgments}) or not runs:
        said = f"; its last words: {unread[-1].judgment[:200]!r}" if unread else ""
        raise WinnowError(
            f"the judge gave no readable verdict in a whole run; check judge.model and judge.prompts{said}"
        )
    return JudgedScore(
        judge=judgments[0].judge[0],
        mean=fmean(runs.values()),
        min=min(runs.values()),
        max=max(runs.values()),
        sd=stdev(runs.values()) if len(runs) > 1 else None,
        runs=tuple(runs.values()),
        by_category=_means(judgments, [categories[judgment.question_id] for judgment in judgments]),
        by_turn=_means(judgments, [str(judgment.turn) for judgment in judgments]),
        num_judgments=len(judgments),
        num_unparsable=len(unread),
        mean_answer_chars=fmean(answer_chars),
    )


def _means(judgments: Sequence[Judgment], keys: Sequence[str]) -> dict[str, float]:
    """Mean readable score of each key's judgments, keys as they first occur; a key without any is left out."""
    groups: dict[str, list[Judgment]] = defaultdict(list)
    for key, judgment in zip(keys, judgments, strict=True):
        groups[key].append(judgment)
    means = {key: mean_score(group) for key, group in groups.items()}
    return {key: mean for key, mean in means.items() if mean is not None}

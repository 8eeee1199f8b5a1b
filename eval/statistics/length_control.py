"""The judged difference at equal length: judges prefer longer answers, and rounds of best-of-N grow longer.

    d = a + b tanh(l / s) + error       over questions, by ordinary least squares

d is the paired score difference of a question (later minus earlier, mean over turns and runs), l the paired difference
of the lengths of its answers, s the standard deviation of l over the questions. The intercept a is the difference at
equal length; tanh keeps a few very long answers from deciding the slope (the form of AlpacaEval's length-controlled win
rate, Dubois et al., arXiv 2404.04475). Its standard error is HC3, since the spread of d depends on the question
(MacKinnon and White 1985, Journal of Econometrics 29); the interval is Student's with n - 2 degrees of freedom.

This is a description beside the raw difference: a better answer can be longer for a reason.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from eval.statistics.estimates import Estimate, estimate
from eval.statistics.intervals import LEVEL, Interval, student_interval
from winnow.errors import WinnowError

Key = TypeVar("Key", bound=Hashable)

MIN_QUESTIONS = 3


@dataclass(frozen=True)
class LengthControlled:
    """The raw difference and the one at equal length; the slope is in score per tanh(l / s)."""

    raw: Estimate
    mean: float
    stderr: float
    interval: Interval
    slope: float
    mean_length_difference: float
    n: int


def length_controlled(
    score_differences: Mapping[Key, float], length_differences: Mapping[Key, float], level: float = LEVEL
) -> LengthControlled | None:
    """Fit the regression over questions; None for fewer than 3 questions or for lengths that all differ alike.

    Raises WinnowError if the keys differ.

    >>> scores = {q: 0.5 + 0.1 * (q % 3) for q in range(9)}
    >>> lengths = {q: 100.0 * (q % 3 - 1) for q in range(9)}
    >>> fit = length_controlled(scores, lengths)
    >>> round(fit.raw.mean, 3), round(fit.mean, 3), round(fit.slope, 3)
    (0.6, 0.6, 0.122)
    """
    if score_differences.keys() != length_differences.keys():
        unpaired = sorted(map(repr, score_differences.keys() ^ length_differences.keys()))
        raise WinnowError(f"questions with a score or a length alone: {', '.join(unpaired)}; give both for each")
    scores = np.array([score_differences[key] for key in score_differences], dtype=np.float64)
    lengths = np.array([length_differences[key] for key in score_differences], dtype=np.float64)
    if len(scores) < MIN_QUESTIONS or np.ptp(lengths) == 0:
        return None
    design = np.column_stack([np.ones(len(scores)), np.tanh(lengths / lengths.std(ddof=1))])
    coefficients, covariance = least_squares(design, scores)
    mean = float(coefficients[0])
    stderr = float(np.sqrt(covariance[0, 0]))
    return LengthControlled(
        raw=estimate(scores.tolist()),
        mean=mean,
        stderr=stderr,
        interval=student_interval(mean, stderr, len(scores) - 1, level),
        slope=float(coefficients[1]),
        mean_length_difference=float(lengths.mean()),
        n=len(scores),
    )


def least_squares(
    design: npt.NDArray[np.float64], response: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the coefficients (X'X)^-1 X'y and their HC3 covariance: (X'X)^-1 X' diag(e^2 / (1 - h)^2) X (X'X)^-1.

    A point with leverage h = 1 is fitted exactly, and its residual counts as 0.
    """
    bread = np.linalg.inv(design.T @ design)
    coefficients = bread @ design.T @ response
    leverage = np.einsum("ij,jk,ik->i", design, bread, design)
    room = 1 - leverage
    is_free = room > 1e-12
    residuals = response - design @ coefficients
    scaled = np.where(is_free, residuals / np.where(is_free, room, 1.0), 0.0)
    meat = (design * scaled[:, None] ** 2).T @ design
    return coefficients, bread @ meat @ bread

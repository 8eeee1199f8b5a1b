"""How often a peak rule finds the true peak, and what it costs: run as `python -m benchmarks.peak_rule [--json]`.

Model: the judged score of question q (mean over its turns and runs) in round r is

    score(q, r) = true(r) + difficulty(q) + noise(q, r)      80 questions, rounds 0 to 5
    difficulty ~ N(0, 2.5^2), the same in every round
    noise ~ N(0, (sd sqrt(80))^2), so that the mean of a round has noise of standard deviation sd

`true` is one of CURVES. "mid-run" is a curve of real size; the others have the shapes that their names say. Real noise
is .05 to .15 for the 160 verdicts of MT-Bench, and the standard error of one mean is .21 to .36. Here the paired
standard error of two rounds is sd sqrt(2), the unpaired one of a mean sqrt((2.5^2 + 80 sd^2) / 80), about .29. Reward
rises with every round, as it does when it is over-optimised; round 0 has
none.

Every rule sees the same simulated runs. For each rule: the share of runs in which it finds the true peak, and the mean
regret (true score of the peak minus true score of the chosen round, in points of the scale 1 to 10), each with the
standard error of the simulation. `shipped` is eval.peak.choose_peak itself. For its tie set: the share of runs in which
it holds the true peak, and its mean size. `behind_best` is the share of the best of the other rules minus that of the
shipped one, with the paired standard error of the simulation.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.peak import Candidate, Peak, Rule, Verdicts, choose_peak

NUM_QUESTIONS = 80
DIFFICULTY_SD = 2.5
CURVES: Mapping[str, tuple[float, ...]] = {
    "mid-run": (7.66, 7.85, 7.96, 7.90, 7.80, 7.65),
    "flat": (7.76, 7.88, 7.94, 7.92, 7.89, 7.86),
    "sharp": (7.30, 7.72, 8.00, 7.81, 7.60, 7.30),
    "symmetric": (7.66, 7.85, 7.96, 7.85, 7.66, 7.40),
    "rising": (7.55, 7.68, 7.78, 7.86, 7.92, 7.96),
    "falling": (7.96, 7.90, 7.80, 7.70, 7.60, 7.50),
}
CASES = (
    ("mid-run", 0.05),
    ("mid-run", 0.10),
    ("mid-run", 0.15),
    ("flat", 0.10),
    ("sharp", 0.10),
    ("symmetric", 0.10),
    ("rising", 0.10),
    ("falling", 0.10),
)
SHIPPED = "shipped"

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SimulatedRun:
    """The scores of a run, rounds x questions, and what the simple rules need of them."""

    scores: Scores

    @property
    def means(self) -> Scores:
        """The judged score of each round."""
        return np.asarray(self.scores.mean(axis=1))

    @property
    def shortfalls(self) -> Scores:
        """The best round's judged score minus that of each round."""
        return np.asarray(self.means.max() - self.means)

    @property
    def paired_stderrs(self) -> Scores:
        """The paired standard error of the best round against each round."""
        differences = self.scores[self.means.argmax()] - self.scores
        return np.asarray(differences.std(axis=1, ddof=1) / math.sqrt(NUM_QUESTIONS))

    @property
    def unpaired_stderr(self) -> float:
        """The standard error of the best round's judged score."""
        return float(self.scores[self.means.argmax()].std(ddof=1) / math.sqrt(NUM_QUESTIONS))


def highest(run: SimulatedRun) -> int:
    """Choose the highest judged score."""
    return int(run.means.argmax())


def tolerance(points: float, ties: str) -> Callable[[SimulatedRun], int]:
    """Choose among the rounds within so many points of the best."""
    return lambda run: _tied(run.shortfalls <= points, ties)


def unpaired(run: SimulatedRun) -> int:
    """Choose the earliest round within a standard error of the best mean, as the one-standard-error rule does."""
    return _tied(run.shortfalls <= run.unpaired_stderr, "earliest")


def paired(num_stderrs: float, ties: str) -> Callable[[SimulatedRun], int]:
    """Choose among the rounds within so many paired standard errors of the best."""
    return lambda run: _tied(run.shortfalls <= num_stderrs * run.paired_stderrs, ties)


RULES: Mapping[str, Callable[[SimulatedRun], int]] = {
    "highest judged score": highest,
    "within .05, highest reward": tolerance(0.05, "reward"),
    "within .10, highest reward": tolerance(0.10, "reward"),
    "within .20, highest reward": tolerance(0.20, "reward"),
    "within .05, earliest": tolerance(0.05, "earliest"),
    "within .10, earliest": tolerance(0.10, "earliest"),
    "within 1 unpaired standard error, earliest": unpaired,
    "within 1 paired standard error, earliest": paired(1.0, "earliest"),
    "within .5 paired standard error, earliest": paired(0.5, "earliest"),
    "within 1 paired standard error, highest reward": paired(1.0, "reward"),
}


def main() -> None:
    """Simulate every case, and print the table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--runs", type=int, default=2000, help="simulated runs a case (default 2000)")
    arguments = parser.parse_args()
    results = [measure(curve, sd, arguments.runs) for curve, sd in CASES]
    print(json.dumps(results) if arguments.json else "\n".join(table(results)))


def measure(curve: str, sd: float, num_runs: int) -> dict[str, Any]:
    """Simulate one case; equal arguments give equal results."""
    true = np.array(CURVES[curve])
    generator = np.random.default_rng([round(1000 * score) for score in (*CURVES[curve], sd)])
    chosen: dict[str, list[int]] = {name: [] for name in [SHIPPED, *RULES]}
    tie_sets: list[list[int]] = []
    for _ in range(num_runs):
        run = simulate(true, sd, generator)
        peak = shipped(run)
        chosen[SHIPPED].append(peak.round)
        tie_sets.append(peak.ties or [])
        for name, rule in RULES.items():
            chosen[name].append(rule(run))
    holds_peak = np.array([int(true.argmax()) in ties for ties in tie_sets], dtype=np.float64)
    rules = {name: accuracy(true, np.array(rounds)) for name, rounds in chosen.items()}
    best = max(RULES, key=lambda name: rules[name]["true_peak"])
    is_peak = {name: np.array(chosen[name]) == true.argmax() for name in (best, SHIPPED)}
    behind = is_peak[best].astype(np.float64) - is_peak[SHIPPED]
    return {
        "curve": curve,
        "true": list(CURVES[curve]),
        "sd": sd,
        "runs": num_runs,
        "rules": rules,
        **_mean("behind_best", behind),
        "tie_set": {**_mean("holds_peak", holds_peak), **_mean("size", np.array([len(ties) for ties in tie_sets]))},
    }


def simulate(true: Scores, sd: float, generator: np.random.Generator) -> SimulatedRun:
    """Draw the scores of one run."""
    difficulty = generator.normal(0, DIFFICULTY_SD, NUM_QUESTIONS)
    noise = generator.normal(0, sd * math.sqrt(NUM_QUESTIONS), (len(true), NUM_QUESTIONS))
    return SimulatedRun(true[:, None] + difficulty + noise)


def shipped(run: SimulatedRun) -> Peak:
    """Apply the rule that `winnow run` applies."""
    candidates = []
    for round_number, scores in enumerate(run.scores.tolist()):
        verdicts: Verdicts = {(question, 1): score for question, score in enumerate(scores)}
        candidates.append(Candidate(round_number, float(run.means[round_number]), verdicts))
    return choose_peak(candidates, Rule())


def accuracy(true: Scores, rounds: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return the share of true peaks and the mean regret, with their standard errors."""
    is_peak = (rounds == true.argmax()).astype(np.float64)
    return {**_mean("true_peak", is_peak), **_mean("regret", true.max() - true[rounds])}


def table(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table: share of true peaks / regret."""
    yield "| rule | " + " | ".join(f"{result['curve']} {result['sd']:.2f}" for result in results) + " |"
    yield "|---" * (1 + len(results)) + "|"
    for name in [*RULES, SHIPPED]:
        cells = []
        for result in results:
            rule = result["rules"][name]
            cells.append(f"{rule['true_peak']:.3f} / {rule['regret']:.3f}")
        yield f"| {name} | " + " | ".join(cells) + " |"
    tie_sets = [result["tie_set"] for result in results]
    cells = [f"{tie_set['holds_peak']:.3f} / {tie_set['size']:.1f}" for tie_set in tie_sets]
    yield "| tie set of the shipped rule: holds the true peak / rounds | " + " | ".join(cells) + " |"
    yield "| best rule minus shipped | " + " | ".join(f"{result['behind_best']:.3f}" for result in results) + " |"
    rules = [rule for result in results for rule in result["rules"].values()]
    shares = max(rule["true_peak_stderr"] for rule in rules)
    regrets = max(rule["regret_stderr"] for rule in rules)
    yield f"\n{results[0]['runs']} runs a case; standard errors at most {shares:.3f} / {regrets:.3f}."


def _tied(is_tied: npt.NDArray[np.bool_], ties: str) -> int:
    """Return the earliest of the tied rounds, or the one with the highest reward, which is the last."""
    tied = np.flatnonzero(is_tied)
    return int(tied[0] if ties == "earliest" else tied[-1])


def _mean(name: str, values: npt.NDArray[Any]) -> dict[str, float]:
    stderr = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {name: float(values.mean()), f"{name}_stderr": stderr}


if __name__ == "__main__":
    main()

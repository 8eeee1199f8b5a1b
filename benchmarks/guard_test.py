"""Size and power of the test that a guard drops a round with: run as `python -m benchmarks.guard_test [--json]`.

Model: each of n items independently gets worse with chance q + loss, better with chance q, and stays as it is else;
so 2q + loss is the discordance. Values in [0, 1] (a `graded` guard) change by a Beta(2, 2) step in place of 1.

    at tolerance    the share of significant losses if the true loss is the tolerance: the size, alpha at most
    inside          the same if the true loss is 95 % of the tolerance
    at zero         the same if nothing is lost
    twice           the same if the true loss is twice the tolerance: the power

Alpha is 0.05, and 0.05 / 15 for the first step of Holm's correction over 3 guards and 5 rounds.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from eval.statistics.distributions import student_tail
from eval.statistics.loss_test import loss_test
from eval.statistics.paired_scores import score_statistic

TOLERANCE = 0.02
ITEMS = (50, 200, 1319, 14042)
DISCORDANCES = (0.05, 0.15)
ALPHAS = (0.05, 0.05 / 15)
CLEARLY_KEPT = 1.2
CLEARLY_DROPPED = 3.6
TRUE_LOSSES = {"at tolerance": 1.0, "inside": 0.95, "at zero": 0.0, "twice": 2.0}

Row = dict[str, Any]


def main() -> None:
    """Measure every case, and print the table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--simulations", type=int, default=10_000, help="simulated results a case (default 10000)")
    arguments = parser.parse_args()
    rows = list(measure(arguments.simulations))
    print(json.dumps(rows) if arguments.json else "\n".join(table(rows)))


def measure(num_simulations: int) -> Iterator[Row]:
    """Yield a row for each kind of guard, number of items and discordance."""
    for kind, simulate in (("binary", binary_rejections), ("graded", graded_rejections)):
        for n in ITEMS:
            for discordance in DISCORDANCES:
                generator = np.random.default_rng([n, round(1000 * discordance)])
                row: Row = {"kind": kind, "items": n, "discordance": discordance, "simulations": num_simulations}
                for name, factor in TRUE_LOSSES.items():
                    row[name] = simulate(n, discordance, factor * TOLERANCE, num_simulations, generator)
                yield row


def binary_rejections(
    n: int, discordance: float, loss: float, num_simulations: int, generator: np.random.Generator
) -> list[float]:
    """Return the share of simulated results with a significant loss, for each alpha.

    Equal counts share a p-value. A score statistic below CLEARLY_KEPT or above CLEARLY_DROPPED decides by itself.
    """
    cells = [(discordance + loss) / 2, (discordance - loss) / 2, 1 - discordance]
    counts = generator.multinomial(n, cells, size=num_simulations)
    distinct, frequencies = np.unique(counts, axis=0, return_counts=True)
    num_rejected = [0] * len(ALPHAS)
    for (num_worse, num_better, num_equal), frequency in zip(distinct.tolist(), frequencies.tolist(), strict=True):
        statistic = float(score_statistic(num_worse, num_better, n, TOLERANCE))
        p_value = float(statistic < CLEARLY_KEPT)
        if CLEARLY_KEPT <= statistic <= CLEARLY_DROPPED:
            p_value = loss_test([-1.0] * num_worse + [1.0] * num_better + [0.0] * num_equal, TOLERANCE).p_value
        for index, alpha in enumerate(ALPHAS):
            num_rejected[index] += frequency * (p_value <= alpha)
    return [count / num_simulations for count in num_rejected]


def graded_rejections(
    n: int, discordance: float, loss: float, num_simulations: int, generator: np.random.Generator
) -> list[float]:
    """Return the same for items with values in [0, 1]; their steps have mean 1/2, so twice as many items change."""
    cells = [discordance + loss, discordance - loss, 1 - 2 * discordance]
    p_values = np.empty(num_simulations)
    for index, (num_worse, num_better, num_equal) in enumerate(generator.multinomial(n, cells, size=num_simulations)):
        steps = [-generator.beta(2, 2, size=num_worse), generator.beta(2, 2, size=num_better), np.zeros(num_equal)]
        changes = np.concatenate(steps)
        if not changes.any():
            p_values[index] = 1.0
            continue
        statistic = -(changes.mean() + TOLERANCE) / (changes.std(ddof=1) / math.sqrt(n))
        p_values[index] = student_tail(statistic, n - 1)
    return [float(np.mean(p_values <= alpha)) for alpha in ALPHAS]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a Markdown table: percent at alpha 0.05, then at 0.05 / 15."""
    names = list(TRUE_LOSSES)
    yield "| guard | items | discordance | " + " | ".join(names) + " |"
    yield "|---" * (3 + len(names)) + "|"
    for row in rows:
        shares = [" / ".join(f"{100 * share:.1f}" for share in row[name]) for name in names]
        yield f"| {row['kind']} | {row['items']} | {row['discordance']:g} | " + " | ".join(shares) + " |"
    error = 100 * math.sqrt(ALPHAS[0] * (1 - ALPHAS[0]) / rows[0]["simulations"])
    yield f"\nStandard error of the simulation at 5 %: {error:.2f}."


if __name__ == "__main__":
    main()

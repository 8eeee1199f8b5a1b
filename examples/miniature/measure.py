"""The miniature over several seeds, and whether the recipe's claims hold: a table for the README, no seed left out.

    python -m examples.miniature.measure [--seeds 0 1 2] [--write README.md]

Each seed has a world, models and a run of its own under runs/miniature-seeds/<seed>. The claims, for each seed:

    rises      batch reward of round 2 > that of round 1
    selects    in every round the selected set's reward > that of a random control of equal size
    gains      held-out exact match at the peak - at round 0, in points (10 or more)
    agrees     Spearman's rank correlation of batch reward and judged score over rounds 1, 2, ...
    goes on    the peak is not the last round: a round that does not improve was seen
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.report import PeakReport, RoundReport
from winnow.rows import write_text

ROOT = Path(__file__).parent.parent.parent
SEEDS_DIR = Path("runs/miniature-seeds")
EXACT_TASK = "orrel_problems"
MARKS = ("<!-- miniature:table -->", "<!-- /miniature:table -->")


def main() -> None:
    """Run the seeds that have not been run, print the tables, and write them into a file if asked."""
    parser = argparse.ArgumentParser(prog="python -m examples.miniature.measure", description=main.__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", type=Path, help="put the tables between this file's marks")
    arguments = parser.parse_args()
    reports = {seed: measured(seed) for seed in arguments.seeds}
    text = "\n".join([*rounds_table(reports), "", *claims_table(reports)])
    print(text)
    if arguments.write:
        write_between_marks(arguments.write, text)


def measured(seed: int) -> PeakReport:
    """The peak report of a seed's run, which is made, or gone on with, if it is not there."""
    folder = SEEDS_DIR / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "examples.miniature", "--seed", str(seed)]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return PeakReport.model_validate(json.loads((folder / "runs/miniature/peak.json").read_text()))


def rounds_table(reports: dict[int, PeakReport]) -> Iterator[str]:
    """One line per seed and round, in Markdown; the peak is bold."""
    tasks = list(next(iter(reports.values())).rounds[0].benchmarks)
    yield "| seed | round | batch reward | random control | " + " | ".join(tasks) + " | judged score [min..max] |"
    yield "|" + "---|" * (len(tasks) + 5)
    for seed, report in reports.items():
        for one in report.rounds:
            cells = [str(seed), str(one.round), *_cells(one, tasks)]
            if one.round == report.round:
                cells = [f"**{cell}**" for cell in cells]
            yield "| " + " | ".join(cells) + " |"


def claims_table(reports: dict[int, PeakReport]) -> Iterator[str]:
    """One line per seed: what of the recipe's claims shows."""
    yield "| seed | peak | rises | selects | gains, points | agrees (Spearman) | goes on |"
    yield "|---|---|---|---|---|---|---|"
    for seed, report in reports.items():
        rewards = [one.batch_reward or 0.0 for one in report.rounds[1:]]
        selects = all((one.gap or 0.0) > 0 for one in report.rounds[1:])
        cells = [
            f"round {report.round}",
            _yes(rewards[1] > rewards[0]),
            _yes(selects),
            f"{gain(report):+.1f}",
            f"{report.rank_agreement or 0.0:+.2f}",
            _yes(report.round != report.rounds[-1].round),
        ]
        yield f"| {seed} | " + " | ".join(cells) + " |"


def gain(report: PeakReport) -> float:
    """Points of exact match that the peak has over round 0."""
    peak, start = (report.rounds[number].benchmarks[EXACT_TASK].value for number in (report.round, 0))
    return 100 * (peak - start)


def write_between_marks(path: Path, text: str) -> None:
    """Replace what stands between the marks of a file."""
    before, rest = path.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    write_text(path, f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


def _cells(one: RoundReport, tasks: Sequence[str]) -> Iterator[str]:
    for reward in (one.batch_reward, one.random_control_reward):
        yield "" if reward is None else f"{reward:.2f}"
    for task in tasks:
        score = one.benchmarks[task]
        yield f"{100 * score.value:.1f} ± {100 * (score.stderr or 0.0):.1f}"
    judged = one.judge_score
    yield "" if judged is None else f"{judged.mean:.2f} [{judged.min:.2f}..{judged.max:.2f}]"


def _yes(is_true: bool) -> str:
    return "yes" if is_true else "no"


if __name__ == "__main__":
    main()

"""The miniature over several seeds: tables of its results and of the recipe's claims for the README.

    python -m examples.miniature.measure [--seeds 0 1 2] [--write README.md]

Each seed has a world, models and a run of its own under runs/miniature-seeds/<seed>. The claims, for each seed:

    rises      mean reward on the probe is higher in round 2 than in round 1
    selects    the selected set has a higher mean reward than a random control of equal size, in every round
    gains      held-out exact match at the peak minus that at round 0, in points (10 or more)
    saturates  the first round after which the mean reward on the probe does not gain significantly; - if all gain
    agrees     Spearman's rank correlation of mean reward on the probe and judged score over all rounds
    goes on    the peak is not the last round: the run includes a round without improvement
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.report import PeakReport, RoundReport
from winnow.import_path import child_environment
from winnow.rows import write_text

ROOT = Path(__file__).parent.parent.parent
SEEDS_DIR = Path("runs/miniature-seeds")
EXACT_TASK = "orrel_problems"
MARKS = ("<!-- miniature:table -->", "<!-- /miniature:table -->")


def main() -> None:
    """Run the miniature for each seed, print the tables, and write them into a file with --write."""
    parser = argparse.ArgumentParser(prog="python -m examples.miniature.measure", description=main.__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to run (default: 0 1 2)")
    parser.add_argument("--write", type=Path, help="file with marks; the tables replace the text between them")
    arguments = parser.parse_args()
    reports = {seed: run_seed(seed) for seed in arguments.seeds}
    text = "\n".join([*rounds_table(reports), "", *claims_table(reports)])
    print(text)
    if arguments.write:
        write_between_marks(arguments.write, text)


def run_seed(seed: int) -> PeakReport:
    """Start, resume or reuse the run of a seed; return its peak report."""
    folder = SEEDS_DIR / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**child_environment(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "examples.miniature", "--seed", str(seed)]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return PeakReport.model_validate(json.loads((folder / "runs/miniature/peak.json").read_text()))


def rounds_table(reports: dict[int, PeakReport]) -> Iterator[str]:
    """Yield a Markdown table with one line per seed and round; the peak is bold."""
    tasks = list(next(iter(reports.values())).rounds[0].benchmarks)
    rewards = "probe mean | probe best of N | batch reward | random control"
    yield f"| seed | round | {rewards} | " + " | ".join(tasks) + " | judged score [min..max] |"
    yield "|" + "---|" * (len(tasks) + 7)
    for seed, report in reports.items():
        for round_report in report.rounds:
            cells = [str(seed), str(round_report.round), *_cells(round_report, tasks)]
            if round_report.round == report.round:
                cells = [f"**{cell}**" for cell in cells]
            yield "| " + " | ".join(cells) + " |"


def claims_table(reports: dict[int, PeakReport]) -> Iterator[str]:
    """Yield a Markdown table of the recipe's claims with one line per seed."""
    yield "| seed | peak | rises | selects | gains, points | saturates | agrees (Spearman) | goes on |"
    yield "|---|---|---|---|---|---|---|---|"
    for seed, report in reports.items():
        gains = {gain.round: gain.mean_reward for gain in report.probe_gains}
        gaps = [round_report.gap or 0.0 for round_report in report.rounds[1:]]
        cells = [
            f"round {report.round}",
            _yes(gains[2] > 0),
            _yes(min(gaps) > 0),
            f"{exact_match_gain(report):+.1f}",
            "-" if report.saturation_round is None else f"round {report.saturation_round}",
            f"{report.rank_agreement or 0.0:+.2f}",
            _yes(report.round != report.rounds[-1].round),
        ]
        yield f"| {seed} | " + " | ".join(cells) + " |"


def exact_match_gain(report: PeakReport) -> float:
    """Return the gain in exact match from round 0 to the peak, in points."""
    start = report.rounds[0].benchmarks[EXACT_TASK].value
    peak = report.rounds[report.round].benchmarks[EXACT_TASK].value
    return 100 * (peak - start)


def write_between_marks(path: Path, text: str) -> None:
    """Replace the text between the marks of a file. Raises ValueError for a file without them."""
    before, rest = path.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    write_text(path, f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


def _cells(report: RoundReport, tasks: Sequence[str]) -> Iterator[str]:
    probe = report.probe
    on_probe = (probe.mean_reward, probe.best_of_n_reward) if probe else (None, None)
    for reward in (*on_probe, report.batch_reward, report.random_control_reward):
        yield "" if reward is None else f"{reward:.2f}"
    for task in tasks:
        score = report.benchmarks[task]
        yield f"{100 * score.value:.1f} ± {100 * (score.stderr or 0.0):.1f}"
    judged = report.judge_score
    yield "" if judged is None else f"{judged.mean:.2f} [{judged.min:.2f}..{judged.max:.2f}]"


def _yes(is_true: bool) -> str:
    return "yes" if is_true else "no"


if __name__ == "__main__":
    main()

"""The closing table on the terminal: the content of peak.json, one row per round, and the reason for the peak.

Benchmarks are in percent with their standard error; judged scores are means with [min..max] over runs. Rewards on the
probe compare between rounds; batch reward and its gap are of the round's own prompts.
"""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.peak import APART_STDERRS, Comparison
from eval.probe import ALPHA, ProbeGain
from eval.report import BenchmarkScore, PeakReport, RoundReport, ScoreRange

PIPED_WIDTH = 100
# With more tasks than this, the padding is dropped, so that the five tasks of the model cards fit 100 columns.
MANY_TASKS = 3
NOTHING = "-"
PROBE_HEADERS = ("probe\nmean", "probe\nbest")
BATCH_HEADERS = ("batch\nreward", "gap over\nrandom")


def print_closing(report: PeakReport, console: Console | None = None) -> None:
    """Print the table and the explanation to stdout; the width is 100 columns if stdout is a pipe."""
    console = console or Console()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(rounds_table(report))
    console.print()
    for line in explanation(report):
        console.print(Text(line))


def rounds_table(report: PeakReport) -> Table:
    """Build the table: one row per round, with the peak marked."""
    tasks: list[str] = []
    for round_report in report.rounds:
        tasks += [task for task in round_report.benchmarks if task not in tasks]
    padding = (0, 1) if len(tasks) <= MANY_TASKS else (0, 0)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, padding=padding)
    breakable = [task.replace("_", "_\n") for task in tasks]
    reward_headers = _reward_headers(report, len(tasks))
    for header in ("round", *reward_headers, *breakable, "judged score\n[min..max]"):
        table.add_column(Text(header), justify="right", overflow="fold")
    table.add_column("", no_wrap=True)
    dropped = {dropped_round.round for dropped_round in report.dropped}
    for round_report in report.rounds:
        mark = ""
        style = None
        if round_report.round == report.round:
            mark = "<- peak"
            style = "bold green"
        elif round_report.round in dropped:
            mark = "dropped"
            style = "dim"
        table.add_row(*map(Text, _cells(round_report, reward_headers, tasks)), mark, style=style)
    return table


def explanation(report: PeakReport) -> Iterator[str]:
    """Yield lines of text that explain the choice of the peak."""
    yield f"Peak: round {report.round} ({report.checkpoint}), {_reason(report)}."
    yield f"Ties: {_ties(report)}."
    for comparison in report.comparisons:
        yield _comparison(report, comparison)
    for dropped in report.dropped:
        yield f"Dropped: round {dropped.round}: {dropped.reason}."
    yield from _left_out(report)
    yield f"Rule: {report.rule}."
    for gain in report.probe_gains:
        yield _gain(gain)
    if report.probe_gains:
        yield f"Saturation: {_saturation(report)}."
    agreement = report.rank_agreement
    value = "not defined (too few rounds, or no spread)" if agreement is None else f"{agreement:+.2f}"
    measure = "mean reward on the probe" if report.has_probe else "batch reward"
    yield f"Spearman of {measure} against judged score over rounds: {value}."


def _left_out(report: PeakReport) -> Iterator[str]:
    """Yield a line for each round with turns that have no answer, or no readable verdict."""
    for round_report in report.rounds:
        score = round_report.judge_score
        if score is not None and score.num_unanswered:
            yield f"Unanswered: round {round_report.round}: {score.num_unanswered} turns have no answer and no score."
        if score is not None and score.num_unparsable:
            yield (
                f"Unreadable: round {round_report.round}: {score.num_unparsable} of {score.num_judgments} verdicts "
                "are in no mean."
            )


def _reason(report: PeakReport) -> str:
    kept = "of the rounds that no guard dropped" if report.dropped else "of all rounds"
    if report.best is None:
        return f"the last {kept}; no round has a judged score, so nothing ranks them"
    if report.best == report.round:
        return f"the highest judged score {kept}"
    return f"the earliest within half a paired standard error of round {report.best}, the highest judged score {kept}"


def _ties(report: PeakReport) -> str:
    """Say which rounds cannot be told apart, or why that could not be tested."""
    if report.best is None:
        return "not tested, since no round has a judged score"
    if report.ties is None:
        return "not tested, since that takes verdicts by question, on two questions or more"
    if not report.comparisons:
        return f"round {report.best} is the only kept round with a judged score"
    if len(report.ties) == 1:
        return f"round {report.best} is told apart from every other by more than {APART_STDERRS} paired standard errors"
    *first, last = map(str, report.ties)
    return f"rounds {', '.join(first)} and {last} cannot be told apart (within {APART_STDERRS} paired standard errors)"


def _comparison(report: PeakReport, comparison: Comparison) -> str:
    error = "standard error unknown" if comparison.stderr is None else f"paired standard error {comparison.stderr:.3f}"
    return (
        f"Judged: round {report.best} minus round {comparison.round}: {comparison.difference:+.3f} ({error}, "
        f"{comparison.num_questions} questions, {comparison.num_verdicts} verdicts)."
    )


def _gain(gain: ProbeGain) -> str:
    """Say what a round gained on the probe."""
    mean = _with_stderr(gain.mean_reward, gain.mean_reward_stderr)
    best = _with_stderr(gain.best_of_n_reward, gain.best_of_n_stderr)
    return (
        f"Probe: round {gain.round} minus round {gain.round - 1}: mean reward {mean} (one-sided p = "
        f"{gain.p_value:.2g}), best of N {best}, with paired standard errors over {gain.num_prompts} prompts."
    )


def _saturation(report: PeakReport) -> str:
    if report.saturation_round is None:
        return f"none; the mean reward on the probe gains significantly in every round (alpha {ALPHA:g})"
    return (
        f"round {report.saturation_round}, the first after which the mean reward on the probe does not gain "
        f"significantly (alpha {ALPHA:g})"
    )


def _with_stderr(value: float, stderr: float | None) -> str:
    text = f"{round(value, 3) + 0.0:+.3f}"  # + 0.0 turns -0.0 into 0.0
    if stderr is None:
        return text
    return f"{text}+-{stderr:.3f}"


def _reward_headers(report: PeakReport, num_tasks: int) -> list[str]:
    """Return the headers of the rewards; beside many tasks the probe's alone fit."""
    if not report.has_probe:
        return list(BATCH_HEADERS)
    if num_tasks > MANY_TASKS:
        return list(PROBE_HEADERS)
    return [*PROBE_HEADERS, *BATCH_HEADERS]


def _cells(report: RoundReport, reward_headers: list[str], tasks: list[str]) -> list[str]:
    probe = report.probe
    rewards = {
        "probe\nmean": _decimal(probe.mean_reward if probe else None),
        "probe\nbest": _decimal(probe.best_of_n_reward if probe else None),
        "batch\nreward": _decimal(report.batch_reward),
        "gap over\nrandom": _decimal(report.gap, sign="+"),
    }
    return [
        str(report.round),
        *(rewards[header] for header in reward_headers),
        *(_benchmark(report.benchmarks.get(task)) for task in tasks),
        _judged(report.judge_score),
    ]


def _decimal(value: float | None, sign: str = "") -> str:
    if value is None:
        return NOTHING
    return f"{value:{sign}.2f}"


def _benchmark(score: BenchmarkScore | None) -> str:
    if score is None:
        return NOTHING
    if score.stderr is None:
        return f"{100 * score.value:.1f}"
    return f"{100 * score.value:.1f}+-{100 * score.stderr:.1f}"


def _judged(score: ScoreRange | None) -> str:
    if score is None:
        return NOTHING
    return f"{score.mean:.2f} [{score.min:.2f}..{score.max:.2f}]"

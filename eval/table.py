"""The closing table on the terminal: what peak.json says, one line per round, and why the peak is the peak.

Benchmarks are in percent with their standard error; judged scores are means with [min..max] over runs.
"""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.report import BenchmarkScore, PeakReport, RoundReport, ScoreRange

PIPED_WIDTH = 100
# With more tasks than this, columns stand closer, so that the model cards' five still fit 100 columns.
MANY_TASKS = 3
NOTHING = "-"


def print_closing(report: PeakReport, console: Console | None = None) -> None:
    """Print table and explanation to stdout; a pipe gets 100 columns."""
    console = console or Console()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(rounds_table(report))
    console.print()
    for line in explanation(report):
        console.print(Text(line))


def rounds_table(report: PeakReport) -> Table:
    """One line per round, the peak marked."""
    tasks = list(dict.fromkeys(task for one in report.rounds for task in one.benchmarks))
    padding = (0, 1) if len(tasks) <= MANY_TASKS else (0, 0)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, padding=padding)
    breakable = [task.replace("_", "_\n") for task in tasks]
    for header in ("round", "batch\nreward", "gap over\nrandom", *breakable, "judged score\n[min..max]"):
        table.add_column(Text(header), justify="right", overflow="fold")
    table.add_column("", no_wrap=True)
    dropped = {one.round for one in report.dropped}
    for one in report.rounds:
        mark = "<- peak" if one.round == report.round else "dropped" if one.round in dropped else ""
        style = "bold green" if one.round == report.round else "dim" if one.round in dropped else None
        table.add_row(*map(Text, _cells(one, tasks)), mark, style=style)
    return table


def explanation(report: PeakReport) -> Iterator[str]:
    """Why the peak is the peak, in lines of text."""
    yield f"Peak: round {report.round} ({report.checkpoint}), {_why(report)}."
    num_kept = len(report.rounds) - len(report.dropped)
    others = [str(number) for number in report.ties if number != report.round]
    if others:
        tied = ", ".join(map(str, report.ties))
        yield f"Ties: {len(report.ties)} of {num_kept} rounds are indistinguishable by judged score: {tied}."
    else:
        yield f"Ties: none; 1 of {num_kept} rounds leads."
    for one in report.dropped:
        yield f"Dropped: round {one.round}: {one.reason}."
    yield f"Rule: {report.rule}."
    agreement = report.rank_agreement
    known = "not defined (too few rounds, or no spread)" if agreement is None else f"{agreement:+.2f}"
    yield f"Spearman of batch reward against judged score over rounds: {known}."


def _why(report: PeakReport) -> str:
    if report.judge_score is None:
        return "by batch reward, since no round has a judged score"
    kept = "of the rounds that no guard dropped" if report.dropped else "of all rounds"
    if len(report.ties) == 1:
        return f"the highest judged score {kept}"
    peers = [one for one in report.rounds if one.round in report.ties and one.round != report.round]
    if report.batch_reward is None or any(one.batch_reward == report.batch_reward for one in peers):
        return f"the earliest of the highest judged scores {kept}"
    return f"the highest batch reward among the tied highest judged scores {kept}"


def _cells(one: RoundReport, tasks: list[str]) -> list[str]:
    return [
        str(one.round),
        _number(one.batch_reward),
        _number(one.gap, sign="+"),
        *(_benchmark(one.benchmarks.get(task)) for task in tasks),
        _judged(one.judge_score),
    ]


def _number(value: float | None, sign: str = "") -> str:
    return NOTHING if value is None else f"{value:{sign}.2f}"


def _benchmark(score: BenchmarkScore | None) -> str:
    if score is None:
        return NOTHING
    return f"{100 * score.value:.1f}" + (f"+-{100 * score.stderr:.1f}" if score.stderr is not None else "")


def _judged(score: ScoreRange | None) -> str:
    return NOTHING if score is None else f"{score.mean:.2f} [{score.min:.2f}..{score.max:.2f}]"

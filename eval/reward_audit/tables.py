"""An audit on the terminal: accuracy by subset, by length, RewardBench's sections, and the best-of-N curve.

    subset            pairs   accuracy   95 % interval   ties   failed
    natural             100       71.0    61.5 .. 79.0      0        0
    all                 419       ...

It shows a part of audit.json (report.py); accuracies are in percent.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPED_WIDTH = 110


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables of a report and the notes on what they leave out."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, PIPED_WIDTH)
    if "accuracy" in report:
        accuracy = report["accuracy"]
        _print_accuracies(console, "subset", {**accuracy["by_subset"], "all": accuracy["all"]})
        for unit, by_length in accuracy["by_length"].items():
            _print_accuracies(console, f"length in {unit}", by_length)
    if "rewardbench" in report:
        _print_sections(console, report["rewardbench"])
    if "best_of_n" in report:
        _print_curve(console, report["best_of_n"])
        _print_bins(console, report["best_of_n"])
    for note in _notes(report):
        console.print(Text(note))


def _print_accuracies(console: Console, header: str, rows: Mapping[str, Any]) -> None:
    table = _table(header, "pairs", "accuracy", "95 % interval", "ties", "failed")
    for name, row in rows.items():
        interval = "-"
        if row["interval"] is not None:
            low, high = row["interval"]
            interval = f"{_percent(low)} .. {_percent(high)}"
        counts = (str(row["num_pairs"]), _percent(row["accuracy"]), interval)
        table.add_row(name, *counts, str(row["num_ties"]), str(row["num_failed"]))
    _print(console, table)


def _print_sections(console: Console, rewardbench: Mapping[str, Any]) -> None:
    """Print RewardBench's sections, a column for today's and the 2024 counts."""
    by_counts = rewardbench["counts"]
    table = _table("RewardBench", *(f"{name}'s counts" if name == "today" else f"{name} counts" for name in by_counts))
    for section in by_counts["today"]["sections"]:
        table.add_row(section, *(_score(counts["sections"][section]) for counts in by_counts.values()))
    table.add_row("Prior Sets", *[_score(rewardbench["prior_sets"])] * len(by_counts))
    for key, name in (("total_without_prior_sets", "total"), ("total_with_prior_sets", "total with Prior Sets")):
        table.add_row(name, *(_score(counts[key]) for counts in by_counts.values()))
    _print(console, table)


def _print_curve(console: Console, best_of_n: Mapping[str, Any]) -> None:
    table = _table("best of n", "prompts", "gold", "gold gain", "most possible", "reward gain")
    for point in best_of_n["curve"]:
        keys = ("gold", "gold_gain", "oracle_gain", "reward_gain")
        table.add_row(str(point["n"]), str(point["num_prompts"]), *(_mean(point[key]) for key in keys))
    _print(console, table)


def _print_bins(console: Console, best_of_n: Mapping[str, Any]) -> None:
    table = _table("fifth of the reward", "prompts", "completions", "gold", "gold excess", "reward excess")
    for row in best_of_n["by_reward_rank"]:
        counts = (str(row["num_prompts"]), str(row["num_completions"]))
        table.add_row(
            str(row["fifth"]), *counts, *(_mean(row[key]) for key in ("gold", "gold_excess", "reward_excess"))
        )
    _print(console, table)
    console.print(Text(f"rank correlation within a prompt: {_mean(best_of_n['rank_correlation'])}"))


def _notes(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the tables leave out or count otherwise."""
    if report.get("statuses"):
        yield f"not scored: {_counts(report['statuses'])} completions; their pairs are in no accuracy"
    if "rewardbench" in report:
        yield from _rewardbench_notes(report["rewardbench"])
    if "best_of_n" in report:
        best_of_n = report["best_of_n"]
        if best_of_n["completions_left_out"]:
            yield f"best of n leaves out: {_counts(best_of_n['completions_left_out'])} completions"
        if best_of_n["num_prompts_left_out"]:
            yield f"best of n leaves out: {best_of_n['num_prompts_left_out']} prompts without a completion that counts"


def _rewardbench_notes(rewardbench: Mapping[str, Any]) -> Iterator[str]:
    num_ties = rewardbench["ties_counted_as_losses"]
    num_failed = rewardbench["failed_pairs_counted_as_losses"]
    if num_ties or num_failed:
        yield f"RewardBench's scores count {num_ties} ties and {num_failed} failed pairs as losses"
    if rewardbench["missing_subsets"]:
        yield f"RewardBench's subsets without pairs: {', '.join(rewardbench['missing_subsets'])}"
    incomplete = []
    for subset, (number, complete) in rewardbench["incomplete_subsets"].items():
        incomplete.append(f"{subset} ({number} of {complete})")
    if incomplete:
        yield f"not RewardBench's data: {', '.join(incomplete)}; these scores do not compare with published ones"


def _table(first: str, *headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first, justify="left")
    for header in headers:
        table.add_column(header, justify="right")
    return table


def _print(console: Console, table: Table) -> None:
    console.print(table)
    console.print()


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _score(score: Mapping[str, float] | None) -> str:
    if score is None:
        return "-"
    return f"{_percent(score['value'])} ± {_percent(score['stderr'])}"


def _mean(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    if value["stderr"] is None:
        return f"{value['mean']:.3f}"
    return f"{value['mean']:.3f} ± {value['stderr']:.3f}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())

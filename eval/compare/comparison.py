"""Several results -> one family of tests, on the terminal or as one JSON object. The first result is the baseline.

    out/b compared with out/a

p-values are corrected by Holm over all later results and tasks, and the verdict is that at 5 % after the correction.
"visible" is the smallest difference that a test would show, 80 times in 100, at Holm's first step.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.compare.differences import Difference, judged_difference, smallest_visible, task_difference
from eval.compare.reading import ReadingOptions, read_results
from eval.compare.refusals import has_judged, refusals, shared_tasks, unknown_conditions
from eval.compare.results import ResultSet
from eval.statistics.holm import holm_family
from winnow.errors import PreflightError, UsageError

ALPHA = 0.05
PIPED_WIDTH = 160
JUDGED = "judged score"
NOT_KNOWN = "-"


@dataclass(frozen=True)
class ComparedRow:
    """One difference in the family of tests; `corrected` is its p-value after Holm, None where there is no test."""

    name: str
    difference: Difference
    corrected: float | None
    visible: float | None
    is_higher_better: bool | None

    @property
    def verdict(self) -> str:
        """The result of the test in words."""
        if self.corrected is None:
            return "no test"
        if self.corrected >= ALPHA:
            return "not told apart"
        is_higher = self.difference.difference > 0
        if self.is_higher_better is None:
            return "higher *" if is_higher else "lower *"
        return "better *" if is_higher == self.is_higher_better else "worse *"


@dataclass(frozen=True)
class ComparedResult:
    """A later result compared with the baseline; notes say what the rows leave out."""

    name: str
    rows: tuple[ComparedRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ComparisonFamily:
    """All later results compared with the baseline, in one family of tests."""

    baseline: str
    results: tuple[ComparedResult, ...]
    num_tests: int


def print_comparison(
    arguments: Sequence[str],
    options: ReadingOptions,
    only: Sequence[str] = (),
    *,
    is_json: bool = False,
    console: Console | None = None,
) -> None:
    """Read the results, compare them, and print the table or one JSON object."""
    comparison = compare(read_results(arguments, options), only)
    if is_json:
        print(json.dumps(as_json(comparison), ensure_ascii=False))
        return
    console = console or Console()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    for compared in comparison.results:
        console.print(Text(f"{compared.name} compared with {comparison.baseline}"), style="bold")
        console.print(_table(compared))
        for note in compared.notes:
            console.print(Text(note))
        console.print()
    console.print(Text(_closing(comparison)))


def compare(results: Sequence[ResultSet], only: Sequence[str] = ()) -> ComparisonFamily:
    """Compare each later result with the first.

    Raises PreflightError with every reason why results do not compare, and UsageError for fewer than two results or an
    unknown name in `only`.
    """
    if len(results) < 2:
        raise UsageError(f"{len(results)} result is given; give two or more, the baseline first")
    chosen = _chosen(results, only)
    baseline = chosen[0]
    reasons: list[str] = []
    for later in chosen[1:]:
        reasons += refusals(baseline, later)
    if reasons:
        raise PreflightError(reasons)
    differences: dict[tuple[int, str], tuple[Difference, bool | None]] = {}
    for index, later in enumerate(chosen[1:]):
        for name, difference, is_higher_better in _differences(baseline, later):
            differences[index, name] = (difference, is_higher_better)
    p_values = {key: value.p_value for key, (value, _) in differences.items() if value.p_value is not None}
    corrected = holm_family(p_values)
    alpha = ALPHA / max(1, len(p_values))
    compared: list[ComparedResult] = []
    for index, later in enumerate(chosen[1:]):
        rows: list[ComparedRow] = []
        for key, (difference, is_higher_better) in differences.items():
            if key[0] == index:
                visible = smallest_visible(difference, alpha)
                rows.append(ComparedRow(key[1], difference, corrected.get(key), visible, is_higher_better))
        compared.append(ComparedResult(later.name, tuple(rows), tuple(_notes(baseline, later, rows))))
    return ComparisonFamily(baseline.name, tuple(compared), len(p_values))


def as_json(comparison: ComparisonFamily) -> dict[str, Any]:
    """Return the comparison as a JSON object; its keys are documented in docs/compare.md."""
    return {
        "baseline": comparison.baseline,
        "num_tests": comparison.num_tests,
        "alpha": ALPHA,
        "results": [
            {"name": compared.name, "rows": [_row_json(row) for row in compared.rows], "notes": list(compared.notes)}
            for compared in comparison.results
        ],
    }


def _chosen(results: Sequence[ResultSet], only: Sequence[str]) -> list[ResultSet]:
    """Return the results with the tasks named in `only` alone: "arc_challenge", or "arc_challenge acc_norm,none"."""
    if not only:
        return list(results)
    unknown = set(only)
    chosen: list[ResultSet] = []
    for result in results:
        tasks = {}
        for key, task in result.tasks.items():
            if key[0] in only or " ".join(key) in only:
                tasks[key] = task
        judged = result.judged if JUDGED in only else None
        unknown -= {name for key in tasks for name in (key[0], " ".join(key))}
        if judged is not None:
            unknown.discard(JUDGED)
        chosen.append(ResultSet(result.name, tasks, judged))
    if unknown:
        names = [" ".join(key) for result in results for key in result.tasks]
        raise UsageError(
            f"--only {sorted(unknown)[0]!r} is in no result; there are: {', '.join(dict.fromkeys([*names, JUDGED]))}"
        )
    return chosen


def _differences(baseline: ResultSet, later: ResultSet) -> Iterator[tuple[str, Difference, bool | None]]:
    """Yield name, difference and direction of everything that both have."""
    for key in shared_tasks(baseline, later):
        before = baseline.tasks[key]
        yield " ".join(key), task_difference(before, later.tasks[key]), before.is_higher_better
    if baseline.judged is not None and later.judged is not None:
        difference = judged_difference(baseline.judged, later.judged)
        if difference is not None:
            yield f"{JUDGED} ({baseline.judged.judge})", difference, True


def _notes(baseline: ResultSet, later: ResultSet, rows: Sequence[ComparedRow]) -> Iterator[str]:
    """Yield what the rows do not show."""
    for row in rows:
        difference = row.difference
        if difference.unit == "none":
            yield f"{row.name}: unpaired, since not both have values per item whose mean is the result"
        if difference.num_left_out:
            yield f"{row.name}: {difference.num_left_out} turns that not both have a readable verdict on are left out"
        if row.name.startswith(JUDGED):
            yield _length_note(row)
    for first, second in ((baseline, later), (later, baseline)):
        alone = [" ".join(key) for key in first.tasks if key not in second.tasks]
        if first.judged is not None and not has_judged(first, second):
            alone.append(JUDGED)
        if alone:
            yield f"only in {first.name}: {', '.join(alone)}"
    yield from unknown_conditions(baseline, later)


def _length_note(row: ComparedRow) -> str:
    controlled = row.difference.length_controlled
    if controlled is None:
        return f"{row.name}: at equal length not known; the answers of both are needed, and lengths that differ"
    low, high = controlled.interval
    return (
        f"{row.name}: at equal length {controlled.mean:+.4f} ({low:+.4f} to {high:+.4f}); answers are "
        f"{controlled.mean_length_difference:+.0f} characters longer on average"
    )


def _table(compared: ComparedResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    for header in ("baseline", "later", "difference", "95 % interval", "p (Holm)"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for header in ("better/equal/worse", "visible", "n"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in compared.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: ComparedRow) -> Iterator[str]:
    difference = row.difference
    yield row.name
    yield f"{difference.baseline:.4f}"
    yield f"{difference.later:.4f}"
    yield f"{difference.difference:+.4f}"
    if difference.interval is None:
        yield NOT_KNOWN
    else:
        yield f"{difference.interval.low:+.4f} to {difference.interval.high:+.4f}"
    yield NOT_KNOWN if row.corrected is None else f"{row.corrected:.2g}"
    yield row.verdict
    counts = difference.outcomes
    yield "unpaired" if counts is None else f"{counts.wins}/{counts.ties}/{counts.losses}"
    yield NOT_KNOWN if row.visible is None else f"{row.visible:.4f}"
    units = "" if difference.unit == "none" else f" {difference.unit}s"
    yield NOT_KNOWN if difference.num_units is None else f"{difference.num_units}{units}"


def _closing(comparison: ComparisonFamily) -> str:
    return (
        f"* significant at {ALPHA:g} after Holm's correction over {comparison.num_tests} tests; visible: the smallest "
        "difference that such a test sees with 80 % power"
    )


def _row_json(row: ComparedRow) -> dict[str, Any]:
    difference = row.difference
    counts = difference.outcomes
    controlled = difference.length_controlled
    stratified = difference.by_subject
    return {
        "name": row.name,
        "baseline": difference.baseline,
        "later": difference.later,
        "difference": difference.difference,
        "stderr": difference.stderr,
        "interval": None if difference.interval is None else list(difference.interval),
        "p_value": difference.p_value,
        "p_value_holm": row.corrected,
        "verdict": row.verdict.removesuffix(" *"),
        "is_paired": difference.unit != "none",
        "unit": difference.unit,
        "n": difference.num_units,
        "outcomes": None if counts is None else vars(counts),
        "smallest_visible": row.visible,
        "method": difference.method,
        "by_subject": None if stratified is None else vars(stratified),
        "length_controlled": None if controlled is None else _length_json(row),
        "num_left_out": difference.num_left_out,
    }


def _length_json(row: ComparedRow) -> dict[str, Any]:
    controlled = row.difference.length_controlled
    assert controlled is not None
    return {
        "difference": controlled.mean,
        "stderr": controlled.stderr,
        "interval": list(controlled.interval),
        "mean_length_difference": controlled.mean_length_difference,
    }

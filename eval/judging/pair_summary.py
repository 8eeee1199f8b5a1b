"""The content of a pairwise file on the terminal: a line for each pair of models and judge.

    model_1   model_2   judge   wins   ties   losses   inconsistent   unreadable   win rate   stderr
    a         b         gpt-4     61     70       29             38            0      .600     .034

Wins are model_1's. Inconsistent judgments, in which the order of the answers decided, are among the ties.
"""

import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.judging.pair_files import PairResult, pair_results, pair_warning, read_pair_judgments
from winnow.errors import WinnowError

NUMBER_HEADERS = ("wins", "ties", "losses", "inconsistent", "unreadable", "win rate", "stderr")


def print_pair_summary(path: Path, max_unreadable: float, console: Console) -> None:
    """Print every pair. Raises InputError, and at the end WinnowError for a pair with too many unreadable judgments."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in ("model_1", "model_2", "judge"):
        table.add_column(header)
    for header in NUMBER_HEADERS:
        table.add_column(header, justify="right")
    refusals: list[WinnowError] = []
    for result in pair_results(read_pair_judgments(path)):
        try:
            warning = pair_warning(result, max_unreadable)
        except WinnowError as error:
            refusals.append(error)
            continue
        if warning is not None:
            print(warning, file=sys.stderr)
        table.add_row(*(Text(cell) for cell in _cells(result)))
    if table.rows:
        console.print(table)
    if refusals:
        raise refusals[0]


def _cells(result: PairResult) -> list[str]:
    assert result.win_rate is not None  # `pair_warning` has raised
    stderr = "-" if result.win_rate.stderr is None else f"{result.win_rate.stderr:.3f}"
    counts = (result.num_wins, result.num_ties, result.num_losses, result.num_inconsistent, result.num_unreadable)
    return [*result.models, result.judge, *map(str, counts), f"{result.win_rate.mean:.3f}", stderr]

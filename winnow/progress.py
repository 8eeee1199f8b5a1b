"""Progress bars for long work, on stderr: how much is done, how fast, and how long the rest takes.

    for shard in track(shards, "sample round 1", unit="shards"): ...

If stderr is not a terminal, lines are written from time to time instead, so that logs show the same facts.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LOG_EVERY_S = 10.0

Item = TypeVar("Item")


class Advance(Protocol):
    """A function that reports how many more items are done."""

    def __call__(self, amount: int = 1) -> None:
        """Report that `amount` more items are done."""


class RateColumn(ProgressColumn):
    """Items per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Show the rate, or a dash before it is known."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text(f"- {self.unit}/s")
        return Text(f"{speed:,.1f} {self.unit}/s")


def track(items: Sequence[Item], description: str, unit: str = "items") -> Iterator[Item]:
    """Yield the items, showing how many are done."""
    with progress(description, len(items), unit) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def progress(description: str, total: int, unit: str = "items") -> Iterator[Advance]:
    """Show a bar of `total` items; call the yielded function with the number of items just done."""
    if sys.stderr.isatty():
        with _bar(unit) as bar:
            task = bar.add_task(description, total=total)
            yield lambda amount=1: bar.update(task, advance=amount)
    else:
        yield _LogLines(description, total, unit)


def _bar(unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
    )


class _LogLines:
    """A line every ten seconds and one at the end."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.num_done = 0
        self.start = time.monotonic()
        self.last_line = self.start

    def __call__(self, amount: int = 1) -> None:
        self.num_done += amount
        now = time.monotonic()
        if self.num_done >= self.total or now - self.last_line >= LOG_EVERY_S:
            self.last_line = now
            rate = self.num_done / max(now - self.start, 1e-9)
            seconds_left = max(self.total - self.num_done, 0) / max(rate, 1e-9)
            counts = f"{self.num_done}/{self.total} {self.unit}, {rate:,.1f}/s"
            print(f"{self.description}: {counts}, {seconds_left:.0f} s left", file=sys.stderr, flush=True)

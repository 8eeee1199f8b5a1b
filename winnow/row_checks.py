"""The rows of one data file, each parsed and measured in tokens, before anything is computed.

    prompts.jsonl  ->  FileReport(num_rows=16, lengths=[41, 38, ...], refused={"turn 1 should be user, is system": 2})

A line at which a stage would stop is a fault. A row that a stage would leave out is counted by its reason; only if all
rows are left out, that is a fault too.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from winnow.errors import ChatError, InputError
from winnow.inspection import DRAWN_ROWS, Inspection
from winnow.progress import progress
from winnow.records import seed_from
from winnow.rows import count_lines, draw_lines, parse_line, read_lines

Measure = Callable[[dict[str, Any], str], int | None]
"""A function from a row and its place to its number of tokens; None if nothing can render it here.

It raises InputError for a row at which a stage would stop, ChatError for a row that a stage would leave out.
"""

NUM_REASONS = 3
# Files with fewer rows get no progress bar.
LONG_FILE = 5000
ADVANCE_EVERY = 100


@dataclass
class FileReport:
    """The rows of a file: `num_rows` it has, `num_checked` were read, and `lengths` are those of the rendered ones."""

    path: str
    num_rows: int
    num_checked: int = 0
    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    refused: "Counter[str]" = field(default_factory=Counter)
    first_lines: dict[str, int] = field(default_factory=dict)
    num_malformed: int = 0
    first_fault: str = ""

    @property
    def longest(self) -> int:
        """The number of tokens of the longest row; 0 if no row was rendered."""
        return max(self.lengths, default=0)

    def num_longer(self, max_tokens: int | None) -> int:
        """Count the rows with more than `max_tokens` tokens."""
        if max_tokens is None:
            return 0
        return sum(1 for length in self.lengths if length > max_tokens)


def check_rows(path: str, measure: Measure, inspection: Inspection) -> FileReport:
    """Measure the rows of a file: all of them, or DRAWN_ROWS drawn by seed. Raises UsageError.

    Malformed lines become one fault.
    """
    report = FileReport(path, count_lines(path))
    for line_number, line in _lines(report, inspection):
        _measure_line(report, measure, line_number, line)
    if report.num_malformed == 1:
        inspection.add_fault(report.first_fault)
    elif report.num_malformed > 1:
        inspection.add_fault(f"{report.first_fault} (and {report.num_malformed - 1} more lines of this file)")
    return report


def tell_refusals(
    inspection: Inspection, report: FileReport, refused: "Counter[str]", consequence: str, remedy: str
) -> None:
    """Add a warning with the rows that a stage will leave out, by reason; a fault if it will leave out all of them."""
    num_refused = refused.total()
    if num_refused == 0:
        return
    reasons: list[str] = []
    for reason, count in refused.most_common(NUM_REASONS):
        place = ""
        if reason in report.first_lines:
            place = f" (first: line {report.first_lines[reason]})"
        reasons.append(f"{count} x {reason}{place}")
    if len(refused) > NUM_REASONS:
        reasons.append(f"and {len(refused) - NUM_REASONS} further reasons")
    text = f"{report.path}: {num_refused} of {report.num_checked} rows {consequence}: {'; '.join(reasons)}"
    if num_refused == report.num_checked - report.num_malformed:
        inspection.add_fault(f"{text}; {remedy}")
    else:
        inspection.warnings.append(text)


def describe(reports: Sequence[FileReport], content: str, limit: int | None) -> str:
    """Return how many files and rows were read, and how long the longest is against its limit."""
    num_rows = sum(report.num_rows for report in reports)
    num_checked = sum(report.num_checked for report in reports)
    longest = max((report.longest for report in reports), default=0)
    text = f"{counted(len(reports), 'file')} of {content}, {num_checked} of {num_rows} rows"
    if longest:
        text += f", the longest has {longest} tokens{describe_limit(limit)}"
    return text


def describe_limit(limit: int | None) -> str:
    """Return the words for a limit of tokens; an empty text for none."""
    if limit is None:
        return ""
    return f" (at most {limit} fit)"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 file", "2 files"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}s"


def _lines(report: FileReport, inspection: Inspection) -> Iterator[tuple[int, str]]:
    """Yield the lines to check; a long file gets a progress bar."""
    if not inspection.is_thorough:
        yield from draw_lines(report.path, DRAWN_ROWS, seed_from(inspection.config.seed, "preflight", report.path))
    elif report.num_rows < LONG_FILE:
        yield from read_lines(report.path)
    else:
        with progress(f"check {report.path}", report.num_rows, "rows") as advance:
            for index, line in enumerate(read_lines(report.path), start=1):
                yield line
                if index % ADVANCE_EVERY == 0:
                    advance(ADVANCE_EVERY)
            if report.num_rows % ADVANCE_EVERY:
                advance(report.num_rows % ADVANCE_EVERY)


def _measure_line(report: FileReport, measure: Measure, line_number: int, line: str) -> None:
    report.num_checked += 1
    location = f"{report.path} line {line_number}"
    try:
        length = measure(parse_line(line, location), location)
    except InputError as error:
        report.num_malformed += 1
        report.first_fault = report.first_fault or str(error)
    except ChatError as error:
        reason = str(error)
        report.refused[reason] += 1
        report.first_lines.setdefault(reason, line_number)
    else:
        if length is not None:
            report.lengths.append(length)

"""The rows of the LAB phases, checked before anything is computed.

file -> rows -> tokens; a row that cannot be rendered, or that is longer than a phase's max_tokens, is left out there
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from sft.encoding import encode_row, parse_messages
from winnow.chat import Chat
from winnow.errors import InputError, TrainingError
from winnow.inspection import Inspection
from winnow.row_checks import FileReport, Measure, check_rows, describe, tell_refusals
from winnow.rows import read_lines
from winnow.run_config import PhaseConfig


def check_phases(inspection: Inspection, chat: Chat | None) -> None:
    """Check the rows of the unfinished phases and count those that will be left out.

    The other files need only exist: every resumed run compares their hashes.
    """
    num_faults = len(inspection.faults)
    phases = _unfinished_phases(inspection)
    paths_to_render = _paths_of(inspection, phases)
    reports: dict[str, FileReport] = {}
    for path in _paths_of(inspection, inspection.config.lab.phases):
        with inspection.collect():
            if path in paths_to_render:
                reports[path] = check_rows(path, _measure(chat), inspection)
            else:
                next(read_lines(path), None)
    for phase in phases:
        with inspection.collect():
            _check_phase(inspection, phase, reports)
    if reports:
        _warn_of_context(inspection, reports)
        inspection.add_checked(describe(tuple(reports.values()), "SFT rows", None), num_faults)


def _unfinished_phases(inspection: Inspection) -> list[PhaseConfig]:
    """Return the phases that a run has to train yet."""
    if inspection.is_finished(inspection.run.policy_piece(0)):
        return []
    return [
        phase
        for phase in inspection.config.lab.phases
        if not inspection.is_finished(inspection.run.phase_piece(phase.name))
    ]


def _paths_of(inspection: Inspection, phases: Sequence[PhaseConfig]) -> list[str]:
    """Return the files of some phases, replayed ones included, each once."""
    names = {phase.name for phase in phases}
    for phase in phases:
        names.update(phase.replay_from)
    paths: dict[str, None] = {}
    for phase in inspection.config.lab.phases:
        if phase.name in names:
            paths |= dict.fromkeys(phase.files)
    return list(paths)


def _measure(chat: Chat | None) -> Measure:
    """Return a function that counts the tokens of a row."""

    def measure(row: dict[str, Any], location: str) -> int | None:
        if chat is None:
            parse_messages(row)
            return None
        token_ids, loss_mask = encode_row(row, chat)
        if not any(loss_mask):
            raise InputError(f"{location}: no token carries loss; check the chat template's assistant turns")
        return len(token_ids)

    return measure


def _check_phase(inspection: Inspection, phase: PhaseConfig, reports: dict[str, FileReport]) -> None:
    """Tell which rows a phase will leave out, its own and replayed ones. Raises TrainingError if it has no rows."""
    own_reports = [reports[path] for path in phase.files if path in reports]
    if len(own_reports) == len(phase.files) and sum(report.num_rows for report in own_reports) == 0:
        raise TrainingError(f"phase {phase.name} has no rows: {', '.join(phase.files)}; name files that hold rows")
    for report in own_reports:
        _tell_left_out(inspection, report, phase)
    for report in _replayed(inspection, phase, reports):
        num_long = report.num_longer(phase.train.max_tokens)
        if num_long:
            inspection.warnings.append(
                f"{report.path}: {num_long} of {report.num_checked} rows are longer than max_tokens "
                f"{phase.train.max_tokens} of phase {phase.name}, which replays them"
            )


def _replayed(inspection: Inspection, phase: PhaseConfig, reports: dict[str, FileReport]) -> Iterator[FileReport]:
    """Yield the reports of the files that a phase replays."""
    for earlier in inspection.config.lab.phases:
        if earlier.name in phase.replay_from:
            yield from (reports[path] for path in earlier.files if path in reports)


def _tell_left_out(inspection: Inspection, report: FileReport, phase: PhaseConfig) -> None:
    refused = Counter(report.refused)
    num_long = report.num_longer(phase.train.max_tokens)
    if num_long:
        refused[f"more than {phase.train.max_tokens} tokens (max_tokens of phase {phase.name})"] = num_long
    remedy = f"mend the file, set another policy.chat_template, or raise max_tokens of phase {phase.name}"
    tell_refusals(inspection, report, refused, f"will be left out of phase {phase.name}", remedy)


def _warn_of_context(inspection: Inspection, reports: dict[str, FileReport]) -> None:
    """Warn of rows that are longer than the policy's context: training takes them, at positions it never saw."""
    limit = inspection.context_tokens
    for report in reports.values():
        num_long = report.num_longer(limit)
        if num_long:
            inspection.warnings.append(
                f"{report.path}: {num_long} of {report.num_checked} rows are longer than the policy's {limit} "
                "positions; set train.max_tokens to leave them out"
            )

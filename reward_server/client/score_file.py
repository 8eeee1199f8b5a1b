"""`winnow score`: a JSONL file of completions -> the same rows with their rewards, in order; resumes after a kill.

    in   {"messages": [...] or "prompt": "...", "completions": ["...", ...], ...anything else is kept}
    out  the same row with "rewards": [{"reward", "instruct_logp", "base_logp", "num_tokens", "status", ...}, ...]

The input is a regular file, not a pipe, because it is read twice, row by row: the first time to check every row before
any is scored, the second time to score. Finished rows are kept next to the output (resumable_output.py), so that a run
that was killed resumes after the last of them.
"""

import itertools
import sys
from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reward_server.client.connection import ConnectionSettings
from reward_server.client.responses import ScoredGroup
from reward_server.client.resumable_output import Origin, PartialOutput, check_origin, open_partial, partial_path
from reward_server.client.retries import RetryPolicy
from reward_server.client.sync import RewardClient
from reward_server.groups import Group
from winnow.conversations import parse_conversation
from winnow.errors import InputError, ServerError, UsageError
from winnow.progress import progress
from winnow.reward_options import RewardOptions
from winnow.rows import check_json, file_sha256, kind_of, read_jsonl

# Timeout of the model check of an output that is already finished. The check is skipped if no server responds.
MODEL_CHECK_TIMEOUT_S = 10.0

Row = dict[str, Any]


@dataclass(frozen=True)
class ScoreJob:
    """The arguments of `winnow score`; `timeout_s` is the longest wait for the rewards of one row, in seconds."""

    connection: ConnectionSettings
    in_path: Path
    out_path: Path
    options: RewardOptions = field(default_factory=RewardOptions)
    timeout_s: float = 600.0
    is_resumed: bool = False


@dataclass(frozen=True)
class InputRow:
    """A row of the input, its location for error messages, and its group."""

    location: str
    row: Row
    group: Group


def score_file(job: ScoreJob) -> dict[str, int]:
    """Score every row of the input. Return the number of completions of each status.

    Raises InputError for a malformed row, before anything is scored; UsageError if the output cannot be written or
    resumed; ServerError if no server responds, or its models have changed.
    """
    counts: Counter[str] = Counter()
    _check_paths(job)
    num_rows = sum(1 for _ in _read_rows(job.in_path))  # raises for a malformed row
    origin = {"input": _fingerprint(job.in_path), "options": job.options.model_dump()}
    if job.out_path.exists():
        return _finished_counts(job, num_rows, origin)
    models = _deciding_models(job)
    with (
        open_partial(
            job.out_path,
            {**origin, "models": models},
            is_resumed=job.is_resumed,
            on_finished_row=lambda row: counts.update(_statuses(row)),
        ) as output,
        _kept_rows_in_errors(output),
    ):
        _score_rest(job, output, num_rows, models, counts)
        output.finish()
    return dict(counts)


def _score_rest(job: ScoreJob, output: PartialOutput, num_rows: int, models: Row, counts: Counter[str]) -> None:
    """Score and append the rows that are not finished yet."""
    until_deadline = RetryPolicy(max_attempts=None)
    rest = itertools.islice(_read_rows(job.in_path), output.num_rows, None)
    with (
        RewardClient(job.connection, job.timeout_s, retries=until_deadline) as client,
        progress("score", num_rows, "prompts") as advance,
        closing(_score_rows(client, rest, job.options)) as results,
    ):
        advance(output.num_rows)
        for input_row, scored in results:
            _check_models(scored, models, job.connection)
            row = {**input_row.row, "rewards": [asdict(reward) for reward in scored]}
            output.append(row)
            counts.update(_statuses(row))
            advance()
    if output.num_rows != num_rows:
        raise InputError(f"{job.in_path} changed while it was read: {num_rows} rows, then {output.num_rows}")


def _score_rows(
    client: RewardClient, rows: Iterator[InputRow], options: RewardOptions
) -> Generator[tuple[InputRow, ScoredGroup]]:
    """Yield each row with its rewards, in order. Raises UsageError, with the location of the row, for a refused row."""
    in_progress: deque[InputRow] = deque()

    def read_groups() -> Iterator[Group]:
        for input_row in rows:
            in_progress.append(input_row)
            yield input_row.group

    try:
        for scored in client.score_many(read_groups(), options):
            yield in_progress.popleft(), scored
    except UsageError as error:
        if not in_progress:
            raise
        raise UsageError(f"{in_progress[0].location}: {error}") from error


@contextmanager
def _kept_rows_in_errors(output: PartialOutput) -> Iterator[None]:
    """Append the number of finished rows, and how to resume, to the message of an error that ends the block."""
    try:
        yield
    except (ServerError, UsageError) as error:
        error.args = (f"{error}{output.kept_message}",)
        raise
    except KeyboardInterrupt:
        print(f"winnow: interrupted{output.kept_message}", file=sys.stderr)
        raise


def _deciding_models(job: ScoreJob, retries: RetryPolicy | None = None, timeout_s: float | None = None) -> Row:
    """Return the fields of the server's models that affect rewards under the job's options. Raises ServerError."""
    with RewardClient(job.connection, timeout_s or job.timeout_s, retries=retries) as client:
        info = client.server_info()
    models = {
        "instruct_weight_hash": info.instruct.weight_hash,
        "base_weight_hash": info.base.weight_hash,
        "instruct_template_hash": info.instruct.template_hash,
        "base_template_hash": info.base.template_hash,
        "base_prompt": info.base_prompt,
    }
    for key in _fields_without_effect(job.options):
        del models[key]
    return models


def _fields_without_effect(options: RewardOptions) -> set[str]:
    """Return the names of the model fields that do not affect rewards under these options.

    In a reward's definition they are empty, or the recipe has replaced their values.
    """
    if options.is_reference_free:
        return {"base_weight_hash", "base_template_hash", "base_prompt"}
    if options.recipe == "rewardbench":
        return {"base_template_hash", "base_prompt"}
    return set()


def _check_models(scored: ScoredGroup, models: Row, connection: ConnectionSettings) -> None:
    """Raise ServerError if the server, restarted or one of several, has other models than the job started with."""
    if scored.definition is None or not scored.definition.instruct_weight_hash:
        return
    changes = []
    for key, first_value in models.items():
        value = getattr(scored.definition, key)
        if value != first_value:
            changes.append(f"{key}: {first_value} -> {value}")
    if not changes:
        return
    server = "the server at" if len(connection.addresses) == 1 else "one of the servers at"
    raise ServerError(
        f"{server} {', '.join(connection.addresses)} has other models than this file was started with "
        f"({'; '.join(changes)}); their rewards do not compare: start the server with the first models"
    )


def _finished_counts(job: ScoreJob, num_rows: int, origin: Origin) -> dict[str, int]:
    """Return the counts of an output that is finished already. Raises UsageError if the job may not keep it."""
    if not job.is_resumed:
        raise UsageError(f"{job.out_path} exists; delete it or set another output")
    if partial_path(job.out_path).exists():
        raise UsageError(f"{job.out_path} and {partial_path(job.out_path)} both exist; delete one of them")
    check_origin(job.out_path, job.out_path, origin)
    counts: Counter[str] = Counter()
    num_scored = 0
    for _, row in read_jsonl(job.out_path):
        counts.update(_statuses(row))
        num_scored += 1
    if num_scored != num_rows:
        raise UsageError(
            f"{job.out_path} has {num_scored} rows, but {job.in_path} has {num_rows}; it was made from another file: "
            "delete it or set another output"
        )
    _check_finished_models(job)
    return dict(counts)


def _check_finished_models(job: ScoreJob) -> None:
    """Raise UsageError if the server has other models than a finished output was made with.

    If no server responds, print a warning instead: the output itself no longer needs a server.
    """
    try:
        models = _deciding_models(job, RetryPolicy(max_attempts=1), min(MODEL_CHECK_TIMEOUT_S, job.timeout_s))
    except ServerError as error:
        print(f"winnow: {job.out_path} is finished; its models are not checked: {error}", file=sys.stderr)
        return
    check_origin(job.out_path, job.out_path, {"models": models})


def _check_paths(job: ScoreJob) -> None:
    """Raise UsageError for an input that cannot be read twice, or that the output would overwrite."""
    if str(job.in_path) == "-":
        raise UsageError("input - is standard input elsewhere; here the input is read twice: save it as a file")
    if str(job.out_path) == "-":
        raise UsageError("output - is standard output elsewhere; here finished rows are kept for --resume: give a path")
    if job.in_path.exists() and not (job.in_path.is_file() or job.in_path.is_dir()):
        raise UsageError(f"{job.in_path} is not a regular file, and the input is read twice; save it as one")
    if job.out_path.exists() and job.in_path.exists() and job.out_path.samefile(job.in_path):
        raise UsageError(f"{job.out_path} is the input too; set another output")


def _read_rows(path: Path) -> Iterator[InputRow]:
    """Yield the rows of the input. Raises InputError for the first malformed one."""
    for line_number, row in read_jsonl(path):
        location = f"{path} line {line_number}"
        yield InputRow(location, row, _group_of(row, location))


def _group_of(row: Row, location: str) -> Group:
    if "rewards" in row:
        raise InputError(f"{location}: has a field 'rewards', which the new rewards would replace; rename it")
    check_json(row, location)
    completions = _completions(row, location)
    return Group(parse_conversation(row, location), completions)


def _completions(row: Row, location: str) -> list[str]:
    expected = f"{location}: 'completions' should be a list of texts"
    if "completions" not in row:
        raise InputError(f"{expected}, is missing")
    completions = row["completions"]
    if not isinstance(completions, list):
        raise InputError(f"{expected}, is {kind_of(completions)}")
    for index, completion in enumerate(completions):
        if not isinstance(completion, str):
            raise InputError(f"{expected}; completions[{index}] is {kind_of(completion)}")
    return completions


def _fingerprint(path: Path) -> Row:
    """Return the size in bytes and the SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _statuses(row: Row) -> list[str]:
    return [reward.get("status", "") for reward in row.get("rewards", [])]

"""`winnow score`: a JSONL file of completions -> the same rows with their rewards, in order, whatever is killed.

    in   {"messages": [...] or "prompt": "...", "completions": ["...", ...], ...anything else is kept}
    out  the same row with "rewards": [{"reward", "instruct_logp", "base_logp", "num_tokens", "status", ...}, ...]

The input is a regular file, not a pipe: it is read twice, row by row, once to check every row before any is scored,
once to score. Finished rows are kept beside the output (resumable_output.py), so that a run that was killed goes on
after the last of them.
"""

import hashlib
import itertools
import sys
from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reward_server.client import ConnectionSettings, Group, RetryPolicy, RewardClient, RewardOptions, ScoredGroup
from reward_server.client.resumable_output import PartialOutput, check_origin, open_partial, part_path
from winnow.conversations import parse_conversation
from winnow.errors import InputError, ServerError, UsageError
from winnow.progress import progress
from winnow.rows import check_json, kind_of, read_jsonl

# How long a server is waited for that is asked only what it has loaded, of an output that is finished.
ASIDE_S = 10.0

Row = dict[str, Any]


@dataclass(frozen=True)
class ScoreJob:
    """What is scored, where, and how."""

    access: ConnectionSettings
    in_path: Path
    out_path: Path
    options: RewardOptions = field(default_factory=RewardOptions)
    timeout_s: float = 600.0
    """Longest wait for the rewards of one row, a server that is started again included."""
    is_resumed: bool = False


@dataclass(frozen=True)
class InputRow:
    """A row of the input, where it stands, and what it asks."""

    where: str
    row: Row
    group: Group


def score_file(job: ScoreJob) -> dict[str, int]:
    """Score every row of the input; the counts of statuses.

    Raises InputError for a malformed row, before anything is scored; UsageError where the output is in the way.
    """
    counts: Counter[str] = Counter()
    _check_paths(job)
    num_rows = sum(1 for _ in _rows(job.in_path))  # each of which is checked
    origin = {"input": _fingerprint(job.in_path), "options": asdict(job.options)}
    if job.out_path.exists():
        return _finished_counts(job, num_rows, origin)
    models = _models(job)
    with (
        open_partial(
            job.out_path,
            {**origin, "models": models},
            is_resumed=job.is_resumed,
            seen=lambda row: counts.update(_statuses(row)),
        ) as output,
        _saying_what_is_kept(output),
    ):
        _score_rest(job, output, num_rows, models, counts)
        output.finish()
    return dict(counts)


def _score_rest(job: ScoreJob, output: PartialOutput, num_rows: int, models: Row, counts: Counter[str]) -> None:
    """Score and append the rows that are not finished yet."""
    patient = RetryPolicy(max_attempts=None)
    rest = itertools.islice(_rows(job.in_path), output.num_rows, None)
    with _client(job, patient) as client, progress("score", num_rows, "prompts") as advance:
        advance(output.num_rows)
        with closing(_scored(client, rest, job.options)) as answers:
            for one, scored in answers:
                _check_models(scored, models, job.access)
                row = {**one.row, "rewards": [asdict(reward) for reward in scored]}
                output.append(row)
                counts.update(_statuses(row))
                advance()
    if output.num_rows != num_rows:
        raise InputError(f"{job.in_path} changed while it was read: {num_rows} rows, then {output.num_rows}")


def _scored(
    client: RewardClient, rows: Iterator[InputRow], options: RewardOptions
) -> Generator[tuple[InputRow, ScoredGroup]]:
    """Each row with its scores, in order; a UsageError of one says where it stands."""
    waiting: deque[InputRow] = deque()

    def groups() -> Iterator[Group]:
        for one in rows:
            waiting.append(one)
            yield one.group

    try:
        for scored in client.score_many(groups(), options):
            yield waiting.popleft(), scored
    except UsageError as error:
        raise UsageError(f"{waiting[0].where}: {error}" if waiting else str(error)) from error


@contextmanager
def _saying_what_is_kept(output: PartialOutput) -> Iterator[None]:
    """What ends the block says how many rows are finished, and how to go on."""
    try:
        yield
    except (ServerError, UsageError) as error:
        error.args = (f"{error}{output.kept}",)
        raise
    except KeyboardInterrupt:
        print(f"winnow: interrupted{output.kept}", file=sys.stderr)
        raise


def _client(job: ScoreJob, retries: RetryPolicy | None = None, timeout_s: float | None = None) -> RewardClient:
    access = job.access
    return RewardClient(
        access.address,
        timeout_s or job.timeout_s,
        token=access.token,
        tls_ca=access.tls_ca,
        tls_certificate=access.tls_certificate,
        tls_key=access.tls_key,
        retries=retries,
    )


def _models(job: ScoreJob, retries: RetryPolicy | None = None, timeout_s: float | None = None) -> Row:
    """What the server has loaded, as far as it decides these rewards. Raises ServerError where none answers."""
    with _client(job, retries, timeout_s) as client:
        info = client.server_info()
    models = {
        "instruct_weight_hash": info.instruct.weight_hash,
        "base_weight_hash": info.base.weight_hash,
        "instruct_template_hash": info.instruct.template_hash,
        "base_template_hash": info.base.template_hash,
        "base_prompt": info.base_prompt,
    }
    return {key: value for key, value in models.items() if key not in _not_deciding(job.options)}


def _not_deciding(options: RewardOptions) -> set[str]:
    """Of the fields that say what a server has loaded, those without which the rewards are made.

    In the definition of an answer they are empty, or say what the recipe did in their place.
    """
    if options.is_reference_free:
        return {"base_weight_hash", "base_template_hash", "base_prompt"}
    return {"base_template_hash", "base_prompt"} if options.recipe == "rewardbench" else set()


def _check_models(scored: ScoredGroup, models: Row, access: ConnectionSettings) -> None:
    """Raise ServerError where a server, restarted or another of several, has other models than the first."""
    if scored.definition is None or not scored.definition.instruct_weight_hash:
        return
    given = asdict(scored.definition)
    changed = [f"{key}: {models[key]} -> {given[key]}" for key in models if given[key] != models[key]]
    if changed:
        server = "the server at" if len(access.addresses) == 1 else "one of the servers at"
        raise ServerError(
            f"{server} {', '.join(access.addresses)} has other models than this file was begun with "
            f"({'; '.join(changed)}); their rewards do not compare: start it with the first ones"
        )


def _finished_counts(job: ScoreJob, num_rows: int, origin: dict[str, Row]) -> dict[str, int]:
    """The counts of an output that is complete already. Raises UsageError where it is in the way."""
    if not job.is_resumed:
        raise UsageError(f"{job.out_path} exists; delete it or set another output")
    if part_path(job.out_path).exists():
        raise UsageError(f"{job.out_path} and {part_path(job.out_path)} both exist; delete one of them")
    check_origin(job.out_path, job.out_path, origin)
    counts: Counter[str] = Counter()
    num_scored = 0
    for _, row in read_jsonl(job.out_path):
        counts.update(_statuses(row))
        num_scored += 1
    if num_scored != num_rows:
        raise UsageError(
            f"{job.out_path} exists with {num_scored} rows, where {job.in_path} has {num_rows}; it is another file's: "
            "delete it or set another output"
        )
    _check_finished_models(job)
    return dict(counts)


def _check_finished_models(job: ScoreJob) -> None:
    """Raise UsageError where an output is finished and the server has other models than those it was made with.

    It needs no server any more; where none answers, that is said and no failure.
    """
    try:
        models = _models(job, RetryPolicy(max_attempts=1), min(ASIDE_S, job.timeout_s))
    except ServerError as error:
        print(f"winnow: {job.out_path} is finished; its models are not checked: {error}", file=sys.stderr)
        return
    check_origin(job.out_path, job.out_path, {"models": models})


def _check_paths(job: ScoreJob) -> None:
    """Raise UsageError for an input that cannot be read twice, or that the output would take the place of."""
    if str(job.in_path) == "-":
        raise UsageError("input - is standard input elsewhere; here the input is read twice: save it as a file")
    if str(job.out_path) == "-":
        raise UsageError("output - is standard output elsewhere; here rows are kept to go on with: give a path")
    if job.in_path.exists() and not (job.in_path.is_file() or job.in_path.is_dir()):
        raise UsageError(f"{job.in_path} is no regular file, and the input is read twice; save it as one")
    if job.out_path.exists() and job.in_path.exists() and job.out_path.samefile(job.in_path):
        raise UsageError(f"{job.out_path} is the input too; set another output")


def _rows(path: Path) -> Iterator[InputRow]:
    """The rows of the input. Raises InputError for the first malformed one."""
    for number, row in read_jsonl(path):
        where = f"{path} line {number}"
        yield InputRow(where, row, _group_of(row, where))


def _group_of(row: Row, where: str) -> Group:
    if "rewards" in row:
        raise InputError(f"{where}: has a field 'rewards', which those of the output would replace; rename it")
    check_json(row, where)
    completions = _completions(row, where)
    return Group([message.model_dump() for message in parse_conversation(row, where)], completions)


def _completions(row: Row, where: str) -> list[str]:
    should = f"{where}: 'completions' should be a list of texts"
    if "completions" not in row:
        raise InputError(f"{should}, is missing")
    if not isinstance(completions := row["completions"], list):
        raise InputError(f"{should}, is {kind_of(completions)}")
    for index, one in enumerate(completions):
        if not isinstance(one, str):
            raise InputError(f"{should}; completions[{index}] is {kind_of(one)}")
    return completions


def _fingerprint(path: Path) -> Row:
    """The size in bytes and the SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _statuses(row: Row) -> list[str]:
    return [reward.get("status", "") for reward in row.get("rewards", [])]

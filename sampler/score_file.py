"""`winnow score`: a JSONL file of completions -> the same rows with their rewards, in order, whatever is killed.

    in   {"messages": [...] or "prompt": "...", "completions": ["...", ...], ...anything else is kept}
    out  the same row with "rewards": [{"reward", "instruct_logp", "base_logp", "num_tokens", "status", ...}, ...]

The input is a regular file, not a pipe: it is read twice, row by row, once to check every row before any is scored,
once to score. Finished rows are kept beside the output (sampler/partial.py), so that a run that was killed goes on
after the last of them.
"""

import hashlib
import itertools
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reward_server.client import Access, Group, RetryPolicy, RewardClient, RewardOptions, ScoredGroup
from sampler.partial import PartialOutput, header_path, open_partial, part_path
from sampler.prompts import parse_prompt
from winnow.errors import InputError, ServerError, UsageError
from winnow.progress import progress
from winnow.rows import read_jsonl

Row = dict[str, Any]


@dataclass(frozen=True)
class ScoreJob:
    """What is scored, where, and how."""

    access: Access
    in_path: Path
    out_path: Path
    options: RewardOptions = field(default_factory=RewardOptions)
    timeout_s: float = 600.0
    """Longest wait for the rewards of one row, a server that is started again included."""
    is_resumed: bool = False


def score_file(job: ScoreJob) -> dict[str, int]:
    """Score every row of the input; the counts of statuses.

    Raises InputError for a malformed row, before anything is scored; UsageError where the output is in the way.
    """
    counts: Counter[str] = Counter()
    _check_paths(job)
    num_rows = _check_rows(job.in_path)
    if job.out_path.exists():
        return _finished_counts(job, num_rows)
    models = _models(job)
    header = {"input": _fingerprint(job.in_path), "options": asdict(job.options), "models": models}
    with open_partial(
        job.out_path, header, is_resumed=job.is_resumed, seen=lambda row: counts.update(_statuses(row))
    ) as output:
        _score_rest(job, output, num_rows, models, counts)
        output.finish()
    return dict(counts)


def _score_rest(job: ScoreJob, output: PartialOutput, num_rows: int, models: Row, counts: Counter[str]) -> None:
    """Score and append the rows that are not finished yet."""
    waiting: deque[Row] = deque()

    def groups() -> Iterator[Group]:
        for row, group in itertools.islice(_rows(job.in_path), output.num_rows, None):
            waiting.append(row)
            yield group

    patient = RetryPolicy(max_attempts=None)
    with _client(job, patient) as client, progress("score", num_rows, "prompts") as advance:
        advance(output.num_rows)
        num_scored = output.num_rows
        for scored in _named_by_row(client.score_many(groups(), job.options), job.in_path, output.num_rows):
            _check_models(scored, models)
            row = {**waiting.popleft(), "rewards": [asdict(one) for one in scored]}
            output.append(row)
            counts.update(_statuses(row))
            advance()
            num_scored += 1
    if num_scored != num_rows:
        raise InputError(f"{job.in_path} changed while it was read: {num_rows} rows, then {num_scored}")


def _named_by_row(answers: Iterator[ScoredGroup], path: Path, num_before: int) -> Iterator[ScoredGroup]:
    """The answers; a UsageError of one says of which row it is."""
    for number in itertools.count(num_before + 1):
        try:
            scored = next(answers, None)
        except UsageError as error:
            raise UsageError(f"{path} row {number}: {error}") from error
        if scored is None:
            return
        yield scored


def _client(job: ScoreJob, retries: RetryPolicy | None = None) -> RewardClient:
    access = job.access
    return RewardClient(
        access.address,
        job.timeout_s,
        token=access.token,
        tls_ca=access.tls_ca,
        tls_certificate=access.tls_certificate,
        tls_key=access.tls_key,
        retries=retries,
    )


def _models(job: ScoreJob) -> Row:
    """What the server has loaded, as far as it decides rewards. Raises ServerError where none answers."""
    with _client(job) as client:
        info = client.server_info()
    return {
        "instruct_weight_hash": info.instruct.weight_hash,
        "base_weight_hash": info.base.weight_hash,
        "instruct_template_hash": info.instruct.template_hash,
        "base_template_hash": info.base.template_hash,
        "base_prompt": info.base_prompt,
    }


def _check_models(scored: ScoredGroup, models: Row) -> None:
    """Raise ServerError where a server, restarted or another of several, has other models than the first."""
    if scored.definition is None or not scored.definition.instruct_weight_hash:
        return
    given = asdict(scored.definition)
    changed = [f"{key}: {models[key]} -> {given[key]}" for key in models if given[key] != models[key]]
    if changed:
        raise ServerError(
            f"a server has other models than this file was begun with ({'; '.join(changed)}); their rewards do not "
            "compare: start it with the first ones and go on with --resume"
        )


def _finished_counts(job: ScoreJob, num_rows: int) -> dict[str, int]:
    """The counts of an output that is complete already. Raises UsageError where it is in the way."""
    if not job.is_resumed:
        raise UsageError(f"{job.out_path} exists; delete it or set another output")
    if part_path(job.out_path).exists():
        raise UsageError(f"{job.out_path} and {part_path(job.out_path)} both exist; delete one of them")
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
    header_path(job.out_path).unlink(missing_ok=True)
    return dict(counts)


def _check_paths(job: ScoreJob) -> None:
    """Raise UsageError for an input that cannot be read twice, or that the output would take the place of."""
    if job.in_path.exists() and not (job.in_path.is_file() or job.in_path.is_dir()):
        raise UsageError(f"{job.in_path} is no regular file, and the input is read twice; save it as one")
    if job.out_path.exists() and job.in_path.exists() and job.out_path.samefile(job.in_path):
        raise UsageError(f"{job.out_path} is the input too; set another output")


def _check_rows(path: Path) -> int:
    """The number of rows. Raises InputError for the first malformed one."""
    return sum(1 for _ in _rows(path))


def _rows(path: Path) -> Iterator[tuple[Row, Group]]:
    for number, row in read_jsonl(path):
        yield row, _group_of(row, f"{path} line {number}")


def _group_of(row: Row, where: str) -> Group:
    completions = row.get("completions")
    if not isinstance(completions, list) or not all(isinstance(text, str) for text in completions):
        raise InputError(f"{where}: 'completions' should be a list of texts")
    prompt = parse_prompt(row, "scored", where)
    return Group([message.model_dump() for message in prompt.messages], completions)


def _fingerprint(path: Path) -> Row:
    """The size in bytes and the SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _statuses(row: Row) -> list[str]:
    return [reward.get("status", "") for reward in row.get("rewards", [])]

"""`winnow eval-reward`: pairs and completions with gold scores are scored, and the reward is reported on.

    DIR/pairs.jsonl              the pairs as rows of `winnow score`: a prompt with its chosen and rejected completion
    DIR/rewards.jsonl            the same with their rewards
    DIR/best-of-n.jsonl          the rows of --best-of-n with their rewards
    DIR/server.json              the server's models
    DIR/audit.json               the report (report.py)
    DIR/rewardbench/             files for RewardBench's leaderboard

Scoring is that of `winnow score` (reward_server/client/score_file.py): it resumes after a kill, and refuses a server
that comes back with other models. A pair is one request, because recipe rewardbench cuts both completions alike.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.reward_audit.accuracy import ScoredPair, Side, failed_statuses
from eval.reward_audit.best_of_n import best_of_n
from eval.reward_audit.gold_rows import GoldGroups, gold_groups, read_gold_rows
from eval.reward_audit.pair_files import LocatedPair, read_pairs
from eval.reward_audit.report import best_of_n_report, leaderboard_files, pairs_report
from eval.reward_audit.tables import print_report
from reward_server.client import ConnectionSettings, RewardClient, RewardOptions
from reward_server.client.resumable_output import partial_path
from reward_server.client.score_file import ScoreJob, score_file
from winnow.errors import UsageError, WinnowError
from winnow.rows import file_sha256, read_jsonl, write_json, write_jsonl


@dataclass(frozen=True)
class AuditRequest:
    """The arguments of `winnow eval-reward`; `timeout_s` is the longest wait for the rewards of one prompt."""

    connection: ConnectionSettings | None
    pair_paths: tuple[Path, ...]
    best_of_n_path: Path | None
    output_dir: Path
    options: RewardOptions = field(default_factory=RewardOptions)
    timeout_s: float = 600.0
    is_resumed: bool = False

    @property
    def report_path(self) -> Path:
        """The path of the report."""
        return self.output_dir / "audit.json"


def audit_reward(request: AuditRequest, console: Console | None = None) -> None:
    """Score what is not scored yet; write the report and print it.

    Every row is checked before any is scored. Raises InputError for a malformed one, with file and line; UsageError for
    wrong arguments and an output of something else; ServerError if no server responds; WinnowError if nothing could be
    scored.
    """
    _check_arguments(request)
    pairs = read_pairs(request.pair_paths)
    gold_path = request.best_of_n_path
    is_gold_scored = gold_path is None or read_gold_rows(gold_path)[0].rewards is not None
    jobs: list[ScoreJob] = []
    if pairs:
        jobs.append(_job(request, request.output_dir / "pairs.jsonl", "rewards.jsonl"))
    if gold_path is not None and not is_gold_scored:
        jobs.append(_job(request, gold_path, "best-of-n.jsonl"))
        gold_path = jobs[-1].out_path
    if pairs:
        _write_pairs(jobs[0], pairs)
    report: dict[str, Any] = {"inputs": _inputs(request), "options": request.options.model_dump()}
    if jobs:
        report["server"] = _scored_by(request, jobs)
    scored_pairs: list[ScoredPair] = []
    if pairs:
        scored_pairs = _read_scored_pairs(jobs[0].out_path)
        report |= pairs_report(scored_pairs)
        _write_leaderboard_files(request, scored_pairs, report["server"])
    groups = None
    if gold_path is not None:
        groups = gold_groups(read_gold_rows(gold_path))
        if groups.groups:
            report["best_of_n"] = best_of_n_report(best_of_n(groups.groups), groups)
    write_json(request.report_path, report)
    print_report(report, console)
    print(f"report: {request.report_path}", file=sys.stderr)
    _check_something_was_scored(scored_pairs, groups)


def _check_arguments(request: AuditRequest) -> None:
    """Raise UsageError if nothing is to be done, or a report exists that would be replaced."""
    if not request.pair_paths and request.best_of_n_path is None:
        raise UsageError("give --pairs FILE or --best-of-n FILE")
    if request.report_path.exists() and not request.is_resumed:
        raise UsageError(f"{request.report_path} exists; set another --output, or --resume to write it again")


def _job(request: AuditRequest, in_path: Path, out_name: str) -> ScoreJob:
    """Return the scoring job of a file. Raises UsageError without an address, and for a stopped audit."""
    if request.connection is None:
        raise UsageError(f"{in_path} has no rewards, so a server is needed; give --address HOST:PORT")
    out_path = request.output_dir / out_name
    if not request.is_resumed and (out_path.exists() or partial_path(out_path).exists()):
        raise UsageError(
            f"{request.output_dir} holds rewards of an audit that was stopped; continue with --resume or set another "
            "--output"
        )
    return ScoreJob(request.connection, in_path, out_path, request.options, request.timeout_s, request.is_resumed)


def _write_pairs(job: ScoreJob, pairs: Sequence[LocatedPair]) -> None:
    """Write the input of the job that scores the pairs. Raises UsageError if its output has rewards of other pairs."""
    rows = [_score_row(pair) for pair in pairs]
    has_rewards = job.out_path.exists() or partial_path(job.out_path).exists()
    if has_rewards and job.in_path.exists() and [row for _, row in read_jsonl(job.in_path)] != rows:
        raise UsageError(
            f"{job.out_path} has rewards of other pairs, those of {job.in_path}; give the same --pairs in the same "
            "order, or set another --output"
        )
    write_jsonl(job.in_path, rows)


def _score_row(pair: LocatedPair) -> dict[str, Any]:
    """Return a pair as a row of `winnow score`."""
    return {
        "messages": [message.model_dump() for message in pair.texts.prompt],
        "completions": [pair.texts.chosen, pair.texts.rejected],
        "subset": pair.subset,
        "id": pair.pair_id,
    }


def _scored_by(request: AuditRequest, jobs: Sequence[ScoreJob]) -> dict[str, Any]:
    """Do the jobs, and return the models of the server; those of a finished audit are in its folder."""
    path = request.output_dir / "server.json"
    is_finished = path.exists() and all(job.out_path.exists() for job in jobs)
    for job in jobs:
        score_file(job)
    if is_finished:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return stored
    with RewardClient(jobs[0].connection, request.timeout_s) as client:
        models = asdict(client.server_info())
    facts = {key: models[key] for key in ("winnow_version", "instruct", "base", "base_prompt")}
    write_json(path, facts)
    return facts


def _read_scored_pairs(path: Path) -> list[ScoredPair]:
    """Return the pairs of a scored file."""
    pairs: list[ScoredPair] = []
    for _, row in read_jsonl(path):
        sides: list[Side] = []
        for text, reward in zip(row["completions"], row["rewards"], strict=True):
            sides.append(Side(reward["reward"], reward["status"], len(text), reward["num_tokens"]))
        pairs.append(ScoredPair(row["subset"], chosen=sides[0], rejected=sides[1]))
    return pairs


def _write_leaderboard_files(request: AuditRequest, pairs: Sequence[ScoredPair], server: dict[str, Any]) -> None:
    files = leaderboard_files(pairs, server, is_reference_free=request.options.is_reference_free)
    for name, content in files.items():
        write_json(request.output_dir / "rewardbench" / name, content)


def _inputs(request: AuditRequest) -> list[dict[str, str]]:
    """Return path and hash of each input."""
    paths = list(request.pair_paths)
    if request.best_of_n_path is not None:
        paths.append(request.best_of_n_path)
    return [{"path": str(path), "sha256": file_sha256(path)} for path in paths]


def _check_something_was_scored(pairs: Sequence[ScoredPair], groups: GoldGroups | None) -> None:
    """Raise WinnowError if no pair, or no completion with a gold score, has a reward."""
    if pairs and all(pair.outcome == "failed" for pair in pairs):
        statuses = ", ".join(f"{count} {status}" for status, count in failed_statuses(pairs).items())
        raise WinnowError(f"no pair could be scored: {statuses}; correct the pairs or the options of the reward")
    if groups is not None and not groups.groups:
        reasons = ", ".join(f"{count} {reason}" for reason, count in groups.left_out.items())
        raise WinnowError(f"no completion has both a reward and a gold score: {reasons or 'there are none'}")

"""The progress of a run, read from its ledger, its config and peak.json.

{"run": "...", "pieces": 41, "seconds": 312.5, "shards": 4, "probe_pieces": 3,
 "rounds": [{"round": 1, "sample": 4, ...}, ...], "peak": 2}

`shards` is the number of pieces of a round's stages sample and score, `probe_pieces` of both stages of its probe.
"""

import json
import math
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from winnow.rundir import Run

SHARDED_STAGES = ("sample", "score")
ROUND_STAGES = (*SHARDED_STAGES, "select", "train", "probe", "evaluate")


def run_status(run: Run) -> dict[str, Any]:
    """Return the JSON object that this module shows: finished pieces by round and stage, and the seconds they took."""
    newest = {entry["piece"]: entry for entry in run.ledger.entries()}
    counts = Counter(tuple(piece.split("/")[:2]) for piece in newest)
    round_numbers = range(run.config.rounds.num_rounds + 1)
    return {
        "run": str(run.root),
        "pieces": len(newest),
        "seconds": round(sum(entry["seconds"] for entry in newest.values()), 1),
        "shards": _num_shards(run),
        "probe_pieces": _num_probe_pieces(run),
        "rounds": [_round_status(run, round_number, counts) for round_number in round_numbers],
        "peak": _peak_round(run),
    }


def print_status(run: Run, *, is_json: bool) -> None:
    """Print the status as a table or as JSON."""
    status = run_status(run)
    if is_json:
        print(json.dumps(status))
        return
    table = Table(title=f"{status['run']}: {status['pieces']} pieces in {status['seconds']:,.0f} s")
    for column in ("round", *ROUND_STAGES):
        table.add_column(column, justify="right")
    for round_status in status["rounds"]:
        cells = [_cell(round_status, stage, status) for stage in ROUND_STAGES]
        table.add_row(str(round_status["round"]), *cells)
    Console().print(table)
    if status["peak"] is None:
        print("peak: not picked yet")
    else:
        print(f"peak: round {status['peak']}")


def _round_status(run: Run, round_number: int, counts: Counter[tuple[str, ...]]) -> dict[str, int]:
    name = run.round_name(round_number)
    num_done = {stage: counts[name, stage] for stage in ROUND_STAGES}
    if round_number == 0:
        num_done["train"] = counts[name, "start"]
    return {"round": round_number, **num_done}


def _peak_round(run: Run) -> int | None:
    if not run.peak_path.exists():
        return None
    peak_round: int = json.loads(run.peak_path.read_text())["round"]
    return peak_round


def _num_shards(run: Run) -> int:
    if run.config.prompts is None:
        return 0
    return math.ceil(run.config.prompts.num_prompts / run.config.sampling.shard_size)


def _num_probe_pieces(run: Run) -> int:
    """Count the pieces of a round's probe: two for each shard, and the metrics; 0 without a probe."""
    config = run.config.probe
    if config is None:
        return 0
    num_prompts: int = config.num_prompts
    entry = run.ledger.entry(run.probe_prompts_piece)
    if entry is not None:
        num_prompts = entry["num_prompts"]
    return 2 * math.ceil(num_prompts / run.config.sampling.shard_size) + 1


def _cell(round_status: dict[str, int], stage: str, status: dict[str, Any]) -> str:
    """Return the finished pieces of a stage out of all its pieces, like "3/4"; a dash for a stage that is not there."""
    if round_status["round"] == 0 and stage in (*SHARDED_STAGES, "select"):
        return "-"
    num_pieces = 1
    if stage in SHARDED_STAGES:
        num_pieces = status["shards"]
    elif stage == "probe":
        num_pieces = status["probe_pieces"]
        if num_pieces == 0:
            return "-"
    return f"{round_status[stage]}/{num_pieces}"

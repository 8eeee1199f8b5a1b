"""The progress of a run, read from its ledger, its config and peak.json.

{"run": "...", "pieces": 41, "seconds": 312.5, "shards": 4, "rounds": [{"round": 1, "sample": 4, ...}, ...], "peak": 2}
"""

import json
import math
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from winnow.rundir import Run

SHARDED_STAGES = ("sample", "score")
ROUND_STAGES = (*SHARDED_STAGES, "select", "train", "evaluate")


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
        cells = [_cell(round_status, stage, status["shards"]) for stage in ROUND_STAGES]
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


def _cell(round_status: dict[str, int], stage: str, num_shards: int) -> str:
    """Return the finished pieces of a stage out of all its pieces, like "3/4"; a dash for a stage not in round 0."""
    if round_status["round"] == 0 and stage in (*SHARDED_STAGES, "select"):
        return "-"
    num_pieces = num_shards if stage in SHARDED_STAGES else 1
    return f"{round_status[stage]}/{num_pieces}"

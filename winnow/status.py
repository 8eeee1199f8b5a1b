"""What a run has done so far, read from its ledger alone.

{"run": "...", "pieces": 41, "seconds": 312.5, "rounds": [{"round": 1, "sample": 4, "score": 4, ...}], "peak": 2}
"""

import json
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from winnow.rundir import Run

ROUND_STAGES = ("sample", "score", "select", "train", "evaluate")


def run_status(run: Run) -> dict[str, Any]:
    """Finished pieces by round and stage, with the seconds they took."""
    newest = {line["piece"]: line for line in run.ledger.lines()}
    counts = Counter(tuple(piece.split("/")[:2]) for piece in newest)
    numbers = range(run.config.rounds.num_rounds + 1)
    return {
        "run": str(run.root),
        "pieces": len(newest),
        "seconds": round(sum(line["seconds"] for line in newest.values()), 1),
        "shards": _num_shards(run),
        "rounds": [_round_status(run, number, counts) for number in numbers],
        "peak": json.loads(run.peak_path.read_text())["round"] if run.peak_path.exists() else None,
    }


def print_status(run: Run, *, as_json: bool) -> None:
    """Print the status as a table or as JSON."""
    status = run_status(run)
    if as_json:
        print(json.dumps(status))
        return
    table = Table(title=f"{status['run']}: {status['pieces']} pieces in {status['seconds']:,.0f} s")
    for column in ("round", *ROUND_STAGES):
        table.add_column(column, justify="right")
    for row in status["rounds"]:
        table.add_row(str(row["round"]), *(_cell(row, stage, status["shards"]) for stage in ROUND_STAGES))
    Console().print(table)
    print("peak: " + ("not picked yet" if status["peak"] is None else f"round {status['peak']}"))


def _round_status(run: Run, number: int, counts: Counter[tuple[str, ...]]) -> dict[str, int]:
    name = run.round_name(number)
    done = {stage: counts[name, stage] for stage in ROUND_STAGES}
    if number == 0:
        done["train"] = counts[name, "start"]
    return {"round": number, **done}


def _num_shards(run: Run) -> int:
    prompts = run.config.prompts
    return -(-prompts.num_prompts // run.config.sampling.shard_size) if prompts else 0


def _cell(row: dict[str, int], stage: str, num_shards: int) -> str:
    if row["round"] == 0 and stage in ("sample", "score", "select"):
        return "-"
    total = num_shards if stage in ("sample", "score") else 1
    return f"{row[stage]}/{total}"

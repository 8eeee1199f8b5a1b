"""How fast completions are scored, beside the ways that others have: `python -m benchmarks.scoring [--quick] [--json]`.

    padded, trl, vllm   benchmarks/peers.py
    winnow              the transformers engine, in this process
    served              the same engine through gRPC: `winnow serve` in a process of its own, its cache off

All sides score the same tokens with the same weights, in turns (A B C A B C ...), with new tokens in every turn; a
figure is the median of its turns. Tokens are those of all pairs of prompt and completion, whoever computes them once or
more often. vLLM takes part where it is installed and the run is not quick. Sides in this process allocate as PyTorch
does by itself; `--keep-memory` gives them what the server sets (engines/allocator.py), which helps those with
large tensors most. The targets, for each workload of bound b:

    winnow >= b x padded      winnow >= 0.9 b x the best peer (n1: never slower)      served >= 0.95 x winnow
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import peers
from benchmarks.machine import matmul_flops, seconds, useful_flops
from benchmarks.workloads import Workload, make_model, workloads
from reward_server.client import Group, RewardClient
from reward_server.engines import TokenGroup
from reward_server.engines.allocator import keep_memory
from reward_server.engines.transformers import TransformersEngine
from winnow.models import load_causal_lm
from winnow.progress import progress

PEERS = ("padded", "trl", "vllm")
TURNS = 3
QUICK_TURNS = 2
REST_S = 0.4  # until the threads of the side before have gone to sleep
WARM_UP = {"n1", "mixed"}  # small, and of many shapes
LARGE = {"n64-p128-r256"}  # a quick run has time for one turn of it


def main() -> None:
    """Measure, print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="the Mixtral shape only, fewer prompts and turns: minutes")
    parser.add_argument("--keep-memory", action="store_true", help="give all sides the server's allocator settings")
    parser.add_argument("--turns", type=int, help=f"turns of each side; unset: {TURNS}, quick {QUICK_TURNS}")
    arguments = parser.parse_args()
    if arguments.keep_memory:
        keep_memory()
    kinds = ["mixtral"] if arguments.quick else ["mixtral", "mistral"]
    report: dict[str, Any] = {"threads": torch.get_num_threads(), "dtype": "bfloat16", "workloads": [], "memory": []}
    with tempfile.TemporaryDirectory() as root:
        for seed, kind in enumerate(kinds):
            folder = make_model(kind, Path(root) / kind, seed)
            report["workloads"] += measure(kind, folder, arguments.quick, arguments.turns)
            report["memory"].append({"model": kind, **memory(folder)})
    print(json.dumps(report) if arguments.json else table(report))


def measure(kind: str, folder: Path, is_quick: bool, num_turns: int | None) -> list[dict[str, Any]]:
    """The rows of one model: every workload scored by every side, in turns; the first turn warms up."""
    num_turns = num_turns or (QUICK_TURNS if is_quick else TURNS)
    turns = [workloads(turn, is_quick=is_quick) for turn in range(num_turns + 1)]
    with ExitStack() as stack:
        sides, config = open_sides(folder, stack, has_vllm=not is_quick)
        figures = {work.name: Figures() for work in turns[0]}
        advance = stack.enter_context(progress(kind, len(turns) * len(figures), "workloads"))
        for turn, works in enumerate(turns):
            for work in works:
                if is_due(work.name, turn, is_quick):
                    figures[work.name].add(work, sides, is_warm=turn > 0)
                advance()
        return [figures[work.name].row(kind, work, config) for work in turns[-1]]


def is_due(name: str, turn: int, is_quick: bool) -> bool:
    """Whether a workload is scored in a turn; the turn 0 only warms up."""
    if turn == 0:
        return name in WARM_UP
    return turn == 1 or not (is_quick and name in LARGE)


@dataclass
class Figures:
    """What was measured of one workload: seconds of each side in each turn, and what stood beside them."""

    times: dict[str, list[float]] = field(default_factory=dict)
    matmul_rates: list[float] = field(default_factory=list)
    largest_difference: float = 0.0

    def add(self, work: Workload, sides: dict[str, peers.Scorer], *, is_warm: bool) -> None:
        """One turn: every side in its place."""
        sums: dict[str, list[float]] = {}
        for name, score in sides.items():
            time.sleep(REST_S)
            spent = seconds(lambda: sums.update({name: score(work.groups)}))  # noqa: B023 (called at once)
            self.times.setdefault(name, []).extend([spent] if is_warm else [])
        self.matmul_rates.append(matmul_flops(torch.bfloat16))
        self.largest_difference = max(self.largest_difference, largest_difference(sums))

    def row(self, kind: str, work: Workload, config: Any) -> dict[str, Any]:
        """The workload's row of the report."""
        spent = {name: median(times) for name, times in self.times.items()}
        speed = {name: work.num_tokens / one for name, one in spent.items()}
        ratio = speed["winnow"] / max(speed[name] for name in PEERS if name in speed)
        rate = median(self.matmul_rates)
        return {
            "model": kind,
            "name": work.name,
            "bound": round(work.bound, 2),
            "tokens_per_s": {name: round(one) for name, one in speed.items()},
            "speedup_vs_padded": round(speed["winnow"] / speed["padded"], 2),
            "speedup_vs_best_peer": round(ratio, 2),
            "served_fraction": round(speed["served"] / speed["winnow"], 3),
            "flops_fraction": round(useful_flops(work.groups, config) / spent["winnow"] / rate, 3),
            "matmul_gflops": round(rate / 1e9),
            "largest_difference": round(self.largest_difference, 3),
            "meets_targets": {
                "padded": speed["winnow"] >= work.bound * speed["padded"],
                "best_peer": ratio >= (1.0 if work.name == "n1" else 0.9 * work.bound),
                "served": speed["served"] >= 0.95 * speed["winnow"],
            },
        }


def open_sides(folder: Path, stack: ExitStack, *, has_vllm: bool) -> tuple[dict[str, peers.Scorer], Any]:
    """Every side by name, ready to score, and the model's config."""
    padded, trl = (
        load_causal_lm(str(folder), dtype="auto", device_map="cpu", attn_implementation="sdpa").eval() for _ in range(2)
    )
    engine = TransformersEngine.load(str(folder), device_map="cpu")
    sides: dict[str, peers.Scorer] = {"padded": peers.padded(padded), "trl": peers.trl(trl)}
    if has_vllm and importlib.util.find_spec("vllm"):
        sides["vllm"], shutdown = peers.vllm(str(folder))
        stack.callback(shutdown)
    sides["winnow"] = lambda groups: [float(one.sum()) for group in engine.logprobs(groups) for one in group]
    sides["served"] = stack.enter_context(served(folder))
    return sides, padded.config


@contextmanager
def served(folder: Path) -> Iterator[peers.Scorer]:
    """A `winnow serve` of the model, asked for the instruct model's scores alone, over a socket."""
    settings = {"chat_template": "lab", "cache_bytes": 0, "listen": "127.0.0.1:0", "device_map": "cpu"}
    config = folder.with_suffix(".json")
    config.write_text(json.dumps({"instruct": str(folder), "base": str(folder), **settings}))
    command = [sys.executable, "-m", "winnow.cli", "serve", str(config)]
    with (
        folder.with_suffix(".log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            yield _scorer_at(_address(process))
        finally:
            process.terminate()


def _address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("listening on "):
            return line.split()[-1]
    raise RuntimeError("winnow serve did not start")


def _scorer_at(address: str) -> Callable[[list[TokenGroup]], list[float]]:
    client = RewardClient(address)

    def score(groups: list[TokenGroup]) -> list[float]:
        asked = (Group(group.prompt_ids, group.completions) for group in groups)
        answers = client.score_many(asked, concurrency=16, is_reference_free=True)
        return [one.reward or 0.0 for group in answers for one in group]

    return score


def largest_difference(sums: dict[str, list[float]]) -> float:
    """How far two sides are apart at most, in the sum of one completion."""
    columns = list(zip(*sums.values(), strict=True))
    return float(max(max(column) - min(column) for column in columns))


def memory(folder: Path) -> dict[str, Any]:
    """The rise of memory in a process of its own (benchmarks/memory.py)."""
    command = [sys.executable, "-m", "benchmarks.memory", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    names = list(report["workloads"][0]["tokens_per_s"])
    head = ["model", "workload", "bound", *names, "x padded", "x best", "served", "of matmul", "targets"]
    lines = [head]
    for one in report["workloads"]:
        missed = [name for name, is_met in one["meets_targets"].items() if not is_met]
        figures = [str(one["tokens_per_s"][name]) for name in names]
        ratios = [one[key] for key in ("speedup_vs_padded", "speedup_vs_best_peer", "served_fraction")]
        fraction = f"{one['flops_fraction']:.0%}"
        verdict = "missed: " + ", ".join(missed) if missed else "met"
        lines.append([one["model"], one["name"], str(one["bound"]), *figures, *map(str, ratios), fraction, verdict])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    for one in report["memory"]:
        text.append(f"{one['model']}: {one['name']} ({one['tokens']} tokens) raises memory by {one['raised_mib']} MiB")
    return "\n".join([f"tokens/s, bfloat16, {report['threads']} threads", *text])


if __name__ == "__main__":
    main()

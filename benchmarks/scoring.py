"""Scoring speed of winnow and of its peers: `python -m benchmarks.scoring [--quick] [--json] [--dtype float32]`.

    padded, trl, vllm   benchmarks/peers.py
    winnow              the transformers engine, in this process
    served              the same engine through gRPC: `winnow serve` in a separate process, with its cache off

All scorers score the same tokens with the same weights. They alternate (A B C A B C ...), with new tokens in every run;
a figure is the median over the runs. Tokens are counted over all pairs of prompt and completion, even if a scorer
computes a shared token once. vLLM takes part if it is installed and the benchmark is not quick. Scorers in this process
use PyTorch's default allocator settings; `--keep-memory` applies the server's (reward_server/engines/allocator.py),
which help most with large tensors. The targets, for each workload of bound b:

    winnow >= b x padded      winnow >= 0.9 b x the best peer (n1: never slower)      served >= 0.95 x winnow
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
from sampler.managed_server import running_server
from winnow.config import Dtype
from winnow.models import load_causal_lm
from winnow.progress import progress
from winnow.serve_config import ServeConfig

PEERS = ("padded", "trl", "vllm")
DTYPES = ("bfloat16", "float32")
NUM_RUNS = 3
NUM_QUICK_RUNS = 2
REST_S = 0.4  # until the threads of the previous scorer are idle
WARM_UP = {"n1", "mixed"}  # small, and of many shapes
LARGE = {"n64-p128-r256"}  # a quick benchmark runs it once


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="the Mixtral shape only, fewer prompts and runs: minutes")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="bfloat16",
        help="precision of the models; float32 for a processor without bfloat16 units (default: bfloat16)",
    )
    parser.add_argument("--keep-memory", action="store_true", help="give all scorers the server's allocator settings")
    parser.add_argument(
        "--runs", type=int, help=f"runs of each scorer (default: {NUM_RUNS}, with --quick {NUM_QUICK_RUNS})"
    )
    arguments = parser.parse_args()
    if arguments.keep_memory:
        keep_memory()
    num_runs = arguments.runs
    if num_runs is None:
        num_runs = NUM_QUICK_RUNS if arguments.quick else NUM_RUNS
    report = measure_kinds(arguments.dtype, num_runs, is_quick=arguments.quick)
    if arguments.json:
        print(json.dumps(report))
    else:
        print(table(report))


def measure_kinds(dtype: Dtype, num_runs: int, *, is_quick: bool) -> dict[str, Any]:
    """Measure speed and memory of each kind of model; return the report."""
    kinds = ["mixtral"] if is_quick else ["mixtral", "mistral"]
    report: dict[str, Any] = {"threads": torch.get_num_threads(), "dtype": dtype, "workloads": [], "memory": []}
    with tempfile.TemporaryDirectory() as root:
        for seed, kind in enumerate(kinds):
            folder = make_model(kind, Path(root) / kind, seed, dtype)
            report["workloads"] += measure(kind, folder, dtype, num_runs, is_quick=is_quick)
            report["memory"].append({"model": kind, **memory(folder)})
    return report


def measure(kind: str, folder: Path, dtype: Dtype, num_runs: int, *, is_quick: bool) -> list[dict[str, Any]]:
    """Score every workload with every scorer in each run; return the rows of one model. Run 0 only warms up."""
    workloads_by_run = [workloads(run, is_quick=is_quick) for run in range(num_runs + 1)]
    with ExitStack() as stack:
        scorers, config = open_scorers(folder, dtype, stack, has_vllm=not is_quick)
        figures = {workload.name: Figures(dtype) for workload in workloads_by_run[0]}
        advance = stack.enter_context(progress(kind, len(workloads_by_run) * len(figures), "workloads"))
        for run, workloads_of_run in enumerate(workloads_by_run):
            for workload in workloads_of_run:
                if is_due(workload.name, run, is_quick):
                    figures[workload.name].add(workload, scorers, is_warm=run > 0)
                advance()
        return [figures[workload.name].row(kind, workload, config) for workload in workloads_by_run[-1]]


def is_due(name: str, run: int, is_quick: bool) -> bool:
    """Return True if a workload is scored in a run; run 0 only warms up."""
    if run == 0:
        return name in WARM_UP
    return run == 1 or not (is_quick and name in LARGE)


@dataclass
class Figures:
    """The measurements of one workload.

    `times` holds the seconds of each scorer in each run; `matmul_rates` are in FLOP/s; `largest_difference` compares
    the scorers' logps of each completion.
    """

    dtype: str
    times: dict[str, list[float]] = field(default_factory=dict)
    matmul_rates: list[float] = field(default_factory=list)
    largest_difference: float = 0.0

    def add(self, workload: Workload, scorers: dict[str, peers.Scorer], *, is_warm: bool) -> None:
        """Measure one run: every scorer once, in the order of `scorers`; without `is_warm` the times are dropped."""
        logps: dict[str, list[float]] = {}
        for name, score in scorers.items():
            time.sleep(REST_S)
            spent = seconds(lambda: logps.update({name: score(workload.groups)}))  # noqa: B023 (called at once)
            if is_warm:
                self.times.setdefault(name, []).append(spent)
        self.matmul_rates.append(matmul_flops(getattr(torch, self.dtype)))
        self.largest_difference = max(self.largest_difference, peers.largest_difference(logps))

    def row(self, kind: str, workload: Workload, config: Any) -> dict[str, Any]:
        """Return the workload's row of the report."""
        spent_s = {name: median(times) for name, times in self.times.items()}
        speed = {name: workload.num_tokens / median_s for name, median_s in spent_s.items()}
        ratio = speed["winnow"] / max(speed[name] for name in PEERS if name in speed)
        rate = median(self.matmul_rates)
        return {
            "model": kind,
            "name": workload.name,
            "bound": round(workload.bound, 2),
            "tokens_per_s": {name: round(tokens_per_s) for name, tokens_per_s in speed.items()},
            "speedup_vs_padded": round(speed["winnow"] / speed["padded"], 2),
            "speedup_vs_best_peer": round(ratio, 2),
            "served_fraction": round(speed["served"] / speed["winnow"], 3),
            "flops_fraction": round(useful_flops(workload.groups, config) / spent_s["winnow"] / rate, 3),
            "matmul_gflops": round(rate / 1e9),
            "largest_difference": round(self.largest_difference, 3),
            "meets_targets": {
                "padded": speed["winnow"] >= workload.bound * speed["padded"],
                "best_peer": ratio >= (1.0 if workload.name == "n1" else 0.9 * workload.bound),
                "served": speed["served"] >= 0.95 * speed["winnow"],
            },
        }


def open_scorers(
    folder: Path, dtype: Dtype, stack: ExitStack, *, has_vllm: bool
) -> tuple[dict[str, peers.Scorer], Any]:
    """Load every scorer; return scorers by name and the model's config. `stack` closes what has to be closed."""
    # Two copies, because TRL's scorer patches its model.
    padded, trl = (
        load_causal_lm(str(folder), dtype=dtype, device_map="cpu", attn_implementation="sdpa").eval() for _ in range(2)
    )
    engine = TransformersEngine.load(str(folder), device_map="cpu")
    scorers: dict[str, peers.Scorer] = {"padded": peers.padded(padded), "trl": peers.trl(trl)}
    if has_vllm and importlib.util.find_spec("vllm"):
        scorers["vllm"], shutdown = peers.vllm(str(folder), dtype)
        stack.callback(shutdown)
    scorers["winnow"] = peers.engine_scorer(engine)
    scorers["served"] = stack.enter_context(served(folder))
    return scorers, padded.config


@contextmanager
def served(folder: Path) -> Iterator[peers.Scorer]:
    """Start a `winnow serve` of the model and yield its scorer: the instruct model's logps, through a socket."""
    config = ServeConfig(instruct=str(folder), base=str(folder), chat_template="lab", cache_bytes=0, device_map="cpu")
    with (
        running_server(config, folder.with_name(f"{folder.name}-server")) as server,
        RewardClient(server.address) as client,
    ):

        def score(groups: list[TokenGroup]) -> list[float]:
            requests = (Group(group.prompt_ids, group.completions) for group in groups)
            logps: list[float] = []
            for scored in client.score_many(requests, concurrency=16, is_reference_free=True):
                logps += [completion.reward or 0.0 for completion in scored]
            return logps

        yield score


def memory(folder: Path) -> dict[str, Any]:
    """Measure the rise of memory in a separate process (benchmarks/memory.py)."""
    command = [sys.executable, "-m", "benchmarks.memory", str(folder)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    return report


def table(report: dict[str, Any]) -> str:
    """Render the report for people."""
    names = list(report["workloads"][0]["tokens_per_s"])
    lines = [["model", "workload", "bound", *names, "x padded", "x best", "served", "of matmul", "targets"]]
    for row in report["workloads"]:
        missed = [name for name, is_met in row["meets_targets"].items() if not is_met]
        figures = [str(row["tokens_per_s"][name]) for name in names]
        ratios = [str(row[key]) for key in ("speedup_vs_padded", "speedup_vs_best_peer", "served_fraction")]
        fraction = f"{row['flops_fraction']:.0%}"
        verdict = "missed: " + ", ".join(missed) if missed else "met"
        lines.append([row["model"], row["name"], str(row["bound"]), *figures, *ratios, fraction, verdict])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [f"tokens/s, {report['dtype']}, {report['threads']} threads"]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        text.append("  ".join(cells).rstrip())
    for row in report["memory"]:
        text.append(f"{row['model']}: {row['name']} ({row['tokens']} tokens) raises memory by {row['raised_mib']} MiB")
    return "\n".join(text)


if __name__ == "__main__":
    main()

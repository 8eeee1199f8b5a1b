"""Scoring at the size of Mixtral-8x7B with random weights, on a GPU: `python -m benchmarks.gpu_scoring [--json]`.

It scores with one model of the pair, in bfloat16, with as many layers as fit into memory (`--layers`). Without a GPU it
runs on the CPU at the small size of benchmarks/workloads.py. The report has for each workload: tokens/s of all pairs'
tokens, useful FLOPs as a share of the device's measured matmul rate, the speed-up over padded batches with full logits,
and the largest difference between the two.
"""

import argparse
import json
from statistics import median
from typing import Any

import torch

from benchmarks import peers
from benchmarks.machine import matmul_flops, seconds, useful_flops
from benchmarks.workloads import VOCAB_SIZE, model_config, workloads
from reward_server.engines.transformers import TransformersEngine

NUM_RUNS = 3
WEIGHTS_SHARE = 0.85  # of the device's memory


def main() -> None:
    """Measure, and print a text or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--layers", type=int, help="layers of the model (default: as many as fit)")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = measure(device, arguments.layers)
    if arguments.json:
        print(json.dumps(report))
    else:
        print(text(report))


def measure(device: str, num_layers: int | None) -> dict[str, Any]:
    """Measure all workloads on one device; return the report."""
    device_name = "cpu"
    matmul_size = 2048
    if device == "cuda":
        device_name = torch.cuda.get_device_name()
        matmul_size = 8192
    config = large_config(device, num_layers)
    engine = TransformersEngine(random_model(config, device), config.model_type)
    padded = peers.padded(plain_view(engine), device)
    rate = matmul_flops(torch.bfloat16, device, size=matmul_size)
    return {
        "device": device_name,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "is_shared": engine.has_shared_path,
        "matmul_tflops": round(rate / 1e12, 2),
        "workloads": [_row(index, engine, padded, rate, device) for index in range(len(workloads(0, is_quick=True)))],
    }


def large_config(device: str, num_layers: int | None) -> Any:
    """Return Mixtral-8x7B's shape with `num_layers` layers, or as many as fit; on a CPU the small shape."""
    if device == "cpu":
        return model_config("mixtral", num_hidden_layers=num_layers or 4)
    from transformers import MixtralConfig

    config = MixtralConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=4096, sliding_window=None)
    # The experts alone: three matrices each, with two bytes per weight.
    layer_bytes = 2 * 3 * config.hidden_size * config.intermediate_size * config.num_local_experts
    fitting = int(torch.cuda.get_device_properties(0).total_memory * WEIGHTS_SHARE / layer_bytes)
    config.num_hidden_layers = num_layers or min(config.num_hidden_layers, fitting)
    return config


def random_model(config: Any, device: str) -> Any:
    """Make a model with random weights on the device."""
    from transformers.models.auto import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return model.requires_grad_(False)


def plain_view(engine: TransformersEngine) -> Any:
    """Return the engine's model for a peer that calls it without the engine; two copies would not fit."""

    def forward(**arguments: Any) -> Any:
        engine.attend_plainly()
        return engine.model(**arguments)

    return forward


def _row(index: int, engine: TransformersEngine, padded: peers.Scorer, rate: float, device: str) -> dict[str, Any]:
    """Measure one workload: both scorers alternate, with new tokens in each run; run 0 only warms up."""
    times: dict[str, list[float]] = {"padded": [], "winnow": []}
    difference = 0.0
    for run in range(NUM_RUNS + 1):
        workload = workloads(run, is_quick=device == "cpu")[index]
        logps: dict[str, list[float]] = {}
        for name, score in (("padded", padded), ("winnow", peers.engine_scorer(engine))):
            spent = seconds(lambda: logps.update({name: score(workload.groups)}), device)  # noqa: B023 (called at once)
            if run > 0:
                times[name].append(spent)
        difference = max(difference, peers.largest_difference(logps))
    spent = median(times["winnow"])
    return {
        "name": workload.name,
        "bound": round(workload.bound, 2),
        "tokens_per_s": round(workload.num_tokens / spent),
        "speedup_vs_padded": round(median(times["padded"]) / spent, 2),
        "flops_fraction": round(useful_flops(workload.groups, engine.model.config) / spent / rate, 3),
        "largest_difference": round(difference, 3),
    }


def text(report: dict[str, Any]) -> str:
    """Render the report for people."""
    lines = [
        f"{report['device']}: {report['layers']} layers of width {report['hidden_size']}, "
        f"{report['matmul_tflops']} TFLOP/s in matrix products, shared path: {report['is_shared']}"
    ]
    for row in report["workloads"]:
        lines.append(
            f"{row['name']:<14}  {row['tokens_per_s']:>9,} tokens/s  {row['speedup_vs_padded']:>5} x padded "
            f"(bound {row['bound']})  {row['flops_fraction']:.0%} of matmul  apart by {row['largest_difference']}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""The memory that scoring one large group adds to a process: run as `python -m benchmarks.memory MODEL_DIR`.

It prints one JSON object. `raised_mib` is the peak while the group is scored minus the memory before. Weights and
libraries are loaded before, with a small group of the same kind; the activations of the layers are included. Linux
only: the peak is the kernel's VmHWM.
"""

import argparse
import json
from pathlib import Path

from benchmarks.workloads import Workload, memory_workload
from reward_server.engines import TokenGroup
from reward_server.engines.allocator import keep_memory
from reward_server.engines.transformers import TransformersEngine

KIB_PER_MIB = 1024


def main() -> None:
    """Measure a model, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="a folder with a model and its tokenizer")
    arguments = parser.parse_args()
    keep_memory()
    engine = TransformersEngine.load(arguments.model_dir, device_map="cpu")
    workload = memory_workload()
    group = workload.groups[0]
    engine.logprobs([TokenGroup(group.prompt_ids, group.completions[:2])])
    print(json.dumps(measure(engine, workload)))


def measure(engine: TransformersEngine, workload: Workload) -> dict[str, float | str]:
    """Return the rise in MiB, and the size of the logits of all positions, in float32."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current memory
    before = _status("VmRSS")
    engine.logprobs(workload.groups)
    return {
        "name": workload.name,
        "tokens": workload.num_tokens,
        "raised_mib": round((_status("VmHWM") - before) / KIB_PER_MIB, 1),
        "all_logits_mib": round(workload.num_tokens * engine.vocab_size * 4 / 2**20),
    }


def _status(name: str) -> int:
    """Return a value of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    main()

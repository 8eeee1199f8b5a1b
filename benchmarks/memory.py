"""How far scoring one large group raises the memory of a process: run as `python -m benchmarks.memory MODEL_DIR`.

Prints one JSON object. `raised_mib` is the peak while the group is scored, less what the process held before, weights
and libraries warmed up by a small group of the same kind; what a layer makes of a row is part of it. Linux only: the
peak is the kernel's VmHWM.
"""

import json
import sys
from pathlib import Path

from benchmarks.workloads import Workload, memory_workload
from reward_server.engines import TokenGroup
from reward_server.engines.allocator import keep_memory
from reward_server.engines.transformers import TransformersEngine

KIB_PER_MIB = 1024


def main() -> None:
    """Measure, print."""
    keep_memory()
    engine = TransformersEngine.load(sys.argv[1], device_map="cpu")
    work = memory_workload()
    group = work.groups[0]
    engine.logprobs([TokenGroup(group.prompt_ids, group.completions[:2])])
    print(json.dumps(measured(engine, work)))


def measured(engine: TransformersEngine, work: Workload) -> dict[str, float | str]:
    """The rise in MiB, and what the logits of all positions would have taken."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    before = _status("VmRSS")
    engine.logprobs(work.groups)
    return {
        "name": work.name,
        "tokens": work.num_tokens,
        "raised_mib": round((_status("VmHWM") - before) / KIB_PER_MIB, 1),
        "all_logits_mib": round(work.num_tokens * engine.vocab_size * 4 / 2**20),
    }


def _status(name: str) -> int:
    """A line of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    main()

"""A whole run on tiny random models: its config, its files, and a process of it that is killed."""

import json
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from tests.processes import END_TIMEOUT_S, ROOT, wait_until, winnow_command
from tests.tiny_models import make_model, make_pair


def run_until(arguments: list[str], is_time_to_kill: Callable[[], bool]) -> None:
    """Call the command line and kill it with SIGKILL as soon as a condition on its files holds."""
    discard = subprocess.DEVNULL
    process = subprocess.Popen(winnow_command(*arguments), cwd=ROOT, stdout=discard, stderr=discard)

    def is_time() -> bool:
        if is_time_to_kill():
            return True
        assert process.poll() is None, "the run ended before it could be killed"
        return False

    wait_until(is_time, "the point where the run is killed", timeout_s=END_TIMEOUT_S)
    process.kill()
    process.wait()


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tiny_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a recipe of two rounds on tiny random models; every file that it needs is written into `folder`."""
    make_model("mistral", folder / "student", seed=0)
    sums = [{"prompt": f"What is {left} + {right}?"} for left, right in product(range(4), repeat=2)]
    facts = [{"prompt": f"Name thing number {number}."} for number in range(16)]
    train = {"learning_rate": 1e-3, "max_steps": 2, "batch_size": 4, "micro_batch_size": 4, "max_tokens": 128}
    return {
        "name": "tiny",
        "runs_dir": str(folder / "runs"),
        "policy": {"model": str(folder / "student"), "system_prompt": "Be careful."},
        "prompts": {
            "num_prompts": 12,
            "files": [
                {"path": write_jsonl(folder / "sums.jsonl", sums)},
                {"path": write_jsonl(folder / "facts.jsonl", facts)},
            ],
        },
        "sampling": {"num_completions": 3, "max_new_tokens": 12, "shard_size": 4},
        "reward": {"server": {**make_pair(folder), "chat_template": "mixtral"}},
        "rounds": {"num_rounds": 2, "train": train},
        "evaluation": {"probe": None},  # tests/test_probe.py has runs with one
        **changes,
    }


def write_config(folder: Path, config: dict[str, Any], name: str = "config.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(config))
    return str(path)


def ledger_pieces(run_dir: Path) -> list[str]:
    """Return the names of the finished pieces of a run, oldest first."""
    path = run_dir / "ledger.jsonl"
    if not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    return [json.loads(line)["piece"] for line in whole]

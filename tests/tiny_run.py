"""A whole run on tiny random models: its files, its config, and the command line in a separate process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from benchmarks.tiny_models import make_model
from tests.served import wait_until

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 240.0


def winnow(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Call the command line and wait for it."""
    return subprocess.run(_command(arguments), capture_output=True, text=True, cwd=cwd, timeout=TIMEOUT_S, check=False)


def run_until(arguments: list[str], is_time_to_kill: Callable[[], bool]) -> None:
    """Call the command line and kill it with SIGKILL as soon as a condition on its files holds."""
    process = subprocess.Popen(_command(arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def has_come_to_the_point() -> bool:
        if is_time_to_kill():
            return True
        assert process.poll() is None, "the run ended before it could be killed"
        return False

    wait_until(has_come_to_the_point, "the point where the run is killed", timeout_s=TIMEOUT_S)
    process.kill()
    process.wait()


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_pair(folder: Path) -> dict[str, str]:
    """Make a tiny instruct and base model that share a tokenizer; return the config keys that name them."""
    for name, seed in (("instruct", 1), ("base", 2)):
        make_model("mixtral", folder / name, seed=seed)
    return {"instruct": str(folder / "instruct"), "base": str(folder / "base")}


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


def _command(arguments: list[str] | tuple[str, ...]) -> list[str]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return [sys.executable, "-m", "winnow.cli", *arguments]

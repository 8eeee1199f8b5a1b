"""A whole run on tiny random models: its files, its config, and the command line as a user calls it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.tiny_models import make_model

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 240.0


def winnow(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Call the command line and wait for it."""
    return subprocess.run(_command(arguments), capture_output=True, text=True, cwd=cwd, timeout=TIMEOUT_S, check=False)


def run_until(arguments: list[str], is_time_to_kill: Callable[[], bool]) -> None:
    """Call the command line and kill it, with SIGKILL, as soon as something is seen on disk."""
    process = subprocess.Popen(_command(arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + TIMEOUT_S
    while not is_time_to_kill():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run never came to the point where it is killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_pair(folder: Path) -> dict[str, str]:
    """A tiny instruct and base model that share a tokenizer."""
    for name, seed in (("instruct", 1), ("base", 2)):
        make_model("mixtral", folder / name, seed=seed)
    return {"instruct": str(folder / "instruct"), "base": str(folder / "base")}


def tiny_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of two rounds on tiny random models; every file it needs is written into `folder`."""
    make_model("mistral", folder / "student", seed=0)
    prompts = [{"prompt": f"What is {left} + {right}?"} for left in range(4) for right in range(4)]
    facts = [{"prompt": f"Name thing number {number}."} for number in range(16)]
    train = {"learning_rate": 1e-3, "max_steps": 2, "batch_size": 4, "micro_batch_size": 4, "max_tokens": 128}
    return {
        "name": "tiny",
        "runs_dir": str(folder / "runs"),
        "policy": {"model": str(folder / "student"), "system_prompt": "Be careful."},
        "prompts": {
            "num_prompts": 12,
            "files": [
                {"path": write_jsonl(folder / "sums.jsonl", prompts)},
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
    """Names of the finished pieces of a run, oldest first."""
    path = run_dir / "ledger.jsonl"
    if not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    return [json.loads(line)["piece"] for line in whole]


def _command(arguments: list[str] | tuple[str, ...]) -> list[str]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return [sys.executable, "-m", "winnow.cli", *arguments]

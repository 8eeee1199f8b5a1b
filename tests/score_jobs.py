"""`winnow score` as a user calls it: its rows and arguments, and servers that define rewards as a real one does."""

import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reward_server.pb import reward_pb2 as pb
from tests.scripted_server import ScriptedService, scripted_server
from tests.tiny_run import ROOT, winnow, write_jsonl


class DefinedService(ScriptedService):
    """Has a base model that reads plain prompts; its definitions are those of docs/rewards.md."""

    def __init__(self) -> None:
        super().__init__()
        self.base_weight_hash = "sha256:base"

    def definition(self, options: pb.ScoreOptions) -> pb.RewardDefinition:
        definition = super().definition(options)
        is_bench = options.recipe == pb.RECIPE_REWARDBENCH
        definition.instruct_template_hash = "instruct template"
        definition.base_prompt = "same" if is_bench else "plain"
        definition.base_weight_hash = self.base_weight_hash
        definition.base_template_hash = "instruct template" if is_bench else "base template"
        if options.is_reference_free:
            for field in ("base_prompt", "base_weight_hash", "base_template_hash"):
                definition.ClearField(field)
        return definition

    def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        info = super().GetServerInfo(request, context)
        info.instruct.template_hash = "instruct template"
        info.base.weight_hash = self.base_weight_hash
        info.base.template_hash = "base template"
        info.base_prompt = "plain"
        return info


class GatedService(DefinedService):
    """Holds every request after the first `num_free` until a test sets `gate`."""

    def __init__(self, num_free: int) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.num_free = num_free

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        if len(self.requests) >= self.num_free:
            self.gate.wait(60)
        return super().Score(request, context)


def rows(number: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Say {index}.", "completions": ["x" * (index % 7), "\u00e9"]} for index in range(number)]


def arguments(address: str, folder: Path, *more: str) -> list[str]:
    paths = ["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")]
    return ["score", "--address", address, *paths, *more]


def num_finished(folder: Path) -> int:
    part = folder / "out.jsonl.part"
    return part.read_bytes().count(b"\n") if part.exists() else 0


def undisturbed(folder: Path, number: int) -> bytes:
    (folder / "calm").mkdir()
    write_jsonl(folder / "calm" / "in.jsonl", rows(number))
    with scripted_server(DefinedService()) as address:
        result = winnow(*arguments(address, folder / "calm"))
    assert result.returncode == 0, result.stderr
    return (folder / "calm" / "out.jsonl").read_bytes()


def start(command: list[str], max_file_kib: int | None = None) -> "subprocess.Popen[str]":
    """The command line in a process of its own, whose files may grow no longer than that."""
    limited = [] if max_file_kib is None else ["bash", "-c", f'ulimit -f {max_file_kib}; exec "$@"', "bash"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*limited, sys.executable, "-m", "winnow.cli", *command], cwd=ROOT, text=True, stdout=pipe, stderr=pipe
    )


def wait_for(condition: Any, process: "subprocess.Popen[str]") -> None:
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.communicate()[1]
        threading.Event().wait(0.01)
    raise AssertionError("it never came to that point")


@contextmanager
def serving(options: list[str]) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A real reward server in a process of its own, and its address."""
    command = [sys.executable, "-m", "winnow.cli", "serve", *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.DEVNULL, text=True, cwd=ROOT, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 120)[0], "the server said nothing"
            yield process, process.stdout.readline().removeprefix("listening on ").strip()
        finally:
            process.kill()

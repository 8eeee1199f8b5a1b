"""`winnow score` as a user calls it: rows, arguments, jobs that are held before their end, and servers for them."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_server.pb import reward_pb2 as pb
from tests.processes import ROOT, START_TIMEOUT_S, wait_until, winnow, winnow_command
from tests.scripted_server import ScriptedService, scripted_server
from tests.tiny_run import write_jsonl


class DefinedService(ScriptedService):
    """Has a base model that reads plain prompts; reports definitions as docs/rewards.md describes them."""

    def __init__(self) -> None:
        super().__init__()
        self.base_weight_hash = "sha256:base"

    def definition(self, options: pb.ScoreOptions) -> pb.RewardDefinition:
        definition = super().definition(options)
        definition.instruct_template_hash = "instruct template"
        definition.base_prompt = "plain"
        definition.base_weight_hash = self.base_weight_hash
        definition.base_template_hash = "base template"
        if options.recipe == pb.RECIPE_REWARDBENCH:
            definition.base_prompt = "same"
            definition.base_template_hash = "instruct template"
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
        self.num_free = num_free
        self.gate.clear()


@dataclass
class HeldJob:
    """A `winnow score` process with some rows finished, and the server that holds it until `gate` is set."""

    process: "subprocess.Popen[str]"
    service: GatedService
    address: str

    def errors(self) -> str:
        """Wait for the end of the process and return what it wrote to stderr."""
        return self.process.communicate(timeout=START_TIMEOUT_S)[1]

    def kill(self) -> None:
        """Kill the process with SIGKILL and wait for its end."""
        self.process.kill()
        self.process.communicate()


def make_rows(num_rows: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Say {index}.", "completions": ["x" * (index % 7), "\u00e9"]} for index in range(num_rows)]


def arguments(address: str, folder: Path, *flags: str) -> list[str]:
    paths = ["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")]
    return ["score", "--address", address, *paths, *flags]


def num_finished(folder: Path) -> int:
    part = folder / "out.jsonl.part"
    if not part.exists():
        return 0
    return part.read_bytes().count(b"\n")


def undisturbed_output(folder: Path, num_rows: int) -> bytes:
    """Return the output for `make_rows(num_rows)` of a job that is neither held nor killed."""
    (folder / "undisturbed").mkdir()
    write_jsonl(folder / "undisturbed" / "in.jsonl", make_rows(num_rows))
    with scripted_server(DefinedService()) as address:
        result = winnow(*arguments(address, folder / "undisturbed"))
    assert result.returncode == 0, result.stderr
    return (folder / "undisturbed" / "out.jsonl").read_bytes()


def start_winnow(command: list[str], max_file_kib: int | None = None) -> "subprocess.Popen[str]":
    """Start the command line; with `max_file_kib` it may write no larger file."""
    limit = []
    if max_file_kib is not None:
        limit = ["bash", "-c", f'ulimit -f {max_file_kib}; exec "$@"', "bash"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*limit, *winnow_command(*command)], cwd=ROOT, text=True, stdout=pipe, stderr=pipe)


def wait_in_process(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait until a condition holds; fail if the process that makes it true ends before."""

    def holds() -> bool:
        assert process.poll() is None, process.communicate()[1]
        return condition()

    wait_until(holds, "the condition that the process makes true", START_TIMEOUT_S)


@contextmanager
def held_job(folder: Path, *flags: str, num_rows: int = 60, min_finished: int = 10) -> Iterator[HeldJob]:
    """Start `winnow score` on `num_rows` rows and yield it once `min_finished` are; its server ends with the block."""
    write_jsonl(folder / "in.jsonl", make_rows(num_rows))
    service = GatedService(num_free=min_finished + 15)  # rows are finished in order, up to 8 requests are in progress
    with scripted_server(service) as address:
        process = start_winnow(arguments(address, folder, *flags))
        wait_in_process(lambda: num_finished(folder) >= min_finished, process)
        yield HeldJob(process, service, address)

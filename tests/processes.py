"""Processes of the command line, started as a user starts them, and waiting for what they do."""

import asyncio
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parent.parent
EVENT_TIMEOUT_S = 30.0
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 240.0


def winnow(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Call the command line and wait for its end."""
    return subprocess.run(
        winnow_command(*arguments), capture_output=True, text=True, cwd=cwd, timeout=END_TIMEOUT_S, check=False
    )


def winnow_command(*arguments: str) -> list[str]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return [sys.executable, "-m", "winnow.cli", *arguments]


@contextmanager
def server_process(
    arguments: Sequence[str], *, verb: str = "serve", stderr: int | IO[Any] = subprocess.PIPE
) -> Iterator["subprocess.Popen[str]"]:
    """Start `winnow serve` or `winnow gateway`; kill it at the end of the block if it still runs."""
    pipe = subprocess.PIPE
    command = winnow_command(verb, *arguments)
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def read_address(process: "subprocess.Popen[str]") -> str:
    """Wait for the line with which a server tells its address, and return the address."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], START_TIMEOUT_S)[0], "the server printed no address"
    line = process.stdout.readline()
    assert line.startswith("listening on "), line
    return line.removeprefix("listening on ").strip()


def wait_until(has_happened: Callable[[], bool], event: str, timeout_s: float = EVENT_TIMEOUT_S) -> None:
    """Wait until a condition holds; fail with the name of the event if it does not within the time."""
    deadline = time.monotonic() + timeout_s
    while not has_happened():
        assert time.monotonic() < deadline, f"never came: {event}"
        time.sleep(0.005)


async def async_wait_until(has_happened: Callable[[], bool], event: str) -> None:
    """Wait as `wait_until` does, in an event loop that runs on meanwhile."""
    deadline = time.monotonic() + EVENT_TIMEOUT_S
    while not has_happened():
        assert time.monotonic() < deadline, f"never came: {event}"
        await asyncio.sleep(0.005)

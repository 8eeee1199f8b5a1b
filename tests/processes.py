"""The command line in a process or in this one, waiting for events, and facts of processes from Linux's /proc."""

import asyncio
import io
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any
from unittest import mock

from winnow import cli

ROOT = Path(__file__).parent.parent
# Longest waits, in seconds: for an event, for a server's address, for the end of a process.
EVENT_TIMEOUT_S = 60.0
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 240.0


def winnow(*arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Call the command line in a process and wait for its end."""
    return subprocess.run(
        winnow_command(*arguments), capture_output=True, text=True, cwd=cwd, timeout=END_TIMEOUT_S, check=False
    )


def winnow_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "winnow.cli", *arguments]


def winnow_in_process(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Call the command line in this process, which costs no start of Python; for calls that end in an error.

    What would outlast the call is left out: changes of the environment, of signal handlers and of loggers.
    """
    stdout = io.StringIO()
    stderr = io.StringIO()
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "argv", ["winnow", *arguments]),
        mock.patch("winnow.cli.rewards.end_when_interrupted"),
        mock.patch("reward_server.serving.server.log_to_stderr"),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        exit_code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            exit_code = end.code
    return subprocess.CompletedProcess(arguments, exit_code, stdout.getvalue(), stderr.getvalue())


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
    """Wait for the line in which a server prints its address, and return the address."""
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
    """Wait like `wait_until`, and let the event loop run meanwhile."""
    deadline = time.monotonic() + EVENT_TIMEOUT_S
    while not has_happened():
        assert time.monotonic() < deadline, f"never came: {event}"
        await asyncio.sleep(0.005)


def proc_folder(pid: int) -> Path:
    """Return the folder of /proc that describes a process."""
    assert sys.platform == "linux", "this test reads /proc, which only Linux has"
    return Path(f"/proc/{pid}")


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third one on, the state of the process."""
    return (proc_folder(pid) / "stat").read_text().rpartition(")")[2].split()


def is_running(pid: int) -> bool:
    """Tell whether a process exists and is not a zombie."""
    try:
        return stat_fields(pid)[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid: int) -> list[int]:
    return [int(child) for child in (proc_folder(pid) / "task" / str(pid) / "children").read_text().split()]


def resident_pages(pid: int) -> int:
    """Return the number of memory pages that a process holds."""
    return int((proc_folder(pid) / "statm").read_text().split()[1])


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far, in user mode and in the kernel."""
    fields = stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

"""A reward server for the duration of a stage, started from the run's config on a free port.

The server is a separate process (`winnow serve`), so that all its memory is freed. It ends itself if its parent dies.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reward_server.client import ConnectionSettings, RewardClient, open_connection_settings
from winnow.config import dump_config
from winnow.errors import ServerError, WinnowError
from winnow.import_path import child_environment
from winnow.rows import write_text
from winnow.run_config import RewardConfig
from winnow.serve_config import ServeConfig

READY_TIMEOUT_S = 1800.0
STOP_TIMEOUT_S = 30.0
WATCH_EVERY_S = 0.2


@dataclass(frozen=True)
class ManagedServer:
    """A `winnow serve` process that listens at `address`; its stderr goes to the file at `log_path`."""

    process: "subprocess.Popen[str]"
    address: str
    log_path: Path


@contextmanager
def reward_client(config: RewardConfig, folder: Path) -> Iterator[RewardClient]:
    """Yield a client of the server at the config's address, or of a server that is started for the block.

    `folder` is for the config and the log of a started server. Raises ServerError if that server does not start
    or ends before it is ready.
    """
    if config.server is None:
        with RewardClient(connection_settings(config), config.timeout_s) as client:
            yield client
        return
    with (
        running_server(config.server, folder) as server,
        RewardClient(server.address, timeout_s=config.timeout_s) as client,
    ):
        wait_for_server(server, client)
        yield client


def wait_for_server(server: ManagedServer, client: RewardClient, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Return once the server serves; a line on stderr tells what is waited for.

    Raises ServerError at once if the process ends, and after `timeout_s` seconds if it does not serve; the client is
    closed if the process ended.
    """
    _tell(f"waiting for the reward server at {server.address} (log: {server.log_path})")
    is_over = threading.Event()
    watcher = threading.Thread(target=_close_when_ended, args=(server, client, is_over), daemon=True)
    watcher.start()
    try:
        client.wait_until_ready(timeout_s)
    except WinnowError:
        if server.process.poll() is None:
            raise
        raise _ended_error("ended before it was ready", server.log_path) from None
    finally:
        is_over.set()
        watcher.join()


def _tell(line: str) -> None:
    """Write a line to stderr at once, next to the progress of the stages."""
    print(line, file=sys.stderr, flush=True)


def _close_when_ended(server: ManagedServer, client: RewardClient, is_over: threading.Event) -> None:
    """Close the client when the process ends, so that its call fails at once; stop when the wait is over."""
    while not is_over.wait(WATCH_EVERY_S):
        if server.process.poll() is not None:
            client.close()
            return


def connection_settings(config: RewardConfig) -> ConnectionSettings:
    """Return how to reach the server at the config's address. Raises UsageError."""
    assert config.address is not None  # RewardConfig holds either an address or a server
    return open_connection_settings(
        config.address, config.token_file, config.tls_ca, config.tls_certificate, config.tls_key
    )


def managed_config(config: ServeConfig) -> ServeConfig:
    """Return the config for a server that a run starts: it listens on a free port of this machine only."""
    return config.model_copy(update={"listen": "127.0.0.1:0"})


@contextmanager
def running_server(
    config: ServeConfig, folder: Path, variables: Mapping[str, str] | None = None
) -> Iterator[ManagedServer]:
    """Start a server on a free port for the block; its config and log are written to `folder`.

    `variables` are added to the environment of the process. Raises ServerError if the server does not start.
    """
    config_path = folder / "server.json"
    log_path = folder / "server.log"
    write_text(config_path, dump_config(managed_config(config)))
    command = [sys.executable, "-m", "winnow.cli", "serve", str(config_path), "--until-stdin-closes"]
    environment = {**child_environment(), **(variables or {})}
    with log_path.open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    try:
        _tell(f"starting a reward server; it loads its models first (log: {log_path})")
        yield ManagedServer(process, _read_address(process, log_path), log_path)
    finally:
        _stop(process)


def _read_address(process: "subprocess.Popen[str]", log_path: Path) -> str:
    """Return the address that the server prints once it listens. Raises ServerError if it ends before that."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("listening on "):
            return line.removeprefix("listening on ").strip()
    raise _ended_error("did not start", log_path)


def _ended_error(fault: str, log_path: Path) -> ServerError:
    """Return the error of a process that ended, with the last line of its log."""
    log_lines = log_path.read_text(errors="replace").strip().splitlines() or ["it wrote no message"]
    return ServerError(f"the reward server {fault}: {log_lines[-1]} (log: {log_path})")


def _stop(process: "subprocess.Popen[str]") -> None:
    """Terminate the process, or kill it if it does not end in time; close its pipes."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()

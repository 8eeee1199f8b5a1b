"""A reward server for the duration of a stage, started from the run's config on a free port.

The server is a separate process (`winnow serve`), so that all its memory is freed. It ends itself if its parent dies.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reward_server.client import ConnectionSettings, RewardClient, open_connection_settings
from winnow.config import dump_config
from winnow.errors import ServerError
from winnow.import_path import child_environment
from winnow.rows import write_text
from winnow.run_config import RewardConfig
from winnow.serve_config import ServeConfig

READY_TIMEOUT_S = 1800.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class ManagedServer:
    """A `winnow serve` process that listens at `address`; its stderr goes to the file at `log_path`."""

    process: "subprocess.Popen[str]"
    address: str
    log_path: Path


@contextmanager
def reward_client(config: RewardConfig, folder: Path) -> Iterator[RewardClient]:
    """Yield a client of the server at the config's address, or of a server that is started for the block.

    `folder` is for the config and the log of a started server. Raises ServerError if that server does not start.
    """
    if config.server is None:
        with RewardClient(connection_settings(config), config.timeout_s) as client:
            yield client
        return
    with (
        running_server(config.server, folder) as server,
        RewardClient(server.address, timeout_s=config.timeout_s) as client,
    ):
        client.wait_until_ready(READY_TIMEOUT_S)
        yield client


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
        yield ManagedServer(process, _read_address(process, log_path), log_path)
    finally:
        _stop(process)


def _read_address(process: "subprocess.Popen[str]", log_path: Path) -> str:
    """Return the address that the server prints once it listens. Raises ServerError if it ends before that."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("listening on "):
            return line.removeprefix("listening on ").strip()
    log_lines = log_path.read_text().strip().splitlines() or ["it wrote no message"]
    raise ServerError(f"the reward server did not start: {log_lines[-1]} (log: {log_path})")


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

"""A reward server for the time of a stage: started from the run's config on a free port, stopped when the stage ends.

It runs as a process of its own (`winnow serve`), so that its memory comes back, and ends by itself if its parent dies.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reward_server.client import RewardClient, read_token
from winnow.config import dump_config
from winnow.errors import ServerError
from winnow.rows import write_text
from winnow.run_config import RewardConfig
from winnow.serve_config import ServeConfig

READY_TIMEOUT_S = 1800.0
STOP_TIMEOUT_S = 30.0


@contextmanager
def reward_client(config: RewardConfig, folder: Path) -> Iterator[RewardClient]:
    """A client of the config's server; one that the config does not only name but describe is started and stopped."""
    if config.address is not None:
        token = None if config.token_file is None else read_token(config.token_file)
        with RewardClient(config.address, config.timeout_s, token=token, tls_ca=config.tls_ca) as client:
            yield client
        return
    assert config.server is not None  # RewardConfig holds one of the two
    with _hosted(config.server, folder) as address, RewardClient(address, timeout_s=config.timeout_s) as client:
        client.wait_until_ready(READY_TIMEOUT_S)
        yield client


@contextmanager
def _hosted(config: ServeConfig, folder: Path) -> Iterator[str]:
    """The address of a server that lives as long as the block; its config and log lie in `folder`."""
    config_path, log_path = folder / "server.json", folder / "server.log"
    write_text(config_path, dump_config(config.model_copy(update={"listen": "127.0.0.1:0"})))
    command = [sys.executable, "-m", "winnow.cli", "serve", str(config_path), "--until-stdin-closes"]
    with log_path.open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield _address_of(process, log_path)
    finally:
        process.terminate()
        _wait_or_kill(process)


def _address_of(process: "subprocess.Popen[str]", log_path: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("listening on "):
            return line.removeprefix("listening on ").strip()
    last_words = log_path.read_text().strip().splitlines()[-1:] or ["it said nothing"]
    raise ServerError(f"the reward server did not start: {last_words[0]} (log: {log_path})")


def _wait_or_kill(process: "subprocess.Popen[str]") -> None:
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()

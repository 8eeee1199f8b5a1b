"""Start-up and end of a reward server: load the pair, listen, serve until told to stop, drain.

    stdout   listening on HOST:PORT     the one line that a parent process reads
    stderr   what is loaded, and where; an example call

SIGTERM or SIGINT: health says NOT_SERVING, calls in progress get DRAIN_S seconds to end, exit code 0.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection

from reward_server.pair import Pair, open_pair
from reward_server.pb.reward_pb2_grpc import add_RewardServiceServicer_to_server
from reward_server.service import RewardService
from reward_server.wire import server_info
from winnow.errors import UsageError
from winnow.serve_config import ServeConfig

SERVICE_NAME = "winnow.v1.RewardService"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
DRAIN_S = 20.0

EXAMPLE = """score with:
    from reward_server.client import RewardClient
    with RewardClient("{address}") as client:
        scores = client.score([{{"role": "user", "content": "What is 2 + 3?"}}], ["It is 5.", "It is 6."])
        print([score.reward for score in scores])"""

log = logging.getLogger(__name__)


class RunningServer:
    """A server that answers at `address`."""

    def __init__(self, server: grpc.aio.Server, service: RewardService, address: str) -> None:
        self.address = address
        self._server = server
        self._service = service
        self._health = health.aio.HealthServicer()

    async def start(self) -> None:
        """Answer calls; health says SERVING."""
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        add_RewardServiceServicer_to_server(self._service, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(names, self._server)
        await self._health.set(SERVICE_NAME, HealthCheckResponse.SERVING)
        await self._server.start()

    async def drain(self, grace_s: float = DRAIN_S) -> None:
        """Take no more calls, let those in progress end, and stop."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        self._service.close()


def serve(config: ServeConfig, *, stop_when_stdin_closes: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, or until the parent process dies. Raises UsageError, ModelError at start-up."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    if stop_when_stdin_closes:
        threading.Thread(target=_terminate_at_end_of_stdin, daemon=True).start()
    check_address_is_free(config.listen)
    asyncio.run(_serve(config, open_pair(config)))


async def _serve(config: ServeConfig, pair: Pair) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    running = await start(config, pair)
    print(f"listening on {running.address}", flush=True)
    log.info(EXAMPLE.format(address=running.address))
    await stopping.wait()
    log.info("stopping: no new calls; those in progress have %.0f s to end", DRAIN_S)
    await running.drain()


async def start(config: ServeConfig, pair: Pair) -> RunningServer:
    """Listen and answer calls in the running event loop. Raises UsageError when the address cannot be taken."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # Without it a second server takes the same port and each gets some of the connections.
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    try:
        port = server.add_insecure_port(config.listen)
    except RuntimeError as error:
        raise _cannot_listen(config.listen, str(error)) from error
    address = f"{config.listen.rpartition(':')[0]}:{port}"
    running = RunningServer(server, RewardService(pair, server_info(pair, config)), address)
    await running.start()
    return running


def check_address_is_free(listen: str) -> None:
    """Raise UsageError for an address that cannot be taken: better now than after minutes of loading."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"listen {listen!r} should be HOST:PORT, like 127.0.0.1:50051")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, int(port)), family=family).close()
    except (OSError, OverflowError) as error:
        raise _cannot_listen(listen, str(error)) from error


def _cannot_listen(listen: str, reason: str) -> UsageError:
    return UsageError(f"cannot listen on {listen} ({reason}); take another port, or port 0 for a free one")


def _terminate_at_end_of_stdin() -> None:
    """Wait until the other end of stdin closes, then ask this process to stop; while it still loads, that ends it."""
    try:
        while os.read(sys.stdin.fileno(), 4096):
            pass
    except OSError:
        log.info("stdin is closed")
    os.kill(os.getpid(), signal.SIGTERM)

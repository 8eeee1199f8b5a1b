"""A reward server from start-up to its end: check the config, load the models, listen, serve until a signal, drain.

    stdout   listening on HOST:PORT     the only line; a parent process reads it
    stderr   the loaded models and their devices; an example call; then one JSON line for each call

After SIGTERM or SIGINT, health reports NOT_SERVING, streams are read no further, and calls in progress get `drain_s`
seconds to end; the exit code is 0. A second signal ends the process at once with exit code 1.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import replace
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from reward_server.engines.caching import LogprobCache
from reward_server.engines.process import start_engines
from reward_server.monitoring import Metrics, log_to_stderr
from reward_server.protocol import SERVICE_NAME
from reward_server.scheduling.scheduler import Scheduler
from reward_server.scoring.load_pair import make_pair
from reward_server.scoring.model_pair import Pair
from reward_server.serving.auth import ServerAuth, TokenInterceptor
from reward_server.serving.preflight import preflight
from reward_server.serving.service import RewardService
from reward_server.serving.wire import server_info
from winnow.addresses import listen_error, parse_listen_address
from winnow.serve_config import ServeConfig

# The server notices a caller whose host vanished after the sum of both, and drops its groups.
KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
# Time for the last responses to reach their callers, after the last call ended.
FLUSH_S = 0.5
# Connections that ping more often are closed.
MIN_PING_INTERVAL_MS = 20_000

EVERY_HOST = ("0.0.0.0", "::")

EXAMPLE = """score with:
    from reward_server.client import RewardClient
    with RewardClient("{address}"{access}) as client:
        rewards = client.score([{{"role": "user", "content": "What is 2 + 3?"}}], ["It is 5.", "It is 6."])
        print([completion.reward for completion in rewards])"""

log = logging.getLogger(__name__)


class HealthReporter:
    """The health service, which reports SERVING or NOT_SERVING for the reward service and for the empty name."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()
        self._tasks: set[asyncio.Task[None]] = set()

    async def report(self, *, is_healthy: bool) -> None:
        """Report a status from now on, and send it to all watchers."""
        status = HealthCheckResponse.SERVING if is_healthy else HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE_NAME):
            await self.servicer.set(name, status)

    def report_soon(self, is_healthy: bool) -> None:
        """Report a status in a task of its own, because the computation must not wait for watchers."""
        task = asyncio.ensure_future(self.report(is_healthy=is_healthy))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class RunningServer:
    """A server that listens at `address`."""

    def __init__(
        self,
        server: grpc.aio.Server,
        service: RewardService,
        health_reporter: HealthReporter,
        address: str,
        drain_s: float,
    ) -> None:
        self.address = address
        self.service = service
        self._server = server
        self._health_reporter = health_reporter
        self._drain_s = drain_s

    async def start(self) -> None:
        """Begin to serve calls; health reports SERVING."""
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        self._server.add_generic_rpc_handlers((self.service.method_handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health_reporter.servicer, self._server)
        reflection.enable_server_reflection(names, self._server)
        await self._health_reporter.report(is_healthy=True)
        await self._server.start()

    async def drain(self, grace_s: float | None = None) -> None:
        """Refuse new calls, let the calls in progress end within `grace_s` seconds (None: `drain_s`), and stop."""
        if grace_s is None:
            grace_s = self._drain_s
        await self._health_reporter.servicer.enter_graceful_shutdown()
        self.service.stop_streams()
        stopping = asyncio.ensure_future(self._server.stop(grace_s))
        idle = asyncio.ensure_future(self.service.wait_until_idle())
        await asyncio.wait({stopping, idle}, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        # Watches of the health service never end by themselves.
        await self._server.stop(FLUSH_S)
        await stopping
        self.service.scheduler.close()


def serve(config: ServeConfig, *, stop_when_stdin_closes: bool = False) -> None:
    """Serve until SIGTERM or SIGINT. Raises UsageError and ModelError at start-up.

    With `stop_when_stdin_closes` the server also stops when its parent process ends and so closes stdin.
    """
    log_to_stderr()
    if stop_when_stdin_closes:
        threading.Thread(target=_terminate_at_end_of_stdin, daemon=True).start()
    checked = preflight(config)
    pair = make_pair(config, checked.chats, start_engines(config))
    asyncio.run(_serve(config, pair, checked.auth))
    for model in (pair.instruct, pair.base):
        model.engine.close()
    # Libraries of engines may crash while the interpreter shuts down, after all work is done.
    _exit_now(0)


async def _serve(config: ServeConfig, pair: Pair, auth: ServerAuth) -> None:
    """Serve until a signal comes, then drain."""
    stopping = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, _stop, stopping)
    running = await start(config, pair, auth)
    print(f"listening on {running.address}", flush=True)
    log.info(EXAMPLE.format(address=callable_address(running.address), access=_access_arguments(config)))
    await stopping.wait()
    log.info("stopping: no new calls; those in progress have %.0f s to end", config.drain_s)
    await running.drain()
    if running.service.scheduler.is_computing:
        log.warning("a batch is still being computed, but its callers are gone; ending the process without it")
        _exit_now(0)


def _stop(stopping: asyncio.Event) -> None:
    """Stop the server at the first signal, end the process at the second."""
    if stopping.is_set():
        log.warning("second signal: ending the process now; calls in progress are lost")
        _exit_now(1)
    stopping.set()


def _exit_now(code: int) -> NoReturn:
    """End the process without waiting for its threads: a batch cannot be interrupted."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def callable_address(address: str) -> str:
    """Return the address for callers; it has this machine's name if the server listens on all its addresses."""
    host_port = parse_listen_address(address)
    if host_port.host in EVERY_HOST:
        return f"{socket.gethostname()}:{host_port.port}"
    return address


def _access_arguments(config: ServeConfig) -> str:
    """Return the arguments for TLS and tokens of the example call."""
    arguments = ""
    if config.tls:
        arguments += ', tls_ca="ca.pem"'
    if config.tls and config.tls.client_ca:
        arguments += ', tls_certificate="client.pem", tls_key="client.key"'
    if config.token_file:
        arguments += ', token="..."'
    return arguments


async def start(config: ServeConfig, pair: Pair, auth: ServerAuth) -> RunningServer:
    """Listen and serve calls in the running event loop. Raises UsageError if the server cannot listen at an address."""
    metrics = Metrics()
    on_refused = metrics.refused.labels("unauthenticated").inc
    interceptors = []
    if auth.tokens is not None:
        interceptors.append(TokenInterceptor(auth.tokens, on_refused))
    server = grpc.aio.server(options=channel_options(config), interceptors=interceptors)
    address = str(replace(parse_listen_address(config.listen), port=_bind(server, config, auth)))
    cache = LogprobCache(config.cache_bytes)
    if config.cache_bytes:
        pair = pair.with_cache(cache)
    health_reporter = HealthReporter()
    # The queue counts the tokens of both models; token_budget is for one model.
    scheduler = Scheduler(pair, config.queue, 2 * config.token_budget, metrics, on_health=health_reporter.report_soon)
    _add_gauges(metrics, scheduler, cache)
    service = RewardService(pair, server_info(pair, config), scheduler, metrics, auth.tokens)
    running = RunningServer(server, service, health_reporter, address, config.drain_s)
    await running.start()
    if config.metrics_listen is not None:
        _serve_metrics(config.metrics_listen, metrics)
    return running


def channel_options(config: ServeConfig) -> list[tuple[str, Any]]:
    """Return gRPC's options: message sizes, and how connections are kept alive."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        # By default a second server could listen on the same port, and each would get some of the connections.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ]
    if config.max_connection_age_s is not None:
        options.append(("grpc.max_connection_age_ms", round(config.max_connection_age_s * 1000)))
    return options


def _bind(server: grpc.aio.Server, config: ServeConfig, auth: ServerAuth) -> int:
    """Listen at the address of the config, and return the port. Raises UsageError if that is impossible."""
    try:
        if auth.credentials is None:
            return int(server.add_insecure_port(config.listen))
        return int(server.add_secure_port(config.listen, auth.credentials))
    except RuntimeError as error:
        raise listen_error(parse_listen_address(config.listen), str(error)) from error


def _add_gauges(metrics: Metrics, scheduler: Scheduler, cache: LogprobCache) -> None:
    """Add the gauges of the queue and the cache."""
    queue = scheduler.queue
    metrics.add_gauge("winnow_queue_tokens", "Tokens that wait, both models together.", lambda: queue.num_tokens)
    metrics.add_gauge("winnow_queue_groups", "Groups that wait.", lambda: queue.num_groups)
    metrics.add_gauge("winnow_tokens_per_second", "Of the last batches.", lambda: queue.throughput.tokens_per_s or 0.0)
    metrics.add_gauge("winnow_cache_hits", "Results found in the cache since start-up.", lambda: cache.num_hits)
    metrics.add_gauge("winnow_cache_misses", "Results computed since start-up.", lambda: cache.num_misses)
    metrics.add_gauge("winnow_cache_bytes", "Memory of the cache.", lambda: cache.num_bytes)


def _serve_metrics(listen: str, metrics: Metrics) -> None:
    """Serve the metrics over HTTP. Raises UsageError if the server cannot listen at the address."""
    address = parse_listen_address(listen, "metrics_listen")
    try:
        server, _ = start_http_server(address.port, address.host, metrics.registry)
    except OSError as error:
        raise listen_error(address, str(error)) from error
    log.info("metrics at http://%s/metrics", replace(address, port=server.server_port))


def _terminate_at_end_of_stdin() -> None:
    """Wait until stdin closes, then send SIGTERM to this process, which ends at once if it still loads models."""
    try:
        while os.read(sys.stdin.fileno(), 4096):
            pass
    except OSError:
        log.info("stdin is closed")
    os.kill(os.getpid(), signal.SIGTERM)

"""Start-up and end of a reward server: load the pair, listen, serve until told to stop, drain.

    stdout   listening on HOST:PORT     the one line that a parent process reads
    stderr   what is loaded, and where; an example call; then a JSON line for each call

SIGTERM or SIGINT: health says NOT_SERVING, streams are read no further, calls in progress get `drain_s` seconds to end,
exit code 0. A second one: exit code 1 at once.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from reward_server.engines import ModelName
from reward_server.engines.caching import CachingEngine, ResultCache
from reward_server.engines.process import start_engines
from reward_server.monitoring import Metrics, log_to_stderr
from reward_server.scheduling.scheduler import Scheduler
from reward_server.scoring.load_pair import check_models, open_pair
from reward_server.scoring.model_pair import Pair, ScoredModel
from reward_server.serving.auth import TokenInterceptor, check_exposure, read_tokens, tls_credentials
from reward_server.serving.service import SERVICE_NAME, RewardService
from reward_server.serving.wire import server_info
from winnow.errors import UsageError
from winnow.serve_config import ServeConfig

# A caller that vanished without a word is noticed after the sum of both, and its groups are dropped.
KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
# When no call is in progress any more: for answers to reach their callers.
LAST_WORDS_S = 0.5
# Callers that ping more often are sent away.
MIN_PING_INTERVAL_MS = 20_000

EVERY_ADDRESS = ("0.0.0.0", "[::]", "::")

EXAMPLE = """score with:
    from reward_server.client import RewardClient
    with RewardClient("{address}"{access}) as client:
        scores = client.score([{{"role": "user", "content": "What is 2 + 3?"}}], ["It is 5.", "It is 6."])
        print([score.reward for score in scores])"""

log = logging.getLogger(__name__)


class RunningServer:
    """A server that answers at `address`."""

    def __init__(self, server: grpc.aio.Server, service: RewardService, address: str, drain_s: float) -> None:
        self.address = address
        self.service = service
        self._server = server
        self._drain_s = drain_s
        self._health = health.aio.HealthServicer()
        self._telling: set[asyncio.Task[None]] = set()
        service.scheduler.on_health = self._tell_health

    async def start(self) -> None:
        """Answer calls; health says SERVING."""
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        self._server.add_generic_rpc_handlers((self.service.method_handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(names, self._server)
        await self._set_health(is_healthy=True)
        await self._server.start()

    async def drain(self, grace_s: float | None = None) -> None:
        """Take no more calls, let those in progress end, and stop."""
        await self._health.enter_graceful_shutdown()
        self.service.stop_streams()
        stopping = asyncio.ensure_future(self._server.stop(self._drain_s if grace_s is None else grace_s))
        idle = asyncio.ensure_future(self.service.idle())
        await asyncio.wait({stopping, idle}, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        # Watches of the health service never end by themselves.
        await self._server.stop(LAST_WORDS_S)
        await stopping
        self.service.scheduler.close()

    def _tell_health(self, is_healthy: bool) -> None:
        """Beside computing, which shall not wait for those who watch."""
        task = asyncio.ensure_future(self._set_health(is_healthy=is_healthy))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _set_health(self, *, is_healthy: bool) -> None:
        status = HealthCheckResponse.SERVING if is_healthy else HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)


def serve(config: ServeConfig, *, stop_when_stdin_closes: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, or until the parent process dies. Raises UsageError, ModelError at start-up."""
    log_to_stderr()
    if stop_when_stdin_closes:
        threading.Thread(target=_terminate_at_end_of_stdin, daemon=True).start()
    for key in ("listen", "metrics_listen"):
        if (address := getattr(config, key)) is not None:
            check_address_is_free(address, key)
    check_exposure(config)
    check_access(config)
    check_engine(config)
    check_models(config)
    pair = open_pair(config, start_engines(config))
    asyncio.run(_serve(config, pair))
    for side in (pair.instruct, pair.base):
        side.engine.close()
    # Engines' libraries may crash as the interpreter is torn down, after all work is done.
    _exit_now(0)


def check_access(config: ServeConfig) -> None:
    """Raise UsageError for certificates or tokens that cannot be used: better now than after minutes of loading."""
    if config.tls is not None:
        tls_credentials(config.tls)
    if config.token_file is not None:
        read_tokens(config.token_file)


def check_engine(config: ServeConfig) -> None:
    """Raise ModuleNotFoundError for an engine whose library is not installed."""
    if config.engine == "vllm" and find_spec("vllm") is None:
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm")


async def _serve(config: ServeConfig, pair: Pair) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _told_to_stop, stopping)
    running = await start(config, pair)
    print(f"listening on {running.address}", flush=True)
    log.info(EXAMPLE.format(address=callable_address(running.address), access=_access_arguments(config)))
    await stopping.wait()
    log.info("stopping: no new calls; those in progress have %.0f s to end", config.drain_s)
    await running.drain()
    if running.service.scheduler.is_computing:
        log.warning("a batch is still being computed for callers that are gone; leaving without it")
        _exit_now(0)


def _told_to_stop(stopping: asyncio.Event) -> None:
    if stopping.is_set():
        log.warning("told to stop again: leaving now; calls in progress are lost")
        _exit_now(1)
    stopping.set()


def _exit_now(code: int) -> NoReturn:
    """End the process without waiting for its threads: a batch cannot be interrupted."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def callable_address(address: str) -> str:
    """The address as a caller may name it: where the server listens on all addresses, this machine's name."""
    host, _, port = address.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host in EVERY_ADDRESS else address


def _access_arguments(config: ServeConfig) -> str:
    """What the example call needs besides the address."""
    arguments = ', tls_ca="ca.pem"' if config.tls else ""
    if config.tls and config.tls.client_ca:
        arguments += ', tls_certificate="client.pem", tls_key="client.key"'
    return arguments + (', token="..."' if config.token_file else "")


async def start(config: ServeConfig, pair: Pair) -> RunningServer:
    """Listen and answer calls in the running event loop. Raises UsageError when an address cannot be taken."""
    tokens = None if config.token_file is None else read_tokens(config.token_file)
    metrics = Metrics()
    on_refused = metrics.refused.labels("unauthenticated").inc
    interceptors = [] if tokens is None else [TokenInterceptor(tokens, on_refused)]
    server = grpc.aio.server(options=channel_options(config), interceptors=interceptors)
    address = f"{config.listen.rpartition(':')[0]}:{_bind(server, config)}"
    cached, cache = with_cache(pair, config.cache_bytes)
    # Works are counted in both models' tokens, a forward pass in one's.
    scheduler = Scheduler(cached, config.queue, 2 * config.token_budget, metrics)
    _show(metrics, scheduler, cache)
    service = RewardService(cached, server_info(pair, config), scheduler, metrics, tokens)
    running = RunningServer(server, service, address, config.drain_s)
    await running.start()
    if config.metrics_listen is not None:
        _serve_metrics(config.metrics_listen, metrics)
    return running


def channel_options(config: ServeConfig) -> list[tuple[str, Any]]:
    """The settings of every connection."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        # Without it a second server takes the same port and each gets some of the connections.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ]
    if config.max_connection_age_s is not None:
        options.append(("grpc.max_connection_age_ms", round(config.max_connection_age_s * 1000)))
    return options


def with_cache(pair: Pair, max_bytes: int) -> tuple[Pair, ResultCache]:
    """The pair with one result cache before both engines; as it is where `max_bytes` is 0."""
    cache = ResultCache(max_bytes)
    if not max_bytes:
        return pair, cache

    def cached(side: ScoredModel, name: ModelName) -> ScoredModel:
        engine = CachingEngine(side.engine, cache, name, side.facts.weight_hash, side.facts.template_hash)
        return replace(side, engine=engine)

    return replace(pair, instruct=cached(pair.instruct, "instruct"), base=cached(pair.base, "base")), cache


def check_address_is_free(listen: str, key: str = "listen") -> None:
    """Raise UsageError for an address that cannot be taken: better now than after minutes of loading."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"{key} {listen!r} should be HOST:PORT, like 127.0.0.1:50051")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, int(port)), family=family).close()
    except (OSError, OverflowError) as error:
        raise _cannot_listen(listen, str(error)) from error


def _bind(server: grpc.aio.Server, config: ServeConfig) -> int:
    """The port that was taken."""
    try:
        if config.tls is None:
            return int(server.add_insecure_port(config.listen))
        return int(server.add_secure_port(config.listen, tls_credentials(config.tls)))
    except RuntimeError as error:
        raise _cannot_listen(config.listen, str(error)) from error


def _cannot_listen(listen: str, reason: str) -> UsageError:
    return UsageError(f"cannot listen on {listen} ({reason}); take another port, or port 0 for a free one")


def _show(metrics: Metrics, scheduler: Scheduler, cache: ResultCache) -> None:
    """What is read off the queue and the cache whenever the metrics are asked for."""
    queue = scheduler.queue
    metrics.show("winnow_queue_tokens", "Tokens that wait, both models together.", lambda: queue.tokens)
    metrics.show("winnow_queue_groups", "Groups that wait.", lambda: queue.groups)
    metrics.show("winnow_tokens_per_second", "Of the last batches.", lambda: queue.throughput.tokens_per_s or 0.0)
    metrics.show("winnow_cache_hits", "Results found in the cache since start-up.", lambda: cache.hits)
    metrics.show("winnow_cache_misses", "Results computed since start-up.", lambda: cache.misses)
    metrics.show("winnow_cache_bytes", "Memory of the cache.", lambda: cache.num_bytes)


def _serve_metrics(listen: str, metrics: Metrics) -> None:
    host, _, port = listen.rpartition(":")
    try:
        server, _ = start_http_server(int(port), host.strip("[]"), metrics.registry)
    except OSError as error:
        raise _cannot_listen(listen, str(error)) from error
    log.info("metrics at http://%s:%d/metrics", host, server.server_port)


def _terminate_at_end_of_stdin() -> None:
    """Wait until the other end of stdin closes, then ask this process to stop; while it still loads, that ends it."""
    try:
        while os.read(sys.stdin.fileno(), 4096):
            pass
    except OSError:
        log.info("stdin is closed")
    os.kill(os.getpid(), signal.SIGTERM)

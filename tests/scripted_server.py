"""A real gRPC server with a servicer that a test scripts: it holds requests, fails, and records its requests.

Also a prompt for it, and groups whose rewards are 1, 2, 3 and so on.
"""

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from reward_server.client import Group, RetryPolicy
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceServicer, add_RewardServiceServicer_to_server
from reward_server.protocol import PUSHBACK_KEY, SERVICE_NAME
from tests.processes import EVENT_TIMEOUT_S

# A reserved port, on which no machine serves anything.
NO_SERVER = "127.0.0.1:1"
MESSAGES = [{"role": "user", "content": "What is 2 + 3?"}]
QUICK = RetryPolicy(first_pause_s=0.01, max_pause_s=0.02)
THREAD_NAME = "scripted-server"


class ScriptedService(RewardServiceServicer):
    """Reward = length of the text in characters; an empty text has none. `failures` come first, one for each call.

    While `gate` is closed, every request after the first `num_free` waits for it; a test may override `is_free`.
    """

    def __init__(self) -> None:
        self.failures: deque[tuple[grpc.StatusCode, str | None]] = deque()
        self.requests: list[pb.ScoreRequest] = []
        self.tokens: list[str | None] = []
        self.num_answered = 0
        self.num_ended = 0
        self.max_completions = 1024
        self.max_message_bytes = 64 * 1024 * 1024
        self.weight_hash = "sha256:one"
        self.gate = threading.Event()
        self.gate.set()
        self.num_free = 0
        self._arrival = threading.Condition()

    @property
    def num_seen(self) -> int:
        return len(self.requests)

    def fail(self, code: grpc.StatusCode, times: int = 1, pushback: str | None = None) -> None:
        self.failures.extend([(code, pushback)] * times)

    def wait_for_requests(self, num_requests: int) -> None:
        """Wait until so many requests have arrived."""
        with self._arrival:
            has_arrived = self._arrival.wait_for(lambda: self.num_seen >= num_requests, EVENT_TIMEOUT_S)
        assert has_arrived, f"{self.num_seen} of {num_requests} requests have arrived"

    def is_free(self, request: pb.ScoreRequest) -> bool:
        """Return True if a request that has just arrived may pass the closed gate."""
        return self.num_seen <= self.num_free

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        with self._arrival:
            self.requests.append(request)
            self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
            is_free = self.is_free(request)
            self._arrival.notify_all()
        if not context.add_callback(self._count_end):  # the call has ended already
            self._count_end()
        if not is_free:
            self.gate.wait(EVENT_TIMEOUT_S)
        if self.failures:
            code, pushback = self.failures.popleft()
            if pushback is not None:
                context.set_trailing_metadata(((PUSHBACK_KEY, pushback),))
            context.abort(code, "told to fail")
        if len(request.completions) > self.max_completions:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "too many completions")
        scores = [_score(completion.text.text) for completion in request.completions]
        self.num_answered += 1
        return pb.ScoreResponse(completions=scores, definition=self.definition(request.options))

    def _count_end(self) -> None:
        """Count a call that ended: it was answered or failed, or its caller cancelled it."""
        with self._arrival:
            self.num_ended += 1

    def definition(self, options: pb.ScoreOptions) -> pb.RewardDefinition:
        recipe = "winnow"
        if options.recipe == pb.RECIPE_REWARDBENCH:
            recipe = "rewardbench"
        return pb.RewardDefinition(
            recipe=recipe,
            instruction=options.instruction,
            instruct_weight_hash=self.weight_hash,
            base_prompt="same",
            beta=1.0,
        )

    def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse(
            instruct=pb.ModelInfo(weight_hash=self.weight_hash),
            base_prompt="same",
            max_completions=self.max_completions,
            max_message_bytes=self.max_message_bytes,
        )


def _score(text: str) -> pb.CompletionScore:
    if not text:
        return pb.CompletionScore(status=pb.STATUS_EMPTY_COMPLETION, error="nothing to score")
    return pb.CompletionScore(
        status=pb.STATUS_OK,
        reward=float(len(text)),
        instruct_logp=-1.0,
        base_logp=-1.0 - len(text),
        log_ratio=float(len(text)),
        num_tokens=1,
        normalization=pb.NORMALIZATION_SUM,
    )


@contextmanager
def scripted_server(
    service: ScriptedService, port: int = 0, credentials: grpc.ServerCredentials | None = None
) -> Iterator[str]:
    """Yield the address of a server that answers while the block lasts."""
    threads = ThreadPoolExecutor(32, thread_name_prefix=THREAD_NAME)
    server = grpc.server(threads, options=[("grpc.so_reuseport", 0)])
    add_RewardServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    health = HealthServicer()
    health.set(SERVICE_NAME, HealthCheckResponse.SERVING)
    add_HealthServicer_to_server(health, server)
    address = f"127.0.0.1:{port}"
    if credentials is None:
        bound_port = server.add_insecure_port(address)
    else:
        bound_port = server.add_secure_port(address, credentials)
    server.start()
    try:
        yield f"127.0.0.1:{bound_port}"
    finally:
        stopped = server.stop(0)  # ends the calls that are held, before their handlers may return
        service.gate.set()
        stopped.wait()


def groups(num_groups: int) -> Iterator[Group]:
    return (Group(MESSAGES, ["x" * (index + 1)]) for index in range(num_groups))


def first_rewards(scored_groups: Iterator[Any]) -> list[float]:
    """Return the reward of each group's first completion."""
    return [scored[0].reward for scored in scored_groups]

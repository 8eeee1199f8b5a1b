"""A real gRPC server with a servicer that answers each completion with its length, and fails as it is told to.

Also what to ask it: a prompt, and groups whose rewards are 1, 2, 3 and so on.
"""

import threading
import time
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

SERVICE_NAME = "winnow.v1.RewardService"
MESSAGES = [{"role": "user", "content": "What is 2 + 3?"}]
QUICK = RetryPolicy(first_pause_s=0.01, max_pause_s=0.02)


class ScriptedService(RewardServiceServicer):
    """Reward = length of the text in characters; an empty text has none. `failures` come first, one for each call."""

    def __init__(self) -> None:
        self.failures: deque[tuple[grpc.StatusCode, str | None]] = deque()
        self.requests: list[pb.ScoreRequest] = []
        self.tokens: list[str | None] = []
        self.max_completions = 1024
        self.max_message_bytes = 64 * 1024 * 1024
        self.weight_hash = "sha256:one"
        self.delay_s = 0.0
        self.is_open = threading.Event()
        self.is_open.set()

    @property
    def num_seen(self) -> int:
        return len(self.requests)

    def fail(self, code: grpc.StatusCode, times: int = 1, pushback: str | None = None) -> None:
        self.failures.extend([(code, pushback)] * times)

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        self.requests.append(request)
        self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
        self.is_open.wait(30)
        time.sleep(self.delay_s)
        if self.failures:
            code, pushback = self.failures.popleft()
            if pushback is not None:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback),))
            context.abort(code, "told to fail")
        if len(request.completions) > self.max_completions:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "too many completions")
        scores = [_score(one.text.text) for one in request.completions]
        return pb.ScoreResponse(completions=scores, definition=self.definition(request.options))

    def definition(self, options: pb.ScoreOptions) -> pb.RewardDefinition:
        return pb.RewardDefinition(
            recipe="rewardbench" if options.recipe == pb.RECIPE_REWARDBENCH else "winnow",
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
    """The address of a server that answers while the block lasts."""
    server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
    add_RewardServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    health = HealthServicer()
    health.set(SERVICE_NAME, HealthCheckResponse.SERVING)
    add_HealthServicer_to_server(health, server)
    address = f"127.0.0.1:{port}"
    bound = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        service.is_open.set()
        server.stop(0).wait()


def groups(number: int) -> Iterator[Group]:
    return (Group(MESSAGES, ["x" * (index + 1)]) for index in range(number))


def rewards(answers: Iterator[Any]) -> list[float]:
    return [scored[0].reward for scored in answers]

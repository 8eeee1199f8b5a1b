"""The gRPC service: validate requests, schedule them, respond.

    Score, ScoreStream -> _respond   parse_options -> Scheduler.score, which calls _render -> _response
    error              -> _abort     status_of

    malformed request                   INVALID_ARGUMENT, with what to change
    full queue                          RESOURCE_EXHAUSTED, with grpc-retry-pushback-ms; a stream waits instead
    deadline that cannot be met         DEADLINE_EXCEEDED
    server that is stopping             UNAVAILABLE, on streams that are still open
    a completion that cannot be scored  a status of the completion; the other completions are scored
    unexpected error                    INTERNAL; the traceback is in the log

ScoreStream is for callers in other languages, who have no client with concurrency and retries; winnow's Python clients
make concurrent Score calls. A stream has up to READ_AHEAD groups in progress at once and responds in the order of its
requests. When a caller leaves, its waiting groups leave the queue.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from reward_server.monitoring import MAX_LOGGED_CHARS, Call, Metrics
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceServicer
from reward_server.protocol import PUSHBACK_KEY, SERVICE_NAME
from reward_server.scheduling.fair_queue import QueueFullError, TooLateError
from reward_server.scheduling.scheduler import Caller, Scheduler
from reward_server.scoring.model_pair import Pair, RenderedGroup
from reward_server.scoring.reward import CompletionResult
from reward_server.serving.auth import BearerTokens, client_name
from reward_server.serving.ordered_stream import OrderedStream, StoppingError
from reward_server.serving.wire import (
    MalformedError,
    completion_score,
    parse_group,
    parse_options,
    reward_definition,
    shorten,
)
from winnow.reward_options import RewardOptions

# Groups of one stream that are in progress at once.
READ_AHEAD = 16
IDLE_POLL_S = 0.05

# A request as the deserializer returns it, or the error of bytes that are not a ScoreRequest.
ReceivedRequest = pb.ScoreRequest | DecodeError

log = logging.getLogger(__name__)


class GroupError(Exception):
    """The failure of one request of a call; its cause (`__cause__`) is the error."""

    def __init__(self, request_id: str) -> None:
        super().__init__(request_id)
        self.request_id = request_id


class RewardService(RewardServiceServicer):
    """The methods of `winnow.v1.RewardService` on a pair of models. Belongs to the running event loop."""

    def __init__(
        self,
        pair: Pair,
        info: pb.GetServerInfoResponse,
        scheduler: Scheduler,
        metrics: Metrics,
        tokens: BearerTokens | None = None,
    ) -> None:
        self.pair = pair
        self.info = info
        self.scheduler = scheduler
        self.metrics = metrics
        self._tokens = tokens
        self._num_calls = 0
        self._streams: set[OrderedStream[ReceivedRequest, pb.ScoreResponse]] = set()
        self._is_stopping = False

    async def Score(self, request: ReceivedRequest, context: Any) -> pb.ScoreResponse:
        """Score the completions of one prompt."""
        with self._record_call("Score", context) as call:
            if not isinstance(request, DecodeError):
                call.request_id = request.request_id
            try:
                return await self._respond(request, call, _caller(call, context, should_wait_for_capacity=False))
            except Exception as error:
                await self._abort(context, call, error)

    async def ScoreStream(
        self, request_iterator: AsyncIterable[ReceivedRequest], context: Any
    ) -> AsyncIterator[pb.ScoreResponse]:
        """Score prompt after prompt, with responses in the order of the requests. For callers in other languages."""
        with self._record_call("ScoreStream", context) as call:
            caller = _caller(call, context, should_wait_for_capacity=True)
            stream = OrderedStream(request_iterator, lambda request: self._respond(request, call, caller), READ_AHEAD)
            self._streams.add(stream)
            if self._is_stopping:  # the call was accepted before the server began to stop
                stream.stop()
            try:
                async for response in stream.responses():
                    yield response
            except Exception as error:
                await self._abort(context, call, error)
            finally:
                self._streams.discard(stream)
                stream.close()

    async def _respond(self, request: ReceivedRequest, call: Call, caller: Caller) -> pb.ScoreResponse:
        """Score one request. Raises MalformedError for bytes that are not a request, else GroupError with the cause."""
        if isinstance(request, DecodeError):
            raise MalformedError("the message is not a winnow.v1.ScoreRequest")
        try:
            options = parse_options(request.options)
            results = await self.scheduler.score(lambda: self._render(request, options), caller, call)
        except Exception as error:
            raise GroupError(request.request_id) from error
        return self._response(request, options, results)

    def _render(self, request: pb.ScoreRequest, options: RewardOptions) -> RenderedGroup:
        """Parse and render a request, in the scheduler's render thread. Raises MalformedError."""
        group = parse_group(request, self.info.max_completions)
        refusal = self.pair.refusal(group, options)
        if refusal:
            raise MalformedError(refusal)
        return self.pair.render(group, options)

    def _response(
        self, request: pb.ScoreRequest, options: RewardOptions, results: Sequence[CompletionResult]
    ) -> pb.ScoreResponse:
        """Return the response of a group, and count its completions by status."""
        scores = []
        for result in results:
            self.metrics.completions.labels(result.status).inc()
            scores.append(completion_score(result, options))
        return pb.ScoreResponse(
            request_id=request.request_id, completions=scores, definition=reward_definition(self.pair, options)
        )

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        """Return the models that are loaded, and the limits of a request."""
        with self._record_call("GetServerInfo", context):
            return self.info

    def stop_streams(self) -> None:
        """Read no more requests from current and future streams; each ends after the responses to the requests read."""
        self._is_stopping = True
        for stream in list(self._streams):
            stream.stop()

    async def wait_until_idle(self) -> None:
        """Wait until no call is in progress."""
        while self._num_calls:
            await asyncio.sleep(IDLE_POLL_S)

    def method_handlers(self) -> grpc.GenericRpcHandler:
        """Return the methods for a gRPC server. The methods themselves refuse bytes that are not a ScoreRequest."""
        score = {"request_deserializer": _deserialize, "response_serializer": pb.ScoreResponse.SerializeToString}
        info = {
            "request_deserializer": pb.GetServerInfoRequest.FromString,
            "response_serializer": pb.GetServerInfoResponse.SerializeToString,
        }
        methods = {
            "Score": grpc.unary_unary_rpc_method_handler(self.Score, **score),
            "ScoreStream": grpc.stream_stream_rpc_method_handler(self.ScoreStream, **score),
            "GetServerInfo": grpc.unary_unary_rpc_method_handler(self.GetServerInfo, **info),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    @contextmanager
    def _record_call(self, method: str, context: Any) -> Iterator[Call]:
        """Record a call in the metrics and the log, however it ends."""
        call = Call(method, client_name(context, self._tokens), self.metrics)
        self._num_calls += 1
        try:
            yield call
        except (asyncio.CancelledError, GeneratorExit):
            call.code = grpc.StatusCode.CANCELLED.name
            raise
        finally:
            self._num_calls -= 1
            call.finish()

    async def _abort(self, context: Any, call: Call, error: Exception) -> NoReturn:
        """End a call with the status of an error. Raises gRPC's exception that ends the method."""
        if isinstance(error, GroupError) and isinstance(error.__cause__, Exception):
            call.request_id = error.request_id
            error = error.__cause__
        code, reason, message = status_of(error)
        call.code = code.name
        self.metrics.refused.labels(reason).inc()
        if code == grpc.StatusCode.INTERNAL:
            log.error("request %r failed", call.request_id, exc_info=error)
        if isinstance(error, QueueFullError):
            context.set_trailing_metadata(((PUSHBACK_KEY, str(round(error.retry_s * 1000))),))
        details = shorten(message)
        if call.request_id:
            details = f"request {shorten(call.request_id, MAX_LOGGED_CHARS)!r}: {details}"
        await context.abort(code, details)
        raise AssertionError("abort raises")


def status_of(error: Exception) -> tuple[grpc.StatusCode, str, str]:
    """Return the gRPC status of an error, the reason under which metrics count it, and the message for the caller."""
    if isinstance(error, MalformedError):
        return grpc.StatusCode.INVALID_ARGUMENT, "malformed", str(error)
    if isinstance(error, QueueFullError):
        return grpc.StatusCode.RESOURCE_EXHAUSTED, "queue_full", str(error)
    if isinstance(error, TooLateError):
        return grpc.StatusCode.DEADLINE_EXCEEDED, "too_late", str(error)
    if isinstance(error, StoppingError):
        message = "the server is stopping; send the unanswered requests to another server"
        return grpc.StatusCode.UNAVAILABLE, "stopping", message
    return grpc.StatusCode.INTERNAL, "internal", f"scoring failed ({type(error).__name__}); see the server's log"


def _deserialize(data: bytes) -> ReceivedRequest:
    """Return a request from its bytes, or the error; if it were raised here, gRPC would log a traceback."""
    try:
        return pb.ScoreRequest.FromString(data)
    except DecodeError as error:
        return error


def _caller(call: Call, context: Any, *, should_wait_for_capacity: bool) -> Caller:
    """Return the caller of a gRPC call, with its deadline on time.monotonic's clock."""
    remaining_s = context.time_remaining()
    deadline = None if remaining_s is None else time.monotonic() + remaining_s
    return Caller(call.client, deadline, should_wait_for_capacity)

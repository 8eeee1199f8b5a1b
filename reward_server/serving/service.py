"""The servicer: validate, schedule, answer.

    malformed request                   INVALID_ARGUMENT, with what to change
    full queue                          RESOURCE_EXHAUSTED, with grpc-retry-pushback-ms; a stream waits instead
    deadline that cannot be met         DEADLINE_EXCEEDED
    server that is stopping             UNAVAILABLE, on streams that are still open
    a completion that cannot be scored  a status of its own; the others are scored
    anything unforeseen                 INTERNAL; the traceback goes to the log

A stream has up to READ_AHEAD groups in the line at once and answers them in order. A caller that leaves takes its
waiting groups along.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from reward_server.monitoring import MAX_LOGGED_CHARS, Call, Metrics
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceServicer
from reward_server.scheduling.fair_queue import QueueFullError, TooLateError
from reward_server.scheduling.scheduler import Caller, Scheduler, Scored
from reward_server.scoring.model_pair import Options, Pair, RenderedGroup
from reward_server.serving.auth import Tokens, client_name
from reward_server.serving.ordered_stream import InOrder, StoppingError
from reward_server.serving.wire import (
    MalformedError,
    completion_score,
    parse_group,
    parse_options,
    reward_definition,
    shortened,
)

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["RewardService"].full_name
PUSHBACK_KEY = "grpc-retry-pushback-ms"
READ_AHEAD = 16
POLL_S = 0.05

# What a deserializer gives: the request, or why there is none.
Received = pb.ScoreRequest | DecodeError

log = logging.getLogger(__name__)


class GroupError(Exception):
    """A group of a call failed, and why: its cause."""

    def __init__(self, request_id: str) -> None:
        super().__init__(request_id)
        self.request_id = request_id


class RewardService(RewardServiceServicer):
    """Answers `winnow.v1.RewardService` from a pair of models. Belongs to the running event loop."""

    def __init__(
        self,
        pair: Pair,
        info: pb.GetServerInfoResponse,
        scheduler: Scheduler,
        metrics: Metrics,
        tokens: Tokens | None = None,
    ) -> None:
        self.pair = pair
        self.info = info
        self.scheduler = scheduler
        self.metrics = metrics
        self._tokens = tokens
        self._num_calls = 0
        self._streams: set[InOrder[Received, pb.ScoreResponse]] = set()
        self._is_stopping = False

    async def Score(self, request: Received, context: Any) -> pb.ScoreResponse:
        """The scores of one prompt's completions."""
        with self._recorded("Score", context) as call:
            try:
                call.request_id = "" if isinstance(request, DecodeError) else request.request_id
                return await self._answer(request, call, _caller(call, context))
            except Exception as error:
                await self._refuse(context, call, error)
        raise AssertionError("abort raises")

    async def ScoreStream(
        self, request_iterator: AsyncIterable[Received], context: Any
    ) -> AsyncIterator[pb.ScoreResponse]:
        """The scores of prompt after prompt, in the order of the requests."""
        with self._recorded("ScoreStream", context) as call:
            caller = _caller(call, context, waits_for_room=True)
            stream = InOrder(request_iterator, lambda request: self._answer(request, call, caller), READ_AHEAD)
            self._streams.add(stream)
            if self._is_stopping:  # the call came before the server took no more, and begins only now
                stream.stop()
            try:
                async for response in stream.answers():
                    yield response
            except Exception as error:
                await self._refuse(context, call, error)
            finally:
                self._streams.discard(stream)
                stream.close()

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        """What is loaded, and the limits of a request."""
        with self._recorded("GetServerInfo", context):
            return self.info

    def stop_streams(self) -> None:
        """Read no more from streams, also those that are about to begin; each ends when what was read is answered."""
        self._is_stopping = True
        for stream in list(self._streams):
            stream.stop()

    async def idle(self) -> None:
        """Wait until no call is in progress."""
        while self._num_calls:
            await asyncio.sleep(POLL_S)

    def method_handlers(self) -> grpc.GenericRpcHandler:
        """The methods, as a server takes them. What is no ScoreRequest reaches the method, which refuses it."""
        score = {"request_deserializer": _received, "response_serializer": pb.ScoreResponse.SerializeToString}
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

    async def _answer(self, received: Received, call: Call, caller: Caller) -> pb.ScoreResponse:
        if isinstance(received, DecodeError):
            raise MalformedError("the message is no winnow.v1.ScoreRequest")
        request = received
        try:
            options = parse_options(request.options)
            scored = await self.scheduler.score(lambda: self._prepared(request, options), caller)
        except Exception as error:
            raise GroupError(request.request_id) from error
        call.add(len(scored.outcomes), scored.num_tokens, scored.num_cached, scored.queue_s, scored.compute_s)
        return self._response(request, options, scored)

    def _prepared(self, request: pb.ScoreRequest, options: Options) -> RenderedGroup:
        """Parsing and rendering; runs in a thread. Raises MalformedError."""
        group = parse_group(request, self.info.max_completions)
        if refusal := self.pair.refusal(group, options):
            raise MalformedError(refusal)
        return self.pair.prepare(group, options)

    def _response(self, request: pb.ScoreRequest, options: Options, scored: Scored) -> pb.ScoreResponse:
        has_token_logprobs = request.options.want_token_logprobs
        for outcome in scored.outcomes:
            self.metrics.completions.labels(outcome.status).inc()
        return pb.ScoreResponse(
            request_id=request.request_id,
            completions=[
                completion_score(outcome, options, has_token_logprobs=has_token_logprobs) for outcome in scored.outcomes
            ],
            definition=reward_definition(self.pair, options),
        )

    @contextmanager
    def _recorded(self, method: str, context: Any) -> Iterator[Call]:
        """A call's metrics and its line in the log, however it ends."""
        call = Call(method, client_name(context, self._tokens), self.metrics)
        self._num_calls += 1
        try:
            yield call
        except (asyncio.CancelledError, GeneratorExit):
            call.code = grpc.StatusCode.CANCELLED.name
            raise
        finally:
            self._num_calls -= 1
            call.ended()

    async def _refuse(self, context: Any, call: Call, error: Exception) -> None:
        """End the call with the status that the error stands for."""
        if isinstance(error, GroupError) and isinstance(error.__cause__, Exception):
            call.request_id, error = error.request_id, error.__cause__
        code, reason, message = refusal(error)
        call.code = code.name
        self.metrics.refused.labels(reason).inc()
        if code == grpc.StatusCode.INTERNAL:
            log.error("request %r failed", call.request_id, exc_info=error)
        if isinstance(error, QueueFullError):
            context.set_trailing_metadata(((PUSHBACK_KEY, str(round(error.retry_s * 1000))),))
        named = f"request {shortened(call.request_id, MAX_LOGGED_CHARS)!r}: " if call.request_id else ""
        await context.abort(code, named + shortened(message))


def refusal(error: Exception) -> tuple[grpc.StatusCode, str, str]:
    """The status, the reason as metrics count it, and the message of a call that fails."""
    if isinstance(error, MalformedError):
        return grpc.StatusCode.INVALID_ARGUMENT, "malformed", str(error)
    if isinstance(error, QueueFullError):
        return grpc.StatusCode.RESOURCE_EXHAUSTED, "queue_full", str(error)
    if isinstance(error, TooLateError):
        return grpc.StatusCode.DEADLINE_EXCEEDED, "too_late", str(error)
    if isinstance(error, StoppingError):
        return grpc.StatusCode.UNAVAILABLE, "stopping", "the server is stopping; send what is unanswered to another one"
    return grpc.StatusCode.INTERNAL, "internal", f"scoring failed ({type(error).__name__}); see the server's log"


def _received(data: bytes) -> Received:
    """A request from its bytes. gRPC itself would answer a failure here with a traceback in the log."""
    try:
        return pb.ScoreRequest.FromString(data)
    except DecodeError as error:
        return error


def _caller(call: Call, context: Any, *, waits_for_room: bool = False) -> Caller:
    left_s = context.time_remaining()
    return Caller(call.client, None if left_s is None else time.monotonic() + left_s, waits_for_room)

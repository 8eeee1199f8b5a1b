"""The servicer: parse, score in one worker thread, answer.

    malformed request                   INVALID_ARGUMENT, with what to change
    a completion that cannot be scored  a status of its own; the others are scored
    anything unforeseen                 INTERNAL; the traceback goes to the log

One group is computed at a time, in the order of arrival; a stream has one group in that line. A caller that leaves
takes its waiting group along.
"""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from reward_server.pair import Pair
from reward_server.pb import reward_pb2 as pb
from reward_server.pb.reward_pb2_grpc import RewardServiceServicer
from reward_server.wire import MalformedError, completion_score, parse_group, parse_options

log = logging.getLogger(__name__)


class RewardService(RewardServiceServicer):
    """Answers `winnow.v1.RewardService` from a pair of models."""

    def __init__(self, pair: Pair, info: pb.GetServerInfoResponse) -> None:
        self.pair = pair
        self.info = info
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="score")

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        """The scores of one prompt's completions."""
        return await self._answer(request, context)

    async def ScoreStream(
        self, request_iterator: AsyncIterable[pb.ScoreRequest], context: Any
    ) -> AsyncIterator[pb.ScoreResponse]:
        """The scores of prompt after prompt, in the order of the requests."""
        async for request in request_iterator:
            yield await self._answer(request, context)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        """What is loaded, and the limits of a request."""
        return self.info

    def close(self) -> None:
        """Drop what waits; what is being computed ends by itself."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, self._score, request)
        except MalformedError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"request {request.request_id!r}: {error}")
        except Exception as error:
            log.exception("request %r failed", request.request_id)
            await context.abort(
                grpc.StatusCode.INTERNAL,
                f"request {request.request_id!r}: scoring failed ({type(error).__name__}); see the server's log",
            )
        raise AssertionError("abort raises")

    def _score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """Everything that costs compute, rendering included; runs in the worker."""
        group = parse_group(request, self.info.max_completions)
        options = parse_options(request.options)
        if refusal := self.pair.refusal(group):
            raise MalformedError(refusal)
        outcomes = self.pair.score([self.pair.prepare(group, options)])[0]
        has_token_logprobs = request.options.want_token_logprobs
        scores = [completion_score(outcome, options, has_token_logprobs=has_token_logprobs) for outcome in outcomes]
        return pb.ScoreResponse(request_id=request.request_id, completions=scores)

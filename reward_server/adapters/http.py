"""`winnow gateway`: HTTP in front of reward servers, for callers that speak no gRPC. Needs the extra `http`.

    POST /get_reward   OpenRLHF    {"query", "prompts", "labels"} -> {"rewards", "scores", "extra_logs"}
    POST /score        vLLM-style  {"model", "text_1", "text_2"}  -> {"data": [{"index", "object", "score"}], ...}
    GET  /health       200 while a reward server serves and takes the gateway's token, else as of a post

Posts of one prompt that come at once are scored as one group. Errors are {"error": {"code", "message"}}:

    400 malformed          404, 405 no such path, or not this method    413 too large
    422 not scorable       429 full, with Retry-After                   500 unforeseen
    502 the reward server refuses the gateway's token    503 no server, or it failed    504 no answer in time

It is plain HTTP and asks nobody for a token, so it listens on loopback unless told otherwise by name.
"""

import asyncio
import ipaddress
import json
import logging
import math
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from reward_server.adapters.coalescing import WAIT_S, Coalescer
from reward_server.adapters.openrlhf import PromptForm, sample_of
from reward_server.client import AsyncRewardClient
from reward_server.client.connection import ConnectionSettings
from reward_server.client.requests import RewardOptions
from reward_server.client.responses import ScoredCompletion
from reward_server.groups import CompletionText
from winnow.errors import AuthError, DeadlineError, ServerBusyError, ServerError, UsageError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MAX_BODY_BYTES = 64 * 1024 * 1024
HEALTH_TIMEOUT_S = 2.0
ROUTES = "there are POST /get_reward, POST /score, POST /v1/score and GET /health"
MAX_WAIT_S = 60.0

log = logging.getLogger(__name__)


class HttpError(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.headers = headers


class Gateway:
    """Answers HTTP requests from a client of reward servers; `unscorable_reward` None makes an error of them."""

    def __init__(
        self,
        client: AsyncRewardClient,
        options: RewardOptions,
        form: PromptForm,
        unscorable_reward: float | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        self.client = client
        self.form = form
        self.unscorable_reward = unscorable_reward
        self._coalescer = Coalescer(lambda prompt, texts: client.score(prompt, texts, options), wait_s)

    async def get_reward(self, body: Any) -> dict[str, Any]:
        """OpenRLHF's remote reward, as openrlhf/utils/agent.py asks for it."""
        queries, prompts = _texts(body, "query"), _texts(body, "prompts")
        labels = body.get("labels") or [None] * len(queries)
        if not isinstance(labels, list) or not len(queries) == len(prompts) == len(labels):
            raise HttpError(400, "query, prompts and labels should be lists of one length")
        samples = [sample_of(self.form, *one) for one in zip(queries, prompts, labels, strict=True)]
        scored = await asyncio.gather(*(self._coalescer.score(*sample) for sample in samples))
        rewards = self._rewards(scored)
        # Numbers only, and the same keys for every sample: OpenRLHF makes tensors of them.
        logs = {
            "num_tokens": [float(one.num_tokens) for one in scored],
            "is_scored": [float(one.reward is not None) for one in scored],
        }
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}

    async def score(self, body: Any) -> dict[str, Any]:
        """vLLM's /score: each text_2 as an answer to its text_1, or all of them to the only one."""
        answers = _texts(body, "text_2")
        asked = _texts(body, "text_1")
        if len(asked) == 1:
            asked = asked * len(answers)
        if len(asked) != len(answers):
            raise HttpError(400, f"text_1 has {len(asked)} texts and text_2 {len(answers)}; give one, or as many")
        scored = await asyncio.gather(
            *(
                self._coalescer.score([{"role": "user", "content": question}], CompletionText(answer))
                for question, answer in zip(asked, answers, strict=True)
            )
        )
        num_tokens = sum(one.num_tokens for one in scored)
        return {
            "id": f"score-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": str(body.get("model") or "winnow"),
            "data": [
                {"index": index, "object": "score", "score": reward}
                for index, reward in enumerate(self._rewards(scored))
            ],
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens, "completion_tokens": 0},
        }

    async def health(self) -> dict[str, Any]:
        """Whether a reward server serves, and answers this caller. Raises ServerError."""
        await self.client.wait_until_ready(HEALTH_TIMEOUT_S)
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await self.client.server_info()  # health needs no token, this does
        except TimeoutError:
            raise ServerError(f"the reward server at {self.client.address} is slow to answer; ask again") from None
        return {"status": "ok"}

    async def warn_if_away(self) -> None:
        """Say in the log where posts would fail."""
        try:
            await self.health()
        except ServerError as error:
            log.warning("winnow: %s; until that is mended, posts are answered with errors", error)

    def _rewards(self, scored: Sequence[ScoredCompletion]) -> list[float]:
        """A number for each completion. Raises HttpError for one that has none."""
        rewards = []
        for index, one in enumerate(scored):
            made_up = None if one.is_invalid_prompt else self.unscorable_reward
            reward = made_up if one.reward is None else one.reward
            if reward is None:
                raise HttpError(422, f"completion {index} cannot be scored: {one.status}: {one.error}")
            rewards.append(reward)
        return rewards


def create_app(gateway: Gateway) -> "Starlette":
    """The gateway as an ASGI application."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def get_reward(request: "Request") -> "Response":
        return await _answer(lambda body: gateway.get_reward(body), request)

    async def score(request: "Request") -> "Response":
        return await _answer(lambda body: gateway.score(body), request)

    async def health(request: "Request") -> "Response":
        return await _answer(lambda body: gateway.health(), request)

    async def no_route(request: "Request", error: Exception) -> "Response":
        assert isinstance(error, HTTPException)
        message = f"{error.detail}: {request.method} {request.url.path}; {ROUTES}"
        return JSONResponse(_error_content(error.status_code, message), error.status_code, headers=error.headers)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        warning = asyncio.ensure_future(gateway.warn_if_away())
        yield
        warning.cancel()
        await gateway.client.close()

    return Starlette(
        lifespan=lifespan,
        exception_handlers={HTTPException: no_route},
        routes=[
            Route("/get_reward", get_reward, methods=["POST"]),
            Route("/score", score, methods=["POST"]),
            Route("/v1/score", score, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
        ],
    )


def serve(
    access: ConnectionSettings,
    listen: str,
    *,
    is_insecure_allowed: bool,
    form: PromptForm,
    options: RewardOptions,
    unscorable_reward: float | None,
    wait_s: float,
    timeout_s: float,
) -> None:
    """Serve until SIGTERM or SIGINT. Raises UsageError where the address cannot or may not be taken."""
    import uvicorn

    _check_numbers(unscorable_reward, wait_s)
    with _listening(listen, is_insecure_allowed) as listener:
        client = AsyncRewardClient(**asdict(access), timeout_s=timeout_s)
        app = create_app(Gateway(client, options, form, unscorable_reward, wait_s))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        for number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn raises the signal again after it has drained; that shall not end the process with an error.
            signal.signal(number, lambda *_: None)
        host = listen.rpartition(":")[0]
        print(f"listening on http://{host}:{listener.getsockname()[1]}", flush=True)
        server.run(sockets=[listener])


def _check_numbers(unscorable_reward: float | None, wait_s: float) -> None:
    if unscorable_reward is not None and not math.isfinite(unscorable_reward):
        raise UsageError(f"unscorable reward {unscorable_reward} should be a finite number: JSON has no other")
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise UsageError(f"wait {wait_s * 1000:g} ms should be from 0 to {MAX_WAIT_S * 1000:g}")


def _listening(listen: str, is_insecure_allowed: bool) -> socket.socket:
    """A socket that listens. Raises UsageError."""
    host, _, port = listen.rpartition(":")
    bare = host.strip("[]")
    if not host or not port.isdigit():
        raise UsageError(f"listen {listen!r} should be HOST:PORT, like 127.0.0.1:8000")
    if not (is_insecure_allowed or _is_loopback(bare)):
        raise UsageError(
            f"{listen} can be reached from other machines, and the gateway is plain HTTP without tokens; put a proxy "
            "with TLS before it, or say --allow-insecure"
        )
    try:
        return socket.create_server((bare, int(port)), family=socket.AF_INET6 if ":" in bare else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {listen} ({error}); take another port, or port 0 for a free one") from None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _answer(handle: Callable[[Any], Awaitable[dict[str, Any]]], request: "Request") -> "Response":
    from starlette.responses import JSONResponse

    try:
        return JSONResponse(await handle(await _body(request) if request.method == "POST" else None))
    except Exception as error:
        failed = _http_error(error)
        return JSONResponse(_error_content(failed.code, str(failed)), failed.code, headers=failed.headers)


def _error_content(code: int, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _http_error(error: Exception) -> HttpError:
    """How an error is answered."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, UsageError):
        return HttpError(400, str(error))
    if isinstance(error, ServerBusyError):
        return HttpError(429, str(error), {"Retry-After": str(max(math.ceil(error.retry_s), 1))})
    if isinstance(error, ServerError):
        return HttpError(_server_code(error), str(error))
    log.error("a request failed", exc_info=error)
    return HttpError(500, f"the gateway failed ({type(error).__name__}); see its log")


def _server_code(error: ServerError) -> int:
    if isinstance(error, AuthError):
        return 502
    return 504 if isinstance(error, DeadlineError) else 503


async def _body(request: "Request") -> dict[str, Any]:
    """The JSON object of a request. Raises HttpError."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BODY_BYTES:
            raise HttpError(413, f"the body has more than {MAX_BODY_BYTES} bytes; send fewer texts at a time")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise HttpError(400, "the body should be a JSON object") from None
    if not isinstance(body, dict):
        raise HttpError(400, f"the body should be a JSON object, is a {type(body).__name__}")
    return body


def _texts(body: dict[str, Any], key: str) -> list[str]:
    """A field with one text or a list of texts. Raises HttpError."""
    value = body.get(key)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise HttpError(400, f"{key} should be a text or a list of texts, not empty")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:  # here, and not where it would fail the posts that are scored along with it
        raise HttpError(400, f"{key} is no Unicode text: it holds half of a surrogate pair") from None
    return texts

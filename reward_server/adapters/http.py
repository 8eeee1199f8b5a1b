"""`winnow gateway`: HTTP in front of reward servers, for callers that do not use gRPC. Needs the extra `http`.

    POST /get_reward   OpenRLHF    {"query", "prompts", "labels"} -> {"rewards", "scores", "extra_logs"}
    POST /score        vLLM-style  {"model", "text_1", "text_2"}  -> {"data": [{"index", "object", "score"}], ...}
    GET  /health       200 while a reward server serves and accepts the gateway's token, else the error of a post

Posts of one prompt that come at the same time are scored as one group. Errors are {"error": {"code", "message"}}:

    400 malformed          404, 405 no such path, or not this method    413 too large
    422 not scorable       429 full, with Retry-After                   500 unforeseen
    502 the reward server refuses the gateway's token    503 no server, or it failed    504 no response in time

It is plain HTTP without tokens, so it listens on loopback only, unless the user allows more.
"""

import asyncio
import json
import logging
import math
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reward_server.adapters.coalescing import WAIT_S, Coalescer
from reward_server.adapters.openrlhf import PromptForm, parse_texts
from reward_server.client import (
    AsyncRewardClient,
    AuthError,
    CompletionText,
    ConnectionSettings,
    DeadlineError,
    RewardOptions,
    ScoredCompletion,
    ServerBusyError,
    ServerError,
    UsageError,
)
from winnow.addresses import HostPort, is_loopback, open_listener, parse_address
from winnow.conversations import trainer_messages

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

Messages = Sequence[Mapping[str, str]]

MAX_BODY_BYTES = 64 * 1024 * 1024
HEALTH_TIMEOUT_S = 2.0
ROUTES = "there are POST /get_reward, POST /score, POST /v1/score and GET /health"
MAX_WAIT_S = 60.0

log = logging.getLogger(__name__)


class HttpError(Exception):
    """An error that becomes the response to a request: the status code, the message, and further headers."""

    def __init__(self, code: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.headers = headers


class Gateway:
    """Handlers of HTTP requests, which score through a client of reward servers.

    A completion that cannot be scored gets `unscorable_reward`; None: it is an error. Completions of one prompt are
    gathered for `wait_s` seconds.
    """

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
        self._coalescer = Coalescer(lambda prompt, completions: client.score(prompt, completions, options), wait_s)

    async def get_reward(self, body: Any) -> dict[str, Any]:
        """Respond to a post of OpenRLHF's remote reward (openrlhf/utils/agent.py). Raises HttpError, WinnowError."""
        queries = _texts(body, "query")
        prompts = _texts(body, "prompts")
        labels = body.get("labels") or [None] * len(queries)
        if not isinstance(labels, list) or not len(queries) == len(prompts) == len(labels):
            raise HttpError(400, "query, prompts and labels should be lists of one length")
        prompted = [parse_texts(self.form, *texts) for texts in zip(queries, prompts, labels, strict=True)]
        scored = await self._score_all(prompted)
        rewards = self._rewards(scored)
        # Numbers only, and the same keys for every completion: OpenRLHF makes tensors of them.
        logs = {
            "num_tokens": [float(completion.num_tokens) for completion in scored],
            "is_scored": [float(completion.reward is not None) for completion in scored],
        }
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}

    async def score(self, body: Any) -> dict[str, Any]:
        """Respond to a post of vLLM's /score: each text_2 is a completion of its text_1, or all are of a single text_1.

        Raises HttpError, WinnowError.
        """
        completions = _texts(body, "text_2")
        prompts = _texts(body, "text_1")
        if len(prompts) == 1:
            prompts = prompts * len(completions)
        if len(prompts) != len(completions):
            raise HttpError(400, f"text_1 has {len(prompts)} texts and text_2 {len(completions)}; give one, or as many")
        prompted = []
        for prompt, completion in zip(prompts, completions, strict=True):
            prompted.append((trainer_messages(prompt, "text_1"), CompletionText(completion)))
        scored = await self._score_all(prompted)
        rewards = self._rewards(scored)
        data = [{"index": index, "object": "score", "score": reward} for index, reward in enumerate(rewards)]
        num_tokens = sum(completion.num_tokens for completion in scored)
        return {
            "id": f"score-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": str(body.get("model") or "winnow"),
            "data": data,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens, "completion_tokens": 0},
        }

    async def health(self) -> dict[str, Any]:
        """Respond if a reward server serves and accepts the gateway's token. Raises ServerError if not."""
        await self.client.wait_until_ready(HEALTH_TIMEOUT_S)
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await self.client.server_info()  # needs the token, unlike the server's health service
        except TimeoutError:
            raise ServerError(f"the reward server at {self.client.address} is slow to respond; try again") from None
        return {"status": "ok"}

    async def warn_if_away(self) -> None:
        """Log a warning if posts would fail."""
        try:
            await self.health()
        except ServerError as error:
            log.warning("winnow: %s; until then, posts get errors", error)

    async def _score_all(self, prompted: Sequence[tuple[Messages, CompletionText]]) -> list[ScoredCompletion]:
        """Return the reward of each completion with its prompt, in order. Raises WinnowError."""
        return await asyncio.gather(*(self._coalescer.score(*pair) for pair in prompted))

    def _rewards(self, scored: Sequence[ScoredCompletion]) -> list[float]:
        """Return a number for each completion. Raises HttpError for the first completion without one."""
        rewards = []
        for index, completion in enumerate(scored):
            reward = completion.reward
            if reward is None and not completion.is_invalid_prompt:
                reward = self.unscorable_reward
            if reward is None:
                raise HttpError(422, f"completion {index} cannot be scored: {completion.status}: {completion.error}")
            rewards.append(reward)
        return rewards


def create_app(gateway: Gateway) -> "Starlette":
    """Return the gateway as an ASGI application."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def get_reward(request: "Request") -> "Response":
        return await _respond(gateway.get_reward, request)

    async def score(request: "Request") -> "Response":
        return await _respond(gateway.score, request)

    async def health(request: "Request") -> "Response":
        return await _respond(lambda body: gateway.health(), request)

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
    connection: ConnectionSettings,
    listen: str,
    *,
    is_insecure_allowed: bool,
    form: PromptForm,
    options: RewardOptions,
    unscorable_reward: float | None,
    wait_s: float,
    timeout_s: float,
) -> None:
    """Serve until SIGTERM or SIGINT; `wait_s` and `timeout_s` are seconds. Raises UsageError for a setting at fault.

    An address beyond loopback is such a fault, unless `is_insecure_allowed`.
    """
    import uvicorn

    _check_numbers(unscorable_reward, wait_s)
    address = parse_address(listen, "listen", "127.0.0.1:8000")
    _check_exposure(address, is_insecure_allowed)
    with open_listener(address) as listener:
        client = AsyncRewardClient(connection, timeout_s)
        app = create_app(Gateway(client, options, form, unscorable_reward, wait_s))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn raises the signal again after it has drained; that must not end the process with an error.
            signal.signal(signal_number, lambda *_: None)
        bound = replace(address, port=listener.getsockname()[1])
        print(f"listening on http://{bound}", flush=True)
        server.run(sockets=[listener])


def _check_numbers(unscorable_reward: float | None, wait_s: float) -> None:
    if unscorable_reward is not None and not math.isfinite(unscorable_reward):
        raise UsageError(f"unscorable reward {unscorable_reward} should be a finite number: JSON has no other")
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise UsageError(f"wait {wait_s * 1000:g} ms should be from 0 to {MAX_WAIT_S * 1000:g}")


def _check_exposure(address: HostPort, is_insecure_allowed: bool) -> None:
    """Raise UsageError if other machines could call the gateway and the user did not allow it."""
    if not (is_insecure_allowed or is_loopback(address.host)):
        raise UsageError(
            f"{address} can be reached from other machines, and the gateway is plain HTTP without tokens; put a proxy "
            "with TLS before it, or set --allow-insecure"
        )


async def _respond(handle: Callable[[Any], Awaitable[dict[str, Any]]], request: "Request") -> "Response":
    from starlette.responses import JSONResponse

    try:
        body = None
        if request.method == "POST":
            body = await _body(request)
        return JSONResponse(await handle(body))
    except Exception as error:
        http_error = _http_error(error)
        content = _error_content(http_error.code, str(http_error))
        return JSONResponse(content, http_error.code, headers=http_error.headers)


def _error_content(code: int, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _http_error(error: Exception) -> HttpError:
    """Return the error of the response; log an unforeseen error."""
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
    if isinstance(error, DeadlineError):
        return 504
    return 503


async def _body(request: "Request") -> dict[str, Any]:
    """Return the JSON object of a request. Raises HttpError."""
    data = bytearray()
    async for received in request.stream():
        data += received
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
    """Return the texts of a field that holds one text or a list of texts. Raises HttpError."""
    texts = body.get(key)
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise HttpError(400, f"{key} should be a text or a list of texts, not empty")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:  # caught before coalescing, where it would fail the other posts of its group too
        raise HttpError(400, f"{key} is not Unicode text: it holds half of a surrogate pair") from None
    return texts

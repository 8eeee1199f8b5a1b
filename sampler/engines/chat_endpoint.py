"""The client of an OpenAI-compatible endpoint, for judges and for answers: messages -> the reply, or one clear error.

POST {base_url}/chat/completions  {"model", "messages", "temperature", max_tokens_name: max_tokens}
    -> {"choices": [{"message": {"content"}, "finish_reason"}], "usage": {"prompt_tokens", "completion_tokens"}}

    key of a request   hash of model, messages, parameters and repetition; a finished one is never sent again
    calls at a time    adaptive_limit.py
    transient faults   no connection, time-outs, 408, 409, 429 and 5xx: sent again, up to NUM_TRIES times in all, after
                       min(MAX_WAIT_S, FIRST_WAIT_S 2^k) seconds times a random factor from .5 to 1, or Retry-After
    every other fault  an error at once, with the server's message and the remedy (endpoint_errors.py)

An endpoint takes messages and returns text. A `SamplingEngine` takes and returns token ids, which are what a round
trains on; a server does not tell the ids that it sampled. So this client answers and judges, and samples no round.
"""

import os
import random
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from sampler.engines.adaptive_limit import AdaptiveLimit, Outcome
from sampler.engines.endpoint_errors import REFUSAL_STATUSES, remedy, server_message
from sampler.engines.endpoint_settings import OPENAI_URL, EndpointSettings
from sampler.engines.finished_requests import FinishedRequests
from sampler.engines.token_usage import TokenCounts, UsageMeter
from winnow.addresses import is_loopback
from winnow.errors import ServerError, UsageError, first_line
from winnow.proxies import http_proxy_setting, proxy_remedy, without_credentials
from winnow.records import digest

if TYPE_CHECKING:
    from openai import DefaultHttpxClient, OpenAI

# The waits add up to a minute: the window of common rate limits.
NUM_TRIES = 8
FIRST_WAIT_S = 0.5
MAX_WAIT_S = 30.0
MAX_RETRY_AFTER_S = 120.0
CONNECT_TIMEOUT_S = 10.0
TRANSIENT_STATUSES = frozenset({408, 409, 429})
# OpenAI's code for an account without money, which comes with status 429.
NO_QUOTA = "insufficient_quota"


class ChatMessage(NamedTuple):
    """A message of a request."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatReply(NamedTuple):
    """A reply, and the endpoint's reason for its end ("stop", "length")."""

    text: str
    finish_reason: str | None = None


class RefusedPromptError(ServerError):
    """The endpoint refuses this prompt, or the parameters that come with every prompt."""


@dataclass
class _TransientError(Exception):
    """A fault that may pass; `error` is raised if it does not."""

    error: ServerError
    is_overload: bool
    retry_after_s: float = 0.0


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _ChatCompletion(BaseModel):
    choices: list[_Choice]
    usage: TokenCounts | None = None


class ChatEndpoint:
    """A model behind an open client; threads may share it."""

    def __init__(self, client: "OpenAI", settings: EndpointSettings, finished: FinishedRequests | None = None) -> None:
        self.url = without_credentials(str(client.base_url)).rstrip("/")
        self.settings = settings
        self.limit = AdaptiveLimit(settings.num_parallel)
        self.usage = UsageMeter()
        self._client = client
        self._finished = finished

    def with_temperature(self, temperature: float) -> "ChatEndpoint":
        """Return the same endpoint at a temperature; limit, usage and finished requests are shared."""
        endpoint = ChatEndpoint(self._client, replace(self.settings, temperature=temperature), self._finished)
        endpoint.limit = self.limit
        endpoint.usage = self.usage
        return endpoint

    def ask(self, messages: Sequence[ChatMessage], repetition: str = "") -> ChatReply:
        """Return the reply to a request, from the finished ones if it is there; a repetition is a request of its own.

        Raises RefusedPromptError for a 400, 413 or 422, ServerError for other failures.
        """
        key = digest([self.settings.model, messages, self.settings.parameters, repetition])
        if self._finished is not None:
            stored = self._finished.get(key)
            if stored is not None:
                self.usage.add_reused()
                return ChatReply(**stored)
        reply = self.send(messages)
        if self._finished is None:
            return reply
        return ChatReply(**self._finished.keep(key, reply._asdict()))

    def send(self, messages: Sequence[ChatMessage], num_tries: int = NUM_TRIES) -> ChatReply:
        """Send a request, finished or not. Raises RefusedPromptError and ServerError like `ask`."""
        for num_failures in range(num_tries):
            try:
                return self._try(messages)
            except _TransientError as fault:
                if num_failures + 1 == num_tries:
                    raise fault.error from None
                wait_s = min(MAX_WAIT_S, FIRST_WAIT_S * 2**num_failures) * random.uniform(0.5, 1)
                time.sleep(max(wait_s, fault.retry_after_s))
        raise AssertionError("num_tries is at least 1")

    def _try(self, messages: Sequence[ChatMessage]) -> ChatReply:
        """Send a request once, within the limit. Raises _TransientError, RefusedPromptError and ServerError."""
        slot = self.limit.acquire()
        outcome: Outcome = "failure"
        pause_s = 0.0
        try:
            reply = self._post(messages)
            outcome = "success"
        except _TransientError as fault:
            if fault.is_overload:
                outcome = "overload"
            pause_s = fault.retry_after_s
            raise
        finally:
            self.limit.release(slot, outcome, pause_s)
        return reply

    def _post(self, messages: Sequence[ChatMessage]) -> ChatReply:
        import openai

        body: Any = [message._asdict() for message in messages]
        parameters: dict[str, Any] = dict(self.settings.parameters)
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=self.settings.model, messages=body, **parameters
            )
        except openai.APIStatusError as error:
            fault = self._answer_error(error.status_code, error.response.text)
            if _is_transient(error.status_code, error.response.text):
                retry_after_s = _retry_after_s(error.response.headers.get("retry-after"))
                raise _TransientError(
                    fault, is_overload=error.status_code not in (408, 409), retry_after_s=retry_after_s
                ) from None
            raise fault from None
        except openai.APIConnectionError as error:
            is_timeout = isinstance(error, openai.APITimeoutError)
            raise _TransientError(self._connection_error(error), is_overload=is_timeout) from None
        except openai.OpenAIError as error:
            raise self._connection_error(error) from None
        return self._reply(response.status_code, response.http_response.text)

    def _reply(self, status: int, text: str) -> ChatReply:
        """Return the reply in an HTTP body; empty if there is none. Raises ServerError for another form of body."""
        try:
            completion = _ChatCompletion.model_validate_json(text)
        except ValidationError:
            raise self._answer_error(status, text) from None
        self.usage.add(completion.usage)
        if not completion.choices:
            return ChatReply("")
        choice = completion.choices[0]
        return ChatReply(choice.message.content or "", choice.finish_reason)

    def _answer_error(self, status: int, text: str) -> ServerError:
        """Return the error for an answer of the endpoint, or of a proxy before it, that holds no reply."""
        fault = f"answers {status}"
        if status < 400:
            fault += " without a chat completion"
        message = (
            f"the {self.settings.role} {self.settings.model} at {self.url} {fault}: {server_message(text)}; "
            f"{remedy(status, text, self.settings)}"
        )
        if status in REFUSAL_STATUSES:
            return RefusedPromptError(message)
        return ServerError(message + proxy_remedy(http_proxy_setting(self.url)))

    def _connection_error(self, error: Exception) -> ServerError:
        """Return the error for a call without an answer; openai's own text is only "Connection error."."""
        reason = first_line(error)
        if error.__cause__ is not None:
            reason = f"{reason.rstrip('.')}: {first_line(error.__cause__)}"
        return ServerError(
            f"the {self.settings.role} {self.settings.model} at {self.url} cannot be reached ({reason}); start it, or "
            f"set {self.settings.name_of('base_url')}{proxy_remedy(http_proxy_setting(self.url))}"
        )


@contextmanager
def open_chat_endpoint(settings: EndpointSettings, finished: FinishedRequests | None = None) -> Iterator[ChatEndpoint]:
    """Yield an endpoint with its connections open; `finished` holds the replies that need no call, and gets new ones.

    Raises UsageError if endpoint and key are both unset, or if a key or a proxy in the environment cannot be used.
    """
    import openai

    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and settings.base_url is None:
        raise UsageError(
            f"the {settings.role} {settings.model} needs {settings.name_of('base_url')}, or OPENAI_API_KEY in the "
            "environment for OpenAI's own"
        )
    if not key.isascii() or len(key.split()) > 1:
        raise UsageError("OPENAI_API_KEY should be one word of ASCII characters, without spaces or a line's end")
    base_url = settings.base_url or os.environ.get("OPENAI_BASE_URL")
    try:
        client = openai.OpenAI(
            base_url=base_url,
            api_key=key or "none",
            http_client=_direct_client(base_url),
            max_retries=0,
            timeout=openai.Timeout(settings.timeout_s, connect=min(CONNECT_TIMEOUT_S, settings.timeout_s)),
        )
    except (ImportError, ValueError) as error:  # a SOCKS proxy without its package, a malformed URL
        url = without_credentials(base_url or OPENAI_URL)
        raise UsageError(
            f"the {settings.role} at {url} cannot be called: {first_line(error)}{proxy_remedy(http_proxy_setting(url))}"
        ) from None
    with client:
        yield ChatEndpoint(client, settings, finished)


def _is_transient(status: int, text: str) -> bool:
    return (status in TRANSIENT_STATUSES and NO_QUOTA not in text) or status >= 500


def _retry_after_s(header: str | None) -> float:
    """Return the seconds of a Retry-After header, a number or a date; 0 without one.

    >>> _retry_after_s("2.5")
    2.5
    """
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def _direct_client(base_url: str | None) -> "DefaultHttpxClient | None":
    """Return an HTTP client without proxy for a server on this machine; None, openai's default, for any other."""
    from openai import DefaultHttpxClient

    if base_url is None or not is_loopback(urlsplit(base_url).hostname or ""):
        return None
    # Without trust_env the client ignores SSL_CERT_FILE as well as the proxies; Python's own context reads it.
    return DefaultHttpxClient(trust_env=False, verify=ssl.create_default_context())

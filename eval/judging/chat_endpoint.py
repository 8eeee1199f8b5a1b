"""An OpenAI-compatible endpoint that a judge is asked through: messages -> the reply, or one clear error.

POST {base_url}/chat/completions  {"model", "messages", "temperature", max_tokens_name: max_tokens}
    -> {"choices": [{"message": {"content"}, "finish_reason"}]}

Connections that fail, timeouts, 408, 409, 429 and 5xx are retried with exponential backoff by openai's client. Any
other answer is an error at once, with the server's message and the remedy (endpoint_errors.py).
"""

import os
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from eval.judging.endpoint_errors import REFUSAL_STATUSES, SECTION, remedy, server_message
from eval.judging.verdicts import Reply
from winnow.addresses import is_loopback
from winnow.errors import ServerError, UsageError, first_line
from winnow.proxies import http_proxy_setting, proxy_remedy, without_credentials
from winnow.run_config import JudgeConfig

if TYPE_CHECKING:
    from openai import DefaultHttpxClient, OpenAI
    from openai.types.chat import ChatCompletionMessageParam


OPENAI_URL = "https://api.openai.com/v1"


class RefusedPromptError(ServerError):
    """The endpoint refuses this prompt, or the parameters that come with every prompt."""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _ChatCompletion(BaseModel):
    choices: list[_Choice]


class ChatEndpoint:
    """The model of a judge config behind an open client."""

    def __init__(self, client: "OpenAI", config: JudgeConfig) -> None:
        self.url = without_credentials(str(client.base_url)).rstrip("/")
        self._client = client
        self._config = config
        self._parameters: dict[str, Any] = {config.max_tokens_name: config.max_tokens}
        if config.temperature is not None:
            self._parameters["temperature"] = config.temperature

    def ask(self, messages: "Sequence[ChatCompletionMessageParam]") -> Reply:
        """Return the model's reply. Raises RefusedPromptError for a 400, 413 or 422, ServerError for other failures."""
        import openai

        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=self._config.model or "", messages=list(messages), **self._parameters
            )
        except openai.APIStatusError as error:
            raise self._answer_error(error.status_code, error.response.text) from None
        except openai.OpenAIError as error:
            raise self._connection_error(error) from None
        return self._reply(response.status_code, response.http_response.text)

    def _reply(self, status: int, text: str) -> Reply:
        """Return the reply in an HTTP body; empty if there is none. Raises ServerError for another form of body."""
        try:
            completion = _ChatCompletion.model_validate_json(text)
        except ValidationError:
            raise self._answer_error(status, text) from None
        if not completion.choices:
            return Reply("")
        choice = completion.choices[0]
        return Reply(choice.message.content or "", choice.finish_reason)

    def _answer_error(self, status: int, text: str) -> ServerError:
        """Return the error for an answer of the endpoint, or of a proxy before it, that holds no reply."""
        fault = f"answers {status}"
        if status < 400:
            fault += " without a chat completion"
        message = (
            f"the judge {self._config.model} at {self.url} {fault}: {server_message(text)}; "
            f"{remedy(status, text, self._config)}"
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
            f"the judge {self._config.model} at {self.url} cannot be reached ({reason}); start it, or set "
            f"{SECTION}.base_url{proxy_remedy(http_proxy_setting(self.url))}"
        )


@contextmanager
def open_chat_endpoint(config: JudgeConfig) -> Iterator[ChatEndpoint]:
    """Yield the endpoint of a config with its connections open.

    Raises UsageError if endpoint and key are both unset, or if a key or a proxy in the environment cannot be used.
    """
    import openai

    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and config.base_url is None:
        raise UsageError(
            f"judge kind llm needs {SECTION}.base_url, or OPENAI_API_KEY in the environment for OpenAI's own"
        )
    if not key.isascii() or len(key.split()) > 1:
        raise UsageError("OPENAI_API_KEY should be one word of ASCII characters, without spaces or a line's end")
    base_url = config.base_url or os.environ.get("OPENAI_BASE_URL")
    try:
        client = openai.OpenAI(base_url=base_url, api_key=key or "none", http_client=_direct_client(base_url))
    except (ImportError, ValueError) as error:  # a SOCKS proxy without its package, a malformed URL
        url = without_credentials(base_url or OPENAI_URL)
        raise UsageError(
            f"the judge at {url} cannot be called: {first_line(error)}{proxy_remedy(http_proxy_setting(url))}"
        ) from None
    with client:
        yield ChatEndpoint(client, config)


def _direct_client(base_url: str | None) -> "DefaultHttpxClient | None":
    """Return an HTTP client without proxy for a judge on this machine; None, openai's default, for any other judge."""
    from openai import DefaultHttpxClient

    if base_url is None or not is_loopback(urlsplit(base_url).hostname or ""):
        return None
    # Without trust_env the client ignores SSL_CERT_FILE as well as the proxies; Python's own context reads it.
    return DefaultHttpxClient(trust_env=False, verify=ssl.create_default_context())

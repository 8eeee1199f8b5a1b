"""An HTTP answer that is not a chat completion -> the server's message and the remedy, each part of one line. Pure.

status      meaning                                          remedy
400, 422    a parameter or the prompt is refused             the setting that the message is about
413         the prompt is too large                          max_tokens, or a longer context
401, 403    the key is refused                               OPENAI_API_KEY
404         no such path, or no such model                   base_url, model
429         quota used up; sent again before it is an error  the account
5xx         the endpoint failed; the same                    the endpoint's log
2xx         no chat completion, as from a web page           base_url

Messages are read in the forms of OpenAI, vLLM ({"error": {"message"}} or {"message"}), Gemini ([{"error"}]), FastAPI
({"detail": [{"loc", "msg"}]}), as text, and as HTML, of which the title is shown.
"""

import json
import re

from sampler.engines.endpoint_settings import EndpointSettings

# Refusals that concern one prompt or the parameters: the next prompt may be accepted.
REFUSAL_STATUSES = (400, 413, 422)
MAX_MESSAGE_CHARS = 300
TITLE = re.compile(r"<title[^>]*>\s*([^<]*\S)\s*</title>", re.IGNORECASE)
# About the length, like vLLM's "max_tokens is too large: 2048. This model's maximum context length is 1024 tokens".
LENGTH = re.compile(r"context|too (large|long)|maximum|must be")
SYSTEM = re.compile(r"\bsystem\b|roles must alternate")
KEY = re.compile(r"api.key")


def server_message(text: str) -> str:
    """Return the message of an HTTP body as one line, shortened.

    >>> server_message('{"error": {"message": "The model `x` does not exist.", "code": 404}}')
    'The model `x` does not exist.'
    >>> server_message("<!doctype html><html><title>Sign in</title>...")
    "an HTML page, 'Sign in'"
    """
    text = text.strip()
    if text.startswith("<"):
        title = TITLE.search(text)
        return "an HTML page" if title is None else f"an HTML page, {title[1][:MAX_MESSAGE_CHARS]!r}"
    lines = _message(text).strip().splitlines() or ["an empty body"]
    line = lines[0]
    if len(line) > MAX_MESSAGE_CHARS:
        line = f"{line[:MAX_MESSAGE_CHARS]}..."
    return line


def _message(text: str) -> str:
    """Return the message of a JSON body; the text itself if it is not JSON or has no message."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    while isinstance(body, dict | list) and body:
        if isinstance(body, list):
            body = body[0]
        elif isinstance(body.get("loc"), list):
            return f"{'.'.join(map(str, body['loc']))}: {body.get('msg')}"
        else:
            body = body.get("error") or body.get("message") or body.get("detail")
    if isinstance(body, str) and body:
        return body
    return text


def remedy(status: int, text: str, settings: EndpointSettings) -> str:
    """Return what to change after an answer with this status and body, as the end of a sentence."""
    message = _message(text).lower()
    if status in (401, 403) or (status in REFUSAL_STATUSES and KEY.search(message)):
        return f"set OPENAI_API_KEY in the environment to a key that the endpoint accepts for {settings.model}"
    if status in REFUSAL_STATUSES:
        return _refusal_remedy(status, message, settings)
    if status == 404 and "model" in message:
        return f"set {settings.name_of('model')} to a model that the endpoint serves"
    repetition = "repeat the command" if settings.section is None else "resume the run"
    if status == 429:
        return f"wait until the account's limit allows more, or raise its quota, and {repetition}"
    if status >= 500:
        return f"see the endpoint's own log, and {repetition} when it is mended"
    return (
        f"set {settings.name_of('base_url')} to the address to which /chat/completions can be appended, often one that "
        "ends in /v1"
    )


def _refusal_remedy(status: int, message: str, settings: EndpointSettings) -> str:
    """Return the setting that a refusal is about; `message` is in lower case."""
    if "temperature" in message:
        if settings.role == "model":
            # Answers always have a temperature: the question set says which.
            return f"set {settings.name_of('temperature')} to a value that the endpoint accepts"
        unset = "none" if settings.section is None else "null"
        return (
            f"set {settings.name_of('temperature')} to {unset}, which does not send it, or to a value that the "
            "endpoint accepts"
        )
    if status == 413 or LENGTH.search(message):
        return (
            f"lower {settings.name_of('max_tokens')} (now {settings.max_tokens}), or take a {settings.role} with a "
            "longer context"
        )
    if settings.max_tokens_name in message:
        names = ["max_tokens", "max_completion_tokens"]
        names.remove(settings.max_tokens_name)
        return f"set {settings.name_of('max_tokens_name')} to {names[0]}"
    if SYSTEM.search(message):
        return (
            f"serve the {settings.role} with a chat template that accepts a system message, or take another "
            f"{settings.role}"
        )
    if "model" in message:
        return f"set {settings.name_of('model')} to a model that the endpoint serves"
    return f"check {settings.name_of('base_url')} and {settings.name_of('model')}"

"""A real HTTP server with OpenAI's /chat/completions, which sends the replies of a script, and a judge that calls it.

A test module imports `prompts_fixture`, so that pytest finds it, and its tests take `prompts`.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from eval.judging.judges import Judge
from eval.judging.opening import open_judge
from winnow.run_config import JudgeConfig


@dataclass(frozen=True)
class HttpReply:
    """An HTTP response that is not a chat completion."""

    status: int
    body: str
    content_type: str = "application/json"
    retry_after: str | None = None


# The text of a chat completion, or another response.
Reply = str | HttpReply
Script = list[Reply] | Callable[[dict[str, Any]], Reply]


def openai_error(status: int, message: str, param: str | None, code: str | None) -> HttpReply:
    """Return an error in OpenAI's form."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return HttpReply(status, json.dumps({"error": error}))


class _Server(ThreadingHTTPServer):
    """A server that takes many connections at once."""

    request_queue_size = 128


@contextmanager
def chat_server(script: Script) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run a server that replies by the script: a list in order, or a function of the request's body.

    Yield its base URL and the list of requests so far, each the body with "path".
    """
    requests: list[dict[str, Any]] = []
    next_replies = iter(script) if isinstance(script, list) else None

    def reply_to(body: dict[str, Any]) -> Reply:
        if callable(script):
            return script(body)
        assert next_replies is not None
        return next(next_replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({"path": self.path, **body})
            reply = reply_to(body)
            if isinstance(reply, str):
                reply = HttpReply(200, completion(reply))
            payload = reply.body.encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(payload)))
            if reply.retry_after is not None:
                self.send_header("Retry-After", reply.retry_after)
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class prescribes the name
            pass

    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1", requests
        finally:
            server.shutdown()
            thread.join()


def completion(text: str, finish_reason: str = "stop", usage: tuple[int, int] | None = None) -> str:
    """Return the body of a chat completion with this text, and with a count of prompt and completion tokens."""
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    body: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return json.dumps(body)


TEMPLATES = {
    "single-v1": "Q: {question} A: {answer} {{rate}}",
    "single-math-v1": "Q: {question} R: {ref_answer_1} A: {answer}",
    "single-v1-multi-turn": "Q1: {question_1} A1: {answer_1} Q2: {question_2} A2: {answer_2}",
    "single-math-v1-multi-turn": "R1: {ref_answer_1} R2: {ref_answer_2} A1: {answer_1} A2: {answer_2} {question_2}",
}


@pytest.fixture(name="prompts")
def prompts_fixture(tmp_path: Path) -> str:
    """Write judge prompts with the fields of FastChat's; return the path."""
    path = tmp_path / "judge_prompts.jsonl"
    rows = [{"name": name, "system_prompt": "Be fair.", "prompt_template": text} for name, text in TEMPLATES.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@contextmanager
def llm(prompts: str, address: str, **settings: Any) -> Iterator[Judge]:
    """Open the judge "judge-1" at a base URL; `settings` are further keys of its config."""
    config = JudgeConfig(kind="llm", model="judge-1", base_url=address, prompts=prompts, **settings)
    with open_judge(config) as judge:
        yield judge

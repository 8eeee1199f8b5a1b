"""The judge's endpoint: each fault is one error at the first call, which names the remedy, and the setting mends it.

The bodies have the forms of real servers: OpenAI, vLLM, FastAPI (Mistral), Anthropic, llama.cpp.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_models import make_tokenizer
from eval.judging.opening import open_judge
from eval.judging.questions import Question
from eval.judging.verdict_calls import MAX_REFUSED
from eval.stages import evaluate, read_results
from tests.chat_server import HttpReply, Reply, chat_server, llm, openai_error, prompts_fixture  # noqa: F401
from tests.tiny_models import make_model
from tests.tiny_run import write_jsonl
from winnow.config import parse_config
from winnow.errors import ConfigError, ServerError, UsageError
from winnow.run_config import JudgeConfig, RunConfig
from winnow.rundir import Run

QUESTION = Question(question_id=7, category="writing", turns=("Reverse boat, moss, fish.", "In capitals."))
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
# An address of the range for documentation, which no machine has.
FAR = "http://192.0.2.1/v1"

HTML = HttpReply(200, "<!doctype html><html><head><title> Sign in </title></head></html>", "text/html")
NO_MAX_TOKENS = openai_error(
    400,
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "max_tokens",
    "unsupported_parameter",
)
NO_TEMPERATURE = openai_error(
    400,
    "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
    "temperature",
    "unsupported_value",
)
TOO_LONG = openai_error(
    400,
    "This model's maximum context length is 1024 tokens. However, you requested 2100 tokens (52 in the messages, 2048 "
    "in the completion). Please reduce the length of the messages or completion.",
    "messages",
    "context_length_exceeded",
)
EXTRA_FORBIDDEN = HttpReply(
    422,
    json.dumps(
        {
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", "max_completion_tokens"],
                    "msg": "Extra inputs are not permitted",
                    "input": {"temperature": 0},
                }
            ]
        }
    ),
)
GEMINI_KEY = HttpReply(400, json.dumps([{"error": {"code": 400, "message": "API key not valid. Please pass one."}}]))
OLD_VLLM = HttpReply(
    404, json.dumps({"object": "error", "message": "The model `judge-1` does not exist.", "type": "NotFoundError"})
)
FAULTS: list[tuple[Reply, str, str]] = [
    (HTML, r"answers 200 without a chat completion: an HTML page, 'Sign in'", r"judge\.base_url to the address"),
    (HttpReply(200, "<html>"), r"answers 200 .*: an HTML page;", r"judge\.base_url"),
    (HttpReply(200, "[]"), r"answers 200 without a chat completion: \[\]", r"judge\.base_url"),
    (HttpReply(200, ""), r"answers 200 .*: an empty body", r"judge\.base_url"),
    (HttpReply(200, '{"choices": [{"message": null}]}'), r"answers 200", r"judge\.base_url"),
    (HttpReply(404, '{"detail": "Not Found"}'), r"answers 404: Not Found", r"base_url .* one that ends in /v1"),
    (HttpReply(405, "no\nmore", "text/plain"), r"answers 405: no;", r"judge\.base_url"),
    (OLD_VLLM, r"answers 404: The model `judge-1` does not exist\.;", r"judge\.model to a model"),
    (openai_error(401, "Incorrect API key.", None, "invalid_api_key"), "answers 401: Incorrect", "set OPENAI_API_KEY"),
    (openai_error(403, "Not allowed.", None, None), "answers 403: Not allowed", "set OPENAI_API_KEY"),
    (NO_MAX_TOKENS, "answers 400: Unsupported parameter", r"judge\.max_tokens_name to max_completion_tokens$"),
    (NO_TEMPERATURE, "answers 400: Unsupported value", r"judge\.temperature to null"),
    (HttpReply(422, '{"error": "Temperature must be positive"}'), "answers 422: Temp", r"temperature to null.*or to a"),
    (TOO_LONG, "answers 400: This model's maximum", r"lower \S+judge\.max_tokens \(now 2048\)"),
    (HttpReply(413, "<html>", "text/html"), "answers 413: an HTML page", r"lower \S+judge\.max_tokens"),
    (GEMINI_KEY, "answers 400: API key not valid", "set OPENAI_API_KEY"),
    (openai_error(400, "System role not supported", None, None), "answers 400: System", "accepts a system message"),
    (openai_error(400, "Invalid model name", None, None), "answers 400: Invalid", r"judge\.model to a model"),
    (openai_error(400, f"No.{'x' * 900}", None, None), r"answers 400: No\.x{297}\.\.\.;", r"check \S+base_url and "),
]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXY_VARIABLES, "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def check_error(prompts: str, address: str, **settings: Any) -> str:
    """Return the message of the error that the judge's check ends in."""
    with llm(prompts, address, **settings) as judge, pytest.raises(ServerError) as caught:
        judge.check()
    return str(caught.value)


@pytest.mark.parametrize(("reply", "fault", "remedy"), FAULTS)
def test_a_fault_of_every_call_is_one_error_at_the_first(prompts: str, reply: Reply, fault: str, remedy: str) -> None:
    with chat_server(lambda body: reply) as (address, requests):
        message = check_error(prompts, address)
    assert message.startswith(f"the judge judge-1 at {address} answers ")
    assert len(message.splitlines()) == 1
    assert re.search(f"{fault}.*{remedy}", message)
    assert len(requests) == 1


def reasoning_model(body: dict[str, Any]) -> Reply:
    """Reply as OpenAI's reasoning models do."""
    if "max_tokens" in body:
        return NO_MAX_TOKENS
    if "temperature" in body:
        return NO_TEMPERATURE
    return "[[8]]"


def test_the_settings_of_the_errors_make_a_reasoning_model_judge(prompts: str) -> None:
    with chat_server(reasoning_model) as (address, requests):
        assert "max_tokens_name to max_completion_tokens" in check_error(prompts, address)
        assert "temperature to null" in check_error(prompts, address, max_tokens_name="max_completion_tokens")
        settings = {"max_tokens_name": "max_completion_tokens", "temperature": None, "max_tokens": 900}
        with llm(prompts, address, **settings) as judge:
            judge.check()
            assert judge.judge(QUESTION, ["fish"], None).score == 8.0
    assert set(requests[-1]) == {"path", "model", "messages", "max_completion_tokens"}
    assert requests[-1]["max_completion_tokens"] == 900


def test_an_api_without_max_completion_tokens_names_max_tokens(prompts: str) -> None:
    with chat_server([EXTRA_FORBIDDEN]) as (address, _):
        message = check_error(prompts, address, max_tokens_name="max_completion_tokens")
    assert re.search(r"answers 422: body\.max_completion_tokens: Extra .*max_tokens_name to max_tokens$", message)


def test_the_check_sends_the_system_prompt_and_tells_what_it_waits_for(
    prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with chat_server(["no rating"]) as (address, requests), llm(prompts, address) as judge:
        judge.check()
    assert capsys.readouterr().err == f"checking the judge judge-1 at {address}\n"
    assert [message["role"] for message in requests[0]["messages"]] == ["system", "user"]
    assert requests[0]["messages"][0]["content"] == "Be fair."


def test_a_prompt_that_the_endpoint_refuses_gives_no_score(prompts: str) -> None:
    with chat_server([TOO_LONG, "[[8]]"]) as (address, requests), llm(prompts, address) as judge:
        refused = judge.judge(QUESTION, ["fish"], None)
        assert judge.judge(QUESTION, ["fish"], None).score == 8.0
    assert refused.score is None
    assert refused.explanation.startswith("the endpoint refused the prompt: the judge judge-1")
    assert len(requests) == 2


def test_prompts_that_are_all_refused_end_the_judging(prompts: str) -> None:
    with chat_server(lambda body: TOO_LONG) as (address, _), llm(prompts, address) as judge:
        for _ in range(MAX_REFUSED - 1):
            assert judge.judge(QUESTION, ["fish"], None).score is None
        with pytest.raises(ServerError, match=r"the first 8 prompts .* maximum context length"):
            judge.judge(QUESTION, ["fish"], None)


def test_refused_prompts_after_an_accepted_one_never_end_the_judging(prompts: str) -> None:
    script: list[Reply] = ["[[8]]", *[TOO_LONG] * MAX_REFUSED]
    with chat_server(script) as (address, _), llm(prompts, address) as judge:
        scores = [judge.judge(QUESTION, ["fish"], None).score for _ in script]
    assert scores == [8.0, *[None] * MAX_REFUSED]


@pytest.mark.parametrize("status", [429, 503])
def test_a_transient_error_is_retried(prompts: str, status: int) -> None:
    script: list[Reply] = [openai_error(status, "Slow down.", None, None), "[[8]]"]
    with chat_server(script) as (address, requests), llm(prompts, address) as judge:
        assert judge.judge(QUESTION, ["fish"], None).score == 8.0
    assert len(requests) == 2


@pytest.mark.parametrize(("status", "remedy"), [(429, "raise its quota"), (500, "the endpoint's own log")])
def test_an_error_that_stays_is_reported_after_the_retries(prompts: str, status: int, remedy: str) -> None:
    with chat_server(lambda body: openai_error(status, "No.", None, None)) as (address, requests):
        message = check_error(prompts, address)
    assert re.search(f"answers {status}: No.; .*{remedy}", message)
    assert len(requests) == 3


def test_an_unreachable_endpoint_is_an_error_with_its_key(prompts: str) -> None:
    with chat_server([]) as (address, _):
        pass  # the address is free again
    assert re.search(
        r"cannot be reached \(Connection error: .*Connection refused\); .*judge\.base_url$",
        check_error(prompts, address),
    )


def test_an_unknown_host_is_an_error_that_says_so(prompts: str) -> None:
    message = check_error(prompts, "http://user:secret@judge.invalid/v1")
    assert message.startswith("the judge judge-1 at http://judge.invalid/v1 cannot be reached (Connection error: ")
    assert "secret" not in message


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:1", "socks5://127.0.0.1:1"])
@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_judge_on_loopback_is_called_without_a_proxy(
    prompts: str, monkeypatch: pytest.MonkeyPatch, name: str, host: str, proxy: str
) -> None:
    monkeypatch.setenv(name, proxy)
    with chat_server(["[[8]]"]) as (address, _), llm(prompts, address.replace("127.0.0.1", host)) as judge:
        assert judge.judge(QUESTION, ["fish"], None).score == 8.0


@pytest.mark.parametrize(
    ("name", "base_url"), [("http_proxy", FAR), ("HTTPS_PROXY", FAR.replace("http:", "https:")), ("ALL_PROXY", FAR)]
)
def test_the_error_of_a_far_judge_names_the_proxy_without_credentials(
    prompts: str, monkeypatch: pytest.MonkeyPatch, name: str, base_url: str
) -> None:
    monkeypatch.setenv(name, "http://user:secret@127.0.0.1:1")
    message = check_error(prompts, base_url)
    assert f"through the proxy of {name}=http://127.0.0.1:1: if it should not, add the host to no_proxy" in message
    assert "secret" not in message


def test_a_page_of_the_proxy_is_an_error_that_names_the_proxy(prompts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server([HTML]) as (proxy, requests):
        monkeypatch.setenv("http_proxy", proxy.removesuffix("/v1"))
        message = check_error(prompts, FAR)
    assert re.search(r"an HTML page, 'Sign in'; .*http_proxy=http://127", message)
    assert [request["path"] for request in requests] == [f"{FAR}/chat/completions"]


def test_a_proxy_that_cannot_be_used_is_an_error(prompts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks4://127.0.0.1:1")
    with pytest.raises(UsageError, match=r"at http://192\.0\.2\.1/v1 cannot be called: .*all_proxy=socks4://127"):
        check_error(prompts, FAR)


def test_the_default_endpoint_needs_a_key(prompts: str) -> None:
    config = JudgeConfig(kind="llm", model="judge-1", prompts=prompts)
    with pytest.raises(UsageError, match="OPENAI_API_KEY"), open_judge(config):
        pass


def test_a_key_that_no_header_can_hold_is_an_error_that_does_not_show_it(
    prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret\nsecret")
    with pytest.raises(UsageError, match="OPENAI_API_KEY should be one word") as caught:
        check_error(prompts, FAR)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "base_url", ["", "localhost:8000/v1", "ftp://host/v1", "http:///v1", "http://[b/v1", "http://a:x"]
)
def test_a_base_url_that_is_not_http_is_an_error_of_the_config(base_url: str) -> None:
    with pytest.raises(
        ConfigError, match=r"base_url: .*is not an HTTP address; give one like http://localhost:8000/v1"
    ):
        parse_config({"base_url": base_url}, JudgeConfig, "test")


# --- the stage ------------------------------------------------------------------------------------------------------


def judged_run(folder: Path, model: Path, judge: dict[str, Any]) -> Run:
    questions = [{"question_id": number, "category": "writing", "turns": ["A colour?", "Why?"]} for number in range(2)]
    question_set = {
        "questions": write_jsonl(folder / "question.jsonl", questions),
        "max_new_tokens": 4,
        "judge": {"kind": "llm", "model": "judge-1", **judge},
    }
    tree = {
        "name": "tiny",
        "policy": {"model": str(model), "dtype": "float32"},
        "evaluation": {"questions": question_set},
    }
    return Run(folder / "run", parse_config(tree, RunConfig, "test"))


def test_a_judge_at_fault_stops_evaluate_before_a_model_is_loaded(prompts: str, tmp_path: Path) -> None:
    model = tmp_path / "tokenizer_only"
    make_tokenizer(model)
    with chat_server(reasoning_model) as (address, requests):
        run = judged_run(tmp_path, model, {"base_url": address, "prompts": prompts})
        with pytest.raises(ServerError, match="max_tokens_name"):
            evaluate(run, 0)
    assert len(requests) == 1
    assert not run.eval_dir(0).exists()
    assert run.ledger.entries() == []


def test_evaluate_checks_the_judge_once_and_judges_every_turn(prompts: str, tmp_path: Path) -> None:
    with chat_server(reasoning_model) as (address, requests):
        judge = {"base_url": address, "max_tokens_name": "max_completion_tokens", "temperature": None}
        run = judged_run(tmp_path, make_model("llama", tmp_path / "model"), {**judge, "prompts": prompts})
        evaluate(run, 0)
    score = read_results(run, 0).judge
    assert score is not None
    assert (score.mean, score.num_judgments, score.num_unparsable) == (8.0, 4, 0)
    assert len(requests) == 1 + 4

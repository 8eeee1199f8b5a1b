"""The client of an OpenAI-compatible endpoint: retries, Retry-After, calls at a time, finished requests, tokens."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import sampler.engines.chat_endpoint as client
from sampler.engines.adaptive_limit import AdaptiveLimit
from sampler.engines.chat_endpoint import ChatEndpoint, ChatMessage, ChatReply, open_chat_endpoint
from sampler.engines.endpoint_settings import EndpointSettings
from sampler.engines.finished_requests import FinishedRequests
from tests.chat_server import HttpReply, Reply, chat_server, completion, openai_error
from winnow.errors import ServerError

HELLO = [ChatMessage("user", "Hello.")]
BUSY = openai_error(429, "Slow down.", None, "rate_limit_exceeded")


@contextmanager
def endpoint(address: str, finished: Path | None = None, **settings: Any) -> Iterator[ChatEndpoint]:
    known = FinishedRequests(finished) if finished else None
    with open_chat_endpoint(EndpointSettings("judge", None, "judge-1", address, **settings), known) as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.001)


# --- retries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_transient_fault_is_sent_again_until_the_tries_are_used_up(status: int) -> None:
    fault: Reply = openai_error(status, "No.", None, None)
    with chat_server([*[fault] * 7, "yes"]) as (address, requests), endpoint(address) as opened:
        assert opened.ask(HELLO) == ChatReply("yes", "stop")
        assert len(requests) == client.NUM_TRIES == 8
    with (
        chat_server(lambda body: fault) as (address, requests),
        endpoint(address) as opened,
        pytest.raises(ServerError, match=f"answers {status}: No"),
    ):
        opened.ask(HELLO)
    assert len(requests) == 8


def test_an_account_without_money_and_a_wrong_key_are_not_tried_again() -> None:
    faults: list[Reply] = [openai_error(429, "No.", None, "insufficient_quota"), openai_error(401, "No.", None, None)]
    for fault in faults:
        with (
            chat_server([fault]) as (address, requests),
            endpoint(address) as opened,
            pytest.raises(ServerError, match="No"),
        ):
            opened.ask(HELLO)
        assert len(requests) == 1


def test_a_reply_that_does_not_come_in_time_is_asked_for_again() -> None:
    is_over = threading.Event()
    calls: list[int] = []

    def reply(body: dict[str, Any]) -> Reply:
        calls.append(1)
        if len(calls) == 1:
            is_over.wait()
        return "yes"

    with chat_server(reply) as (address, _), endpoint(address, timeout_s=0.2) as opened:
        try:
            assert opened.ask(HELLO).text == "yes"
        finally:
            is_over.set()
        assert opened.limit.limit == pytest.approx(16 + 1 / 16)


def test_a_server_that_names_a_wait_is_not_called_before_its_end() -> None:
    busy = HttpReply(429, "{}", retry_after="0.3")
    with chat_server([busy, "yes"]) as (address, _), endpoint(address) as opened:
        waits: list[float] = []
        release = opened.limit.release

        def watched(slot: Any, outcome: Any, pause_s: float = 0.0) -> None:
            waits.append(pause_s)
            release(slot, outcome, pause_s)

        opened.limit.release = watched  # type: ignore[method-assign]
        assert opened.ask(HELLO).text == "yes"
    assert waits == [0.3, 0.0]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 0), ("7", 7), ("-1", 0), ("soon", 0), ("99999", 120), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header: str | None, seconds: float) -> None:
    assert client._retry_after_s(header) == seconds


# --- calls at a time ------------------------------------------------------------------------------------------------


def test_the_limit_halves_once_for_a_burst_and_grows_by_one_for_a_round_of_calls() -> None:
    limit = AdaptiveLimit(16)
    slots = [limit.acquire() for _ in range(16)]
    for slot in slots:
        limit.release(slot, "overload")
    assert limit.limit == 8
    for _ in range(8):
        limit.release(limit.acquire(), "success")
    assert 8.9 < limit.limit < 9
    limit.release(limit.acquire(), "failure")
    assert 8.9 < limit.limit < 9
    for _ in range(10):
        limit.release(limit.acquire(), "overload")
    assert limit.limit == 1
    for _ in range(200):
        limit.release(limit.acquire(), "success")
    assert limit.limit == 16


def test_no_more_calls_than_the_limit_are_in_flight_and_an_overloaded_server_gets_fewer() -> None:
    lock = threading.Lock()
    in_flight = [0]
    highest = [0, 0]
    num_calls = [0]

    def reply(body: dict[str, Any]) -> Reply:
        with lock:
            in_flight[0] += 1
            num_calls[0] += 1
            is_late = num_calls[0] > 100
            highest[is_late] = max(highest[is_late], in_flight[0])
            is_overload = in_flight[0] > 4
        threading.Event().wait(0.005)
        with lock:
            in_flight[0] -= 1
        return BUSY if is_overload else "yes"

    with chat_server(reply) as (address, _), endpoint(address, num_parallel=12) as opened:
        client_tries = client.NUM_TRIES

        def ask(number: int) -> str:
            return opened.send([ChatMessage("user", str(number))], num_tries=client_tries * 4).text

        with ThreadPoolExecutor(12) as pool:
            assert set(pool.map(ask, range(160))) == {"yes"}
    assert highest[0] <= 12
    assert highest[1] < highest[0]


# --- finished requests and tokens -----------------------------------------------------------------------------------


def test_a_finished_request_is_never_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    with chat_server(["first", "second", "third", "fourth"]) as (address, requests):
        with endpoint(address, path) as opened:
            assert opened.ask(HELLO).text == "first"
            assert opened.ask(HELLO).text == "first"
            assert opened.ask(HELLO, "run 1").text == "second"
            assert opened.with_temperature(0.7).ask(HELLO).text == "third"
        with endpoint(address, path) as opened:
            assert opened.ask(HELLO).text == "first"
            assert opened.usage.num_reused == 1
        with endpoint(address, path, max_tokens=7) as opened:
            assert opened.ask(HELLO).text == "fourth"
    assert len(requests) == 4


def test_a_line_that_a_kill_cut_short_is_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    finished = FinishedRequests(path)
    finished.keep("a", {"text": "ä"})
    finished.keep("b", {"text": "b"})
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    again = FinishedRequests(path)
    assert (again.get("a"), again.get("b")) == ({"text": "ä"}, None)
    again.keep("b", {"text": "b"})
    assert path.read_bytes() == whole


def test_a_damaged_line_costs_its_own_request_alone(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    finished = FinishedRequests(path)
    for key in "abc":
        finished.keep(key, {"text": key})
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "\0\0\0\n" + "[]\n" + lines[2])
    again = FinishedRequests(path)
    assert [again.get(key) is not None for key in "abc"] == [True, False, True]
    again.keep("b", {"text": "b"})
    assert FinishedRequests(path).get("b") == {"text": "b"}


def test_the_first_result_of_a_request_stays(tmp_path: Path) -> None:
    finished = FinishedRequests(tmp_path / "requests.jsonl")
    assert finished.keep("a", {"text": "1"}) == {"text": "1"}
    assert finished.keep("a", {"text": "2"}) == {"text": "1"}
    assert FinishedRequests(finished.path).get("a") == {"text": "1"}


def test_a_failed_request_is_not_kept(tmp_path: Path) -> None:
    refusal = openai_error(400, "too long", None, None)
    with chat_server([refusal, "yes"]) as (address, _), endpoint(address, tmp_path / "requests.jsonl") as opened:
        with pytest.raises(ServerError, match="too long"):
            opened.ask(HELLO)
        assert opened.ask(HELLO).text == "yes"


def test_the_cost_line_has_the_tokens_of_all_replies(tmp_path: Path) -> None:
    script: list[Reply] = [HttpReply(200, completion("a", usage=(1000, 20))), "b"]
    with chat_server(script) as (address, _), endpoint(address, tmp_path / "requests.jsonl") as opened:
        opened.ask(HELLO)
        opened.ask(HELLO)
        assert opened.usage.cost_line("judge judge-1") == (
            "judge judge-1: 1 replies for 1,000 prompt tokens and 20 completion tokens; 1 replies were there already"
        )
        opened.ask(HELLO, "again")
        assert "2 replies for 1,000 prompt tokens" in opened.usage.cost_line("judge")
        assert "(1 replies without a count)" in opened.usage.cost_line("judge")


def test_the_errors_of_a_command_name_its_flags() -> None:
    unknown = openai_error(404, "no such model", None, None)
    with (
        chat_server([unknown]) as (address, _),
        endpoint(address) as opened,
        pytest.raises(ServerError, match="set --judge-model to a model that the endpoint serves"),
    ):
        opened.ask(HELLO)

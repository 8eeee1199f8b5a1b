"""The gateway, over HTTP: OpenRLHF's posts and vLLM's /score.

OpenRLHF needs GPUs to install, so its posts are made as its sources make them: openrlhf/utils/agent.py
(SingleTurnAgentExecutor: one sample a post, {"query", "prompts", "labels"}, the query decoded with its special tokens)
and openrlhf/utils/remote_rm_utils.py.
"""

import asyncio
import json
import select
import signal
import urllib.request
from typing import Any

import grpc
import pytest

from reward_server.adapters import verl
from reward_server.adapters.http import Gateway
from reward_server.adapters.openrlhf import PromptForm, parse_texts
from reward_server.adapters.trl import reward_function
from reward_server.client import AsyncRewardClient, CompletionText, RewardClient, RewardOptions
from tests.adapter_calls import (
    CONTROL_TOKEN,
    UNKNOWN_ROLE,
    group_sizes,
    messages,
    post_at_once,
    refusing_server,
    sample,
    verl_call,
)
from tests.both_clients import address_fixture, service_fixture  # noqa: F401
from tests.processes import read_address, server_process, winnow
from tests.scripted_server import NO_SERVER, ScriptedService
from winnow.errors import ServerError, UsageError

# How long posts wait for others of their prompt, where a test needs all of its posts in one group.
AT_ONCE_S = 0.5


def test_openrlhf_samples_that_come_at_once_are_groups(address: str, service: ScriptedService) -> None:
    bodies = [sample(f"What is {index % 2}?", "x" * (index + 1)) for index in range(8)]
    responses = post_at_once(address, bodies, wait_s=AT_ONCE_S)
    assert [response.json()["rewards"] for response in responses] == [[float(index + 1)] for index in range(8)]
    assert group_sizes(service) == [4, 4]
    first = responses[0].json()
    assert first["scores"] == first["rewards"]
    assert first["extra_logs"] == {"num_tokens": [1.0], "is_scored": [1.0]}


def test_openrlhf_batches_of_several_samples_are_answered_in_order(address: str) -> None:
    body = {"query": ["ab", "cdd", "abb"], "prompts": ["a", "c", "a"], "labels": ["", "", ""]}
    assert post_at_once(address, [("/get_reward", body)])[0].json()["rewards"] == [1.0, 2.0, 2.0]


def test_parse_texts_takes_openrlhf_s_rendered_texts_apart() -> None:
    form = PromptForm("<|user|>", "<|assistant|>", eos_texts=("</s>",))
    prompt = "<s><|user|>What is 2 + 3?<|assistant|>"
    user_turn = messages("user", "What is 2 + 3?")
    assert parse_texts(form, "<s>" + prompt + "It is 5.</s>", prompt, "") == (user_turn, CompletionText("It is 5."))
    assert parse_texts(PromptForm(), "<s>s is the plural", "s", "")[1] == CompletionText(" is the plural")
    assert parse_texts(PromptForm(), "<s> hi yes", " hi", "")[1] == CompletionText(" yes")
    begin = "<|begin_of_text|>begin again"
    assert parse_texts(PromptForm(), begin, "begin", "")[1] == CompletionText(" again")
    cut = parse_texts(form, prompt + "It is", prompt, "")
    assert cut == (user_turn, CompletionText("It is", is_finished=False))
    dialogue = [*messages("user", "Hi"), *messages("assistant", "Yes?"), *messages("user", "2 + 3?")]
    labelled = parse_texts(PromptForm(source="labels"), prompt + "5", prompt, dialogue)
    assert labelled == (dialogue, CompletionText("5"))


@pytest.mark.parametrize(
    ("form", "query", "prompt", "label", "error"),
    [
        (PromptForm(), "something else", "What?", "", "does not begin with its prompt"),
        (PromptForm(prefix="[INST]"), "Hi there", "Hi", "", "set --prompt-prefix and --prompt-suffix"),
        (PromptForm(prefix="[U]"), "[S]Be brief.[U]Hi there", "[S]Be brief.[U]Hi", "", "set --prompt-prefix"),
        (PromptForm(prefix="[U]", suffix="U]"), "[U]there", "[U]", "", "set --prompt-prefix"),
        (PromptForm(source="labels"), "Hi there", "Hi", "5", "each label should be a list"),
        (PromptForm(source="labels"), "Hi there", "Hi", [{"content": "Hi"}], r"a label\[0\]: role is missing"),
    ],
)
def test_parse_texts_refuses_texts_that_do_not_fit(
    form: PromptForm, query: str, prompt: str, label: Any, error: str
) -> None:
    with pytest.raises(UsageError, match=error):
        parse_texts(form, query, prompt, label)


def test_score_responds_in_the_shape_of_vllm(address: str, service: ScriptedService) -> None:
    one_to_many = {"model": "mixtral", "text_1": "What is 2 + 3?", "text_2": ["5", "six"]}
    pairs = {"model": "mixtral", "text_1": ["a", "b"], "text_2": ["x", "xx"]}
    single = {"text_1": "a", "text_2": "xxx"}
    bodies = [("/score", one_to_many), ("/v1/score", pairs), ("/score", single)]
    contents = [response.json() for response in post_at_once(address, bodies)]
    assert [[item["score"] for item in content["data"]] for content in contents] == [[1.0, 3.0], [1.0, 2.0], [3.0]]
    first = contents[0]
    assert set(first) == {"id", "object", "created", "model", "data", "usage"}
    assert (first["object"], first["model"]) == ("list", "mixtral")
    assert first["data"][1] == {"index": 1, "object": "score", "score": 3.0}
    assert first["usage"]["total_tokens"] == 2


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/get_reward", b"{", "should be a JSON object"),
        ("/get_reward", b"[" * 100_000, "should be a JSON object"),
        ("/get_reward", b"[]", "is a list"),
        ("/get_reward", {"prompts": ["a"]}, "query should be a text or a list"),
        ("/get_reward", {"query": ["ab"], "prompts": ["a", "b"]}, "lists of one length"),
        ("/get_reward", {"query": ["ab"], "prompts": ["a"], "labels": "x"}, "lists of one length"),
        ("/score", {"text_1": "a"}, "text_2 should be a text"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["x"]}, "text_1 has 2 texts and text_2 1"),
        ("/score", {"text_1": [1], "text_2": ["x"]}, "text_1 should be a text"),
        ("/score", b'{"text_1": "a", "text_2": ["\\ud800"]}', "text_2 is not Unicode text"),
        ("/get_reward", {"query": ["ab"], "prompts": [""]}, "the query does not begin with its prompt"),
    ],
)
def test_a_malformed_post_is_400_and_names_the_fault(
    address: str, service: ScriptedService, path: str, body: Any, error: str
) -> None:
    response = post_at_once(address, [(path, body)])[0]
    assert response.status_code == 400
    assert error in response.json()["error"]["message"]
    assert service.num_seen == 0


def test_a_full_server_is_429_with_retry_after(address: str, service: ScriptedService) -> None:
    service.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback="6500")
    response = post_at_once(address, [sample("a", "x")])[0]
    assert (response.status_code, response.headers["Retry-After"]) == (429, "7")


def test_no_server_is_503() -> None:
    response = post_at_once(NO_SERVER, [sample("a", "x")])[0]
    assert response.status_code == 503
    assert f"no reward server answers at {NO_SERVER}" in response.json()["error"]["message"]


def test_a_failure_of_the_server_reaches_every_post_of_the_group(address: str, service: ScriptedService) -> None:
    service.fail(grpc.StatusCode.INTERNAL)
    responses = post_at_once(address, [sample("a", "x"), sample("a", "xx")], wait_s=AT_ONCE_S)
    assert [response.status_code for response in responses] == [503, 503]
    assert service.num_seen == 1


def test_an_unscorable_completion_is_422_or_gets_the_unscorable_reward(address: str) -> None:
    bodies = [sample("a", "x"), sample("a", "")]
    responses = post_at_once(address, bodies, wait_s=AT_ONCE_S)
    assert [response.status_code for response in responses] == [200, 422]
    assert "completion 0 cannot be scored: empty_completion" in responses[1].json()["error"]["message"]
    with_reward = post_at_once(address, bodies, unscorable_reward=-20.0)
    assert [response.json()["rewards"] for response in with_reward] == [[1.0], [-20.0]]


def test_unknown_paths_and_methods_are_errors_in_json(address: str) -> None:
    unknown_path, wrong_method = post_at_once(address, [("/rewards", {}), ("/health", {})])
    assert (unknown_path.status_code, wrong_method.status_code) == (404, 405)
    assert "GET" in wrong_method.headers["Allow"]
    for response in (unknown_path, wrong_method):
        assert response.json()["error"]["code"] == response.status_code
        assert "POST /get_reward" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "did not respond within 5 s"),
        (grpc.StatusCode.UNAUTHENTICATED, 502, "does not know the caller"),
        (grpc.StatusCode.INTERNAL, 503, "INTERNAL"),
    ],
)
def test_failures_of_the_reward_server_have_different_codes(
    address: str, service: ScriptedService, status: grpc.StatusCode, code: int, error: str
) -> None:
    service.fail(status)
    response = post_at_once(address, [sample("a", "x")])[0]
    assert (response.status_code, response.json()["error"]["code"]) == (code, code)
    assert error in response.json()["error"]["message"]


def test_a_deadline_that_passes_is_504(address: str, service: ScriptedService) -> None:
    service.gate.clear()
    assert post_at_once(address, [sample("a", "x")], timeout_s=0.3)[0].status_code == 504


def test_a_text_beyond_the_reward_server_s_limit_is_422(address: str, service: ScriptedService) -> None:
    service.max_message_bytes = 1000
    response = post_at_once(address, [sample("a" * 2000, "x")])[0]
    assert (response.status_code, "max_message_bytes" in response.json()["error"]["message"]) == (422, True)


def test_health_is_an_error_if_the_gateway_s_token_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def check_health(address: str) -> None:
        async with AsyncRewardClient(address, timeout_s=5) as client:
            gateway = Gateway(client, RewardOptions(), PromptForm())
            with pytest.raises(ServerError, match="does not know the caller"):
                await gateway.health()
            await gateway.warn_if_away()

    with refusing_server() as address:
        asyncio.run(check_health(address))
    assert "does not know the caller" in caplog.text


def test_a_gateway_without_a_reward_server_warns_as_it_starts() -> None:
    with server_process(["--address", NO_SERVER, "--listen", "127.0.0.1:0"], verb="gateway") as process:
        assert process.stderr is not None
        read_address(process)
        assert select.select([process.stderr], [], [], 30)[0], "no warning came"
        assert f"no reward server answers at {NO_SERVER}" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_no_made_up_reward_hides_an_invalid_prompt(caplog: pytest.LogCaptureFixture) -> None:
    with refusing_server(UNKNOWN_ROLE) as address, RewardClient(address, timeout_s=10) as client:
        response = post_at_once(address, [sample("a", "x")], unscorable_reward=-20.0)[0]
        assert (response.status_code, "unknown role 'bot'" in response.json()["error"]["message"]) == (422, True)
        with pytest.raises(UsageError, match="not a conversation: unknown role 'bot'"):
            verl_call(verl.make_compute_score(client, unscorable_score=-9.0), "x")
        assert reward_function(client)(prompts=["a"], completions=["x"]) == [None]
        assert "a prompt gets no rewards: unknown role 'bot'" in caplog.text
    with refusing_server(CONTROL_TOKEN) as address, RewardClient(address, timeout_s=10) as client:
        response = post_at_once(address, [sample("a", "x")], unscorable_reward=-20.0)[0]
        assert response.json()["rewards"] == [-20.0]
        assert verl_call(verl.make_compute_score(client, unscorable_score=-9.0), "x")["score"] == -9.0


def test_winnow_gateway_serves_http_and_ends_without_an_error_on_sigterm(address: str) -> None:
    with server_process(["--address", address, "--listen", "127.0.0.1:0"], verb="gateway") as process:
        url = read_address(process)
        assert json.loads(urllib.request.urlopen(f"{url}/health", timeout=10).read()) == {"status": "ok"}
        body = json.dumps({"query": ["abc"], "prompts": ["a"], "labels": [""]}).encode()
        request = urllib.request.Request(f"{url}/get_reward", body, {"Content-Type": "application/json"})
        assert json.loads(urllib.request.urlopen(request, timeout=10).read())["rewards"] == [2.0]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")


def test_winnow_gateway_listens_beyond_loopback_only_with_allow_insecure() -> None:
    refused = winnow("gateway", "--address", NO_SERVER, "--listen", "0.0.0.0:0")
    assert (refused.returncode, "set --allow-insecure" in refused.stderr) == (2, True)
    malformed = winnow("gateway", "--address", NO_SERVER, "--listen", "8000")
    assert (malformed.returncode, "should be HOST:PORT" in malformed.stderr) == (2, True)

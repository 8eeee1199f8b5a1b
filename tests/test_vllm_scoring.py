"""The vLLM engine against the oracle, on vLLM's CPU build, and a whole server with it."""

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.tiny_models import VOCAB_SIZE
from reward_server.client import RewardClient
from reward_server.engines import TokenGroup
from reward_server.engines.loading import load_engines
from tests.completions import encode_completion
from tests.oracle import LENGTHS, MAX_ERROR, EngineCase, Oracle, assert_logprobs_equal, engine_case, logps, random_group
from tests.processes import read_address, server_process
from tests.tiny_models import make_model
from winnow.chat import Chat, load_tokenizer
from winnow.records import Message
from winnow.serve_config import ServeConfig, VllmConfig

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    # vLLM imports parts of torch that use its old compiler.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    # vLLM leaves the closing of its sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]

KINDS = ("mixtral", "mistral", "llama")
HEAD_DIM = 32  # vLLM's CPU attention needs heads of at least 32 dimensions


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineCase]:
    from reward_server.engines.vllm import VllmEngine

    folder = make_model(request.param, tmp_path_factory.mktemp(request.param), head_dim=HEAD_DIM)
    engine = VllmEngine(str(folder), VllmConfig(), dtype="float32", token_budget=64)
    yield engine_case(folder, engine)
    engine.close()


def test_each_token_has_the_log_probability_of_the_oracle(case: EngineCase) -> None:
    assert_logprobs_equal(case.engine.logprobs([case.group])[0], case.expected)


def test_each_order_all_neighbours_and_all_groups_give_the_same_scores(case: EngineCase) -> None:
    orders = ([5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 3, 4], [4], [0, 0, 0])
    groups = []
    for order in orders:
        groups.append(TokenGroup(case.group.prompt_ids, [case.group.completions[index] for index in order]))
    neighbour = random_group(40, (3, 60), seed=1)
    *results, neighbour_result = case.engine.logprobs([*groups, neighbour])
    for order, result in zip(orders, results, strict=True):
        expected = [case.expected_logps[index] for index in order]
        np.testing.assert_allclose(logps(result), expected, atol=MAX_ERROR, rtol=0)
    alone = case.engine.logprobs([neighbour])[0]
    np.testing.assert_allclose(logps(alone), logps(neighbour_result), atol=MAX_ERROR, rtol=0)


def test_a_prompt_of_one_token_and_a_conversation_of_the_full_length(case: EngineCase) -> None:
    assert case.engine.max_tokens == 511
    groups = [TokenGroup([0], [[7, 8, 9], [10]]), random_group(300, (211,), seed=2)]
    oracle = Oracle(case.folder)
    for group, values in zip(groups, case.engine.logprobs(groups), strict=True):
        expected = [oracle.logp(group.prompt_ids, completion) for completion in group.completions]
        np.testing.assert_allclose(logps(values), expected, atol=MAX_ERROR, rtol=0)


def test_the_engine_reports_its_properties(case: EngineCase) -> None:
    assert (case.engine.dtype, case.engine.device, case.engine.vocab_size) == ("float32", "cpu", VOCAB_SIZE)


@dataclass
class RecordingLlm:
    """A stand-in for vLLM's V2 runner, which the CPU build lacks: keeps the requests, drops long scores at first."""

    requests: list[Any] = field(default_factory=list)

    def generate(self, prompts: list[Any], params: list[Any], use_tqdm: bool) -> list[Any]:
        is_first_call = not self.requests
        self.requests += zip(prompts, params, strict=True)
        outputs = []
        for sampling_params in params:
            values = -np.asarray(sampling_params.prompt_logprob_token_ids, dtype=np.float32)
            output = SimpleNamespace(prompt_token_id_logprobs=values)
            if is_first_call and len(values) > 2:
                output.prompt_token_id_logprobs = None
            outputs.append(output)
        return outputs


def test_a_runner_that_scores_chosen_tokens_gets_dropped_requests_a_second_time() -> None:
    from reward_server.engines.vllm import VllmEngine

    engine = VllmEngine.__new__(VllmEngine)
    engine.llm = RecordingLlm()
    engine._can_choose_tokens = True
    first, second = engine.logprobs([TokenGroup([1, 2, 3], [[4, 5], [6, 7, 8]]), TokenGroup([1], [[9]])])
    assert [values.tolist() for values in first] == [[-4, -5], [-6, -7, -8]]
    assert [values.tolist() for values in second] == [[-9]]
    requests = [(list(prompt["prompt_token_ids"]), p.prompt_logprob_start) for prompt, p in engine.llm.requests]
    assert requests == [([1, 2, 3, 4, 5], 2), ([1, 2, 3, 6, 7, 8], 2), ([1, 9], 0), ([1, 2, 3, 6, 7, 8], 2)]
    assert all(params.skip_reading_prefix_cache for _, params in engine.llm.requests)


def flat_output(token_ids: list[int], starts: list[int]) -> Any:
    logprobs = [-float(token) for token in token_ids]
    entries = SimpleNamespace(start_indices=starts, token_ids=token_ids, logprobs=logprobs)
    return SimpleNamespace(prompt_logprobs=entries, prompt_token_ids=list(range(len(starts))))


def test_flat_logprobs_treats_wrong_and_missing_entries_as_dropped() -> None:
    from reward_server.engines.vllm import flat_logprobs

    values = flat_logprobs(flat_output([5, 6, 7], [0, 0, 1, 2]), [6, 7])
    assert values is not None
    assert values.tolist() == [-6, -7]
    assert flat_logprobs(flat_output([5, 6, 7], [0, 0, 1, 2]), [7, 7]) is None
    assert flat_logprobs(flat_output([5, 6], [0, 0, 1, 2]), [6, 7]) is None
    assert flat_logprobs(flat_output([6, 7], [0, 0, 1]), [5, 6, 7]) is None
    assert flat_logprobs(SimpleNamespace(prompt_logprobs=None, prompt_token_ids=[1, 2]), [2]) is None


def test_visible_devices_limits_what_new_processes_see(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from reward_server.engines.vllm import DEVICES_VARIABLE, visible_devices

    monkeypatch.setenv(DEVICES_VARIABLE, "0,1,2,3")
    with visible_devices("2,3"):
        assert os.environ[DEVICES_VARIABLE] == "2,3"
    with visible_devices(None):
        assert os.environ[DEVICES_VARIABLE] == "0,1,2,3"
    monkeypatch.delenv(DEVICES_VARIABLE)
    with visible_devices("1"):
        assert os.environ[DEVICES_VARIABLE] == "1"
    assert DEVICES_VARIABLE not in os.environ


def test_two_engines_that_compute_at_the_same_time_score_as_each_alone(tmp_path: Path) -> None:
    folders = [make_model("mistral", tmp_path / name, seed, head_dim=HEAD_DIM) for seed, name in enumerate(["a", "b"])]
    config = ServeConfig(instruct=str(folders[0]), base=str(folders[1]), engine="vllm", dtype="float32", max_tokens=128)
    group = random_group(17, LENGTHS)
    expected = []
    for folder in folders:
        expected.append([float(values.sum()) for values in Oracle(folder).group_logprobs(group)])
    engines = load_engines(config)
    try:
        with ThreadPoolExecutor(len(engines)) as threads:
            for _ in range(5):
                results = threads.map(lambda engine: engine.logprobs([group])[0], engines)
                np.testing.assert_allclose([logps(values) for values in results], expected, atol=MAX_ERROR, rtol=0)
    finally:
        for engine in engines:
            engine.close()


def test_a_server_with_two_vllm_engines_answers_a_call(tmp_path: Path) -> None:
    folders = [make_model("mistral", tmp_path / name, seed, head_dim=HEAD_DIM) for seed, name in enumerate(["a", "b"])]
    config = {"instruct": str(folders[0]), "base": str(folders[1]), "engine": "vllm", "chat_template": "lab"}
    (tmp_path / "serve.yaml").write_text(json.dumps({**config, "listen": "127.0.0.1:0", "max_tokens": 128}))
    log_path = tmp_path / "log"
    with log_path.open("w") as log, server_process([str(tmp_path / "serve.yaml")], stderr=log) as process:
        with RewardClient(read_address(process), timeout_s=120) as client:
            client.wait_until_ready(60)
            scores = list(client.score([{"role": "user", "content": "Hi"}], ["It is 5.", ""]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log_path.read_text()[-3000:]
    chat = Chat(load_tokenizer(str(folders[0])), "lab")
    prompt_ids, completion_ids = encode_completion(chat, [Message(role="user", content="Hi")], "It is 5.")
    instruct, base = (Oracle(folder).logp(prompt_ids, completion_ids) for folder in folders)
    assert scores[0].reward == pytest.approx(instruct - base, abs=2e-3)
    assert scores[1].status == "empty_completion"

"""The vLLM engine against the oracle, on vLLM's CPU build, and a whole server with it."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from reward_server.client import RewardClient
from reward_server.engines import Logprobs, ScoringEngine, TokenGroup
from reward_server.engines.loading import load_engines
from tests.oracle import Oracle
from tests.tiny_models import VOCAB_SIZE, make_model
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
LENGTHS = (5, 1, 23, 12, 40, 12)
MAX_ERROR = 1e-3  # of logp, in single precision
HEAD_DIM = 32  # vLLM's CPU attention wants heads of at least 32 dimensions
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Case:
    """A model and a group, with what the oracle says of it."""

    folder: Path
    engine: ScoringEngine
    group: TokenGroup
    expected: list[npt.NDArray[np.float64]]


def random_group(num_prompt: int, lengths: tuple[int, ...], seed: int = 0) -> TokenGroup:
    generator = np.random.default_rng(seed)
    prompt, *completions = (generator.integers(6, VOCAB_SIZE, size).tolist() for size in (num_prompt, *lengths))
    return TokenGroup(prompt, completions)


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    from reward_server.engines.vllm import VllmEngine

    folder = make_model(request.param, tmp_path_factory.mktemp(request.param), head_dim=HEAD_DIM)
    engine = VllmEngine(str(folder), VllmConfig(), dtype="float32", token_budget=64)
    group, oracle = random_group(17, LENGTHS), Oracle(folder)
    yield Case(folder, engine, group, [oracle.logprobs(group.prompt_ids, one) for one in group.completions])
    engine.close()


def logps(logprobs: list[Logprobs]) -> npt.NDArray[np.float64]:
    return np.array([one.sum(dtype=np.float64) for one in logprobs])


def test_every_token_is_as_the_oracle_says(case: Case) -> None:
    values = case.engine.logprobs([case.group])[0]
    assert [(one.shape, one.dtype) for one in values] == [((length,), np.dtype("float32")) for length in LENGTHS]
    for ours, expected in zip(values, case.expected, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
        assert abs(ours.sum(dtype=np.float64) - expected.sum()) <= MAX_ERROR


def test_any_order_any_neighbours_and_any_company_of_groups_give_the_same_scores(case: Case) -> None:
    expected = [one.sum() for one in case.expected]
    orders = ([5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 3, 4], [4], [0, 0, 0])
    groups = [TokenGroup(case.group.prompt_ids, [case.group.completions[i] for i in order]) for order in orders]
    other = random_group(40, (3, 60), seed=1)
    *answers, neighbours = case.engine.logprobs([*groups, other])
    for order, answer in zip(orders, answers, strict=True):
        np.testing.assert_allclose(logps(answer), [expected[i] for i in order], atol=MAX_ERROR, rtol=0)
    np.testing.assert_allclose(logps(case.engine.logprobs([other])[0]), logps(neighbours), atol=MAX_ERROR, rtol=0)


def test_a_prompt_of_one_token_and_a_conversation_of_the_full_length(case: Case) -> None:
    assert case.engine.max_tokens == 511
    groups = [TokenGroup([0], [[7, 8, 9], [10]]), random_group(300, (211,), seed=2)]
    oracle = Oracle(case.folder)
    for group, values in zip(groups, case.engine.logprobs(groups), strict=True):
        expected = [oracle.logp(group.prompt_ids, completion) for completion in group.completions]
        np.testing.assert_allclose(logps(values), expected, atol=MAX_ERROR, rtol=0)


def test_the_engine_says_what_it_holds(case: Case) -> None:
    assert (case.engine.dtype, case.engine.device, case.engine.vocab_size) == ("float32", "cpu", VOCAB_SIZE)


@dataclass
class RecordedLlm:
    """Stands in for vLLM's V2 runner, which the CPU build lacks: keeps the requests, drops long scores at first."""

    requests: list[Any] = field(default_factory=list)

    def generate(self, prompts: list[Any], params: list[Any], use_tqdm: bool) -> list[Any]:
        is_first = not self.requests
        self.requests += zip(prompts, params, strict=True)
        rows = [np.asarray(one.prompt_logprob_token_ids, dtype=np.float32) for one in params]
        return [SimpleNamespace(prompt_token_id_logprobs=None if is_first and len(one) > 2 else -one) for one in rows]


def test_a_runner_that_scores_chosen_rows_is_asked_for_them_and_asked_again_where_it_drops_them() -> None:
    from reward_server.engines.vllm import VllmEngine

    engine = VllmEngine.__new__(VllmEngine)
    engine.llm, engine._scores_chosen_rows = RecordedLlm(), True
    values = engine.logprobs([TokenGroup([1, 2, 3], [[4, 5], [6, 7, 8]]), TokenGroup([1], [[9]])])
    assert [[one.tolist() for one in group] for group in values] == [[[-4, -5], [-6, -7, -8]], [[-9]]]
    asked = [(list(p["prompt_token_ids"]), s.prompt_logprob_start) for p, s in engine.llm.requests]
    assert asked == [([1, 2, 3, 4, 5], 2), ([1, 2, 3, 6, 7, 8], 2), ([1, 9], 0), ([1, 2, 3, 6, 7, 8], 2)]
    assert all(params.skip_reading_prefix_cache for _, params in engine.llm.requests)


def flat(token_ids: list[int], starts: list[int]) -> Any:
    logprobs = [-float(token) for token in token_ids]
    entries = SimpleNamespace(start_indices=starts, token_ids=token_ids, logprobs=logprobs)
    return SimpleNamespace(prompt_logprobs=entries, prompt_token_ids=list(range(len(starts))))


def test_entries_of_other_tokens_and_missing_ones_count_as_dropped() -> None:
    from reward_server.engines.vllm import flat_values

    values = flat_values(flat([5, 6, 7], [0, 0, 1, 2]), [6, 7])
    assert values is not None
    assert values.tolist() == [-6, -7]
    assert flat_values(flat([5, 6, 7], [0, 0, 1, 2]), [7, 7]) is None
    assert flat_values(flat([5, 6], [0, 0, 1, 2]), [6, 7]) is None
    assert flat_values(flat([6, 7], [0, 0, 1]), [5, 6, 7]) is None
    assert flat_values(SimpleNamespace(prompt_logprobs=None, prompt_token_ids=[1, 2]), [2]) is None


def test_an_engine_s_processes_see_its_own_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from reward_server.engines.vllm import DEVICES, visible_devices

    monkeypatch.setenv(DEVICES, "0,1,2,3")
    with visible_devices("2,3"):
        assert os.environ[DEVICES] == "2,3"
    with visible_devices(None):
        assert os.environ[DEVICES] == "0,1,2,3"
    monkeypatch.delenv(DEVICES)
    with visible_devices("1"):
        assert os.environ[DEVICES] == "1"
    assert DEVICES not in os.environ


def test_two_engines_that_are_asked_at_the_same_time_answer_as_each_alone(tmp_path: Path) -> None:
    folders = [make_model("mistral", tmp_path / name, seed, head_dim=HEAD_DIM) for seed, name in enumerate(["a", "b"])]
    config = ServeConfig(instruct=str(folders[0]), base=str(folders[1]), engine="vllm", dtype="float32", max_tokens=128)
    group = random_group(17, LENGTHS)
    expected = [[Oracle(folder).logp(group.prompt_ids, one) for one in group.completions] for folder in folders]
    engines = load_engines(config)
    try:
        with ThreadPoolExecutor(len(engines)) as threads:
            for _ in range(5):
                answers = threads.map(lambda engine: engine.logprobs([group])[0], engines)
                np.testing.assert_allclose([logps(values) for values in answers], expected, atol=MAX_ERROR, rtol=0)
    finally:
        for engine in engines:
            engine.close()


def test_a_server_with_two_vllm_engines_answers_a_call(tmp_path: Path) -> None:
    folders = [make_model("mistral", tmp_path / name, seed, head_dim=HEAD_DIM) for seed, name in enumerate(["a", "b"])]
    config = {"instruct": str(folders[0]), "base": str(folders[1]), "engine": "vllm", "chat_template": "lab"}
    (tmp_path / "serve.yaml").write_text(json.dumps({**config, "listen": "127.0.0.1:0", "max_tokens": 128}))
    command = [sys.executable, "-m", "winnow.cli", "serve", str(tmp_path / "serve.yaml")]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT) as process,
    ):
        try:
            address = address_of(process)
            assert address, (tmp_path / "log").read_text()[-3000:]
            with RewardClient(address, timeout_s=120) as client:
                client.wait_until_ready(60)
                scores = list(client.score([{"role": "user", "content": "Hi"}], ["It is 5.", ""]))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, (tmp_path / "log").read_text()[-3000:]
        finally:
            process.kill()
    pair = Chat(load_tokenizer(str(folders[0])), "lab").scored_pair([Message(role="user", content="Hi")], "It is 5.")
    instruct, base = (Oracle(folder).logp(pair.prompt_ids, pair.completion_ids) for folder in folders)
    assert scores[0].reward == pytest.approx(instruct - base, abs=2e-3)
    assert scores[1].status == "empty_completion"


def address_of(process: "subprocess.Popen[str]") -> str:
    """Where the server listens, which is the first thing it writes to stdout; empty when it ended instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening on ") or not line
    return line.removeprefix("listening on ").strip()

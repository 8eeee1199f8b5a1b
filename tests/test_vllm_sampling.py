"""The vLLM engine on a tiny model: the same completions as transformers where nothing is left to chance."""

from collections.abc import Iterator
from typing import Any

import pytest

from sampler.engines import Sampling, SamplingEngine, open_engine
from tests.tiny_models import make_model
from winnow.chat import Chat, load_tokenizer
from winnow.records import Message
from winnow.run_config import SamplingConfig

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    # vLLM imports parts of torch that use its old compiler.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

CONFIG = SamplingConfig(engine="vllm", max_model_len=256)
QUESTIONS = ["What is 2 + 3?", "Name a colour.", "Say hello to everybody in the room, please."]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model("mistral", tmp_path_factory.mktemp("models") / "mistral", seed=3, head_dim=32))


@pytest.fixture(scope="module")
def chat(model: str) -> Chat:
    return Chat(load_tokenizer(model), "lab", "Be careful.")


@pytest.fixture(scope="module")
def engine(model: str, chat: Chat) -> Iterator[SamplingEngine]:
    from sampler.engines.vllm import VllmEngine

    engine = open_engine(CONFIG, model, chat, "float32")
    assert isinstance(engine, VllmEngine)
    yield engine
    engine.llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def prompts(chat: Chat) -> list[list[int]]:
    return [chat.prompt_ids([Message(role="user", content=question)]) for question in QUESTIONS]


def sampling(**changes: Any) -> Sampling:
    values = {"num_completions": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12, "seed": 5}
    return Sampling(**{**values, **changes})


def test_greedy_completions_are_those_of_the_transformers_engine(
    engine: SamplingEngine, model: str, chat: Chat, prompts: list[list[int]]
) -> None:
    other = open_engine(SamplingConfig(), model, chat, "float32")
    greedy = sampling(temperature=0.0, num_completions=2)
    assert engine.sample(prompts, greedy) == other.sample(prompts, greedy)


def test_a_seed_repeats_itself_and_another_differs(engine: SamplingEngine, prompts: list[list[int]]) -> None:
    first = engine.sample(prompts, sampling())
    assert engine.sample(prompts, sampling()) == first
    assert engine.sample(prompts, sampling(seed=6)) != first


def test_completions_of_a_prompt_differ_and_keep_its_place(engine: SamplingEngine, prompts: list[list[int]]) -> None:
    groups = engine.sample([prompts[0], prompts[0], prompts[2]], sampling())
    assert [len(group) for group in groups] == [4, 4, 4]
    assert len({one.text for one in groups[0] + groups[1]}) == 8


def test_a_completion_is_finished_only_by_the_end_of_sequence_token(
    engine: SamplingEngine, prompts: list[list[int]]
) -> None:
    ones = [one for group in engine.sample(prompts, sampling(num_completions=64, max_new_tokens=48)) for one in group]
    assert {one.is_finished for one in ones} == {True, False}
    assert all(one.is_finished or one.num_tokens == 48 for one in ones)
    assert all("<|endoftext|>" not in one.text for one in ones)


def test_a_small_top_p_leaves_only_the_likeliest_token(engine: SamplingEngine, prompts: list[list[int]]) -> None:
    narrow = engine.sample(prompts, sampling(top_p=1e-6))
    assert narrow == engine.sample(prompts, sampling(temperature=0.0))

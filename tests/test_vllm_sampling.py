"""`VllmSampler` on a tiny model: greedy completions are equal to those of `TransformersSampler`."""

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest

from sampler.engines import SamplingEngine, SamplingParams, open_engine, sample_conversations
from tests.tiny_models import make_model
from winnow.chat import Chat, load_tokenizer
from winnow.completion_ids import cut_after_stop
from winnow.records import Message
from winnow.run_config import SamplingConfig

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    # vLLM imports parts of torch that use its old compiler.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

Prompts = dict[str, list[int]]
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
    from sampler.engines.vllm import VllmSampler

    engine = open_engine(CONFIG, model, chat, "float32")
    assert isinstance(engine, VllmSampler)
    yield engine
    engine.llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def prompts(chat: Chat) -> Prompts:
    return {question: chat.prompt_ids([Message(role="user", content=question)]) for question in QUESTIONS}


def sampling(**changes: Any) -> SamplingParams:
    values = {"num_completions": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12, "seed": 5}
    return SamplingParams(**{**values, **changes})


def test_greedy_completions_are_those_of_the_transformers_sampler(
    engine: SamplingEngine, model: str, chat: Chat, prompts: Prompts
) -> None:
    transformers_sampler = open_engine(SamplingConfig(), model, chat, "float32")
    greedy = sampling(temperature=0.0, num_completions=2)
    expected = transformers_sampler.sample(prompts, greedy)
    generated = engine.sample(prompts, greedy)
    for question in QUESTIONS:
        [token_ids] = generated[question]
        assert token_ids == cut_after_stop(expected[question][0], chat.stop_ids)


def test_equal_seeds_give_equal_completions_and_another_seed_different_ones(
    engine: SamplingEngine, prompts: Prompts
) -> None:
    first = engine.sample(prompts, sampling())
    assert engine.sample(prompts, sampling()) == first
    assert engine.sample(prompts, sampling(seed=6)) != first


def test_completions_of_equal_prompts_differ_and_keep_their_prompt(engine: SamplingEngine, prompts: Prompts) -> None:
    first = prompts[QUESTIONS[0]]
    generated = engine.sample({"a": first, "b": first, "c": prompts[QUESTIONS[2]]}, sampling())
    assert {prompt_id: len(sequences) for prompt_id, sequences in generated.items()} == {"a": 4, "b": 4, "c": 4}
    assert len(set(map(tuple, generated["a"] + generated["b"]))) == 8


def test_a_completion_is_finished_only_by_the_end_of_sequence_token(engine: SamplingEngine, chat: Chat) -> None:
    conversations = {question: [Message(role="user", content=question)] for question in QUESTIONS}
    completions = sample_conversations(engine, chat, conversations, sampling(num_completions=64, max_new_tokens=48))
    rows = list(chain.from_iterable(completions.values()))
    assert {row.is_finished for row in rows} == {True, False}
    assert all(row.is_finished or row.num_tokens == 48 for row in rows)
    assert all("<|endoftext|>" not in row.text for row in rows)
    assert all(row.is_finished == (row.token_ids[-1] == chat.end_of_turn_id) for row in rows)


def test_sampling_stops_at_every_id_of_the_models_list(engine: SamplingEngine, chat: Chat, prompts: Prompts) -> None:
    from sampler.engines.vllm import VllmSampler

    assert isinstance(engine, VllmSampler)
    greedy = sampling(temperature=0.0, max_new_tokens=32)
    unstopped = engine.sample(prompts, greedy)
    stop = unstopped[QUESTIONS[0]][0][3]
    stopping = copy.copy(engine)  # with another list; loading a second engine takes minutes
    stopping.stop_token_ids = sorted({*chat.stop_ids, stop})
    generated = stopping.sample(prompts, greedy)
    for question in QUESTIONS:
        assert generated[question][0] == cut_after_stop(unstopped[question][0], {*chat.stop_ids, stop})
    assert generated[QUESTIONS[0]][0][-1] == stop


def test_a_small_top_p_leaves_only_the_likeliest_token(engine: SamplingEngine, prompts: Prompts) -> None:
    narrow = engine.sample(prompts, sampling(top_p=1e-6))
    greedy = engine.sample(prompts, sampling(temperature=0.0))
    assert narrow == {question: sequences * 4 for question, sequences in greedy.items()}

"""`TransformersSampler`: its distribution and its seeds; batching and caching change no completion."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from sampler.engines import SamplingParams, open_engine, sample_conversations
from sampler.engines import transformers as transformers_engine
from sampler.engines.transformers import TransformersSampler, batches
from tests.tiny_models import make_model
from winnow.chat import Chat, load_chat, load_tokenizer
from winnow.completion_ids import cut_after_stop
from winnow.errors import ModelError, UsageError
from winnow.records import Completion, Message
from winnow.run_config import PolicyConfig, SamplingConfig

QUESTIONS = ["What is 2 + 3?", "Name a colour.", "Say hello to everybody in the room, please."]


def open_tiny(folder: Path, kind: str = "mistral", **settings: Any) -> TransformersSampler:
    model = str(make_model(kind, folder / kind, seed=3, **settings))
    chat = Chat(load_tokenizer(model), "lab", "Be careful.")
    engine = open_engine(SamplingConfig(), model, chat, "float32")
    assert isinstance(engine, TransformersSampler)
    return engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersSampler:
    return open_tiny(tmp_path_factory.mktemp("models"))


def prompts_of(engine: TransformersSampler, questions: list[str] = QUESTIONS) -> dict[str, list[int]]:
    """Return the questions as token ids, under the questions as ids."""
    return {question: engine.chat.prompt_ids([Message(role="user", content=question)]) for question in questions}


def sampling(**changes: Any) -> SamplingParams:
    values = {"num_completions": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12, "seed": 5}
    return SamplingParams(**{**values, **changes})


def completions_of(
    engine: TransformersSampler, params: SamplingParams, questions: list[str] = QUESTIONS
) -> dict[str, list[Completion]]:
    """Return the completions of the questions, under the questions as ids."""
    conversations = {question: [Message(role="user", content=question)] for question in questions}
    return sample_conversations(engine, engine.chat, conversations, params)


def sample_first_question(engine: TransformersSampler, params: SamplingParams) -> list[Completion]:
    return completions_of(engine, params, QUESTIONS[:1])[QUESTIONS[0]]


@torch.inference_mode()
def greedy_ids(engine: TransformersSampler, prompt: list[int], max_new_tokens: int) -> tuple[int, ...]:
    """Decode the likeliest tokens one by one, without cache, padding or batch."""
    token_ids = list(prompt)
    for _ in range(max_new_tokens):
        token_ids.append(int(engine.model(torch.tensor([token_ids])).logits[0, -1].argmax()))
        if token_ids[-1] in engine.chat.stop_ids:
            break
    return tuple(token_ids[len(prompt) :])


@pytest.mark.parametrize("kind", ["mixtral", "mistral", "llama"])
def test_batches_of_unequal_prompts_give_what_one_sequence_at_a_time_gives(kind: str, tmp_path: Path) -> None:
    engine = open_tiny(tmp_path, kind)
    prompts = prompts_of(engine)
    assert len({len(token_ids) for token_ids in prompts.values()}) == 3
    completions = completions_of(engine, sampling(temperature=0.0, num_completions=2))
    for question, token_ids in prompts.items():
        expected = greedy_ids(engine, token_ids, 12)
        assert [row.token_ids for row in completions[question]] == [expected, expected]


def test_completions_are_numbered_rows_of_their_prompt(engine: TransformersSampler) -> None:
    for temperature in (0.0, 1.0):
        sampled = completions_of(engine, sampling(temperature=temperature))
        assert list(sampled) == QUESTIONS
        for question, completions in sampled.items():
            assert [(row.prompt_id, row.completion_id) for row in completions] == [(question, n) for n in range(4)]
            assert {row.status for row in completions} <= {"ok", "control_token"}


def test_equal_seeds_give_equal_completions_after_any_earlier_draws(engine: TransformersSampler) -> None:
    prompts = prompts_of(engine)
    first = engine.sample(prompts, sampling())
    torch.rand(7)
    assert engine.sample(prompts, sampling()) == first
    assert engine.sample(prompts, sampling(seed=6)) != first


def test_sampling_does_not_change_the_random_state_of_the_process(engine: TransformersSampler) -> None:
    before = torch.random.get_rng_state()
    engine.sample(prompts_of(engine), sampling())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_completions_come_in_the_order_of_the_prompts_for_any_batch_size(
    engine: TransformersSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(engine)
    greedy = sampling(temperature=0.0)
    together = engine.sample(prompts, greedy)
    monkeypatch.setitem(transformers_engine.BATCH_TOKENS, "cpu", 1)
    for questions in (QUESTIONS, QUESTIONS[::-1]):
        completions = engine.sample(prompts_of(engine, questions), greedy)
        assert list(completions) == questions
        assert completions == together


def test_first_tokens_are_drawn_from_the_whole_distribution(engine: TransformersSampler) -> None:
    """No top-k: transformers' default of 50 would leave 50 of the 384 tokens."""
    params = sampling(num_completions=4000, max_new_tokens=1, temperature=3.0)
    assert len({row.token_ids for row in sample_first_question(engine, params)}) > 100


def test_first_tokens_are_as_frequent_as_they_are_likely(engine: TransformersSampler) -> None:
    prompt = prompts_of(engine)[QUESTIONS[0]]
    with torch.inference_mode():
        likely = engine.model(torch.tensor([prompt])).logits[0, -1].softmax(dim=0)
    token = int(likely.argmax())
    completions = sample_first_question(engine, sampling(num_completions=4000, max_new_tokens=1))
    share = Counter(row.token_ids for row in completions)[token,] / 4000
    assert share == pytest.approx(float(likely[token]), abs=0.03)


def test_a_small_top_p_leaves_only_the_likeliest_token(engine: TransformersSampler) -> None:
    assert completions_of(engine, sampling(top_p=1e-6)) == completions_of(engine, sampling(temperature=0.0))


def test_a_completion_is_finished_only_by_the_end_of_sequence_token(engine: TransformersSampler) -> None:
    completions = sample_first_question(engine, sampling(num_completions=256, max_new_tokens=48))
    assert {row.is_finished for row in completions} == {True, False}
    assert all(row.is_finished or row.num_tokens == 48 for row in completions)
    assert all("<|endoftext|>" not in row.text for row in completions)
    assert all(row.is_finished == (row.token_ids[-1] == engine.chat.end_of_turn_id) for row in completions)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampling_stops_at_every_id_of_the_models_list(tmp_path: Path, temperature: float) -> None:
    folder = make_model("mistral", tmp_path / "mistral", seed=3)
    chat = Chat(load_tokenizer(str(folder)), "lab")
    plain = TransformersSampler(str(folder), chat, "float32")
    params = sampling(temperature=temperature, max_new_tokens=32)
    unstopped = [row.token_ids for row in sample_first_question(plain, params)]
    stop = unstopped[0][3]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, stop]}))
    stopping = TransformersSampler(str(folder), load_chat(PolicyConfig(model=str(folder)), str(folder)), "float32")
    assert stopping.chat.stop_ids == {1, stop}
    first = sample_first_question(stopping, params)[0]
    assert first.token_ids == tuple(cut_after_stop(unstopped[0], {1, stop}))
    assert (first.is_finished, first.token_ids[-1]) == (True, stop)


def test_the_generation_config_of_a_checkpoint_is_ignored(tmp_path: Path) -> None:
    plain = open_tiny(tmp_path / "plain")
    folder = make_model("mistral", tmp_path / "configured", seed=3)
    settings = {"do_sample": True, "top_k": 1, "repetition_penalty": 5.0, "min_new_tokens": 12, "temperature": 0.1}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    configured = TransformersSampler(str(folder), plain.chat, "float32")
    prompts = prompts_of(plain)
    assert configured.sample(prompts, sampling()) == plain.sample(prompts, sampling())


def test_batches_hold_prompts_of_similar_length_within_the_token_budget() -> None:
    lengths = {"a": 10, "b": 300, "c": 12, "d": 290, "e": 11}
    prompts = {prompt_id: [7] * length for prompt_id, length in lengths.items()}
    two_batches = list(batches(prompts, sampling(num_completions=2, max_new_tokens=10), 1300))
    assert [list(batch) for batch in two_batches] == [["b", "d"], ["c", "e", "a"]]
    assert two_batches[0] == {"b": prompts["b"], "d": prompts["d"]}
    single_prompts = list(batches(prompts, sampling(), 1))
    assert [list(batch) for batch in single_prompts] == [["b"], ["d"], ["c"], ["e"], ["a"]]


def test_a_missing_model_is_one_clear_line(engine: TransformersSampler, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        TransformersSampler(str(tmp_path / "none"), engine.chat, "float32")
    with pytest.raises(ModelError, match="no model could be loaded"):
        TransformersSampler(str(tmp_path), engine.chat, "float32")

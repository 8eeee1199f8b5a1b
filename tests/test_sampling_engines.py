"""The transformers engine: what it samples, from what noise, and that batching and caching change nothing."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from sampler.engines import Sampling, open_engine
from sampler.engines import transformers as transformers_engine
from sampler.engines.transformers import TransformersEngine, batches
from tests.tiny_models import make_model
from winnow.chat import Chat, load_tokenizer
from winnow.errors import ModelError, UsageError
from winnow.records import Message
from winnow.run_config import SamplingConfig

QUESTIONS = ["What is 2 + 3?", "Name a colour.", "Say hello to everybody in the room, please."]


def open_tiny(folder: Path, kind: str = "mistral", **settings: Any) -> TransformersEngine:
    model = str(make_model(kind, folder / kind, seed=3, **settings))
    chat = Chat(load_tokenizer(model), "lab", "Be careful.")
    engine = open_engine(SamplingConfig(), model, chat, "float32")
    assert isinstance(engine, TransformersEngine)
    return engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    return open_tiny(tmp_path_factory.mktemp("models"))


def prompts_of(engine: TransformersEngine, questions: list[str] = QUESTIONS) -> list[list[int]]:
    return [engine.chat.prompt_ids([Message(role="user", content=question)]) for question in questions]


def sampling(**changes: Any) -> Sampling:
    values = {"num_completions": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12, "seed": 5}
    return Sampling(**{**values, **changes})


@torch.inference_mode()
def greedy_text(engine: TransformersEngine, prompt: list[int], max_new_tokens: int) -> str:
    """The likeliest tokens one by one: no cache, no padding, no batch."""
    token_ids = list(prompt)
    for _ in range(max_new_tokens):
        token_ids.append(int(engine.model(torch.tensor([token_ids])).logits[0, -1].argmax()))
        if token_ids[-1] == engine.chat.eos_token_id:
            break
    return str(engine.chat.tokenizer.decode(token_ids[len(prompt) :], skip_special_tokens=True))


@pytest.mark.parametrize("kind", ["mixtral", "mistral", "llama"])
def test_batches_of_unequal_prompts_give_what_one_sequence_at_a_time_gives(kind: str, tmp_path: Path) -> None:
    engine = open_tiny(tmp_path, kind)
    prompts = prompts_of(engine)
    assert len({len(prompt) for prompt in prompts}) == 3
    groups = engine.sample(prompts, sampling(temperature=0.0, num_completions=2))
    wanted = [greedy_text(engine, prompt, 12) for prompt in prompts]
    assert [[one.text for one in group] for group in groups] == [[text, text] for text in wanted]


def test_a_seed_repeats_itself_whatever_the_process_drew_before(engine: TransformersEngine) -> None:
    prompts = prompts_of(engine)
    first = engine.sample(prompts, sampling())
    torch.rand(7)
    assert engine.sample(prompts, sampling()) == first
    assert engine.sample(prompts, sampling(seed=6)) != first


def test_sampling_leaves_the_random_state_of_the_process_alone(engine: TransformersEngine) -> None:
    before = torch.random.get_rng_state()
    engine.sample(prompts_of(engine), sampling())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_completions_come_in_the_order_of_the_prompts_however_they_are_batched(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(engine)
    greedy = sampling(temperature=0.0)
    together = engine.sample(prompts, greedy)
    monkeypatch.setitem(transformers_engine.BATCH_TOKENS, "cpu", 1)
    assert engine.sample(prompts, greedy) == together
    assert engine.sample(prompts[::-1], greedy) == together[::-1]


def test_first_tokens_are_drawn_from_the_whole_distribution(engine: TransformersEngine) -> None:
    """No top-k: transformers' default of 50 would leave 50 of the 384 tokens."""
    prompt = prompts_of(engine)[0]
    groups = engine.sample([prompt], sampling(num_completions=4000, max_new_tokens=1, temperature=3.0))
    assert len({one.text for one in groups[0]}) > 100


def test_first_tokens_are_as_frequent_as_they_are_likely(engine: TransformersEngine) -> None:
    prompt = prompts_of(engine)[0]
    with torch.inference_mode():
        likely = engine.model(torch.tensor([prompt])).logits[0, -1].softmax(dim=0)
    token = int(likely.argmax())
    text = engine.chat.tokenizer.decode([token])
    group = engine.sample([prompt], sampling(num_completions=4000, max_new_tokens=1))[0]
    share = Counter(one.text for one in group)[text] / 4000
    assert share == pytest.approx(float(likely[token]), abs=0.03)


def test_a_small_top_p_leaves_only_the_likeliest_token(engine: TransformersEngine) -> None:
    prompts = prompts_of(engine)
    assert engine.sample(prompts, sampling(top_p=1e-6)) == engine.sample(prompts, sampling(temperature=0.0))


def test_a_completion_is_finished_only_by_the_end_of_sequence_token(engine: TransformersEngine) -> None:
    group = engine.sample(prompts_of(engine)[:1], sampling(num_completions=256, max_new_tokens=48))[0]
    assert {one.is_finished for one in group} == {True, False}
    assert all(one.is_finished or one.num_tokens == 48 for one in group)
    assert all("<|endoftext|>" not in one.text and "<|pad|>" not in one.text for one in group)


def test_the_generation_config_of_a_checkpoint_takes_no_part(tmp_path: Path) -> None:
    plain = open_tiny(tmp_path / "plain")
    folder = make_model("mistral", tmp_path / "own", seed=3)
    settings = {"do_sample": True, "top_k": 1, "repetition_penalty": 5.0, "min_new_tokens": 12, "temperature": 0.1}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    other = TransformersEngine(str(folder), plain.chat, "float32")
    prompts = prompts_of(plain)
    assert other.sample(prompts, sampling()) == plain.sample(prompts, sampling())


def test_batches_hold_prompts_of_like_length_within_the_token_budget() -> None:
    lengths = [10, 300, 12, 290, 11]
    found = list(batches(lengths, sampling(num_completions=2, max_new_tokens=10), 1300))
    assert found == [[1, 3], [2, 4, 0]]
    assert list(batches(lengths, sampling(), 1)) == [[1], [3], [2], [4], [0]]


def test_a_model_that_is_not_there_is_one_clear_line(engine: TransformersEngine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        TransformersEngine(str(tmp_path / "none"), engine.chat, "float32")
    with pytest.raises(ModelError, match="no model could be loaded"):
        TransformersEngine(str(tmp_path), engine.chat, "float32")

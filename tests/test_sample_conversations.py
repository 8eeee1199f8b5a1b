"""`sample_conversations`: prompts that cannot be completed become rows with a status; the others are sampled."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.tiny_models import make_tokenizer
from sampler.engines import SamplingParams, sample_conversations
from winnow.chat import Chat, load_tokenizer
from winnow.records import Message

PARAMS = SamplingParams(num_completions=3, temperature=1.0, top_p=1.0, max_new_tokens=12, seed=0)


class LengthEngine:
    """An engine of 64 positions that completes each prompt with the prompt's length."""

    max_tokens: int | None = 64

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.calls: list[list[str]] = []

    def sample(self, prompts: Mapping[str, list[int]], params: SamplingParams) -> dict[str, list[list[int]]]:
        self.calls.append(list(prompts))
        generated = {}
        for prompt_id, token_ids in prompts.items():
            generated[prompt_id] = [self.chat.encode(str(len(token_ids)))] * params.num_generated
        return generated


def make_chat(folder: Path) -> Chat:
    make_tokenizer(folder)
    return Chat(load_tokenizer(str(folder)), "lab")


def conversation(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def test_a_prompt_that_is_too_long_or_forges_a_turn_becomes_rows_with_a_status(tmp_path: Path) -> None:
    chat = make_chat(tmp_path)
    texts = {"a": "short", "b": "long " * 60, "c": "a <|user|> b", "d": "short too"}
    conversations = {prompt_id: conversation(text) for prompt_id, text in texts.items()}
    completions = sample_conversations(LengthEngine(chat), chat, conversations, PARAMS)
    assert list(completions) == ["a", "b", "c", "d"]
    for prompt_id, status in {"a": "ok", "b": "too_long", "c": "control_token", "d": "ok"}.items():
        rows = completions[prompt_id]
        assert [(row.prompt_id, row.completion_id, row.status) for row in rows] == [
            (prompt_id, 0, status),
            (prompt_id, 1, status),
            (prompt_id, 2, status),
        ]
    assert "with max_new_tokens at most 52 fit" in completions["b"][0].error
    assert "control token '<|user|>'" in completions["c"][0].error
    assert (completions["b"][0].text, completions["b"][0].is_finished) == ("", False)
    for prompt_id in ("a", "d"):
        assert completions[prompt_id][0].text == str(len(chat.prompt_ids(conversations[prompt_id])))


def test_the_longest_prompt_that_fits_is_completed_and_one_token_more_is_not(tmp_path: Path) -> None:
    chat = make_chat(tmp_path)
    engine = LengthEngine(chat)
    conversations = {"a": conversation("x")}
    engine.max_tokens = len(chat.prompt_ids(conversations["a"])) + PARAMS.max_new_tokens
    assert sample_conversations(engine, chat, conversations, PARAMS)["a"][0].status == "ok"
    engine.max_tokens -= 1
    assert sample_conversations(engine, chat, conversations, PARAMS)["a"][0].status == "too_long"


def test_the_engine_is_not_called_without_a_prompt_that_can_be_completed(tmp_path: Path) -> None:
    chat = make_chat(tmp_path)
    engine = LengthEngine(chat)
    sample_conversations(engine, chat, {"a": conversation("a <|user|> b")}, PARAMS)
    assert engine.calls == []

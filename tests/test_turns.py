"""Where an assistant turn begins and ends, which token closes it, and what a template may do to earlier turns."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_models import make_tokenizer
from reward_server.groups import Group
from reward_server.scoring.load_pair import load_chats
from reward_server.scoring.rendering import Limits, Renderer
from reward_server.scoring.spans import RenderedCompletion
from tests.completions import encode_completion
from winnow.chat import Chat, load_chat, load_tokenizer
from winnow.chat.tokenizer import pattern_of
from winnow.chat.turns import find_turn
from winnow.config import parse_config
from winnow.errors import ChatError, ConfigError, ModelError
from winnow.records import Message
from winnow.reward_options import EosPolicy
from winnow.run_config import PolicyConfig, RunConfig
from winnow.serve_config import ServeConfig

QUESTION = Message(role="user", content="What is 2 + 3?")
ANSWER = Message(role="assistant", content="It is 5.")
NEXT_QUESTION = Message(role="user", content="And 3 + 4?")
NEXT_ANSWER = Message(role="assistant", content="It is 7.")
TWO_TURNS = [QUESTION, ANSWER, NEXT_QUESTION, NEXT_ANSWER]

EOS_ID = 1
PAD_ID = 2

CLOSERS = pattern_of(["<end>", "<stop>"])

GENERATION_PROMPT = "{{ '<|assistant|>\n' if add_generation_prompt }}"
# Nothing after the last turn; the header of the next one closes a turn.
GLM_LIKE = "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}" + GENERATION_PROMPT
# <|pad|> closes earlier turns, EOS the last.
GPT_OSS_LIKE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
    "{{ eos_token if loop.last and m['role'] == 'assistant' else '<|pad|>' }}{% endfor %}" + GENERATION_PROMPT
)
# An empty think block before the last answer; with thinking off, it belongs to the prompt.
QWEN3_LIKE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' }}"
    "{{ '<think>\n\n</think>\n\n' if loop.last and m['role'] == 'assistant' }}{{ m['content'] + eos_token }}"
    "{% endfor %}{{ '<|assistant|>\n' if add_generation_prompt }}"
    "{{ '<think>\n\n</think>\n\n' if add_generation_prompt and enable_thinking is defined and not enable_thinking }}"
)


def make_policy(folder: Path, template: str, eos_ids: list[int] | None = None) -> str:
    """Write a tokenizer with this template, and the list of EOS ids that the model would have."""
    make_tokenizer(folder)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    if eos_ids is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_ids}))
    return str(folder)


def policy(model: str, **settings: Any) -> PolicyConfig:
    return PolicyConfig(model=model, chat_template="tokenizer", **settings)


def spans_of(chat: Chat, messages: list[Message]) -> list[str]:
    rendered = chat.conversation(messages)
    return [rendered.text[start:end] for start, end in rendered.loss_spans]


@pytest.mark.parametrize(
    ("text", "start", "content", "turn_text", "end"),
    [
        ("ab yes<end>\n", 3, "yes", "yes", 11),
        ("ab yes <end>c yes<end>", 3, "yes", "yes", 12),
        ("ab<channel>yes<stop>", 2, "yes", "<channel>yes", 20),
        ("ab<channel>final<text>final<stop>", 2, "final", "<channel>final<text>final", 33),
        ("ab no<end>c yes<end>", 3, "yes", "no", 10),
        ("ab yes", 3, "yes", "yes", 6),
        ("ab<end>", 2, "", "", 7),
    ],
    ids=[
        "plain",
        "first of two",
        "channel before the text",
        "text like the channel",
        "other text",
        "not closed",
        "empty",
    ],
)
def test_a_turn_ends_after_its_first_closing_token(
    text: str, start: int, content: str, turn_text: str, end: int
) -> None:
    turn = find_turn(text, start, content, CLOSERS)
    assert (turn.text(text), turn.end) == (turn_text, end)


def test_a_turn_without_closing_tokens_ends_with_its_text() -> None:
    turn = find_turn("a yes\n<|user|>", 2, "yes", None)
    assert (turn.text_end, turn.end) == (5, 5)


def test_any_eos_of_the_models_list_may_close_a_turn(tmp_path: Path) -> None:
    """Gemma 3's template writes <end_of_turn>, its EOS is <eos>, and its generation_config.json lists both."""
    template = "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|pad|>' }}{% endfor %}"
    template += GENERATION_PROMPT
    with pytest.raises(ModelError, match=r"set eos_token: '<\|pad\|>'"):
        load_chat(policy(make_policy(tmp_path / "a", template)), str(tmp_path / "a"))
    model = make_policy(tmp_path / "b", template, [EOS_ID, PAD_ID])
    chat = load_chat(policy(model), model)
    assert (chat.end_of_turn, chat.end_of_turn_id) == ("<|pad|>", PAD_ID)
    assert chat.stop_ids == frozenset([EOS_ID, PAD_ID])
    assert spans_of(chat, TWO_TURNS) == ["It is 5.<|pad|>", "It is 7.<|pad|>"]


def test_both_readings_of_a_pair_close_a_turn_in_the_same_way(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|pad|>' }}{% endfor %}"
    model = make_policy(tmp_path, template + GENERATION_PROMPT, [PAD_ID])
    chats = load_chats(ServeConfig(instruct=model, base=model, chat_template="tokenizer", base_prompt="plain"))
    assert chats.base.template == "plain"
    assert chats.base.end_of_turn == chats.instruct.end_of_turn == "<|pad|>"
    assert encode_completion(chats.base, [QUESTION], "It is 5.")[1][-1] == chats.instruct.end_of_turn_id
    assert chats.base.stop_ids == chats.instruct.stop_ids == frozenset([PAD_ID, EOS_ID])


@pytest.mark.parametrize("eos_policy", ["include", "exclude", "if_finished"])
def test_token_ids_may_end_in_any_stop_id(tmp_path: Path, eos_policy: EosPolicy) -> None:
    chat = Chat(load_tokenizer(make_policy(tmp_path, GLM_LIKE)), "lab", generation_eos_ids=[PAD_ID])
    renderer = Renderer(chat, Limits(vocab_size=400, max_tokens=100))
    [rendering] = renderer.render_group(Group([QUESTION], [[7, 8, PAD_ID]]), eos_policy)
    assert isinstance(rendering, RenderedCompletion)
    assert rendering.scored_ids == ([7, 8] if eos_policy == "exclude" else [7, 8, PAD_ID])
    assert not rendering.is_truncated


def test_the_header_of_the_next_turn_may_close_a_turn(tmp_path: Path) -> None:
    model = make_policy(tmp_path, GLM_LIKE)
    with pytest.raises(ModelError, match=r"set eos_token: '<\|user\|>'"):
        load_chat(policy(model), model)
    chat = load_chat(policy(model, eos_token="<|user|>"), model)
    assert spans_of(chat, TWO_TURNS) == ["It is 5.<|user|>", "It is 7.<|user|>"]
    prompt_ids, completion_ids = encode_completion(chat, [QUESTION], "It is 5.")
    assert prompt_ids + completion_ids == chat.conversation([QUESTION, ANSWER]).token_ids
    assert completion_ids[-1] == chat.end_of_turn_id in chat.stop_ids


def test_earlier_turns_may_be_closed_by_another_token(tmp_path: Path) -> None:
    model = make_policy(tmp_path, GPT_OSS_LIKE)
    chat = load_chat(policy(model), model)
    assert chat.end_of_turn == "<|endoftext|>"
    assert spans_of(chat, TWO_TURNS) == ["It is 5.<|pad|>", "It is 7.<|endoftext|>"]


def test_a_switch_of_the_template_puts_reasoning_into_the_prompt(tmp_path: Path) -> None:
    model = make_policy(tmp_path, QWEN3_LIKE)
    with pytest.raises(ModelError, match="chat_template_kwargs if it has a switch"):
        load_chat(policy(model), model)
    chat = load_chat(policy(model, chat_template_kwargs={"enable_thinking": False}), model)
    assert spans_of(chat, [QUESTION, ANSWER]) == ["It is 5.<|endoftext|>"]
    assert chat.prompt_text([QUESTION]).endswith("<think>\n\n</think>\n\n")
    assert chat.template_hash != Chat(chat.tokenizer, "tokenizer").template_hash


def test_a_last_turn_is_rendered_where_earlier_turns_cannot_be(tmp_path: Path) -> None:
    model = make_policy(tmp_path, QWEN3_LIKE)
    chat = load_chat(policy(model, chat_template_kwargs={"enable_thinking": False}), model)
    with pytest.raises(ChatError, match=r"differently if messages follow.*the last of a row of its own"):
        chat.conversation(TWO_TURNS)
    rendered = chat.conversation(TWO_TURNS, is_last_turn_only=True)
    assert [rendered.text[start:end] for start, end in rendered.loss_spans] == ["It is 7.<|endoftext|>"]
    prompt_ids, completion_ids = encode_completion(chat, TWO_TURNS[:-1], NEXT_ANSWER.content)
    assert rendered.token_ids == prompt_ids + completion_ids
    assert rendered.loss_mask == [False] * len(prompt_ids) + [True] * len(completion_ids)


def test_the_last_turn_alone_carries_loss(tmp_path: Path) -> None:
    chat = Chat(load_tokenizer(make_policy(tmp_path, GPT_OSS_LIKE)), "lab")
    all_turns = chat.conversation(TWO_TURNS)
    last_turn = chat.conversation(TWO_TURNS, is_last_turn_only=True)
    assert last_turn.token_ids == all_turns.token_ids
    assert last_turn.loss_spans == all_turns.loss_spans[-1:]
    assert sum(last_turn.loss_mask) == len(chat.encode("It is 7.<|endoftext|>"))


def test_variables_that_winnow_sets_are_refused(tmp_path: Path) -> None:
    tree = {"policy": {"model": str(tmp_path), "chat_template_kwargs": {"date_string": "1 May", "tokenize": True}}}
    with pytest.raises(ConfigError, match=r"date_string, tokenize cannot be set here; a date is set by template_date"):
        parse_config(tree, RunConfig, "recipe.yaml")

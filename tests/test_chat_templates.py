"""Templates as model makers write them: BOS, named templates, the date, dropped messages, and the end of a turn."""

import copy
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_models import make_tokenizer
from reward_server.scoring.load_pair import load_chats
from tests.completions import encode_completion
from winnow.chat import Chat, load_chat, load_tokenizer
from winnow.errors import ChatError, ModelError, UsageError
from winnow.records import Message
from winnow.run_config import PolicyConfig
from winnow.serve_config import ServeConfig

QUESTION = Message(role="user", content="What is 2 + 3?")
ANSWER = Message(role="assistant", content="It is 5.")
SYSTEM = Message(role="system", content="Be careful.")
TURNS = "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + CLOSING }}{% endfor %}"
GENERATION_PROMPT = "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"


def make_template(folder: Path, opening: str, closing: str, turns: str = TURNS) -> str:
    path = folder / "template.jinja"
    path.write_text(opening + turns.replace("CLOSING", closing) + GENERATION_PROMPT)
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return str(folder)


@pytest.fixture
def tokenizer(model: str) -> Any:
    return load_tokenizer(model)


def whole_ids(tokenizer: Any, template: str, messages: list[Message]) -> list[int]:
    turns = [message.model_dump() for message in messages]
    source = Path(template).read_text()
    return list(tokenizer.apply_chat_template(turns, chat_template=source, tokenize=True, return_dict=False))


@pytest.mark.parametrize("opening", ["", "{{ bos_token }}"], ids=["never written", "written"])
def test_ids_begin_as_the_template_begins_them(tokenizer: Any, tmp_path: Path, opening: str) -> None:
    """Phi-4's tokenizer has a BOS that its template never writes."""
    template = make_template(tmp_path, opening, "eos_token + '\n'")
    rendered = Chat(tokenizer, template).conversation([QUESTION, ANSWER])
    assert rendered.token_ids == whole_ids(tokenizer, template, [QUESTION, ANSWER])
    assert (rendered.token_ids[0] == tokenizer.bos_token_id) == bool(opening)


def test_bos_may_open_every_turn(tokenizer: Any, tmp_path: Path) -> None:
    """SmolLM2's BOS is <|im_start|>; Llama-2 writes BOS before each pair of turns."""
    turns = TURNS.replace("'<|'", "bos_token + '<|'")
    path = tmp_path / "template.jinja"
    path.write_text(
        turns.replace("CLOSING", "eos_token") + GENERATION_PROMPT.replace("'<|assistant", "bos_token + '<|assistant")
    )
    template = str(path)
    messages = [QUESTION, ANSWER, QUESTION, ANSWER]
    rendered = Chat(tokenizer, template).conversation(messages)
    assert rendered.token_ids == whole_ids(tokenizer, template, messages)
    assert rendered.token_ids.count(tokenizer.bos_token_id) == 4


def test_the_same_bos_twice_at_the_start_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    template = make_template(tmp_path, "{{ bos_token }}{{ bos_token }}", "eos_token")
    with pytest.raises(ChatError, match="the same BOS twice"):
        Chat(tokenizer, template).prompt_ids([QUESTION])


NAMED = {
    "default": "D" + TURNS.replace("CLOSING", "eos_token"),
    "tool_use": "T" + TURNS.replace("CLOSING", "eos_token"),
}
LISTED = [{"name": name, "template": template} for name, template in NAMED.items()]


@pytest.mark.parametrize("templates", [NAMED, LISTED], ids=["mapping", "list"])
def test_a_tokenizer_may_have_several_templates(tokenizer: Any, templates: Any) -> None:
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = templates
    assert Chat(tokenizer, "tokenizer").unchecked_text([QUESTION]).startswith("D<|user|>")
    assert Chat(tokenizer, "tokenizer:tool_use").unchecked_text([QUESTION]).startswith("T<|user|>")
    with pytest.raises(UsageError, match=r"no template named 'rag'.*tokenizer:default, tokenizer:tool_use"):
        Chat(tokenizer, "tokenizer:rag")


@pytest.mark.parametrize(
    "opening",
    ["{{ strftime_now('%d %b %Y') }}", "{{ date_string if date_string is defined else '1 Jan 1970' }}"],
    ids=["clock", "variable"],
)
def test_the_date_is_a_setting_and_part_of_the_hash(model: str, tmp_path: Path, opening: str) -> None:
    template = make_template(tmp_path, opening, "eos_token")
    default = load_chat(PolicyConfig(model=model, chat_template=template), model)
    later = load_chat(PolicyConfig(model=model, chat_template=template, template_date="2026-02-01"), model)
    assert default.prompt_text([QUESTION]).startswith("26 Jul 2024<|user|>")
    assert later.prompt_text([QUESTION]).startswith("01 Feb 2026<|user|>")
    assert default.template_hash != later.template_hash


WITHOUT_SYSTEM = TURNS.replace("messages %}", "messages if m['role'] != 'system' %}")
WITHOUT_REASONING = TURNS.replace("m['content']", "m['content'].split('</think>')[-1]")
WITH_EMPTY_REASONING = TURNS.replace(
    "m['content']", "('<think></think>' if m['role'] == 'assistant' else '') + m['content']"
)


@pytest.mark.parametrize(
    ("turns", "messages", "role"),
    [
        (WITHOUT_SYSTEM, [SYSTEM, QUESTION, ANSWER], "system"),
        (WITHOUT_REASONING, [QUESTION, Message(role="assistant", content="<think>2 + 3</think>It is 5.")], "assistant"),
        (WITH_EMPTY_REASONING, [QUESTION, ANSWER], "assistant"),
    ],
    ids=["system message dropped", "reasoning dropped", "reasoning added"],
)
def test_a_changed_message_is_refused_unless_it_is_accepted(
    tokenizer: Any, tmp_path: Path, turns: str, messages: list[Message], role: str
) -> None:
    template = make_template(tmp_path, "", "eos_token", turns)
    with pytest.raises(ChatError, match=f"{role} message"):
        Chat(tokenizer, template).conversation(messages)
    accepted = Chat(tokenizer, template, allow_changed_messages=True).conversation(messages)
    assert accepted.token_ids == whole_ids(tokenizer, template, messages)


def test_a_dropped_system_prompt_is_refused_in_prompts_too(tokenizer: Any, tmp_path: Path) -> None:
    template = make_template(tmp_path, "", "eos_token", WITHOUT_SYSTEM)
    with pytest.raises(ChatError, match="leaves out or changes the system message"):
        Chat(tokenizer, template, "Be careful.").prompt_ids([QUESTION])


def test_a_system_message_may_stand_in_a_later_turn(tokenizer: Any, tmp_path: Path) -> None:
    """Mistral v0.3 writes it into the last user turn."""
    turns = (
        "{% for m in messages if m['role'] != 'system' %}{{ '<|' + m['role'] + '|>\n' }}"
        "{{ messages[0]['content'] + '\n' if loop.last and m['role'] == 'user' }}"
        "{{ m['content'] + eos_token }}{% endfor %}"
    )
    template = make_template(tmp_path, "", "", turns)
    prompt = Chat(tokenizer, template).prompt_text([SYSTEM, QUESTION, ANSWER, QUESTION])
    assert prompt.count("Be careful.") == 1


def test_a_template_without_the_tokenizers_eos_is_told_which_token_it_writes(model: str, tmp_path: Path) -> None:
    """Gemma's template closes a turn with <end_of_turn>, and its EOS is <eos>."""
    template = make_template(tmp_path, "", "pad_token")
    with pytest.raises(ModelError, match=r"set eos_token: '<\|pad\|>'"):
        load_chat(PolicyConfig(model=model, chat_template=template), model)
    chat = load_chat(PolicyConfig(model=model, chat_template=template, eos_token="<|pad|>"), model)
    rendered = chat.conversation([QUESTION, ANSWER])
    assert rendered.text[slice(*rendered.loss_spans[0])] == "It is 5.<|pad|>"


def test_a_tokenizer_without_eos_is_an_error_with_a_remedy(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="has no EOS; set eos_token"):
        Chat(tokenizer, "lab").check_end_of_turn()


def test_a_server_takes_the_token_that_its_template_writes(model: str, tmp_path: Path) -> None:
    template = make_template(tmp_path, "", "pad_token")
    config = ServeConfig(instruct=model, base=model, chat_template=template)
    with pytest.raises(ModelError, match=r"set eos_token: '<\|pad\|>'"):
        load_chats(config)
    chats = load_chats(config.model_copy(update={"eos_token": "<|pad|>"}))
    _, completion_ids = encode_completion(chats.base, [QUESTION], "It is 5.")
    assert completion_ids[-1] == chats.instruct.tokenizer.pad_token_id
    with pytest.raises(ModelError, match="eos_token '<end>' is not a token of"):
        load_chats(config.model_copy(update={"eos_token": "<end>"}))

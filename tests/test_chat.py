"""Rendering: templates, loss spans, prefixes, and the official Mixtral form."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.tiny_models import BOS, EOS, HEADERS, PAD, TEXTS, make_tokenizer
from tests.completions import encode_completion
from winnow.chat import Chat, load_tokenizer
from winnow.chat.templates import built_in_templates
from winnow.errors import ChatError, ModelError, UsageError
from winnow.records import Message

QUESTION = Message(role="user", content="What is 2 + 3?")
ANSWER = Message(role="assistant", content="It is 5.")
TWO_TURNS = (QUESTION, ANSWER, Message(role="user", content="And 4?"), Message(role="assistant", content="Nine."))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a tokenizer that merges two line breaks, also across the border of a prompt that ends in one."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder, (*TEXTS, *["\n\n"] * 100))
    loaded = load_tokenizer(str(folder))
    assert len(loaded("\n\n")["input_ids"]) == 1
    return loaded


def loss_texts(chat: Chat, messages: tuple[Message, ...]) -> list[str]:
    rendered = chat.conversation(messages)
    return [rendered.text[start:end] for start, end in rendered.loss_spans]


def test_the_lab_form_is_headers_text_and_end(tokenizer: Any) -> None:
    text = Chat(tokenizer, "lab", "Be careful.").conversation(TWO_TURNS).text
    assert text == (
        "<s><|system|>\nBe careful.\n<|user|>\nWhat is 2 + 3?\n<|assistant|>\nIt is 5.<|endoftext|>\n"
        "<|user|>\nAnd 4?\n<|assistant|>\nNine.<|endoftext|>"
    )


@pytest.mark.parametrize(
    ("written", "completion"),
    [
        ("{{ m['content'].split('</think>')[-1] }}", "<think>2 + 3</think>It is 5."),
        ("<think>\n\n</think>\n\n{{ m['content'] }}", "It is 5."),
    ],
)
def test_a_template_that_changes_the_completion_is_refused(
    tokenizer: Any, tmp_path: Path, written: str, completion: str
) -> None:
    path = tmp_path / "changing.jinja"
    turn = "{% if m['role'] == 'user' %}{{ m['content'] }}[A]{% else %}" + written + "{{ eos_token }}{% endif %}"
    path.write_text("{{ bos_token }}{% for m in messages %}" + turn + "{% endfor %}")
    with pytest.raises(ChatError, match="changes the completion"):
        encode_completion(Chat(tokenizer, str(path)), [QUESTION], completion)


@pytest.mark.parametrize("written", [" {{ m['content'] }}\n", "{{ m['content'] | trim }}"])
def test_a_template_may_change_the_white_space_around_the_completion(
    tokenizer: Any, tmp_path: Path, written: str
) -> None:
    path = tmp_path / "spaced.jinja"
    turn = "{% if m['role'] == 'user' %}{{ m['content'] }}[A]{% else %}" + written + "{{ eos_token }}{% endif %}"
    path.write_text("{{ bos_token }}{% for m in messages %}" + turn + "{% endfor %}")
    _, completion_ids = encode_completion(Chat(tokenizer, str(path)), [QUESTION], "It is 5. ")
    assert tokenizer.decode(completion_ids).strip().startswith("It is 5.")


def test_the_mixtral_form_opens_the_first_turn_with_the_system_message(tokenizer: Any) -> None:
    text = Chat(tokenizer, "mixtral", "Be careful.").conversation(TWO_TURNS).text
    assert text == (
        "<s>[INST] Be careful.\n\nWhat is 2 + 3? [/INST]It is 5.<|endoftext|>[INST] And 4? [/INST]Nine.<|endoftext|>"
    )


@pytest.mark.parametrize("template", built_in_templates())
def test_the_loss_covers_assistant_text_through_its_end_and_nothing_else(tokenizer: Any, template: str) -> None:
    chat = Chat(tokenizer, template, "Be careful.")
    assert loss_texts(chat, TWO_TURNS) == ["It is 5.<|endoftext|>", "Nine.<|endoftext|>"]
    rendered = chat.conversation(TWO_TURNS)
    in_loss = [token for token, is_in in zip(rendered.token_ids, rendered.loss_mask, strict=True) if is_in]
    assert tokenizer.decode(in_loss) == "It is 5.<|endoftext|>Nine.<|endoftext|>"


@pytest.mark.parametrize("template", built_in_templates())
def test_spans_agree_with_the_generation_marks_of_the_template(tokenizer: Any, template: str) -> None:
    chat = Chat(tokenizer, template)
    marked = tokenizer.apply_chat_template(
        [message.model_dump() for message in TWO_TURNS],
        chat_template=chat._source,
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    rendered = chat.conversation(TWO_TURNS)
    if rendered.token_ids == marked["input_ids"]:
        assert rendered.loss_mask == [bool(flag) for flag in marked["assistant_masks"]]
    marked_ids = [token for token, flag in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if flag]
    loss_ids = [token for token, flag in zip(rendered.token_ids, rendered.loss_mask, strict=True) if flag]
    assert tokenizer.decode(loss_ids) == tokenizer.decode(marked_ids)


CONTROL_TOKENS = (BOS, EOS, PAD, *HEADERS)

# Hypothesis also tries words of the source code, and so finds the control tokens; Chat refuses them (see below).
PLAIN_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=24).filter(
    lambda text: not any(token in text for token in CONTROL_TOKENS)
)


@pytest.mark.parametrize("template", built_in_templates())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(question=PLAIN_TEXTS, answer=PLAIN_TEXTS)
def test_a_prompt_is_a_prefix_of_every_continuation(tokenizer: Any, template: str, question: str, answer: str) -> None:
    chat = Chat(tokenizer, template)
    messages = [Message(role="user", content=question)]
    prompt_ids = chat.prompt_ids(messages)
    ids_before_completion, completion_ids = encode_completion(chat, messages, answer)
    full = chat.conversation([*messages, Message(role="assistant", content=answer)])
    assert ids_before_completion == prompt_ids
    assert full.token_ids == prompt_ids + completion_ids
    assert completion_ids[-1] == chat.end_of_turn_id
    assert tokenizer.decode(completion_ids[:-1], clean_up_tokenization_spaces=False) == answer


def encoded_alone(chat: Chat, messages: list[Message], completion: str) -> tuple[list[int], list[int]] | str:
    """Return prompt and completion as `conversation` encodes them, or the error's text."""
    try:
        prompt_ids = chat.prompt_ids(messages)
        full = chat.conversation([*messages, Message(role="assistant", content=completion)])
    except ChatError as error:
        return str(error)
    rest = list(zip(full.token_ids, full.loss_mask, strict=True))[len(prompt_ids) :]
    return prompt_ids, [token for token, is_in_turn in rest if is_in_turn]


CHATML_LIKE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MARKED_TEXTS = st.one_of(
    PLAIN_TEXTS, st.sampled_from(["", "\n", "\n\n a", " ", " a", *CONTROL_TOKENS, "<s", "endoftext|>"])
)


@pytest.mark.parametrize("template", [*built_in_templates(), "chatml"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(turns=st.lists(PLAIN_TEXTS, min_size=1, max_size=3), completions=st.lists(MARKED_TEXTS, max_size=4))
def test_encode_completions_equals_each_conversation_rendered_alone(
    tokenizer: Any, template: str, turns: list[str], completions: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    if template == "chatml":
        path = tmp_path_factory.getbasetemp() / "chatml.jinja"
        path.write_text(CHATML_LIKE)
        template = str(path)
    chat = Chat(tokenizer, template)
    roles = ["user", "assistant", "user"]
    texts = list(turns)
    if len(texts) == 2:
        texts.pop()
    messages = [Message(role=role, content=text) for role, text in zip(roles, texts, strict=False)]
    prompt_ids, together = chat.encode_completions(messages, completions)
    for completion, completion_ids in zip(completions, together, strict=True):
        if isinstance(completion_ids, ChatError):
            assert str(completion_ids) == encoded_alone(chat, messages, completion)
        else:
            assert (prompt_ids, completion_ids) == encoded_alone(chat, messages, completion)


def test_a_long_prompt_is_encoded_once_for_all_its_completions(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(tokenizer, "lab")
    encode_all = chat._encoder.encode_all
    characters: list[int] = []

    def counting(texts: Sequence[str]) -> list[list[int]]:
        characters.extend(map(len, texts))
        return encode_all(texts)

    monkeypatch.setattr(chat._encoder, "encode_all", counting)
    chat.encode_completions([Message(role="user", content="word " * 2000)], [f"It is {i}." for i in range(16)])
    assert sum(characters) < 3 * 2000 * len("word ") + 16 * 100


def test_a_template_that_refuses_a_conversation_is_a_chat_error(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "strict.jinja"
    path.write_text("{{ bos_token }}{{ raise_exception('no system role here') }}")
    with pytest.raises(ChatError, match="does not take this conversation: no system role here"):
        Chat(tokenizer, str(path)).prompt_ids([QUESTION])


@pytest.mark.parametrize("expression", ["messages[0].content + 1", "1 / 0", "'x'.index('y')", "[1][2:]|sum + 'x'"])
def test_an_expression_that_fails_in_a_template_is_a_chat_error(
    tokenizer: Any, tmp_path: Path, expression: str
) -> None:
    path = tmp_path / "wrong.jinja"
    path.write_text(f"{{{{ {expression} }}}}")
    with pytest.raises(ChatError, match=r"wrong\.jinja does not take this conversation: "):
        Chat(tokenizer, str(path)).prompt_ids([QUESTION])


def test_a_template_that_is_not_text_is_named(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "latin.jinja"
    path.write_bytes(b"\xff{{ bos_token }}")
    with pytest.raises(UsageError, match=r"latin.jinja' cannot be read: .* give a readable file of UTF-8 text"):
        Chat(tokenizer, str(path))


def test_a_merge_is_cut_where_it_would_cross_into_the_completion(tmp_path: Path) -> None:
    """The example at the top of winnow/chat/encoding.py, and that of `TextEncoder.encode_after`."""
    make_tokenizer(tmp_path, ("\n\n",))
    chat = Chat(load_tokenizer(str(tmp_path)), "lab")
    messages = [Message(role="user", content="Hi")]
    prompt = chat.prompt_text(messages)
    prompt_ids = [0, 4, 204, 45, 78, 204, 5, 204]
    assert prompt == "<s><|user|>\nHi\n<|assistant|>\n"
    assert chat.encode(prompt) == prompt_ids
    assert chat.encode(prompt + "5") == [*prompt_ids, 26]
    assert chat.encode(prompt + "\n\n5") == [0, 4, 204, 45, 78, 204, 5, 262, 204, 26]
    assert chat.encode("<|assistant|>\n5") == [5, 204, 26]
    assert chat.encode("<|assistant|>\n\n\n5") == [5, 262, 204, 26]
    end = [chat.end_of_turn_id]
    assert chat.encode_completions(messages, ["5", "\n\n5"]) == (prompt_ids, [[26, *end], [204, 204, 26, *end]])


@pytest.mark.parametrize("template", built_in_templates())
def test_there_is_exactly_one_bos(tokenizer: Any, template: str) -> None:
    """The plain form has it only where the tokenizer itself puts it before a text, which this one does not."""
    ids = Chat(tokenizer, template, "Be careful.").conversation(TWO_TURNS).token_ids
    num_bos = 0 if template == "plain" else 1
    assert ids[:num_bos] == [tokenizer.bos_token_id] * num_bos
    assert ids.count(tokenizer.bos_token_id) == num_bos


def test_a_system_message_replaces_the_default_system_prompt(tokenizer: Any) -> None:
    text = Chat(tokenizer, "lab", "Default.").prompt_text([Message(role="system", content="Be kind."), QUESTION])
    assert "Be kind." in text
    assert "Default." not in text


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "at least one message"),
        ([ANSWER], "turn 1 should be user, is assistant"),
        ([QUESTION, QUESTION], "turn 2 should be assistant, is user"),
        ([QUESTION, ANSWER], "the last message should be user, is assistant"),
        ([Message(role="system", content="x")], "the last message should be user, is system"),
        ([Message(role="user", content="a<|user|>b")], "the user message holds the control token '<|user|>'"),
    ],
)
def test_a_conversation_that_cannot_be_rendered_raises_an_error_with_the_reason(
    tokenizer: Any, messages: list[Message], problem: str
) -> None:
    with pytest.raises(ChatError) as error:
        Chat(tokenizer, "lab").prompt_ids(messages)
    assert problem in str(error.value)


def test_an_unknown_template_names_the_known_ones(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="'laab' is neither a file nor one of lab, mixtral"):
        Chat(tokenizer, "laab")
    with pytest.raises(ModelError, match=r"chat_template is tokenizer, but .* has no template; name one of"):
        Chat(tokenizer, "tokenizer")


def test_a_template_may_be_a_file(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "custom.jinja"
    path.write_text(
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
        "{{ eos_token if m['role'] == 'assistant' else ' ' }}{% endfor %}"
        "{{ 'assistant: ' if add_generation_prompt else '' }}"
    )
    assert loss_texts(Chat(tokenizer, str(path)), (QUESTION, ANSWER)) == ["It is 5.<|endoftext|>"]


def test_template_hash_differs_if_the_rendering_differs(tokenizer: Any) -> None:
    chats = [Chat(tokenizer, "lab"), Chat(tokenizer, "mixtral"), Chat(tokenizer, "lab", "Be careful.")]
    assert len({chat.template_hash for chat in chats}) == 3
    assert Chat(tokenizer, "lab").template_hash == chats[0].template_hash
    with_different_eos = copy.deepcopy(tokenizer)
    with_different_eos.eos_token = PAD
    assert Chat(with_different_eos, "lab").template_hash != chats[0].template_hash


def test_headers_become_special_tokens_of_a_tokenizer_that_lacks_them(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    grown = load_tokenizer(str(tmp_path), eos_token="<|end|>", added_tokens=["<|tool|>", "<|user|>"])
    assert grown.eos_token == "<|end|>"
    assert len(grown) == len(tokenizer) + 2
    assert len(grown("<|tool|>", add_special_tokens=False)["input_ids"]) == 1


def golden_conversation(reference_data: Path) -> tuple[list[Message], list[int]]:
    folder = reference_data / "mistral_tokenizer" / "samples" / "no_tools"
    rows = json.loads((folder / "sample.json").read_text())["messages"]
    tokens = json.loads((folder / "tokens_v1.json").read_text())["tokens"]
    return [Message(role=row["role"], content=row["content"]) for row in rows], tokens


@pytest.fixture
def mixtral_folder(reference_data: Path, tmp_path: Path) -> str:
    """Copy the official SentencePiece model to where a Hugging Face loader finds it."""
    source = reference_data / "mistral_tokenizer" / "tokenizer.model.v1"
    (tmp_path / "tokenizer.model").write_bytes(source.read_bytes())
    return str(tmp_path)


@pytest.mark.parametrize("loader", ["auto", "llama"])
def test_mixtral_rendering_equals_the_official_tokens(reference_data: Path, mixtral_folder: str, loader: str) -> None:
    from transformers import LlamaTokenizer

    loaders = {"auto": load_tokenizer, "llama": LlamaTokenizer.from_pretrained}
    tokenizer = loaders[loader](mixtral_folder)
    messages, tokens = golden_conversation(reference_data)
    assert Chat(tokenizer, "mixtral").prompt_ids(messages) == tokens
    answered = Chat(tokenizer, "mixtral").conversation(messages[:4])
    assert answered.token_ids == tokens[: len(answered.token_ids)]


def test_the_hugging_face_rendering_of_mixtral_differs_in_seven_tokens(
    reference_data: Path, mixtral_folder: str
) -> None:
    messages, tokens = golden_conversation(reference_data)
    ids = Chat(load_tokenizer(mixtral_folder), "mixtral-hf").prompt_ids(messages)
    assert len(ids) == len(tokens)
    assert sum(token_id != official for token_id, official in zip(ids, tokens, strict=True)) == 7


def test_load_tokenizer_reports_a_missing_tokenizer_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="it holds no tokenizer's files; give a folder that holds a model and its tok"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ModelError, match=r"'models/nope': there is no such folder here, and the Hugging Face hub did"):
        load_tokenizer("models/nope")

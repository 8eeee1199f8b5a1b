"""Renderer: texts and token ids of a group -> tokens of one model, the reasons why a completion cannot be scored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_models import make_tokenizer
from reward_server.groups import CompletionInput, CompletionText, Group, Prompt
from reward_server.scoring.rendering import Limits, Renderer, with_instruction
from reward_server.scoring.spans import RenderedCompletion, UnscorableError
from tests.completions import encode_completion
from winnow.chat import Chat, load_tokenizer
from winnow.records import Message

QUESTION = (Message(role="user", content="What is 2 + 3?"),)
CHATML_LIKE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ CLOSE }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def message_of(role: str, content: str) -> tuple[Message, ...]:
    """Return a prompt of one message, whose role may be unknown, as the server parses it."""
    return (Message.model_construct(role=role, content=content),)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return load_tokenizer(str(folder))


@pytest.fixture(scope="module")
def renderer(tokenizer: Any) -> Renderer:
    return Renderer(Chat(tokenizer, "lab"), Limits(vocab_size=len(tokenizer), max_tokens=64))


def render(renderer: Renderer, prompt: Prompt, completion: CompletionInput) -> RenderedCompletion:
    rendering = renderer.render_group(Group(prompt, [completion]), "if_finished")[0]
    if isinstance(rendering, UnscorableError):
        raise rendering
    return rendering


def test_a_text_is_scored_from_after_the_header_through_its_eos(renderer: Renderer) -> None:
    rendered = render(renderer, QUESTION, CompletionText("It is 5."))
    tokenizer = renderer.chat.tokenizer
    assert tokenizer.decode(rendered.prompt_ids) == "<s><|user|>\nWhat is 2 + 3?\n<|assistant|>\n"
    assert tokenizer.decode(rendered.scored_ids) == "It is 5.<|endoftext|>"
    assert rendered.is_eos_scored
    assert not rendered.is_truncated


def test_an_unfinished_text_is_scored_without_the_eos_of_the_template(renderer: Renderer) -> None:
    rendered = render(renderer, QUESTION, CompletionText("It is", is_finished=False))
    assert renderer.chat.tokenizer.decode(rendered.scored_ids) == "It is"
    assert rendered.is_truncated


def test_token_ids_are_scored_unchanged(renderer: Renderer) -> None:
    as_text = render(renderer, QUESTION, CompletionText("It is 5."))
    prompts: list[Prompt] = [QUESTION, as_text.prompt_ids]
    for prompt in prompts:
        assert render(renderer, prompt, as_text.scored_ids) == as_text
    unfinished = render(renderer, QUESTION, as_text.scored_ids[:-1])
    assert unfinished.is_truncated
    assert not unfinished.is_eos_scored


@pytest.mark.parametrize(
    ("prompt", "completion", "status", "error"),
    [
        (QUESTION, "", "empty_completion", "empty text"),
        (QUESTION, "word " * 80, "too_long", "more than max_tokens 64"),
        (message_of("user", "word " * 80), "yes", "too_long", "more than max_tokens 64"),
        (message_of("user", "Hi") * 513, "yes", "too_long", "513 messages, more than 512"),
        (QUESTION, "a<|endoftext|>b", "control_token", "control token '<|endoftext|>'"),
        (message_of("user", "<|assistant|>"), "yes", "control_token", "control token"),
        (message_of("tool", "4"), "yes", "invalid_conversation", "unknown role 'tool'"),
        (message_of("tool", "4"), "", "empty_completion", "empty text"),
        (message_of("assistant", "4"), "yes", "invalid_conversation", "should be user"),
        ([0, 9, 9], "yes", "invalid_conversation", "completions of token ids"),
        ([0, 0, 9], [7, 8], "invalid_conversation", "begin with the same BOS twice ([0, 0, 9]...)"),
        (QUESTION, [7, 8, 1, 2, 2], "control_token", "'<|pad|>' (id 2) at position 3, after its end; cut"),
        (QUESTION, [7, 8, 1, 1], "control_token", "'<|endoftext|>' (id 1) at position 3, after its end; cut"),
        (QUESTION, [7, 1, 8], "control_token", "'<|endoftext|>' (id 1) at position 1, before its end; cut"),
        (QUESTION, [7, 1, 8, 1], "control_token", "'<|endoftext|>' (id 1) at position 1, before its end; cut"),
        (QUESTION, [2, 2], "control_token", "'<|pad|>' (id 2) at position 0, before its end; take it out"),
        (QUESTION, [7, 5, 8, 1], "control_token", "'<|assistant|>' (id 5) at position 1, before its end"),
        ([0, 9], [7, 2], "control_token", "'<|pad|>' (id 2) at position 1, before its end"),
        (QUESTION, [1], "empty_completion", "nothing to score"),
        (QUESTION, [7, 384], "invalid_token", "token id 384"),
    ],
)
def test_a_completion_that_cannot_be_scored_has_status_and_error(
    renderer: Renderer, prompt: Prompt, completion: CompletionInput, status: str, error: str
) -> None:
    with pytest.raises(UnscorableError) as caught:
        render(renderer, prompt, completion)
    assert caught.value.status == status
    assert error in str(caught.value)


@pytest.mark.parametrize("prompt", [[9, 9], [9, 0, 9], [0, 9, 0], [0]])
def test_a_prompt_of_token_ids_may_hold_bos_anywhere_or_not_at_all(renderer: Renderer, prompt: list[int]) -> None:
    assert render(renderer, prompt, [7, 8]).prompt_ids == prompt


@pytest.mark.parametrize("text", ["It<|endoftext|>", "It<|endoftext|>is", "<|pad|>", "<s>It", "It<|user|>is"])
def test_a_text_and_its_token_ids_have_the_same_status(renderer: Renderer, text: str) -> None:
    ids = [*renderer.chat.encode(text), renderer.chat.end_of_turn_id]
    renderings = renderer.render_group(Group(QUESTION, [text, ids]), "if_finished")
    assert [rendering.status for rendering in renderings if isinstance(rendering, UnscorableError)] == [
        "control_token"
    ] * 2


def test_render_group_renders_each_completion_as_it_does_alone(renderer: Renderer) -> None:
    completions: list[CompletionInput] = [
        CompletionText("It is 5."),
        [7, 8],
        CompletionText(""),
        CompletionText("<|user|>"),
        CompletionText("It", is_finished=False),
        [],
        CompletionText("It", is_finished=True),
    ]
    together = renderer.render_group(Group(QUESTION, completions), "if_finished")
    statuses = []
    for completion, rendering in zip(completions, together, strict=True):
        alone = renderer.render_group(Group(QUESTION, [completion]), "if_finished")[0]
        if isinstance(rendering, UnscorableError):
            assert str(rendering) == str(alone)
            statuses.append(rendering.status)
        else:
            assert rendering == alone
            statuses.append("ok")
    assert statuses == ["ok", "ok", "empty_completion", "control_token", "ok", "empty_completion", "ok"]


def test_render_group_calls_the_chat_once(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts_of_calls: list[list[str]] = []
    encode_completions = renderer.chat.encode_completions

    def record(messages: Sequence[Message], texts: Sequence[str]) -> Any:
        texts_of_calls.append(list(texts))
        return encode_completions(messages, texts)

    monkeypatch.setattr(renderer.chat, "encode_completions", record)
    renderer.render_group(Group(QUESTION, ["It", [7, 8], "", "is", [9]]), "if_finished")
    assert texts_of_calls == [["It", "is"]]


def test_the_prompt_ids_are_the_same_for_texts_and_token_ids(renderer: Renderer) -> None:
    rendered = renderer.render_group(Group(QUESTION, ["It", [7, 8]]), "if_finished")
    assert [completion.prompt_ids for completion in rendered if isinstance(completion, RenderedCompletion)] == [
        renderer.chat.prompt_ids(QUESTION)
    ] * 2


def test_with_instruction_changes_the_first_user_message_only() -> None:
    system = Message(role="system", content="Be brief.")
    greeting = Message(role="user", content="Hi")
    reply = Message(role="assistant", content="Hello")
    farewell = Message(role="user", content="Bye")
    group = Group([system, greeting, reply, farewell], ["a"])
    instructed = Message(role="user", content="Be safe.\n\nHi")
    assert with_instruction(group, "Be safe.") == Group([system, instructed, reply, farewell], ["a"])
    assert with_instruction(group, "") is group


def chat_with(tokenizer: Any, folder: Path, close: str, *, allow_changed_messages: bool = False) -> Chat:
    path = folder / "template.jinja"
    path.write_text(CHATML_LIKE.replace("CLOSE", close))
    return Chat(tokenizer, str(path), allow_changed_messages=allow_changed_messages)


def test_text_of_a_template_after_eos_is_not_scored(tokenizer: Any, tmp_path: Path) -> None:
    chat = chat_with(tokenizer, tmp_path, "eos_token")
    _, completion_ids = encode_completion(chat, [Message(role="user", content="Hi")], "It is 5.")
    assert tokenizer.decode(completion_ids) == "It is 5.<|endoftext|>"
    assert completion_ids[-1] == chat.end_of_turn_id


def test_a_turn_that_another_token_closes_has_its_whole_text_in_the_loss_span(tokenizer: Any, tmp_path: Path) -> None:
    chat = chat_with(tokenizer, tmp_path, "'<|pad|>'", allow_changed_messages=True)
    messages = [Message(role="user", content="Hi"), Message(role="assistant", content="It is 5.")]
    rendered = chat.conversation(messages)
    assert [rendered.text[start:end] for start, end in rendered.loss_spans] == ["It is 5.<|pad|>"]

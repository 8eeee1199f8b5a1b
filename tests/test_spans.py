"""Which tokens are scored: EOS policy, the completion's span, and what cannot be scored."""

import doctest
from pathlib import Path
from typing import Any

import pytest

from reward_server.engines import packing
from reward_server.scoring import reward, spans
from reward_server.scoring.rendering import (
    Conversation,
    Ids,
    Limits,
    PromptGroup,
    Renderer,
    ScoredTokens,
    Text,
    with_instruction,
)
from reward_server.scoring.spans import EosPolicy, UnscorableError, scored_span
from tests.tiny_models import make_tokenizer
from winnow.chat import Chat, load_tokenizer
from winnow.records import Message

EOS = 2
QUESTION = Conversation((("user", "What is 2 + 3?"),))
CHATML_LIKE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ CLOSE }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return load_tokenizer(str(folder))


@pytest.fixture(scope="module")
def renderer(tokenizer: Any) -> Renderer:
    return Renderer(Chat(tokenizer, "lab"), Limits(vocab_size=len(tokenizer), max_tokens=64))


@pytest.mark.parametrize("module", [packing, reward, spans])
def test_the_examples_in_the_docstrings_hold(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("completion_ids", "is_finished", "policy", "scored", "is_eos_scored"),
    [
        ([5, 6, EOS], True, "include", [5, 6, EOS], True),
        ([5, 6, EOS], False, "include", [5, 6, EOS], True),
        ([5, 6, EOS], True, "exclude", [5, 6], False),
        ([5, 6, EOS], True, "if_finished", [5, 6, EOS], True),
        ([5, 6, EOS], False, "if_finished", [5, 6], False),
        ([5, 6], False, "if_finished", [5, 6], False),
        ([5, 6], True, "exclude", [5, 6], False),
        ([5, EOS, 6, EOS], True, "exclude", [5, EOS, 6], False),
        ([EOS, EOS], True, "if_finished", [EOS, EOS], True),
    ],
)
def test_the_eos_policy_decides_on_the_closing_token_alone(
    completion_ids: list[int], is_finished: bool, policy: EosPolicy, scored: list[int], is_eos_scored: bool
) -> None:
    span = scored_span(completion_ids, EOS, is_finished=is_finished, eos_policy=policy)
    assert (span.token_ids, span.is_eos_scored) == (scored, is_eos_scored)


@pytest.mark.parametrize("policy", ["include", "exclude", "if_finished"])
@pytest.mark.parametrize("completion_ids", [[], [EOS]])
def test_nothing_before_eos_is_an_empty_completion(completion_ids: list[int], policy: EosPolicy) -> None:
    with pytest.raises(UnscorableError, match="empty") as caught:
        scored_span(completion_ids, EOS, is_finished=True, eos_policy=policy)
    assert caught.value.status == "empty_completion"


def test_an_eos_that_is_not_there_cannot_be_included() -> None:
    with pytest.raises(UnscorableError, match="end it in EOS") as caught:
        scored_span([5, 6], EOS, is_finished=True, eos_policy="include")
    assert caught.value.status == "missing_eos"


def rendered(renderer: Renderer, prompt: Conversation | Ids, completion: Text | Ids, policy: EosPolicy) -> ScoredTokens:
    tokens = renderer.scored_group(PromptGroup(prompt, (completion,)), policy)[0]
    if isinstance(tokens, UnscorableError):
        raise tokens
    return tokens


def test_a_text_is_scored_from_after_the_header_through_its_end(renderer: Renderer) -> None:
    tokens = rendered(renderer, QUESTION, Text("It is 5.", is_finished=True), "if_finished")
    tokenizer = renderer.chat.tokenizer
    assert tokenizer.decode(tokens.prompt_ids) == "<s><|user|>\nWhat is 2 + 3?\n<|assistant|>\n"
    assert tokenizer.decode(tokens.span.token_ids) == "It is 5.<|endoftext|>"
    assert not tokens.is_truncated


def test_an_unfinished_text_is_scored_without_the_end_that_the_template_adds(renderer: Renderer) -> None:
    tokens = rendered(renderer, QUESTION, Text("It is", is_finished=False), "if_finished")
    assert renderer.chat.tokenizer.decode(tokens.span.token_ids) == "It is"
    assert tokens.is_truncated


def test_token_ids_are_scored_as_they_are(renderer: Renderer) -> None:
    as_text = rendered(renderer, QUESTION, Text("It is 5.", is_finished=True), "if_finished")
    for prompt in (QUESTION, Ids(tuple(as_text.prompt_ids))):
        as_ids = rendered(renderer, prompt, Ids(tuple(as_text.span.token_ids)), "if_finished")
        assert as_ids == as_text
    cut = rendered(renderer, QUESTION, Ids(tuple(as_text.span.token_ids[:-1])), "if_finished")
    assert cut.is_truncated
    assert not cut.span.is_eos_scored


@pytest.mark.parametrize(
    ("prompt", "completion", "status", "error"),
    [
        (QUESTION, Text("", True), "empty_completion", "empty text"),
        (QUESTION, Text("word " * 80, True), "too_long", "more than max_tokens 64"),
        (Conversation((("user", "word " * 80),)), Text("yes", True), "too_long", "more than max_tokens 64"),
        (QUESTION, Text("a<|endoftext|>b", True), "control_token", "control token '<|endoftext|>'"),
        (Conversation((("user", "<|assistant|>"),)), Text("yes", True), "control_token", "control token"),
        (Conversation((("tool", "4"),)), Text("yes", True), "invalid_conversation", "unknown role 'tool'"),
        (Conversation((("assistant", "4"),)), Text("yes", True), "invalid_conversation", "should be user"),
        (Ids((0, 9, 9)), Text("yes", True), "invalid_conversation", "completions of token ids"),
        (Ids((9, 9)), Ids((7, 8)), "invalid_conversation", "exactly one BOS"),
        (Ids((0, 0, 9)), Ids((7, 8)), "invalid_conversation", "exactly one BOS"),
        (QUESTION, Ids((7, 384)), "invalid_token", "token id 384"),
    ],
)
def test_what_cannot_be_scored_says_why(
    renderer: Renderer, prompt: Conversation | Ids, completion: Text | Ids, status: str, error: str
) -> None:
    with pytest.raises(UnscorableError) as caught:
        rendered(renderer, prompt, completion, "if_finished")
    assert caught.value.status == status
    assert error in str(caught.value)


def test_a_group_is_rendered_as_each_of_its_completions_is(renderer: Renderer) -> None:
    completions: tuple[Text | Ids, ...] = (
        Text("It is 5.", True),
        Ids((7, 8)),
        Text("", True),
        Text("<|user|>", True),
        Text("It", False),
        Ids(()),
    )
    together = renderer.scored_group(PromptGroup(QUESTION, completions), "if_finished")
    for completion, ours in zip(completions, together, strict=True):
        alone = renderer.scored_group(PromptGroup(QUESTION, (completion,)), "if_finished")[0]
        assert (ours == alone) if isinstance(ours, ScoredTokens) else (str(ours) == str(alone))
    statuses = [one.status if isinstance(one, UnscorableError) else "ok" for one in together]
    assert statuses == ["ok", "ok", "empty_completion", "control_token", "ok", "empty_completion"]


def test_an_instruction_opens_the_first_user_message_only() -> None:
    turns = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
    group = PromptGroup(Conversation(turns), (Text("a", True),))
    prompt = with_instruction(group, "Be safe.").prompt
    assert isinstance(prompt, Conversation)
    assert prompt.turns == (turns[0], ("user", "Be safe.\n\nHi"), turns[2], turns[3])
    assert with_instruction(group, "") is group


def chat_with(tokenizer: Any, folder: Path, close: str) -> Chat:
    path = folder / "template.jinja"
    path.write_text(CHATML_LIKE.replace("CLOSE", close))
    return Chat(tokenizer, str(path))


def test_what_a_template_writes_after_eos_is_not_scored(tokenizer: Any, tmp_path: Path) -> None:
    chat = chat_with(tokenizer, tmp_path, "eos_token")
    pair = chat.scored_pair([Message(role="user", content="Hi")], "It is 5.")
    assert tokenizer.decode(pair.completion_ids) == "It is 5.<|endoftext|>"
    assert pair.has_eos


def test_a_turn_that_another_token_closes_keeps_its_own_span(tokenizer: Any, tmp_path: Path) -> None:
    chat = chat_with(tokenizer, tmp_path, "'<|pad|>'")
    messages = [Message(role="user", content="Hi"), Message(role="assistant", content="It is 5.")]
    rendered = chat.conversation(messages)
    assert [rendered.text[start:end] for start, end in rendered.loss_spans] == ["It is 5.<|pad|>\n"]

"""Every family of chat models as its makers publish it: ids, spans, prompts, completions, the end of a turn, pairs.

The facts and the expectations are in chat_families.py.
"""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from reward_server.scoring.load_pair import PairChats, load_chats
from tests.chat_families import (
    CASES,
    CHANGES_ANSWER,
    DROPS_REASONING,
    FAMILIES,
    ONE_TURN,
    SEVERAL_TURNS,
    SYSTEM,
    Family,
    save_base,
    save_tokenizer,
)
from tests.completions import encode_completion
from winnow.chat import Chat, RenderedConversation, load_chat, load_tokenizer
from winnow.chat_config import DEFAULT_TEMPLATE_DATE
from winnow.errors import ChatError, ModelError
from winnow.records import Message
from winnow.run_config import PolicyConfig
from winnow.serve_config import ServeConfig

BY_NAME = {family.name: family for family in FAMILIES}
REFUSALS = [(family, case) for family in FAMILIES for case in family.refusals]
RENDERED = [(family, case) for family in FAMILIES for case in CASES if case not in family.refusals]
LAST_TURNS = [(family, case) for family in FAMILIES for case in family.last_turn_cases]
LOADED = [family for family in FAMILIES if len(family.refusals) < len(CASES)]

FolderOf = Callable[[Family], Path]
ChatOf = Callable[[Family], Chat]


def label(value: Any) -> str:
    """Name a test by its family and case."""
    if isinstance(value, Family):
        return value.name
    return str(value)


def parametrize(values: Sequence[Any]) -> pytest.MarkDecorator:
    if isinstance(values[0], Family):
        return pytest.mark.parametrize("family", values, ids=label)
    return pytest.mark.parametrize(("family", "case"), values, ids=label)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """Return a function that gives a family's folder, with `instruct` and `base` in it; saved at the first call."""
    store = tmp_path_factory.mktemp("families")

    def folder(family: Family) -> Path:
        path = store / family.name
        if not path.exists():
            (path / "instruct").mkdir(parents=True)
            (path / "base").mkdir()
            save_tokenizer(family, path / "instruct")
            save_base(family, path / "instruct", path / "base")
        return path

    return folder


@pytest.fixture(scope="module")
def chat_of(folder_of: FolderOf) -> ChatOf:
    """Return a function that gives a family's renderer, loaded from its folder at the first call."""
    loaded: dict[str, Chat] = {}

    def chat(family: Family) -> Chat:
        if family.name not in loaded:
            loaded[family.name] = open_chat(family, folder_of(family) / "instruct")
        return loaded[family.name]

    return chat


def open_chat(family: Family, folder: Path, **settings: Any) -> Chat:
    merged = {"chat_template": "tokenizer", **family.settings, **settings}
    return load_chat(PolicyConfig(model=str(folder), **merged), str(folder))


def whole(family: Family, tokenizer: Any, messages: Sequence[Message], *, tokenize: bool) -> Any:
    """Apply a family's template to a whole conversation, as transformers does it, on the date that winnow tells it."""
    return tokenizer.apply_chat_template(
        [message.model_dump() for message in messages],
        chat_template=family.source,
        tokenize=tokenize,
        return_dict=False,
        strftime_now=DEFAULT_TEMPLATE_DATE.strftime,
        **family.settings.get("chat_template_kwargs", {}),
    )


def turn_texts(family: Family, messages: Sequence[Message]) -> list[str]:
    """Return the text of each answer's turn, from the end of its prompt through the token that closes it."""
    answers = [message.content for message in messages if message.role == "assistant"]
    closer = family.earlier_closer or family.closer
    earlier = [f"{family.before}{answer}{family.after}{closer}" for answer in answers[:-1]]
    return [*earlier, f"{family.before}{family.before_last}{answers[-1]}{family.after}{family.closer}"]


def span_texts(rendered: RenderedConversation) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.loss_spans]


def marked_turns(rendered: RenderedConversation) -> list[list[int]]:
    """Return the token ids of each run of the loss mask."""
    marked = zip(rendered.loss_mask, rendered.token_ids, strict=True)
    runs = itertools.groupby(marked, key=lambda pair: pair[0])
    return [[token_id for _, token_id in run] for is_marked, run in runs if is_marked]


@parametrize(RENDERED)
def test_ids_equal_those_of_the_whole_conversation(family: Family, case: str, chat_of: ChatOf) -> None:
    chat = chat_of(family)
    rendered = chat.conversation(CASES[case])
    appended_ids = [chat.end_of_turn_id] * bool(family.appended)
    assert rendered.text == whole(family, chat.tokenizer, CASES[case], tokenize=False) + family.appended
    assert rendered.token_ids == whole(family, chat.tokenizer, CASES[case], tokenize=True) + appended_ids


@parametrize(RENDERED)
def test_spans_run_from_the_generation_prompt_through_the_end_of_turn(
    family: Family, case: str, chat_of: ChatOf
) -> None:
    chat = chat_of(family)
    rendered = chat.conversation(CASES[case])
    expected = turn_texts(family, CASES[case])
    assert span_texts(rendered) == expected
    for start, _ in rendered.loss_spans:
        assert rendered.text[:start].endswith(family.prompt_end)
    turns = marked_turns(rendered)
    assert [chat.tokenizer.decode(turn).strip() for turn in turns] == [text.strip() for text in expected]
    closer_ids = [chat.end_of_turn_id] * len(turns)
    if family.earlier_closer:
        closer_ids[:-1] = chat.tokenizer.convert_tokens_to_ids([family.earlier_closer] * (len(turns) - 1))
    assert [turn[-1] for turn in turns] == closer_ids


@parametrize([*RENDERED, *LAST_TURNS])
def test_the_last_turn_alone_has_the_same_ids(family: Family, case: str, chat_of: ChatOf) -> None:
    chat = chat_of(family)
    rendered = chat.conversation(CASES[case], is_last_turn_only=True)
    appended_ids = [chat.end_of_turn_id] * bool(family.appended)
    assert rendered.token_ids == whole(family, chat.tokenizer, CASES[case], tokenize=True) + appended_ids
    assert len(marked_turns(rendered)) == 1
    assert span_texts(rendered) == turn_texts(family, CASES[case])[-1:]


@parametrize([*RENDERED, *LAST_TURNS])
def test_a_prompt_is_a_prefix_and_a_completion_is_the_turn_that_follows(
    family: Family, case: str, chat_of: ChatOf
) -> None:
    chat = chat_of(family)
    *messages, answer = CASES[case]
    rendered = chat.conversation(CASES[case], is_last_turn_only=True)
    prompt_ids = chat.prompt_ids(messages)
    assert rendered.token_ids[: len(prompt_ids)] == prompt_ids
    assert chat.prompt_text(messages).endswith(family.prompt_end)
    ids_before, (completion_ids,) = chat.encode_completions(messages, [answer.content])
    assert ids_before == prompt_ids
    if family.is_scored:
        assert completion_ids == marked_turns(rendered)[-1]
    else:
        assert isinstance(completion_ids, ChatError)
        assert re.search("changes the completion|into the turn of a completion", str(completion_ids))


ODD_COMPLETIONS = ("", " ", "\n\nIt is 5.", "  It is 5. ", "user\nWhat?", "It is 5.\n")


@parametrize([family for family in LOADED if family.is_scored])
def test_white_space_around_a_completion_is_encoded_as_in_its_conversation(family: Family, chat_of: ChatOf) -> None:
    chat = chat_of(family)
    question = ONE_TURN[0]
    _, encoded = chat.encode_completions([question], ODD_COMPLETIONS)
    for completion, completion_ids in zip(ODD_COMPLETIONS, encoded, strict=True):
        rendered = chat.conversation([question, Message(role="assistant", content=completion)])
        assert [completion_ids] == marked_turns(rendered)
        assert rendered.token_ids[: len(chat.prompt_ids([question]))] == chat.prompt_ids([question])


@parametrize([(family, case) for family, case in RENDERED if "system" in case])
def test_a_system_prompt_of_the_settings_is_a_system_message(
    family: Family, case: str, chat_of: ChatOf, folder_of: FolderOf
) -> None:
    chat = open_chat(family, folder_of(family) / "instruct", system_prompt=SYSTEM.content)
    assert chat.conversation(CASES[case][1:]) == chat_of(family).conversation(CASES[case])


@parametrize(REFUSALS)
def test_what_a_template_does_to_a_conversation_is_refused_by_name(
    family: Family, case: str, folder_of: FolderOf
) -> None:
    with pytest.raises((ChatError, ModelError), match=family.refusals[case]):
        open_chat(family, folder_of(family) / "instruct").conversation(CASES[case])


@parametrize([family for family in LOADED if "one turn, system" in family.refusals])
def test_a_system_prompt_that_the_template_refuses_is_refused_when_the_chat_is_loaded(
    family: Family, folder_of: FolderOf
) -> None:
    with pytest.raises(ModelError, match=family.refusals["one turn, system"]) as error:
        open_chat(family, folder_of(family) / "instruct", system_prompt=SYSTEM.content)
    assert "unset system_prompt" in str(error.value)


@parametrize([(family, case) for family, case in REFUSALS if family in LOADED and case not in family.last_turn_cases])
def test_a_conversation_that_is_refused_is_not_scored(family: Family, case: str, chat_of: ChatOf) -> None:
    *messages, answer = CASES[case]
    with pytest.raises(ChatError, match=family.refusals[case]):
        encode_completion(chat_of(family), messages, answer.content)


@parametrize(LOADED)
def test_the_end_of_a_turn_is_the_token_that_the_template_writes_there(family: Family, chat_of: ChatOf) -> None:
    chat = chat_of(family)
    ids_of = chat.tokenizer.convert_tokens_to_ids
    assert chat.end_of_turn == family.closer
    assert chat.end_of_turn_id == ids_of(family.closer)
    assert chat.stop_ids == set(ids_of([family.closer, family.eos, *family.stops]))


@parametrize([family for family in LOADED if family.closer != family.eos])
def test_without_a_list_of_eos_tokens_the_setting_names_the_end_of_a_turn(
    family: Family, folder_of: FolderOf, tmp_path: Path
) -> None:
    """Gemma's EOS is <eos>: without generation_config.json nothing says that sampling stops at <end_of_turn>."""
    load_tokenizer(str(folder_of(family) / "instruct")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="eos_token") as error:
        open_chat(family, tmp_path)
    assert family.closer in str(error.value)
    chat = open_chat(family, tmp_path, eos_token=family.closer)
    assert chat.end_of_turn == family.closer
    assert chat.end_of_turn_id in chat.stop_ids


@parametrize([family for family in LOADED if family.bos])
def test_bos_is_where_the_template_writes_it(family: Family, chat_of: ChatOf) -> None:
    chat = chat_of(family)
    rendered = chat.conversation(SEVERAL_TURNS)
    assert rendered.token_ids.count(chat.tokenizer.bos_token_id) == family.num_bos


def open_pair(family: Family, folder: Path) -> PairChats:
    settings = {"chat_template": "tokenizer", **family.settings}
    return load_chats(ServeConfig(instruct=str(folder / "instruct"), base=str(folder / "base"), **settings))


@parametrize([family for family in LOADED if family.is_scored])
def test_an_instruct_and_a_base_model_that_differ_in_settings_are_a_pair(
    family: Family, folder_of: FolderOf, chat_of: ChatOf
) -> None:
    chats = open_pair(family, folder_of(family))
    assert chats.has_shared_tokenizer
    question, answer = ONE_TURN
    expected = chat_of(family).encode_completions([question], [answer.content])
    for chat in (chats.instruct, chats.base):
        assert chat.encode_completions([question], [answer.content]) == expected
        assert chat.end_of_turn == family.closer


@parametrize([family for family in FAMILIES if family not in LOADED])
def test_a_pair_whose_template_fits_no_completion_is_refused_at_the_start(family: Family, folder_of: FolderOf) -> None:
    with pytest.raises(ModelError, match=family.refusals["one turn"]):
        open_pair(family, folder_of(family))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("llama-3.1", "26 Jul 2024"),
        ("llama-3.2", "26 Jul 2024"),
        ("granite-3", "July 26, 2024"),
        ("gpt-oss, changes accepted", "2024-07-26"),
    ],
)
def test_a_template_that_reads_the_clock_gets_the_date_of_the_settings(
    name: str, written: str, folder_of: FolderOf, chat_of: ChatOf
) -> None:
    family = BY_NAME[name]
    default = chat_of(family)
    later = open_chat(family, folder_of(family) / "instruct", template_date="2026-02-01")
    assert written in default.prompt_text(ONE_TURN[:1])
    assert written not in later.prompt_text(ONE_TURN[:1])
    assert "2026" in later.prompt_text(ONE_TURN[:1])
    assert default.template_hash != later.template_hash


REASONED = (ONE_TURN[0], Message(role="assistant", content="<think>\n2 and 3 are 5.\n</think>\n\nIt is 5."))


@pytest.mark.parametrize("name", ["qwen3, changes accepted", "deepseek-r1-distill, reasoning kept"])
def test_reasoning_that_the_template_writes_as_it_is_is_kept(name: str, chat_of: ChatOf) -> None:
    """Qwen3 keeps the reasoning of a last answer."""
    chat = chat_of(BY_NAME[name])
    rendered = chat.conversation(REASONED)
    assert span_texts(rendered) == [f"{REASONED[1].content}{BY_NAME[name].closer}"]
    _, (completion_ids,) = chat.encode_completions(REASONED[:1], [REASONED[1].content])
    assert completion_ids == marked_turns(rendered)[0]


def test_reasoning_that_the_template_takes_out_is_refused(chat_of: ChatOf) -> None:
    """DeepSeek-R1-Distill takes it out of every answer."""
    chat = chat_of(BY_NAME["deepseek-r1-distill-first"])
    with pytest.raises(ChatError, match=CHANGES_ANSWER):
        chat.conversation(REASONED)
    _, (completion_ids,) = chat.encode_completions(REASONED[:1], [REASONED[1].content])
    assert isinstance(completion_ids, ChatError)
    assert "changes the completion" in str(completion_ids)


def test_reasoning_that_the_template_takes_out_of_an_earlier_answer_is_refused(chat_of: ChatOf) -> None:
    """Qwen3 takes it out of the answers before the last question, also where the last answer alone is trained."""
    chat = chat_of(BY_NAME["qwen3, thinking off"])
    with pytest.raises(ChatError, match=DROPS_REASONING):
        chat.conversation([*REASONED, *SEVERAL_TURNS[2:]], is_last_turn_only=True)


def test_there_are_at_least_24_families() -> None:
    assert len({family.name.partition(",")[0] for family in FAMILIES}) >= 24


def test_the_page_has_a_row_for_each_family() -> None:
    page = (Path(__file__).parent.parent / "docs" / "chat.md").read_text()
    rows = [line for line in page[page.index("## Model families") :].splitlines() if line.startswith("| ")]
    documented = [row.split("|")[1].strip().lower().replace(" ", "-") for row in rows[1:]]
    assert sorted(documented) == sorted({family.name.partition(",")[0] for family in FAMILIES})


def test_a_folder_holds_what_a_maker_publishes(folder_of: FolderOf) -> None:
    """The tables of the other tests are read from files, in the forms that the hub has."""
    instruct = folder_of(BY_NAME["hermes-3"]) / "instruct"
    config = json.loads((instruct / "tokenizer_config.json").read_text())
    assert [entry["name"] for entry in config["chat_template"]] == ["default", "tool_use"]
    assert not (instruct / "chat_template.jinja").exists()
    assert len(json.loads((instruct / "generation_config.json").read_text())["eos_token_id"]) == 2


@pytest.mark.parametrize("answer", ["a", "final", "al", ""])
def test_an_answer_like_the_channel_before_it_has_its_own_span(answer: str, chat_of: ChatOf) -> None:
    """gpt-oss writes <|channel|>final<|message|> before each answer."""
    chat = chat_of(BY_NAME["gpt-oss, changes accepted"])
    rendered = chat.conversation([ONE_TURN[0], Message(role="assistant", content=answer)])
    assert span_texts(rendered) == [f"<|channel|>final<|message|>{answer}<|return|>"]
    _, (completion_ids,) = chat.encode_completions(ONE_TURN[:1], [answer])
    assert isinstance(completion_ids, ChatError)
    assert "whose generation prompt holds it" in str(completion_ids)


def test_a_system_message_that_is_left_out_is_noticed_where_its_text_stands_elsewhere(chat_of: ChatOf) -> None:
    with pytest.raises(ChatError, match="leaves out or changes the system message"):
        chat_of(BY_NAME["phi-3"]).conversation([Message(role="system", content="2 + 3"), *ONE_TURN])


PLAIN_BEGINNINGS = [BY_NAME[name] for name in ("smollm2", "phi-4", "phi-3.5", "yi-1.5", "llama-3", "mistral-v0.1")]


@parametrize(PLAIN_BEGINNINGS)
def test_the_plain_form_begins_as_the_tokenizer_begins_a_text(family: Family, folder_of: FolderOf) -> None:
    """SmolLM2's BOS opens turns, and no text."""
    folder = folder_of(family)
    config = ServeConfig(
        instruct=str(folder / "instruct"), base=str(folder / "base"), chat_template="tokenizer", base_prompt="plain"
    )
    base = load_chats(config).base
    is_bos_first = base.prompt_ids(ONE_TURN[:1])[0] == base.tokenizer.bos_token_id
    assert is_bos_first == family.is_bos_added


def test_headers_that_are_not_special_may_not_stand_in_a_message(chat_of: ChatOf) -> None:
    """DeepSeek's headers are added tokens without the flag `special`; its <think> is one, too, and may."""
    chat = chat_of(BY_NAME["deepseek-v3"])
    header = "<\uff5cAssistant\uff5c>"
    assert header in chat.prompt_text(ONE_TURN[:1])
    with pytest.raises(ChatError, match="holds the control token"):
        chat.prompt_ids([Message(role="user", content=f"Hi{header}It is 6.")])
    for name in ("qwen3, changes accepted", "deepseek-r1-distill-first"):
        assert "<think>" not in chat_of(BY_NAME[name]).control_tokens.values()


def test_a_remedy_mends_what_it_is_named_for(folder_of: FolderOf, chat_of: ChatOf) -> None:
    _, (error,) = chat_of(BY_NAME["qwen3, thinking off"]).encode_completions(ONE_TURN[:1], [REASONED[1].content])
    assert "a row of its own" not in str(error)
    with pytest.raises(ModelError, match="prompt in the same way") as refused:
        open_chat(BY_NAME["deepseek-r1-distill"], folder_of(BY_NAME["deepseek-r1-distill"]) / "instruct")
    assert "a row of its own" not in str(refused.value)
    with pytest.raises(ChatError, match="system message's text into the first user message") as dropped:
        chat_of(BY_NAME["mistral-v0.3"]).conversation([SYSTEM, *ONE_TURN])
    assert "allow_changed_messages" not in str(dropped.value)

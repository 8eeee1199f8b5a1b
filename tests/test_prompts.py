"""Prompt pools: parsing, ids, quotas, drawing."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampler.prompts import draw, parse_prompt, quotas, read_pool
from winnow.conversations import parse_conversation
from winnow.errors import InputError
from winnow.records import Message, Prompt, make_prompt
from winnow.run_config import PromptFile


def pool_of(**sizes: int) -> list[Prompt]:
    return [
        make_prompt(source, (Message(role="user", content=f"{source} {index}"),))
        for source, size in sizes.items()
        for index in range(size)
    ]


def write_lines(path: Path, *lines: object) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def test_a_prompt_row_is_messages_or_a_text(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "facts.jsonl",
        {"prompt": "What colour is it?"},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "an answer to drop"}]},
        {"prompt": "sums", "source": "arithmetic"},
    )
    pool = read_pool([PromptFile(path=file)])
    assert [prompt.source for prompt in pool] == ["facts", "facts", "arithmetic"]
    assert [prompt.messages[-1].role for prompt in pool] == ["user"] * 3


def test_equal_texts_of_two_sources_stay_two_prompts_and_equal_rows_become_one(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"prompt": "x"}, {"prompt": "x"}, {"prompt": "x", "source": "b"})
    assert [prompt.source for prompt in read_pool([PromptFile(path=file)])] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not valid JSON"),
        ({"question": "?"}, "needs 'messages' (a list) or 'prompt' (a text); it has ['question']"),
        ('{"prompt": "cut sh', "not valid JSON (Unterminated string starting at column 12)"),
        ({"prompt": None}, "needs 'messages' (a list) or 'prompt' (a text); 'prompt' is null"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role 'robot' is none of system, user, assis"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role ['user'] is none of system, user, ass"),
        ({"messages": [{"role": "user"}]}, "messages[0]: content is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content is a number, should be a text"),
        ({"messages": [{"role": "user", "content": "", "b": 1, "a": 2}]}, "messages[0] has 'a', 'b', where a message"),
        ({"messages": []}, "at least one message"),
        ({"messages": ["hello"]}, "messages[0] is a text, should be an object with role and content"),
        ("[1, 2]", "should be a JSON object, is a list"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, line: object, message: str) -> None:
    file = write_lines(tmp_path / "bad.jsonl", {"prompt": "fine"}, line)
    with pytest.raises(InputError, match=r"bad\.jsonl line 2: ") as error:
        read_pool([PromptFile(path=file)])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_messages_whose_answers_stand_beside_them_end_with_the_user() -> None:
    asked, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    assert [message.role for message in parse_conversation({"messages": [asked, answer, asked]}, "here")][-1] == "user"
    assert parse_conversation({"prompt": "a", "messages": None}, "here") == (Message(role="user", content="a"),)
    for row in ({"messages": [asked, answer]}, {"messages": [asked], "prompt": "a"}):
        with pytest.raises(InputError, match="here: "):
            parse_conversation(row, "here")


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prompts in"):
        read_pool([PromptFile(path=write_lines(tmp_path / "none.jsonl"))])


def test_prompt_ids_do_not_depend_on_where_a_row_stands() -> None:
    row = {"prompt": "x"}
    assert parse_prompt(row, "s", "here").prompt_id == parse_prompt(row, "s", "there").prompt_id


def test_what_a_small_source_lacks_the_others_share() -> None:
    assert quotas({"a": 100, "b": 2, "c": 100}, 10) == {"a": 4, "b": 2, "c": 4}


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 100))
def test_quotas_give_all_that_was_asked_or_all_there_is(sizes: dict[str, int], num_prompts: int) -> None:
    result = quotas(sizes, num_prompts)
    assert sum(result.values()) == min(num_prompts, sum(sizes.values()))
    assert all(result[source] <= sizes[source] for source in sizes)
    unfilled = [result[source] for source in sizes if result[source] < sizes[source]]
    assert max(unfilled, default=0) - min(unfilled, default=0) <= 1


def test_rounds_draw_fresh_prompts_of_each_source_until_it_starts_over() -> None:
    pool = pool_of(a=30, b=30)
    rounds = [draw(pool, 20, number, seed=0) for number in (1, 2, 3, 4)]
    assert all(Counter(p.source for p in prompts) == {"a": 10, "b": 10} for prompts in rounds)
    first_three = [prompt.prompt_id for prompts in rounds[:3] for prompt in prompts]
    assert len(set(first_three)) == 60
    assert {prompt.prompt_id for prompt in rounds[3]} == {prompt.prompt_id for prompt in rounds[0]}


def test_a_draw_is_the_same_for_the_same_seed_whatever_the_file_order() -> None:
    pool = pool_of(a=30, b=30)
    assert draw(pool, 20, 1, seed=0) == draw(pool[::-1], 20, 1, seed=0)
    assert draw(pool, 20, 1, seed=0) != draw(pool, 20, 1, seed=1)

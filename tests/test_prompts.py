"""Prompt pools: parsing, ids, quotas, drawing."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampler.prompts import draw_prompts, parse_prompt, quotas, read_pool
from winnow.conversations import parse_conversation
from winnow.errors import InputError
from winnow.records import Message, Prompt, make_prompt
from winnow.run_config import PromptFile


def pool_of(**sizes: int) -> list[Prompt]:
    pool = []
    for source, size in sizes.items():
        for index in range(size):
            pool.append(make_prompt(source, (Message(role="user", content=f"{source} {index}"),)))
    return pool


def write_lines(path: Path, *lines: object) -> str:
    """Write each object as a line of JSON, and each string as it is."""
    with path.open("w") as file:
        for line in lines:
            if isinstance(line, str):
                file.write(line + "\n")
            else:
                file.write(json.dumps(line) + "\n")
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


def test_read_pool_keeps_equal_texts_of_two_sources_and_merges_equal_rows(tmp_path: Path) -> None:
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
def test_read_pool_names_file_and_line_of_a_malformed_row(tmp_path: Path, line: object, message: str) -> None:
    file = write_lines(tmp_path / "bad.jsonl", {"prompt": "fine"}, line)
    with pytest.raises(InputError, match=r"bad\.jsonl line 2: ") as error:
        read_pool([PromptFile(path=file)])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_parse_conversation_takes_messages_that_end_with_the_user() -> None:
    user = {"role": "user", "content": "a"}
    assistant = {"role": "assistant", "content": "b"}
    messages = parse_conversation({"messages": [user, assistant, user]}, "here")
    assert [message.role for message in messages] == ["user", "assistant", "user"]
    assert parse_conversation({"prompt": "a", "messages": None}, "here") == (Message(role="user", content="a"),)
    with pytest.raises(InputError, match=r"here: messages\[1\] is the assistant's, where the last one should be"):
        parse_conversation({"messages": [user, assistant]}, "here")
    with pytest.raises(InputError, match="here: has both 'messages' and 'prompt'"):
        parse_conversation({"messages": [user], "prompt": "a"}, "here")


def test_read_pool_refuses_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prompts in"):
        read_pool([PromptFile(path=write_lines(tmp_path / "none.jsonl"))])


def test_a_prompt_id_does_not_depend_on_file_and_line() -> None:
    row = {"prompt": "x"}
    assert parse_prompt(row, "s", "here").prompt_id == parse_prompt(row, "s", "there").prompt_id


def test_quotas_of_large_sources_make_up_for_a_small_one() -> None:
    assert quotas({"a": 100, "b": 2, "c": 100}, 10) == {"a": 4, "b": 2, "c": 4}


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 100))
def test_quotas_sum_to_the_number_of_prompts_or_to_the_whole_pool(sizes: dict[str, int], num_prompts: int) -> None:
    result = quotas(sizes, num_prompts)
    assert sum(result.values()) == min(num_prompts, sum(sizes.values()))
    assert all(result[source] <= sizes[source] for source in sizes)
    unfilled = [result[source] for source in sizes if result[source] < sizes[source]]
    assert max(unfilled, default=0) - min(unfilled, default=0) <= 1


def test_rounds_draw_different_prompts_of_a_source_until_it_starts_over() -> None:
    pool = pool_of(a=30, b=30)
    rounds = [draw_prompts(pool, 20, round_number, seed=0) for round_number in (1, 2, 3, 4)]
    for prompts in rounds:
        assert Counter(prompt.source for prompt in prompts) == {"a": 10, "b": 10}
    ids = [{prompt.prompt_id for prompt in prompts} for prompts in rounds]
    assert len(ids[0] | ids[1] | ids[2]) == 60
    assert ids[3] == ids[0]


def test_a_draw_depends_on_the_seed_and_not_on_the_file_order() -> None:
    pool = pool_of(a=30, b=30)
    assert draw_prompts(pool, 20, 1, seed=0) == draw_prompts(pool[::-1], 20, 1, seed=0)
    assert draw_prompts(pool, 20, 1, seed=0) != draw_prompts(pool, 20, 1, seed=1)

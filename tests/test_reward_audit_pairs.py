"""Files of preference pairs: every known form of a row, and every fault with its file and line."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.reward_audit.pair_files import read_pairs
from eval.reward_audit.pair_rows import pair_of
from tests.tiny_run import write_jsonl
from winnow.errors import InputError, UsageError
from winnow.records import Message

USER = {"role": "user", "content": "What is 2 + 3?"}
GOOD = {"role": "assistant", "content": "5"}
BAD = {"role": "assistant", "content": "6"}
SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def row(**fields: Any) -> dict[str, Any]:
    """Return a row of RewardBench."""
    return {"prompt": "What is 2 + 3?", "chosen": "5", "rejected": "6", "subset": "hep-cpp", "id": 1, **fields}


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt": USER["content"], "chosen": "5", "rejected": "6"}, [USER]),
        ({"prompt": [*EARLIER, USER], "chosen": "5", "rejected": "6"}, [*EARLIER, USER]),
        ({"messages": [SYSTEM, USER], "chosen": "5", "rejected": "6"}, [SYSTEM, USER]),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, [USER]),
        ({"prompt": USER["content"], "chosen": [GOOD], "rejected": [BAD]}, [USER]),
        ({"chosen": [*EARLIER, USER, GOOD], "rejected": [*EARLIER, USER, BAD]}, [*EARLIER, USER]),
        ({"prompt": USER["content"], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
        ({"prompt": USER["content"], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, [SYSTEM, USER]),
        ({"input": USER["content"], "output_1": "5", "output_2": "6", "label": 1}, [USER]),
        ({"input": USER["content"], "output_1": "6", "output_2": "5", "label": 2}, [USER]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_every_form_of_a_row_gives_the_same_pair(fields: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    pair = pair_of(fields, "here")
    assert pair.prompt == tuple(Message.model_validate(message) for message in prompt)
    assert (pair.chosen, pair.rejected) == ("5", "6")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"prompt": "a", "chosen": "b"}, "'rejected' is missing, it has ['chosen', 'prompt']"),
        ({"text": "a"}, "'chosen' is missing, it has ['text']"),
        ({"chosen": "b", "rejected": "c"}, "'prompt' is missing; chosen and rejected are texts"),
        ({"prompt": "a", "chosen": "b", "rejected": [BAD]}, "'chosen' is a text and 'rejected' is a list; both should"),
        ({"prompt": "a", "chosen": 5, "rejected": 6}, "chosen should be a text or a list of messages"),
        ({"prompt": [GOOD], "chosen": "b", "rejected": "c"}, "turn 1 should be user, is assistant"),
        ({"prompt": "a", "chosen": [USER], "rejected": [BAD]}, "chosen: the last message should be the assistant's"),
        ({"prompt": "a", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "does not begin with 'prompt'"),
        ({"chosen": [USER, GOOD], "rejected": [*EARLIER, USER, BAD]}, "answer different conversations"),
        ({"prompt": "a", "chosen": [{"role": "bot", "content": ""}], "rejected": [BAD]}, "[0].role 'bot' is none of"),
        ({"input": "a", "output_1": "b", "label": 1}, "'output_2' is missing from a row of LLMBar"),
        ({"input": "a", "output_1": "b", "output_2": "c", "label": 3}, "label is 3; it should be 1 or 2"),
        ({"input": "a", "output_1": "b", "output_2": "c", "label": True}, "label is True; it should be 1 or 2"),
        ({"input": "a", "output_1": None, "output_2": "c", "label": 1}, "'output_1' is null, should be a text"),
        (row(subset=["hep-cpp"]), "subset is ['hep-cpp'], should be a text"),
        (row(id=1.5), "id is a number, should be a text or a whole number"),
    ],
)
def test_a_malformed_row_is_an_error_with_file_and_line(tmp_path: Path, fields: dict[str, Any], error: str) -> None:
    path = tmp_path / "pairs.jsonl"
    write_jsonl(path, [row(subset="sums"), fields])
    with pytest.raises(InputError) as raised:
        read_pairs([path])
    assert str(raised.value).startswith(f"{path} line 2: ")
    assert error in str(raised.value)


def test_the_subset_comes_from_the_row_or_the_name_of_the_file(tmp_path: Path) -> None:
    llmbar = {"input": "a", "output_1": "b", "output_2": "c", "label": 1}
    (tmp_path / "natural.json").write_text(json.dumps([llmbar]))
    (tmp_path / "Neighbor").mkdir()
    (tmp_path / "Neighbor" / "dataset.json").write_text(json.dumps([llmbar]))
    write_jsonl(tmp_path / "own.jsonl", [row(subset="sums")])
    pq.write_table(pa.Table.from_pylist([row(subset="reddit")]), tmp_path / "shp-00000-of-00001.parquet")
    names = ("natural.json", "Neighbor/dataset.json", "own.jsonl", "shp-00000-of-00001.parquet")
    pairs = read_pairs([tmp_path / name for name in names])
    assert [pair.subset for pair in pairs] == ["natural", "Neighbor", "sums", "shp"]
    assert [pair.location.removeprefix(f"{tmp_path}/") for pair in pairs] == [
        "natural.json item 1",
        "Neighbor/dataset.json item 1",
        "own.jsonl line 1",
        "shp-00000-of-00001.parquet row 1",
    ]


def test_parquet_gives_the_pairs_of_jsonl(tmp_path: Path) -> None:
    rows = [row(id=1), row(id=2, chosen="five")]
    conversations = [{"chosen": [USER, GOOD], "rejected": [USER, BAD]}]
    for number, table in enumerate((rows, conversations)):
        pq.write_table(pa.Table.from_pylist(table), tmp_path / f"{number}.parquet")
        write_jsonl(tmp_path / f"{number}.jsonl", table)
        from_parquet = read_pairs([tmp_path / f"{number}.parquet"])
        from_jsonl = read_pairs([tmp_path / f"{number}.jsonl"])
        assert [pair.texts for pair in from_parquet] == [pair.texts for pair in from_jsonl]
        assert [pair.pair_id for pair in from_parquet] == [pair.pair_id for pair in from_jsonl]


def test_an_unknown_subset_among_rewardbenchs_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    write_jsonl(path, [row(id=1), row(id=2, subset="hep-cp")])
    with pytest.raises(InputError, match="line 2: RewardBench has no subset 'hep-cp'; did you mean 'hep-cpp'"):
        read_pairs([path])
    write_jsonl(path, [row(id=1), row(id=2, subset="my questions")])
    with pytest.raises(InputError, match="no subset 'my questions'; put it into a file of its own"):
        read_pairs([path])
    write_jsonl(path, [row(subset="my questions")])
    assert [pair.subset for pair in read_pairs([path])] == ["my questions"]


def test_an_id_counts_once_in_a_subset(tmp_path: Path) -> None:
    first = tmp_path / "first.jsonl"
    second = tmp_path / "second.jsonl"
    write_jsonl(first, [row(id=1), row(id=1, subset="hep-go"), row(id="1b")])
    assert len(read_pairs([first])) == 3
    write_jsonl(second, [row(id="1")])
    with pytest.raises(InputError) as raised:
        read_pairs([first, second])
    assert f"{second} line 1: id '1' of subset 'hep-cpp' is in {first} line 1 already" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("pairs.jsonl", b"", "pairs.jsonl holds no pair"),
        ("pairs.json", b"[]", "pairs.json holds no pair"),
        ("pairs.jsonl", b"{\n", "pairs.jsonl line 1: not valid JSON"),
        ("pairs.json", b"[\n{},\n", "pairs.json line 3: not valid JSON"),
        ("pairs.json", b"[3]", "pairs.json item 1: should be a JSON object, is a number"),
        ("pairs.json", b'["\xff"]', "pairs.json: not UTF-8 text"),
        ("pairs.json", b'[{"chosen": "\\ud800"}]', "pairs.json item 1: an escape"),
        ("pairs.parquet", b"PAR1", "pairs.parquet is not a Parquet file that can be read"),
    ],
)
def test_a_file_that_is_empty_or_broken_is_an_error(tmp_path: Path, name: str, content: bytes, error: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_pairs([tmp_path / name])
    assert error in str(raised.value)


@pytest.mark.parametrize("name", ["no.jsonl", "no.json", "no.parquet"])
def test_a_file_that_is_missing_is_wrong_usage(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be read: .*; give the path of a"):
        read_pairs([tmp_path / name])


def test_the_real_files_of_llmbar_are_read(reference_data: Path) -> None:
    names = ("natural", "neighbor", "gptinst", "gptout", "manual")
    pairs = read_pairs([reference_data / "llmbar" / f"{name}.json" for name in names])
    counts = Counter(pair.subset for pair in pairs)
    assert counts == {"natural": 100, "neighbor": 134, "gptinst": 92, "gptout": 47, "manual": 46}
    first = next(pair for pair in pairs if pair.subset == "gptout")
    assert first.texts.prompt[0].content.startswith("Combine the two sentences into a single sentence")
    assert first.texts.chosen == "He didn't go to the party, instead staying at home."

"""`winnow import-data`: each format of the five data sets, what is set aside, and the errors with file and line."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from lm_eval.tasks.winogrande.preprocess_winogrande import doc_to_choice, doc_to_target, doc_to_text

from eval.suites.import_data import describe, import_data
from tests.tiny_run import write_jsonl
from winnow.errors import InputError, UsageError

CHOICES = {"text": ["a", "b"], "label": ["A", "B"]}
PARTIAL = {"context_options": ["The bed and the blanket: the blanket", "The bed and the blanket: the bed"]}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "gsm8k": ("test.jsonl", {"question": "2 + 3?", "answer": "#### 5"}),
    "arc": ("test.jsonl", {"id": "1", "question": "?", "choices": CHOICES, "answerKey": "A"}),
    "hellaswag": (
        "hellaswag_val.jsonl",
        {"activity_label": "A", "ctx_a": "b", "ctx_b": "c", "ctx": "b c", "endings": ["d", "e"], "label": 1},
    ),
    "winogrande": ("dev.jsonl", {**PARTIAL, "continuation": "was wet.", "gold": 1}),
}


def write(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    file_name, row = ROWS[name]
    (folder / name).mkdir(parents=True, exist_ok=True)
    return Path(write_jsonl(folder / name / file_name, list(rows or [row])))


def read(folder: Path, path: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / path).to_pylist()
    return rows


def test_every_set_is_written_where_the_hub_has_it(tmp_path: Path) -> None:
    for name in ROWS:
        write(tmp_path / "source", name)
    import_data(tmp_path / "source", tmp_path / "hub", 0)
    assert read(tmp_path / "hub", "openai/gsm8k/main/test.parquet") == [ROWS["gsm8k"][1]]
    assert read(tmp_path / "hub", "allenai/ai2_arc/ARC-Challenge/test.parquet") == [ROWS["arc"][1]]
    assert read(tmp_path / "hub", "Rowan/hellaswag/default/validation.parquet")[0]["label"] == "1"
    readme = (tmp_path / "hub" / "openai" / "gsm8k" / "README.md").read_text()
    assert "- config_name: main\n  data_files:\n  - split: test\n    path: main/test.parquet\n" in readme
    marker = json.loads((tmp_path / "hub" / "openai" / "gsm8k" / "winnow-import.json").read_text())
    assert (marker["sources"][0][0], marker["notes"]) == ("test.jsonl", [])


@pytest.mark.parametrize(
    ("options", "gold"),
    [
        (PARTIAL["context_options"], 0),
        (["Sam said that Sam", "Sam said that Ann"], 1),
        (["He kept the cat", "He kept the cat food"], 1),
        (["Ann", "Sam"], 0),
    ],
)
def test_the_partial_form_gives_lm_eval_the_same_texts(tmp_path: Path, options: list[str], gold: int) -> None:
    write(tmp_path / "source", "winogrande", {"context_options": options, "continuation": "was wet.", "gold": gold})
    import_data(tmp_path / "source", tmp_path / "hub", 0)
    [row] = read(tmp_path / "hub", "allenai/winogrande/winogrande_xl/validation.parquet")
    assert (doc_to_choice(row), doc_to_target(row), doc_to_text(row)) == (options, "was wet.", gold)


def test_the_original_form_of_winogrande_stays_as_it_is(tmp_path: Path) -> None:
    row = {"sentence": "The _ fell.", "option1": "cup", "option2": "bag", "answer": "2"}
    write(tmp_path / "source", "winogrande", row)
    [imported] = import_data(tmp_path / "source", tmp_path / "hub", 0)
    assert read(tmp_path / "hub", "allenai/winogrande/winogrande_xl/validation.parquet") == [row]
    assert imported.notes == []


@pytest.mark.parametrize("text", ["question,choice0,choice1,choice2,choice3,answer\nq,w,x,y,z,3\n", "q,w,x,y,z,D\n"])
def test_mmlu_is_read_with_and_without_a_header(tmp_path: Path, text: str) -> None:
    for split in ("dev", "test"):
        (tmp_path / "mmlu" / split).mkdir(parents=True)
        (tmp_path / "mmlu" / split / f"anatomy_{split}.csv").write_text(text)
    [imported] = import_data(tmp_path, tmp_path / "hub", 1)
    row = {"question": "q", "subject": "anatomy", "choices": ["w", "x", "y", "z"], "answer": 3}
    assert read(tmp_path / "hub", "cais/mmlu/anatomy/test.parquet") == [row]
    assert describe(imported) == "cais/mmlu: dev 1, test 1"


def test_rows_are_set_aside_only_where_examples_have_no_split(tmp_path: Path) -> None:
    row = ROWS["gsm8k"][1]
    path = write(tmp_path, "gsm8k", *[{**row, "answer": str(n)} for n in range(5)])
    import_data(tmp_path, tmp_path / "hub", 2)
    assert [row["answer"] for row in read(tmp_path / "hub", "openai/gsm8k/main/train.parquet")] == ["0", "1"]
    assert [row["answer"] for row in read(tmp_path / "hub", "openai/gsm8k/main/test.parquet")] == ["2", "3", "4"]
    write_jsonl(path.with_name("train.jsonl"), [row])
    import_data(tmp_path, tmp_path / "second", 2)
    assert len(read(tmp_path / "second", "openai/gsm8k/main/test.parquet")) == 5
    path.with_name("train.jsonl").unlink()
    with pytest.raises(UsageError, match="5 rows cannot be set aside of 5; lower --shots-from-eval"):
        import_data(tmp_path, tmp_path / "third", 5)
    assert not (tmp_path / "third").exists()


def test_a_faulty_row_is_an_error_with_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "gsm8k", ROWS["gsm8k"][1], {"question": "?"})
    with pytest.raises(InputError, match=rf"{path}:2: the field 'answer' is missing; it has question"):
        import_data(tmp_path, tmp_path / "hub", 0)


def test_a_faulty_line_of_mmlu_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mmlu" / "test").mkdir(parents=True)
    (tmp_path / "mmlu" / "test" / "anatomy_test.csv").write_text("q,w,x,y,z,3\nq,w,x,y,z,E\n")
    with pytest.raises(InputError, match=r"anatomy_test.csv:2: 6 cells that end in 'E'"):
        import_data(tmp_path, tmp_path / "hub", 0)


@pytest.mark.parametrize(
    ("labels", "fault"), [("1\n", "the label is 1, the row's answer 2"), ("2\n2\n", "2 labels for 1 rows")]
)
def test_labels_must_agree(tmp_path: Path, labels: str, fault: str) -> None:
    write(tmp_path, "winogrande")
    (tmp_path / "winogrande" / "dev-labels.lst").write_text(labels)
    with pytest.raises(InputError, match=fault):
        import_data(tmp_path, tmp_path / "hub", 0)


def test_a_folder_without_data_and_an_existing_target_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds none of the folders gsm8k, mmlu"):
        import_data(tmp_path, tmp_path / "hub", 0)
    with pytest.raises(UsageError, match="exists; give another --output"):
        import_data(tmp_path, tmp_path, 0)

"""`winnow judge --summary`: what it prints of a file, and what it refuses."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eval.judging.answer_files import read_answers
from eval.judging.mt_bench import Answer
from eval.judging.summary import SummaryRequest, print_summary
from tests.processes import winnow_in_process
from tests.test_judgment_files import row, rows
from tests.tiny_run import write_jsonl
from winnow.errors import InputError, WinnowError

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["a", "b"]},
    {"question_id": 82, "category": "math", "turns": ["a", "b"]},
]


def answer(question_id: int, turns: list[str], model: str = "tiny", **extra: Any) -> dict[str, Any]:
    return {"question_id": question_id, "model_id": model, "choices": [{"index": 0, "turns": turns}], **extra}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Write the judgments of two models, the questions and the answers of one model."""
    scored = [row(81, 1, score=9), row(81, 2, score=7), row(82, 1, score=4), row(82, 2, score=2)]
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("judgments", "questions", "answers")}
    write_jsonl(paths["judgments"], [*scored, *rows(model="large", score=10)])
    write_jsonl(paths["questions"], QUESTIONS)
    write_jsonl(paths["answers"], [answer(81, ["ab", "abcd"]), answer(82, ["abcdef", ""])])
    return paths


def printed(request: SummaryRequest) -> list[str]:
    """Print a summary; return its lines, with single spaces."""
    text = io.StringIO()
    print_summary(request, Console(file=text, width=100))
    return [" ".join(line.split()) for line in text.getvalue().splitlines()]


def test_the_summary_has_each_model_with_its_turns_and_categories(files: dict[str, Path]) -> None:
    lines = printed(SummaryRequest(files["judgments"], files["questions"]))
    assert "tiny, judged by gpt-4" in lines
    # all: (8 - 5.5) * 2 and (3 - 5.5) * 2: sqrt(2 * 50) / 4 = 2.5
    assert "all 5.500000 2.50 4 0" in lines
    assert "turn 1 6.500000 2.50 2 0" in lines
    assert "turn 2 4.500000 2.50 2 0" in lines
    assert "writing 8.000000 - 2 0" in lines
    assert "math 3.000000 - 2 0" in lines
    assert "large, judged by gpt-4" in lines
    assert "all 10.000000 0.00 4 0" in lines


def test_the_summary_says_what_was_not_given(files: dict[str, Path]) -> None:
    lines = printed(SummaryRequest(files["judgments"]))
    assert "categories: not known; give --questions" in lines
    assert not [line for line in lines if line.startswith(("writing", "answers:"))]


def test_the_summary_has_the_length_of_the_answers(files: dict[str, Path]) -> None:
    lines = printed(SummaryRequest(files["judgments"], answers=(files["answers"],)))
    assert "answers: 3.0 characters on average, 0 turns without one" in lines
    assert len([line for line in lines if line.startswith("answers:")]) == 1


def test_a_turn_without_an_answer_needs_no_judgment(files: dict[str, Path]) -> None:
    write_jsonl(files["judgments"], rows()[:3])
    unanswered = answer(82, ["abcdef", ""], errors=[None, "the prompt is too long"])
    write_jsonl(files["answers"], [answer(81, ["ab", "abcd"]), unanswered])
    lines = printed(SummaryRequest(files["judgments"], files["questions"], (files["answers"],)))
    assert "answers: 4.0 characters on average, 1 turns without one" in lines
    with pytest.raises(InputError, match="question_id 82 has no judgment of turn 2"):
        printed(SummaryRequest(files["judgments"], files["questions"]))
    lines = printed(SummaryRequest(files["judgments"], files["questions"], is_missing_allowed=True))
    assert "missing: 1 turns have no judgment" in lines


def test_answers_of_another_model_are_refused(files: dict[str, Path]) -> None:
    write_jsonl(files["answers"], [answer(81, ["a", "b"], model="huge")])
    with pytest.raises(InputError, match=r"holds answers of huge, and .* judgments of tiny, large; give the answers"):
        printed(SummaryRequest(files["judgments"], answers=(files["answers"],)))


def test_the_summary_shows_repeated_runs(files: dict[str, Path]) -> None:
    write_jsonl(files["judgments"], [*rows(run_id=0), *rows(run_id=1, score=6)])
    lines = printed(SummaryRequest(files["judgments"]))
    assert "all 7.000000 0.00 8 0" in lines
    assert "runs: 8.000000, 6.000000 (sd 1.414214)" in lines


def test_unreadable_verdicts_are_counted_warned_about_and_refused(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    unreadable = [*rows()[:3], row(82, 2, score=-1)]
    write_jsonl(files["judgments"], [*unreadable, *rows(model="large")])
    text = io.StringIO()
    with pytest.raises(WinnowError, match=r"model tiny: 1 of 4 .*25\.0%, at most 10\.0% allowed.*--max-unreadable"):
        print_summary(SummaryRequest(files["judgments"]), Console(file=text, width=100))
    assert "tiny" not in text.getvalue()
    assert "large, judged by gpt-4" in text.getvalue()
    lines = printed(SummaryRequest(files["judgments"], max_unreadable=0.25))
    assert "all 8.000000 0.00 4 1" in lines
    assert "model tiny: 1 of 4 verdicts of the judge gpt-4 are unreadable" in capsys.readouterr().err


def test_answers_are_read_by_model(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    write_jsonl(path, [answer(81, ["a", "b"]), answer(81, ["c", "d"], run_id=1), answer(81, ["e", "f"], model="large")])
    assert read_answers(path) == {
        "tiny": [Answer(81, 0, ("a", "b")), Answer(81, 1, ("c", "d"))],
        "large": [Answer(81, 0, ("e", "f"))],
    }


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (
            answer(81, ["a", "b"]),
            r"line 2: a second answer of model 'tiny' to question_id 81 in run 0 ",
        ),
        (answer(82, ["a"]), "line 2: 1 turns, 2 errors; there should be two of each"),
        ({**answer(82, ["a", "b"]), "choices": []}, "line 2: choices is empty"),
        ({"question_id": 82}, "line 2: model_id: Field required"),
    ],
)
def test_an_answer_at_fault_is_refused_with_its_line(tmp_path: Path, broken: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "answers.jsonl"
    write_jsonl(path, [answer(81, ["a", "b"]), broken])
    with pytest.raises(InputError, match=complaint):
        read_answers(path)


def test_an_answer_file_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no answer"):
        read_answers(tmp_path / "answers.jsonl")


def test_the_verb_prints_the_three_real_means(reference_data: Path) -> None:
    folder = reference_data / "mt_bench"
    judgments = str(folder / "model_judgment" / "gpt-4_single.jsonl")
    result = winnow_in_process("judge", "--summary", judgments, "--questions", str(folder / "question.jsonl"))
    assert (result.returncode, result.stderr) == (0, "")
    rows_of_all = [line.split() for line in result.stdout.splitlines() if line.startswith("all ")]
    assert [words[1] for words in rows_of_all] == ["5.987500", "6.103125", "5.878125"]
    assert result.stdout.count("humanities") == 3


def test_the_verb_ends_with_a_line_for_a_file_at_fault(files: dict[str, Path]) -> None:
    write_jsonl(files["judgments"], [*rows(), row(81, 1)])
    result = winnow_in_process("judge", "--summary", str(files["judgments"]))
    assert result.returncode == 1
    assert result.stderr.startswith(f"winnow: {files['judgments']} line 5: a second judgment of question_id 81")
    assert winnow_in_process("judge").returncode == 2

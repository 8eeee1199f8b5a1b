"""Judgment files of FastChat and of others: what is read, and each kind of row that is refused with file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.judging.judged_scores import UNREADABLE, summarize
from eval.judging.judgment_files import only_set, read_judgment_sets
from eval.judging.questions import Question, read_questions
from tests.tiny_run import write_jsonl
from winnow.errors import InputError

QUESTIONS = [Question(question_id=number, category="math", turns=("a", "b")) for number in (81, 82)]


def row(question_id: Any = 81, turn: Any = 1, **changes: Any) -> dict[str, Any]:
    return {
        "question_id": question_id,
        "model": "tiny",
        "judge": ["gpt-4", "single-v1"],
        "user_prompt": "...",
        "judgment": "Rating: [[8]]",
        "score": 8,
        "turn": turn,
        "tstamp": 1694847976.1,
        **changes,
    }


def rows(**changes: Any) -> list[dict[str, Any]]:
    """Return the four judgments of two questions."""
    return [row(question_id, turn, **changes) for question_id in (81, 82) for turn in (1, 2)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "judgments.jsonl"


def refusal(path: Path, *judgments: dict[str, Any]) -> str:
    """Write a file and return the error of reading it, after the path."""
    write_jsonl(path, list(judgments))
    with pytest.raises(InputError) as caught:
        read_judgment_sets(path, QUESTIONS)
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    return message.removeprefix(f"{path} ")


def test_a_file_is_read_by_model_and_judge(path: Path) -> None:
    judgments = [*rows(), *rows(model="large", score=9), *rows(judge=["claude", "single-v1"], score=-1)]
    write_jsonl(path, judgments)
    sets = read_judgment_sets(path, QUESTIONS)
    assert [(judged.model, judged.judge, judged.lines) for judged in sets] == [
        ("tiny", "gpt-4", (1, 2, 3, 4)),
        ("large", "gpt-4", (5, 6, 7, 8)),
        ("tiny", "claude", (9, 10, 11, 12)),
    ]
    assert [judgment.score for judgment in sets[2].judgments] == [UNREADABLE] * 4
    assert only_set(sets, "tiny", "claude") == sets[2]
    assert only_set(sets, model="large") == sets[1]


def test_two_models_and_two_judges_are_named(path: Path) -> None:
    write_jsonl(path, [*rows(), *rows(model="large"), *rows(judge=["claude", "single-v1"])])
    sets = read_judgment_sets(path)
    with pytest.raises(InputError, match=r"line 5: a second model, 'large', after 'tiny' in line 1; name the model"):
        only_set(sets)
    with pytest.raises(InputError, match=r"line 9: a second judge, 'claude', after 'gpt-4' in line 1; name the judge"):
        only_set(sets, model="tiny")
    with pytest.raises(
        InputError, match=r"no judgments of model huge by judge \(any\); it holds 'tiny' by 'gpt-4', 'large' by"
    ):
        only_set(sets, model="huge")


def test_repeated_runs_have_a_run_id(path: Path) -> None:
    write_jsonl(path, [*rows(run_id=0), *rows(run_id=1, score=6)])
    [judged] = read_judgment_sets(path, QUESTIONS)
    assert summarize(judged.judgments, None, []).runs == (8, 6)


def test_a_duplicate_is_refused(path: Path) -> None:
    error = refusal(path, *rows(), row(82, 1, score=2))
    assert error.startswith("line 5: a second judgment of question_id 82, turn 1, run 0 of model 'tiny' by 'gpt-4'")
    assert "(the first is in line 3); give two models two names, and repeated runs a run_id each" in error


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"score": 85}, "score 85 is outside 1 to 10; correct it, or write -1 for an unreadable verdict"),
        ({"score": 0}, "score 0 is outside 1 to 10"),
        ({"score": -2}, "score -2 is outside 1 to 10"),
        ({"score": float("nan")}, "score is NaN"),
        ({"score": float("inf")}, "score inf is outside 1 to 10"),
        ({"score": None}, "score is null, not a number"),
        ({"score": "8"}, "score is a text, not a number"),
        ({"score": True}, "score is true or false, not a number"),
        ({"judge": "gpt-4"}, """judge is the text 'gpt-4'; write .* like ["gpt-4", "single-v1"]"""),
        ({"judge": ["gpt-4"]}, "judge.1: Field required"),
        ({"turn": 3}, "turn is 3; it should be 1 or 2"),
        ({"turn": "1"}, "turn is '1'; it should be 1 or 2"),
        ({"question_id": 999}, "question_id 999 is not in the question set"),
        ({"question_id": "82"}, "question_id '82' is not in the question set"),
        ({"question_id": None}, "question_id"),
        ({"model": None}, "model: Input should be a valid string"),
        ({"run_id": "first"}, "run_id: Input should be a valid integer"),
    ],
)
def test_a_row_at_fault_is_refused_with_its_line(path: Path, changes: dict[str, Any], complaint: str) -> None:
    error = refusal(path, *rows()[:2], {**row(82, 1), **changes}, row(82, 2))
    for part in complaint.split(" .* "):
        assert part in error
    assert error.startswith("line 3: ")


def test_a_row_without_a_score_is_refused(path: Path) -> None:
    broken = row(82, 1)
    del broken["score"]
    assert refusal(path, *rows()[:2], broken) == "line 3: score: Field required"


def test_a_pairwise_row_is_refused(path: Path) -> None:
    pairwise = {"question_id": 81, "model_1": "a", "model_2": "b", "g1_winner": "model_1", "turn": 1}
    error = refusal(path, pairwise)
    assert error.startswith(
        "line 1: a pairwise judgment (model_1, model_2, g1_winner), which has no score; give a file"
    )


def test_a_missing_turn_is_refused(path: Path) -> None:
    error = refusal(path, *rows()[:3])
    assert error.startswith("line 3: question_id 82 has no judgment of turn 2 in run 0 of model 'tiny' by 'gpt-4'")
    assert refusal(path, *rows()[1:]).startswith("line 1: question_id 81 has no judgment of turn 1")
    second_run = [*rows(run_id=0), *rows(run_id=1)[:3]]
    assert refusal(path, *second_run).startswith("line 7: question_id 82 has no judgment of turn 2 in run 1")


def test_a_missing_question_is_refused_if_the_question_set_is_known(path: Path) -> None:
    write_jsonl(path, rows()[:2])
    assert len(read_judgment_sets(path)) == 1
    with pytest.raises(InputError, match=r"judgments\.jsonl: question_id 82 has no judgment of turn 1 .*\(2 missing"):
        read_judgment_sets(path, QUESTIONS)


def test_missing_turns_may_be_allowed_or_unanswered(path: Path) -> None:
    write_jsonl(path, rows()[:3])
    [judged] = read_judgment_sets(path, QUESTIONS, is_missing_allowed=True)
    assert (len(judged.judgments), judged.num_missing) == (3, 1)
    [judged] = read_judgment_sets(path, QUESTIONS, {"tiny": [(82, 2, 0)]})
    assert judged.num_missing == 0
    with pytest.raises(InputError, match="question_id 82 has no judgment of turn 2"):
        read_judgment_sets(path, QUESTIONS, {"large": [(82, 2, 0)]})


def test_an_empty_file_and_a_broken_line_are_refused(path: Path) -> None:
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no judgment"):
        read_judgment_sets(path)
    path.write_text(json.dumps(row()) + "\n{")
    with pytest.raises(InputError, match="line 2: not valid JSON"):
        read_judgment_sets(path)


def test_the_three_real_means_and_their_standard_errors(reference_data: Path) -> None:
    folder = reference_data / "mt_bench"
    questions = read_questions(folder / "question.jsonl")
    categories = {question.question_id: question.category for question in questions}
    means = {}
    for judged in read_judgment_sets(folder / "model_judgment" / "gpt-4_single.jsonl", questions):
        score = summarize(judged.judgments, categories, [])
        assert (score.judge, score.num_judgments, score.num_unparsable, judged.num_missing) == ("gpt-4", 160, 0, 0)
        assert score.stderr is not None
        assert 0.2 < score.stderr < 0.4
        assert len(score.by_category_stderr) == 8
        means[judged.model.split("-v1.3-1-")[0]] = round(score.mean, 6)
    assert means == {"vicuna-7b-v1.3": 6.103125, "medusa-vicuna-7b": 5.9875, "vicuna-7b-v1.3-greedy": 5.878125}

"""`winnow judge ANSWERS`: single answers and pairs, its files, its refusals, the noise of the judge."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.judging.judge_command import JudgeCommand, judge_answer_files
from eval.judging.judge_flags import find_prompts
from eval.judging.llm_judge import fill_in, read_judge_prompts
from eval.judging.mt_bench import Answer
from eval.judging.noise import Noise, noise, noise_lines
from eval.judging.pair_files import PairJudgment, pair_result, pair_results, pair_warning, read_pair_judgments
from eval.judging.pair_judging import PAIR_PROMPT_NAMES, pair_prompt_fields, pair_prompt_name, pairs_of
from eval.judging.questions import Question, read_questions, read_references
from eval.judging.summary import SummaryRequest, print_summary
from tests.chat_server import TEMPLATES, Reply, chat_server
from tests.processes import winnow_in_process
from tests.test_judge_summary import answer
from tests.tiny_run import write_jsonl
from winnow.errors import InputError, UsageError, WinnowError
from winnow.rows import read_jsonl_files
from winnow.run_config import JudgeConfig

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["A colour?", "Another one."]},
    {"question_id": 101, "category": "math", "turns": ["2 + 3?", "Double it."]},
]
NOWHERE = "http://127.0.0.1:1/v1"
PAIR_TEMPLATES = {
    "pair-v2": "Q: {question} A: {answer_a} B: {answer_b}",
    "pair-math-v1": "Q: {question} R: {ref_answer_1} A: {answer_a} B: {answer_b}",
    "pair-v2-multi-turn": "{question_1} A: {answer_a_1} {answer_a_2} B: {answer_b_1} {answer_b_2} {question_2}",
    "pair-math-v1-multi-turn": "R: {ref_answer_1} {ref_answer_2} A: {answer_a_1} {answer_a_2} B: {answer_b_1} "
    "{answer_b_2} {question_1} {question_2}",
}


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., JudgeCommand]:
    """Write question, reference, prompt and answer files; return a function that makes the command on them."""
    prompts = {**TEMPLATES, **PAIR_TEMPLATES}
    rows = [{"name": name, "system_prompt": "Be fair.", "prompt_template": text} for name, text in prompts.items()]
    write_jsonl(tmp_path / "judge_prompts.jsonl", rows)
    write_jsonl(tmp_path / "question.jsonl", QUESTIONS)
    write_jsonl(tmp_path / "reference.jsonl", [{"question_id": 101, "choices": [{"turns": ["5", "10"]}]}])
    for model, sum_text, text in (("tiny", "5", "red"), ("large", "five", "a deep blue")):
        write_jsonl(
            tmp_path / f"{model}.jsonl", [answer(81, [text, text], model), answer(101, [sum_text, text], model)]
        )

    def made(address: str, *answers: str, **changes: Any) -> JudgeCommand:
        prompts_path = str(tmp_path / "judge_prompts.jsonl")
        return JudgeCommand(
            answers=tuple(tmp_path / f"{name}.jsonl" for name in answers or ("tiny", "large")),
            questions=tmp_path / "question.jsonl",
            output=tmp_path / "judged",
            judge=JudgeConfig(kind="llm", model="judge-1", base_url=address, prompts=prompts_path),
            references=tmp_path / "reference.jsonl",
            **changes,
        )

    return made


def prompt_of(request: dict[str, Any]) -> str:
    text: str = request["messages"][1]["content"]
    return text


# --- single answers -------------------------------------------------------------------------------------------------


def test_answers_are_judged_into_fastchats_rows_and_summarized(
    command: Callable[..., JudgeCommand], capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(request: dict[str, Any]) -> str:
        return "Rating: [[9]]" if "blue" in prompt_of(request) else "Rating: [[4]]"

    with chat_server(reply) as (address, requests):
        judge_answer_files(command(address))
        assert len(requests) == 1 + 8
        judge_answer_files(command(address))
        assert len(requests) == 2 + 8  # the check alone
    rows = read_jsonl_files([command(address).output / "judgments.jsonl"])
    assert [(row["model"], row["question_id"], row["turn"], row["score"]) for row in rows] == [
        ("tiny", 81, 1, 4),
        ("tiny", 81, 2, 4),
        ("tiny", 101, 1, 4),
        ("tiny", 101, 2, 4),
        ("large", 81, 1, 9),
        ("large", 81, 2, 9),
        ("large", 101, 1, 4),
        ("large", 101, 2, 9),
    ]
    assert rows[3]["judge"] == ["judge-1", "single-math-v1-multi-turn"]
    assert rows[3]["user_prompt"] == "R1: 5 R2: 10 A1: 5 A2: red Double it."
    captured = capsys.readouterr()
    lines = [" ".join(line.split()) for line in captured.out.splitlines()]
    assert "all 7.750000 1.25 4 0" in lines
    assert "math 6.500000 - 2 0" in lines
    assert "answers: 9.2 characters on average, 0 turns without one" in lines
    assert "8 replies were there already" in captured.err


def test_a_folder_takes_no_judgments_of_other_inputs(command: Callable[..., JudgeCommand]) -> None:
    with chat_server(lambda request: "[[5]]") as (address, requests):
        judge_answer_files(command(address, "tiny"))
        with pytest.raises(UsageError, match=r"holds results of other inputs \(answers differ, .*another --output"):
            judge_answer_files(command(address, "large"))
        assert len(requests) == 1 + 4


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([answer(81, ["a", "b"])], r"model tiny, run 0: 1 of 2 questions have no answer \(question_id 101\)"),
        ([answer(81, ["a", "b"]), answer(7, ["a", "b"])], "model tiny answers question_id 7, which the question set"),
    ],
)
def test_answers_that_do_not_fit_the_questions_are_refused_before_a_call(
    command: Callable[..., JudgeCommand], tmp_path: Path, rows: list[dict[str, Any]], complaint: str
) -> None:
    write_jsonl(tmp_path / "tiny.jsonl", rows)
    with pytest.raises(InputError, match=complaint):
        judge_answer_files(command(NOWHERE))
    assert not command(NOWHERE).output.exists()


def test_missing_answers_can_be_allowed(command: Callable[..., JudgeCommand], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "tiny.jsonl", [answer(81, ["a", "b"])])
    with chat_server(lambda request: "[[5]]") as (address, _):
        judge_answer_files(command(address, "tiny", is_missing_allowed=True))
    assert len(read_jsonl_files([tmp_path / "judged" / "judgments.jsonl"])) == 2


def test_a_model_in_two_files_is_refused(command: Callable[..., JudgeCommand]) -> None:
    with pytest.raises(InputError, match=r"tiny\.jsonl and .*tiny\.jsonl both hold answers of model 'tiny'"):
        judge_answer_files(command(NOWHERE, "tiny", "tiny"))


def test_judge_prompts_are_found_beside_or_above_the_questions(tmp_path: Path) -> None:
    questions = tmp_path / "mt_bench" / "question.jsonl"
    with pytest.raises(UsageError, match=r"no judge_prompts\.jsonl beside .* --prompts"):
        find_prompts(questions)
    (tmp_path / "judge_prompts.jsonl").write_text("")
    assert find_prompts(questions) == tmp_path / "judge_prompts.jsonl"


def test_a_template_that_cannot_be_filled_in_is_named(command: Callable[..., JudgeCommand], tmp_path: Path) -> None:
    rows = [{"name": name, "system_prompt": "", "prompt_template": "{answer} {grade}"} for name in TEMPLATES]
    write_jsonl(tmp_path / "judge_prompts.jsonl", rows)
    with (
        chat_server(lambda request: "[[5]]") as (address, _),
        pytest.raises(InputError, match=r"judge prompt single-v1 cannot be filled in \(KeyError: 'grade'\)"),
    ):
        judge_answer_files(command(address))


# --- noise ----------------------------------------------------------------------------------------------------------


def test_rejudging_shows_the_noise_of_the_judge(
    command: Callable[..., JudgeCommand], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def reply(request: dict[str, Any]) -> str:
        calls.append(1)
        return "[[5]]" if len(calls) <= 1 + 4 else "[[7]]"

    with chat_server(reply) as (address, requests):
        judge_answer_files(command(address, "tiny", num_rejudged=1))
        assert len(requests) == 1 + 2 * 4
    first, second = (read_jsonl_files([tmp_path / "judged" / f"judgments{number}.jsonl"]) for number in ("", "-2"))
    assert {row["score"] for row in first} == {5}
    assert {row["score"] for row in second} == {7}
    expected = "tiny: noise of the judge: sd 1.414 of a mean (2 judgings of the same answers)"
    assert expected in capsys.readouterr().out.splitlines()


def test_the_noise_of_judge_and_answers_is_taken_apart() -> None:
    assert noise([[6.0]]) == Noise(None, None, 1, 1)
    assert noise([[6.0], [7.0]]) == Noise(None, None, 2, 1)
    # Runs that differ less than the judge's noise explains: the answers add none that can be seen.
    assert noise([[5.0, 7.0], [6.0, 6.0]]).answer_sd == 0
    quiet = noise([[5.0, 5.0], [7.0, 7.0]])
    assert quiet.judge_sd == 0
    assert quiet.answer_sd == pytest.approx(2**0.5)
    assert len(noise_lines(quiet)) == 2


# --- pairs ----------------------------------------------------------------------------------------------------------


def test_pairs_are_judged_in_both_orders(
    command: Callable[..., JudgeCommand], capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(request: dict[str, Any]) -> str:
        prompt = prompt_of(request)
        if "R: 5 A" in prompt:
            return "[[A]]"  # the first assistant, whoever it is
        return "[[A]]" if "A: a deep blue" in prompt or "A: five a deep blue" in prompt else "[[B]]"

    with chat_server(reply) as (address, requests):
        judge_answer_files(command(address, is_pairwise=True))
        assert len(requests) == 1 + 8
        judge_answer_files(command(address, is_pairwise=True))
        assert len(requests) == 2 + 8
    rows = read_jsonl_files([command(address).output / "pairs.jsonl"])
    assert [(row["question_id"], row["turn"], row["g1_winner"], row["g2_winner"]) for row in rows] == [
        (81, 1, "model_2", "model_2"),
        (81, 2, "model_2", "model_2"),
        (101, 1, "model_1", "model_2"),
        (101, 2, "model_2", "model_2"),
    ]
    assert (rows[0]["model_1"], rows[0]["model_2"]) == ("tiny", "large")
    assert rows[0]["judge"] == ["judge-1", "pair-v2"]
    assert rows[0]["g2_user_prompt"] == "Q: A colour? A: a deep blue B: red"
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    # Values of model_1: 0, 0; 1/2, 0. Question means 0 and 1/4.
    assert "tiny large judge-1 0 1 3 1 0 0.125 0.125" in lines


def test_unreadable_games_are_counted_left_out_and_refused(command: Callable[..., JudgeCommand]) -> None:
    def reply(request: dict[str, Any]) -> Reply:
        return "perhaps" if "Q: 2 + 3?" in json.dumps(request) else "[[C]]"

    with (
        chat_server(reply) as (address, _),
        pytest.raises(WinnowError, match=r"tiny and large: 1 of 4 judgments of judge-1 are unreadable \(25\.0%"),
    ):
        judge_answer_files(command(address, is_pairwise=True))
    path = command(address).output / "pairs.jsonl"
    [result] = pair_results(read_pair_judgments(path))
    assert (result.num_ties, result.num_inconsistent, result.num_unreadable) == (3, 0, 1)
    assert pair_warning(result, 0.3) == (
        "warning: tiny and large: 1 of 4 judgments of judge-1 are unreadable and left out"
    )


def test_pairs_need_two_models_and_a_baseline_with_answers() -> None:
    with pytest.raises(InputError, match="pairs need answers of two models; these are of tiny alone"):
        pairs_of(["tiny"], None)
    with pytest.raises(InputError, match="no answers of the baseline 'huge'"):
        pairs_of(["tiny", "large"], "huge")


PAIR = {
    "question_id": 81,
    "model_1": "tiny",
    "model_2": "large",
    "g1_winner": "model_1",
    "g2_winner": "model_1",
    "judge": ["gpt-4", "pair-v2"],
    "turn": 1,
}


def test_an_inconsistent_pair_is_a_tie_and_counted() -> None:
    winners = [("model_1", "model_1"), ("model_1", "model_2"), ("tie", "model_2"), ("tie", "tie")]
    rows = []
    for number, (first, second) in enumerate(winners):
        row = {**PAIR, "question_id": number, "g1_winner": first, "g2_winner": second}
        rows.append(PairJudgment.model_validate(row))
    result = pair_result(("tiny", "large"), "gpt-4", rows)
    assert (result.num_wins, result.num_ties, result.num_losses, result.num_inconsistent) == (1, 3, 0, 2)
    assert result.win_rate is not None
    assert result.win_rate.mean == 0.625


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (PAIR, r"line 2: a second judgment of question_id 81, turn 1, run 0 of 'tiny' and 'large' .*line 1"),
        ({**PAIR, "model_1": "large", "model_2": "tiny"}, "line 2: a second judgment"),
        ({**PAIR, "turn": 3}, "line 2: turn"),
        ({**PAIR, "turn": 2, "g1_winner": "A"}, "line 2: g1_winner"),
        ({**PAIR, "turn": 2, "model_2": "tiny"}, "line 2: model_1 and model_2 are both 'tiny'"),
    ],
)
def test_a_pairwise_row_at_fault_is_refused_with_its_line(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    path = Path(write_jsonl(tmp_path / "pairs.jsonl", [PAIR, row]))
    with pytest.raises(InputError, match=complaint):
        print_summary(SummaryRequest(path))


def test_fastchats_pairwise_prompts_are_filled_in(reference_data: Path) -> None:
    folder = reference_data / "mt_bench"
    prompts = read_judge_prompts(str(folder / "judge_prompts.jsonl"), PAIR_PROMPT_NAMES)
    references = read_references(folder / "reference_answer" / "gpt-4.jsonl")
    used = set()
    shown = (Answer(0, 0, ("first a", "second a")), Answer(0, 0, ("first b", "second b")))
    for question in read_questions(folder / "question.jsonl"):
        plain = question.model_copy(update={"turns": ("one", "two")})
        for turn in (1, 2):
            name = pair_prompt_name(question, turn)
            reference = ("ref 1", "ref 2") if question.question_id in references else None
            text = fill_in(prompts[name], pair_prompt_fields(plain, turn, shown, reference))
            assert "{" not in text
            assert text.index("first a") < text.index("first b")
            assert ("second b" in text) == (turn == 2)
            used.add(name)
    assert used == set(PAIR_PROMPT_NAMES)


def test_a_math_pair_needs_its_reference() -> None:
    question = Question(question_id=101, category="math", turns=("a", "b"))
    shown = (Answer(101, 0, ("a", "b")), Answer(101, 0, ("a", "b")))
    with pytest.raises(InputError, match=r"question 101 \(math\) has no reference answers.*--references"):
        pair_prompt_fields(question, 1, shown, None)


# --- the verb -------------------------------------------------------------------------------------------------------


def test_the_verb_judges_answers(command: Callable[..., JudgeCommand], tmp_path: Path) -> None:
    files = ["--questions", str(tmp_path / "question.jsonl"), "--references", str(tmp_path / "reference.jsonl")]
    command(NOWHERE)
    with chat_server(lambda request: "Rating: [[6]]") as (address, requests):
        arguments = [str(tmp_path / "tiny.jsonl"), *files, "--judge-model", "judge-1", "--judge-base-url", address]
        output = ["--output", str(tmp_path / "out"), "--judge-temperature", "none", "--judge-max-tokens", "9"]
        result = winnow_in_process("judge", *arguments, *output)
    assert result.returncode == 0, result.stderr
    assert "6.000000" in result.stdout
    assert set(requests[1]) == {"path", "model", "messages", "max_tokens"}
    assert requests[1]["max_tokens"] == 9


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "give ANSWERS to judge, or --summary FILE"),
        (["a.jsonl", "--summary", "b.jsonl"], "give ANSWERS to judge, or --summary FILE"),
        (["a.jsonl", "--questions", "q.jsonl"], "--judge-model is missing"),
        (
            ["a.jsonl", "--questions", "q.jsonl", "--judge-model", "m", "--output", "o", "--baseline", "x"],
            "--baseline needs --pairwise",
        ),
    ],
)
def test_the_verb_names_flags_that_are_missing(arguments: list[str], complaint: str) -> None:
    result = winnow_in_process("judge", *arguments)
    assert result.returncode == 2
    assert complaint in result.stderr

"""The two-turn question set: its files, the answers of an engine, judgments, scores, and FastChat's real data."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from benchmarks.tiny_models import make_tokenizer
from eval.judging.answering import EngineAnswerer, answer_questions, by_temperature
from eval.judging.judged_scores import (
    UNREADABLE,
    JudgedScore,
    Judgment,
    check_readable,
    mean_score,
    summarize,
    unreadable_warning,
)
from eval.judging.judges import Verdict
from eval.judging.judgment_files import only_set, read_judgment_sets
from eval.judging.mt_bench import Answer, check_answered, check_questions, judge_answers
from eval.judging.questions import Question, References, read_questions, read_references
from eval.judging.reference_judge import ReferenceJudge
from sampler.engines import SamplingParams
from winnow.chat import Chat
from winnow.chat.templates import TEMPLATE_DIR
from winnow.errors import InputError, UsageError, WinnowError
from winnow.run_config import QuestionsConfig

MATH = Question(question_id=1, category="math", turns=("2 + 3?", "Double it."))
ESSAY = Question(question_id=2, category="writing", turns=("A colour?", "Another one."))
STORY = Question(question_id=3, category="roleplay", turns=("Who are you?", "And now?"))


class Parrot:
    """An engine that answers with the last user message in capitals, its seed and its temperature."""

    max_tokens: int | None = None

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.calls: list[tuple[list[str], SamplingParams]] = []

    def sample(self, prompts: Mapping[str, list[int]], params: SamplingParams) -> dict[str, list[list[int]]]:
        texts = {prompt_id: self.chat.tokenizer.decode(token_ids) for prompt_id, token_ids in prompts.items()}
        self.calls.append((list(texts.values()), params))
        noise = str(params.seed) if params.temperature else ""
        generated = {}
        for prompt_id, text in texts.items():
            question = re.findall(r"<\|user\|>\n(.*?)\n<\|assistant\|>", text, re.S)[-1]
            generated[prompt_id] = [finished_turn(self.chat, f"{question.upper()} {noise}")]
        return generated


def finished_turn(chat: Chat, text: str) -> list[int]:
    return [*chat.encode(text), chat.end_of_turn_id]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat(make_tokenizer(tmp_path_factory.mktemp("tokenizer")), "lab")


def config(**changes: Any) -> QuestionsConfig:
    return QuestionsConfig(questions="question.jsonl", **changes)


def answers_of(engine: Parrot, questions: Sequence[Question], settings: QuestionsConfig, seed: int) -> list[Answer]:
    return answer_questions(lambda: EngineAnswerer(engine, engine.chat), questions, settings, seed, "round 0")


def write(path: Path, *lines: Any) -> str:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts))
    return str(path)


# --- files ----------------------------------------------------------------------------------------------------------


def test_question_keeps_additional_keys(tmp_path: Path) -> None:
    row = {
        "question_id": 1,
        "category": "math",
        "turns": ["a", "b"],
        "form": ["number", "word"],
        "form_pattern": r"\d+",
    }
    [question] = read_questions(write(tmp_path / "q.jsonl", row))
    assert json.loads(question.model_dump_json()) == row
    assert (question.form_of(1), question.form_of(2)) == (r"\d+", r"\d+")


GOOD = {"question_id": 1, "category": "math", "turns": ["a", "b"]}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not valid JSON"),
        ({**GOOD, "question_id": 2, "turns": ["only one"]}, "turns.1: Field required"),
        ({"question_id": 2, "turns": ["a", "b"]}, "category: Field required"),
        ({**GOOD, "question_id": 2, "form_pattern": "("}, r"form_pattern.*is not a regular expression"),
        (GOOD, "question_id 1 occurs twice"),
    ],
)
def test_read_questions_names_file_and_line_of_a_malformed_question(tmp_path: Path, line: Any, complaint: str) -> None:
    path = write(tmp_path / "q.jsonl", GOOD, "", line)
    with pytest.raises(InputError, match=f"^{re.escape(path)} line 3: .*{complaint}"):
        read_questions(path)


def test_read_questions_names_a_missing_or_empty_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="holds no question"):
        read_questions(write(tmp_path / "q.jsonl"))


def test_read_references_returns_answers_by_question_id(tmp_path: Path) -> None:
    row = {"question_id": 1, "answer_id": "x", "model_id": "m", "choices": [{"index": 0, "turns": ["5", "10"]}]}
    assert read_references(write(tmp_path / "r.jsonl", row)) == {1: ("5", "10")}
    assert read_references(None) == {}
    path = write(tmp_path / "r.jsonl", row, {**row, "choices": []})
    with pytest.raises(InputError, match="line 2: choices is empty"):
        read_references(path)


# --- answers --------------------------------------------------------------------------------------------------------


def test_the_prompt_of_turn_2_contains_the_answer_to_turn_1(chat: Chat) -> None:
    engine = Parrot(chat)
    [answer] = answers_of(engine, [MATH], config(), 0)
    assert answer == Answer(1, 0, ("2 + 3? ", "DOUBLE IT. "))
    second = engine.calls[1][0][0]
    assert second.endswith(
        "<|user|>\n2 + 3?\n<|assistant|>\n2 + 3? <|endoftext|>\n<|user|>\nDouble it.\n<|assistant|>\n"
    )


def test_questions_of_equal_temperature_go_to_the_engine_in_one_call(chat: Chat) -> None:
    engine = Parrot(chat)
    answers = answers_of(engine, [ESSAY, MATH, STORY], config(), 0)
    assert [answer.question_id for answer in answers] == [2, 1, 3]
    assert [(len(texts), params.temperature) for texts, params in engine.calls] == [
        (2, 0.7),
        (2, 0.7),
        (1, 0),
        (1, 0),
    ]


def test_by_temperature_uses_mt_benchs_or_the_configured_temperature() -> None:
    categories = ["writing", "roleplay", "stem", "humanities", "math", "reasoning", "coding", "extraction", "other"]
    questions = [Question(question_id=name, category=name, turns=("", "")) for name in categories]
    expected = {0.7: 2, 0.1: 2, 0.0: 5}
    assert {temperature: len(group) for temperature, group in by_temperature(questions, None).items()} == expected
    assert list(by_temperature(questions, 0.3)) == [0.3]


def test_answers_differ_between_runs_and_seeds_and_are_reproducible(chat: Chat) -> None:
    def answers(seed: int) -> list[Answer]:
        return answers_of(Parrot(chat), [ESSAY, MATH], config(num_runs=2), seed)

    first = answers(0)
    assert first == answers(0)
    assert first != answers(1)
    assert [(answer.run_id, answer.question_id) for answer in first] == [(0, 2), (0, 1), (1, 2), (1, 1)]
    assert first[0].turns != first[2].turns
    assert first[1].turns == first[3].turns  # greedy: every run has the same answer


def test_an_answer_with_a_control_token_leaves_turn_2_with_an_error_and_unjudged(chat: Chat) -> None:
    class ControlTokenEngine(Parrot):
        def sample(self, prompts: Mapping[str, list[int]], params: SamplingParams) -> dict[str, list[list[int]]]:
            generated = {}
            for prompt_id, token_ids in prompts.items():
                text = "a <|user|> b" if "2 + 3" in chat.tokenizer.decode(token_ids) else "c"
                generated[prompt_id] = [finished_turn(chat, text)]
            return generated

    essay = ESSAY.model_copy(update={"category": "math"})
    answers = answers_of(ControlTokenEngine(chat), [MATH, essay], config(), 0)
    assert [answer.turns for answer in answers] == [("a <|user|> b", ""), ("c", "c")]
    assert [answer.num_unanswered for answer in answers] == [1, 0]
    assert answers[0].texts == ["a <|user|> b"]
    row = answers[0].row("tiny")
    assert row["choices"] == [{"index": 0, "turns": ["a <|user|> b", ""]}]
    assert row["errors"][0] is None
    assert "control token '<|user|>'" in row["errors"][1]
    assert "errors" not in answers[1].row("tiny")
    references: References = {1: ("5", "10"), 2: ("red", "blue")}
    judgments = judge_answers(ReferenceJudge(), [MATH, essay], references, answers, "tiny", "round 0")
    assert [(row.question_id, row.turn) for row in judgments] == [(1, 1), (2, 1), (2, 2)]


def test_a_prompt_that_is_too_long_leaves_both_turns_with_an_error_and_unjudged(chat: Chat) -> None:
    class ShortEngine(Parrot):
        max_tokens = 80

    long = MATH.model_copy(update={"question_id": 9, "turns": ("Why? " * 50, "And?")})
    engine = ShortEngine(chat)
    answers = answers_of(engine, [long, MATH], config(max_new_tokens=8), 0)
    assert [answer.num_unanswered for answer in answers] == [2, 0]
    assert [len(texts) for texts, _ in engine.calls] == [1, 1]
    errors = answers[0].row("tiny")["errors"]
    assert "at most 72 fit" in errors[0]
    assert errors[1] == "the turn before has no answer"
    judgments = judge_answers(ReferenceJudge(), [long, MATH], {1: ("5", "10")}, answers, "tiny", "round 0")
    assert [(row.question_id, row.turn) for row in judgments] == [(1, 1), (1, 2)]


def test_check_answered_names_a_run_without_any_answer() -> None:
    unanswered = Answer(1, 1, ("", ""), ("the prompt has 99 tokens", "the turn before has no answer"))
    check_answered([Answer(1, 1, ("5", "10")), unanswered])
    with pytest.raises(WinnowError, match=r"run 1 .* no answer to judge; question_id 1: the prompt has 99 tokens"):
        check_answered([Answer(1, 0, ("5", "10")), unanswered])


def test_check_questions_names_the_turn_that_a_template_refuses(chat: Chat, tmp_path: Path) -> None:
    check_questions(chat, [MATH, ESSAY])
    source = (TEMPLATE_DIR / "lab.jinja").read_text()
    one_turn = tmp_path / "one_turn.jinja"
    one_turn.write_text("{% if messages|length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + source)
    with pytest.raises(UsageError, match=r"question_id 1 .* turn 2: .*one turn only.*\(2 of 2 .*chat_template"):
        check_questions(Chat(chat.tokenizer, str(one_turn)), [MATH, ESSAY])
    no_system = tmp_path / "no_system.jinja"
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    no_system.write_text(refusal + source)
    check_questions(Chat(chat.tokenizer, str(no_system)), [MATH])
    with pytest.raises(UsageError, match=r"turn 1: .*no system.*unset policy\.system_prompt"):
        check_questions(Chat(chat.tokenizer, str(no_system), "Be brief."), [MATH])
    marked = ESSAY.model_copy(update={"turns": ("A <|user|>?", "b")})
    with pytest.raises(UsageError, match=r"question_id 2 .* turn 1: .*<\|user\|>.*\(1 of 2 .*change the text"):
        check_questions(chat, [MATH, marked])


def test_answer_row_has_fastchats_format() -> None:
    row = Answer(1, 2, ("5", "10")).row("tiny/round-01")
    assert row.pop("answer_id") == Answer(1, 2, ("5", "10")).row("tiny/round-01")["answer_id"]
    assert row == {
        "question_id": 1,
        "model_id": "tiny/round-01",
        "choices": [{"index": 0, "turns": ["5", "10"]}],
        "run_id": 2,
    }


# --- judgments and scores -------------------------------------------------------------------------------------------


def test_judge_answers_judges_every_turn_in_order() -> None:
    answers = [Answer(1, 0, ("5", "10")), Answer(1, 1, ("5", "12"))]
    judgments = judge_answers(ReferenceJudge(), [MATH], {1: ("5", "10")}, answers, "tiny", "round 0")
    assert [(row.run_id, row.turn, row.score) for row in judgments] == [(0, 1, 10), (0, 2, 10), (1, 1, 10), (1, 2, 2)]
    assert json.loads(judgments[3].model_dump_json()) == {
        "question_id": 1,
        "model": "tiny",
        "judge": ["reference-judge", "rule-v1"],
        "user_prompt": "",
        "judgment": "word overlap 0.00 with the reference, right form",
        "score": 2.0,
        "turn": 2,
        "run_id": 1,
    }


def test_an_unreadable_verdict_is_stored_as_minus_1() -> None:
    class UnreadableJudge(ReferenceJudge):
        num_parallel = 4

        def judge(
            self, question: Question, answers: Sequence[str], reference: Sequence[str] | None, repetition: str = ""
        ) -> Verdict:
            score = 4.0 if len(answers) == 1 else None
            return Verdict(score, "...", "rule-v1")

    judgments = judge_answers(UnreadableJudge(), [MATH], {}, [Answer(1, 0, ("5", "10"))], "tiny", "round 0")
    assert [row.score for row in judgments] == [4.0, UNREADABLE]


def judgment(score: float, question_id: int = 1, turn: int = 1, run_id: int = 0) -> Judgment:
    return Judgment(
        question_id=question_id,
        model="tiny",
        judge=("reference-judge", "rule-v1"),
        user_prompt="",
        judgment="no rating here",
        score=score,
        turn=turn,
        run_id=run_id,
    )


def test_summarize_two_runs() -> None:
    judgments = [
        judgment(8),
        judgment(6, turn=2),
        judgment(4, 2),
        judgment(-1, 2, turn=2),
        judgment(10, run_id=1),
        judgment(8, turn=2, run_id=1),
        judgment(6, 2, run_id=1),
        judgment(4, 2, turn=2, run_id=1),
    ]
    score = summarize(judgments, {1: "math", 2: "writing"}, [10, 20, 30, 40])
    assert (score.judge, score.runs, score.mean, score.min, score.max) == ("reference-judge", (6.0, 7.0), 6.5, 6.0, 7.0)
    assert score.sd == pytest.approx(0.5**0.5)
    assert score.by_category == {"math": 8.0, "writing": pytest.approx(14 / 3)}
    assert score.by_turn == {"1": 7.0, "2": 6.0}
    assert (score.num_judgments, score.num_unparsable, score.mean_answer_chars) == (8, 1, 25.0)


def test_summarize_counts_the_turns_without_an_answer() -> None:
    score = summarize([judgment(8)], {1: "math"}, [10], num_unanswered=1)
    assert (score.mean, score.num_judgments, score.num_unanswered, score.mean_answer_chars) == (8, 1, 1, 10)


def test_summarize_a_single_run_without_spread() -> None:
    score = summarize([judgment(8)], {1: "math"}, [1])
    assert (score.mean, score.min, score.max, score.sd) == (8, 8, 8, None)


def test_summarize_keeps_the_order_of_more_than_ten_runs() -> None:
    judgments = [judgment(float(1 + run_id % 9), run_id=run_id) for run_id in range(12)]
    assert summarize(judgments, {1: "math"}, [1]).runs == (1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3)


def test_summarize_quotes_the_judge_if_a_run_has_no_readable_verdict() -> None:
    with pytest.raises(WinnowError, match=r"no readable verdict.*'no rating here'"):
        summarize([judgment(8), judgment(-1, run_id=1)], {1: "math"}, [1])


def test_summarize_refuses_two_models_two_judges_and_unknown_questions() -> None:
    other_model = judgment(8).model_copy(update={"model": "large"})
    with pytest.raises(InputError, match=r"several models \(large, tiny\); summarize each alone"):
        summarize([judgment(8), other_model], {1: "math"}, [1])
    other_judge = judgment(8).model_copy(update={"judge": ("gpt-4", "single-v1")})
    with pytest.raises(InputError, match=r"several judges \(gpt-4, reference-judge\)"):
        summarize([judgment(8), other_judge], {1: "math"}, [1])
    with pytest.raises(InputError, match="question_id 999, which the question set does not have"):
        summarize([judgment(8), judgment(8, 999)], {1: "math"}, [1])


def test_summarize_has_standard_errors_over_questions() -> None:
    judgments = [judgment(8), judgment(6, turn=2), judgment(4, 2), judgment(2, 2, turn=2), judgment(5, 3)]
    score = summarize(judgments, {1: "math", 2: "math", 3: "writing"}, [])
    # math: question means 7 and 3: sd over sqrt(2)
    assert score.by_category_stderr == {"math": 2.0, "writing": None}
    # turn 1: 8, 4, 5: sd over sqrt(3)
    assert score.by_turn_stderr == {"1": pytest.approx(stdev([8, 4, 5]) / 3**0.5), "2": 2.0}
    # all: question means 7, 3, 5
    assert score.stderr == pytest.approx(stdev([7, 3, 5]) / 3**0.5)
    assert score.mean_answer_chars is None


def unreadable_share(num_unreadable: int, num_judgments: int) -> JudgedScore:
    """Return a score of which so many verdicts are unreadable."""
    judgments = [
        judgment(UNREADABLE if number < num_unreadable else 8.0, question_id=number) for number in range(num_judgments)
    ]
    return summarize(judgments, None, [1])


def test_unreadable_verdicts_are_warned_about_above_2_percent_and_refused_above_the_limit() -> None:
    assert unreadable_warning(unreadable_share(2, 100), "round 1") is None
    warning = unreadable_warning(unreadable_share(3, 100), "round 1")
    assert warning is not None
    assert warning.startswith("warning: round 1: 3 of 100 verdicts of the judge reference-judge are unreadable")
    check_readable(unreadable_share(10, 100), 0.1, "round 1", "max_unreadable")
    with pytest.raises(WinnowError, match=r"round 1: 11 of 100 .*11\.0%, at most 10\.0% allowed.*set max_unreadable"):
        check_readable(unreadable_share(11, 100), 0.1, "round 1", "max_unreadable")
    check_readable(unreadable_share(11, 100), 0.2, "round 1", "max_unreadable")


def test_hard_questions_left_out_do_not_pass_as_a_better_score(reference_data: Path) -> None:
    path = reference_data / "mt_bench" / "model_judgment" / "gpt-4_single.jsonl"
    judgments = only_set(read_judgment_sets(path), model="vicuna-7b-v1.3-greedy").judgments
    questions = read_questions(reference_data / "mt_bench" / "question.jsonl")
    hard = {row.question_id for row in questions if row.category in ("math", "reasoning", "coding")}
    flawed = []
    for row in judgments:
        flawed.append(row.model_copy(update={"score": UNREADABLE}) if row.question_id in hard else row)
    score = summarize(flawed, None, [])
    assert score.mean > summarize(judgments, None, []).mean + 1
    with pytest.raises(WinnowError, match=r"60 of 160 .*37\.5%"):
        check_readable(score, 0.1, "round 1", "max_unreadable")


# --- the real thing -------------------------------------------------------------------------------------------------


def test_mean_score_reproduces_the_published_means_of_three_models(reference_data: Path) -> None:
    path = reference_data / "mt_bench" / "model_judgment" / "gpt-4_single.jsonl"
    judgments = [Judgment.model_validate_json(line) for line in path.read_text().splitlines()]
    by_model: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        by_model.setdefault(judgment.model, []).append(judgment)
    means = {model.split("-v1.3-1-")[0]: mean_score(rows) for model, rows in by_model.items()}
    assert means == {"vicuna-7b-v1.3": 6.103125, "medusa-vicuna-7b": 5.9875, "vicuna-7b-v1.3-greedy": 5.878125}

    questions = read_questions(reference_data / "mt_bench" / "question.jsonl")
    categories = {question.question_id: question.category for question in questions}
    score = summarize(by_model["vicuna-7b-v1.3"], categories, [1])
    assert (score.mean, score.num_judgments, score.num_unparsable, score.judge) == (6.103125, 160, 0, "gpt-4")
    assert len(score.by_category) == 8


def test_fastchats_questions_and_references_are_read(reference_data: Path) -> None:
    questions = read_questions(reference_data / "mt_bench" / "question.jsonl")
    references = read_references(reference_data / "mt_bench" / "reference_answer" / "gpt-4.jsonl")
    assert (len(questions), len(references)) == (80, 30)
    assert [len(group) for group in by_temperature(questions, None).values()] == [20, 40, 20]
    needed = {question.question_id for question in questions if question.category in ("math", "reasoning", "coding")}
    assert set(references) == needed
    assert all(len(turns) == 2 for turns in references.values())

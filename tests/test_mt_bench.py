"""The two-turn question set: its files, the answers of an engine, judgments, scores, and FastChat's real data."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.judging.judged_scores import UNREADABLE, Judgment, mean_score, summarize
from eval.judging.judges import Verdict
from eval.judging.mt_bench import Answer, answer_questions, by_temperature, judge_answers
from eval.judging.questions import Question, read_questions, read_references
from eval.judging.reference_judge import ReferenceJudge
from sampler.engines import Sampled, Sampling
from tests.tiny_models import make_tokenizer
from winnow.chat import Chat
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
        self.calls: list[tuple[list[str], Sampling]] = []

    def sample(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[Sampled]]:
        texts = [self.chat.tokenizer.decode(prompt) for prompt in prompts]
        self.calls.append((texts, sampling))
        asked = [re.findall(r"<\|user\|>\n(.*?)\n<\|assistant\|>", text, re.S)[-1] for text in texts]
        return [[Sampled(f"{text.upper()} {sampling.seed if sampling.temperature else ''}", 3, True)] for text in asked]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat(make_tokenizer(tmp_path_factory.mktemp("tokenizer")), "lab")


def config(**changes: Any) -> QuestionsConfig:
    return QuestionsConfig(questions="question.jsonl", **changes)


def write(path: Path, *lines: Any) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_question_keeps_its_other_keys(tmp_path: Path) -> None:
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
        ({**GOOD, "question_id": 2, "form_pattern": "("}, r"form_pattern.*no regular expression"),
        (GOOD, "question_id 1 occurs twice"),
    ],
)
def test_a_malformed_question_is_named_by_file_and_line(tmp_path: Path, line: Any, complaint: str) -> None:
    path = write(tmp_path / "q.jsonl", GOOD, "", line)
    with pytest.raises(InputError, match=f"^{re.escape(path)} line 3: .*{complaint}"):
        read_questions(path)


def test_a_missing_or_empty_question_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="holds no question"):
        read_questions(write(tmp_path / "q.jsonl"))


def test_references_are_read_by_question(tmp_path: Path) -> None:
    row = {"question_id": 1, "answer_id": "x", "model_id": "m", "choices": [{"index": 0, "turns": ["5", "10"]}]}
    assert read_references(write(tmp_path / "r.jsonl", row)) == {1: ("5", "10")}
    assert read_references(None) == {}
    path = write(tmp_path / "r.jsonl", row, {**row, "choices": []})
    with pytest.raises(InputError, match="line 2: choices is empty"):
        read_references(path)


# --- answers --------------------------------------------------------------------------------------------------------


def test_the_second_turn_reads_the_first_answer(chat: Chat) -> None:
    engine = Parrot(chat)
    [answer] = answer_questions(engine, chat, [MATH], config(), 0, "round 0")
    assert answer == Answer(1, 0, ("2 + 3? ", "DOUBLE IT. "))
    second = engine.calls[1][0][0]
    assert second.endswith(
        "<|user|>\n2 + 3?\n<|assistant|>\n2 + 3? <|endoftext|>\n<|user|>\nDouble it.\n<|assistant|>\n"
    )


def test_questions_of_one_temperature_go_to_the_engine_at_once(chat: Chat) -> None:
    engine = Parrot(chat)
    answers = answer_questions(engine, chat, [ESSAY, MATH, STORY], config(), 0, "round 0")
    assert [answer.question_id for answer in answers] == [2, 1, 3]
    assert [(len(texts), sampling.temperature) for texts, sampling in engine.calls] == [
        (2, 0.7),
        (2, 0.7),
        (1, 0),
        (1, 0),
    ]


def test_temperatures_are_mt_benchs_or_the_configured_one() -> None:
    categories = ["writing", "roleplay", "stem", "humanities", "math", "reasoning", "coding", "extraction", "other"]
    questions = [Question(question_id=name, category=name, turns=("", "")) for name in categories]
    expected = {0.7: 2, 0.1: 2, 0.0: 5}
    assert {temperature: len(group) for temperature, group in by_temperature(questions, None).items()} == expected
    assert list(by_temperature(questions, 0.3)) == [0.3]


def test_runs_differ_by_seed_and_are_the_same_when_done_again(chat: Chat) -> None:
    def answers(seed: int) -> list[Answer]:
        return answer_questions(Parrot(chat), chat, [ESSAY, MATH], config(num_runs=2), seed, "round 0")

    first, again, other = answers(0), answers(0), answers(1)
    assert first == again
    assert first != other
    assert [(answer.run_id, answer.question_id) for answer in first] == [(0, 2), (0, 1), (1, 2), (1, 1)]
    assert first[0].turns != first[2].turns
    assert first[1].turns == first[3].turns  # greedy: one answer stands for all runs


def test_an_answer_that_spells_a_control_token_leaves_its_second_turn_empty(chat: Chat) -> None:
    class Spells(Parrot):
        def sample(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[Sampled]]:
            return [[Sampled("a <|user|> b" if "2 + 3" in chat.tokenizer.decode(p) else "c", 3, True)] for p in prompts]

    essay = ESSAY.model_copy(update={"category": "math"})
    answers = answer_questions(Spells(chat), chat, [MATH, essay], config(), 0, "round 0")
    assert [answer.turns for answer in answers] == [("a <|user|> b", ""), ("c", "c")]


def test_an_answer_is_a_row_of_fastchats_format() -> None:
    row = Answer(1, 2, ("5", "10")).row("tiny/round-01")
    assert row.pop("answer_id") == Answer(1, 2, ("5", "10")).row("tiny/round-01")["answer_id"]
    assert row == {
        "question_id": 1,
        "model_id": "tiny/round-01",
        "choices": [{"index": 0, "turns": ["5", "10"]}],
        "run_id": 2,
    }


# --- judgments and scores -------------------------------------------------------------------------------------------


def test_every_turn_of_every_answer_is_judged_in_order() -> None:
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


def test_an_unreadable_verdict_is_minus_1_in_the_file_as_in_fastchats() -> None:
    class Silent(ReferenceJudge):
        num_parallel = 4

        def judge(self, question: Question, answers: Sequence[str], reference: Sequence[str] | None) -> Verdict:
            return Verdict(None if len(answers) == 2 else 4.0, "...", "rule-v1")

    judgments = judge_answers(Silent(), [MATH], {}, [Answer(1, 0, ("5", "10"))], "tiny", "round 0")
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


def test_scores_of_two_runs() -> None:
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


def test_a_single_run_has_no_spread() -> None:
    score = summarize([judgment(8)], {1: "math"}, [1])
    assert (score.mean, score.min, score.max, score.sd) == (8, 8, 8, None)


def test_runs_stay_in_their_order_beyond_ten() -> None:
    judgments = [judgment(float(1 + run_id % 9), run_id=run_id) for run_id in range(12)]
    assert summarize(judgments, {1: "math"}, [1]).runs == (1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3)


def test_a_run_without_any_readable_verdict_is_an_error_that_quotes_the_judge() -> None:
    with pytest.raises(WinnowError, match=r"no readable verdict.*'no rating here'"):
        summarize([judgment(8), judgment(-1, run_id=1)], {1: "math"}, [1])


# --- the real thing -------------------------------------------------------------------------------------------------


def test_published_means_of_three_models_come_out(reference_data: Path) -> None:
    path = reference_data / "mt_bench" / "model_judgment" / "gpt-4_single.jsonl"
    judgments = [Judgment.model_validate_json(line) for line in path.read_text().splitlines()]
    by_model = {row.model: [one for one in judgments if one.model == row.model] for row in judgments}
    means = {model.split("-v1.3-1-")[0]: mean_score(rows) for model, rows in by_model.items()}
    assert means == {"vicuna-7b-v1.3": 6.103125, "medusa-vicuna-7b": 5.9875, "vicuna-7b-v1.3-greedy": 5.878125}

    questions = read_questions(reference_data / "mt_bench" / "question.jsonl")
    categories = {question.question_id: question.category for question in questions}
    score = summarize(by_model["vicuna-7b-v1.3"], categories, [1])
    assert (score.mean, score.num_judgments, score.num_unparsable, score.judge) == (6.103125, 160, 0, "gpt-4")
    assert len(score.by_category) == 8


def test_the_real_questions_and_references_are_read(reference_data: Path) -> None:
    questions = read_questions(reference_data / "mt_bench" / "question.jsonl")
    references = read_references(reference_data / "mt_bench" / "reference_answer" / "gpt-4.jsonl")
    assert (len(questions), len(references)) == (80, 30)
    assert [len(group) for group in by_temperature(questions, None).values()] == [20, 40, 20]
    needed = {question.question_id for question in questions if question.category in ("math", "reasoning", "coding")}
    assert set(references) == needed
    assert all(len(turns) == 2 for turns in references.values())

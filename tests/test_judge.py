"""The judges: the table of ReferenceJudge, and the prompts and ratings of LlmJudge against a real HTTP endpoint.

tests/test_judge_endpoint.py has the endpoints that fail.
"""

from pathlib import Path
from typing import Any

import pytest

from eval.judging.llm_judge import REMINDER, prompt_name, read_judge_prompts
from eval.judging.opening import open_judge
from eval.judging.questions import Question
from eval.judging.reference_judge import REFERENCE_JUDGE, ReferenceJudge, has_form, reference_score, word_overlap
from tests.chat_server import HttpReply, chat_server, completion, llm, prompts_fixture  # noqa: F401
from winnow.errors import InputError
from winnow.run_config import JudgeConfig

LIST_FORM = r"[a-z]+(, [a-z]+)+"


def question(category: str = "writing", **extra: Any) -> Question:
    return Question(question_id=7, category=category, turns=("Reverse boat, moss, fish.", "In capitals."), **extra)


def rule_score(answer: str, reference: str, form: str | None) -> float | None:
    return ReferenceJudge().judge(question(form_pattern=form), [answer], [reference, ""]).score


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("fish, moss, boat", 10.0),
        ("fish, moss, boat\n", 10.0),
        ("Fish moss boat.", 6.0),
        ("fish, boat, moss", 5.33),
        ("fish, moss", 6.0),
        ("red, blue, hat", 2.0),
        ("I do not know.", 1.0),
        ("", 1.0),
    ],
)
def test_the_table_of_reference_score_is_true(answer: str, score: float) -> None:
    assert rule_score(answer, "fish, moss, boat", LIST_FORM) == score


def test_a_right_number_in_a_sentence_scores_more_than_a_wrong_number_in_the_right_form() -> None:
    assert rule_score("18", "19", r"\d+") == 2.0
    assert rule_score("19", "19", r"\d+") == 10.0
    assert rule_score("The sum is 19.", "19", r"\d+") == 3.0


def test_without_a_form_every_answer_but_the_empty_one_has_the_right_form() -> None:
    assert rule_score("Fish moss boat", "fish, moss, boat", None) == 10.0
    assert rule_score("hat", "fish", None) == 2.0
    assert rule_score("  ", "fish", None) == 1.0


def test_reference_score_stays_on_the_scale_and_grows_with_overlap_and_form() -> None:
    for has_right_form in (False, True):
        scores = [reference_score(step / 10, has_right_form) for step in range(11)]
        assert scores == sorted(scores)
        assert 1 <= scores[0] <= scores[-1] <= 10
    assert all(reference_score(step / 10, True) > reference_score(step / 10, False) for step in range(11))


def test_word_overlap_counts_words_in_order() -> None:
    assert word_overlap("a b c", "a b c") == 1.0
    assert word_overlap("c b a", "a b c") == pytest.approx(1 / 3)
    assert word_overlap("", "a") == 0.0
    assert word_overlap("-7", "7") == 0.0


def test_has_form_matches_the_whole_answer() -> None:
    assert has_form("19", r"\d+")
    assert not has_form("19 apples", r"\d+")


def test_each_turn_is_judged_by_its_reference_and_form() -> None:
    reversal = question(form_pattern=[LIST_FORM, r"[A-Z]+(, [A-Z]+)+"])
    reference = ["fish, moss, boat", "FISH, MOSS, BOAT"]
    judge = ReferenceJudge()
    assert judge.judge(reversal, ["fish, moss, boat", "FISH, MOSS, BOAT"], reference).score == 10.0
    assert judge.judge(reversal, ["fish, moss, boat", "fish, moss, boat"], reference).score == 6.0


def test_reference_judge_has_a_name_and_explains_its_score() -> None:
    with open_judge(JudgeConfig()) as judge:
        verdict = judge.judge(question(form_pattern=LIST_FORM), ["red, hat"], ["fish, moss, boat"])
        assert judge.name == REFERENCE_JUDGE == "reference-judge"
    assert verdict.explanation == "word overlap 0.00 with the reference, right form"


def test_reference_judge_needs_a_reference() -> None:
    with pytest.raises(InputError, match="question 7 has no reference answer to turn 2"):
        ReferenceJudge().judge(question(), ["a", "b"], ["only one"])


def test_prompt_name_is_a_math_prompt_for_math_reasoning_and_coding() -> None:
    assert prompt_name(question("writing"), 1) == "single-v1"
    assert prompt_name(question("math"), 1) == "single-math-v1"
    assert prompt_name(question("stem"), 2) == "single-v1-multi-turn"
    assert prompt_name(question("coding"), 2) == "single-math-v1-multi-turn"


# --- a real endpoint ------------------------------------------------------------------------------------------------


def test_llm_judge_sends_the_prompt_and_reads_the_rating(prompts: str) -> None:
    with chat_server(["Good. Rating: [[8]]"]) as (address, requests), llm(prompts, address) as judge:
        verdict = judge.judge(question(), ["fish {moss}"], None)
    assert (verdict.score, verdict.explanation, verdict.prompt_name) == (8.0, "Good. Rating: [[8]]", "single-v1")
    [request] = requests
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("judge-1", 0, 2048)
    assert request["messages"] == [
        {"role": "system", "content": "Be fair."},
        {"role": "user", "content": "Q: Reverse boat, moss, fish. A: fish {moss} {rate}"},
    ]


def test_the_prompt_of_turn_2_of_a_math_question_contains_answers_and_references(prompts: str) -> None:
    with chat_server(["[[4]]"]) as (address, requests), llm(prompts, address) as judge:
        verdict = judge.judge(question("math"), ["one", "two"], ["first", "second"])
    assert verdict.prompt_name == "single-math-v1-multi-turn"
    assert requests[0]["messages"][1]["content"] == "R1: first R2: second A1: one A2: two In capitals."


def test_llm_judge_asks_once_more_after_an_unreadable_reply(prompts: str) -> None:
    with chat_server(["It is an eight.", "[[8]]"]) as (address, requests), llm(prompts, address) as judge:
        verdict = judge.judge(question(), ["fish"], None)
    assert verdict.score == 8.0
    assert verdict.explanation == "It is an eight.\n\n[[8]]"
    assert requests[1]["messages"][2:] == [
        {"role": "assistant", "content": "It is an eight."},
        {"role": "user", "content": REMINDER},
    ]


def test_two_unreadable_replies_give_no_score(prompts: str) -> None:
    with chat_server(["eight", "[[80]]"]) as (address, requests), llm(prompts, address) as judge:
        assert judge.judge(question(), ["fish"], None).score is None
        assert len(requests) == 2


def test_a_reply_that_holds_reasoning_alone_is_not_sent_back(prompts: str) -> None:
    with chat_server(["<think>Maybe [[3]]?", "[[8]]"]) as (address, requests), llm(prompts, address) as judge:
        assert judge.judge(question(), ["fish"], None).score == 8.0
    assert [message["role"] for message in requests[1]["messages"]] == ["system", "user"]
    assert requests[1]["messages"][1]["content"] == f"Q: Reverse boat, moss, fish. A: fish {{rate}}\n\n{REMINDER}"


def test_a_reply_that_the_token_limit_cut_off_gives_no_score(prompts: str) -> None:
    cut_off = HttpReply(200, completion("Rating: [[8]] if", "length"))
    with chat_server([cut_off, cut_off]) as (address, _), llm(prompts, address) as judge:
        verdict = judge.judge(question(), ["fish"], None)
    assert verdict.score is None
    assert verdict.explanation == "Rating: [[8]] if\n(cut off: length)\n\nRating: [[8]] if\n(cut off: length)"


def test_math_without_a_reference_is_an_error(prompts: str) -> None:
    with (
        chat_server([]) as (address, _),
        llm(prompts, address) as judge,
        pytest.raises(InputError, match=r"question 7 \(math\) has no reference"),
    ):
        judge.judge(question("math"), ["4"], None)


def test_read_judge_prompts_names_missing_prompts_and_keys(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"name": "single-v1", "system_prompt": "", "prompt_template": "{question}"}\n')
    with pytest.raises(InputError, match="single-math-v1, single-v1-multi-turn"):
        read_judge_prompts(str(path))
    path.write_text('{"name": "single-v1"}\n')
    with pytest.raises(InputError, match="line 1: system_prompt"):
        read_judge_prompts(str(path))


def test_fastchats_judge_prompts_are_filled_in(reference_data: Path) -> None:
    path = reference_data / "mt_bench" / "judge_prompts.jsonl"
    with (
        chat_server(["[[1]]", "[[2]]", "[[3]]", "[[4]]"]) as (address, requests),
        llm(str(path), address) as judge,
    ):
        for category in ("writing", "math"):
            judge.judge(question(category), ["one"], ["first", "second"])
            judge.judge(question(category), ["one", "two"], ["first", "second"])
    texts = [request["messages"][1]["content"] for request in requests]
    assert "[The Start of Assistant's Answer]\none\n" in texts[0]
    assert "### Assistant A:\ntwo\n" in texts[1]
    assert "[The Start of Reference Answer]\nfirst\n" in texts[2]
    assert "### Reference answer:\nsecond\n" in texts[3]
    assert not any("{" in text for text in texts)

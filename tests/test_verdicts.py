"""Verdicts: the rule on real judgments, and on replies as judges of many kinds write them."""

# ruff: noqa: RUF001 - replies in many languages

import json
from pathlib import Path

import pytest

from eval.judging.reply_text import without_reasoning
from eval.judging.verdicts import parse_preference, parse_rating

# A reply -> its rating; None: the judge is asked again.
RATINGS: list[tuple[str, float | None]] = [
    # The form that the prompt demands, as GPT-4 and Claude write it.
    ("Rating: [[5]]", 5.0),
    ("The response is relevant, accurate and well structured. Rating: [[9]]", 9.0),
    ("The assistant's answer is correct. Therefore, I would rate it a [[9]].", 9.0),
    ("Comprehensive, accurate and helpful. I would rate it as follows: [[10]]", 10.0),
    ("The essay ignores the second constraint.\n\nRating: [[3]]\n", 3.0),
    ("My rating: [[7]]", 7.0),
    ("rating: [[4]]", 4.0),
    ("RATING: [[6]]", 6.0),
    ("Rating:[[6]]", 6.0),
    ("Rating : [[6]]", 6.0),
    ("Rating: [[8]].", 8.0),
    ("Rating: [[8]]/10", 8.0),
    ("Rating: [[8]] out of 10", 8.0),
    ("Rating: [[1]]", 1.0),
    ("Rating: [[10]]", 10.0),
    ("Rating [[7]]", 7.0),
    ("Rating: [[5]]\n\nRating: [[5]]", 5.0),
    ("I give this answer [[8]]. To sum up: [[8]]", 8.0),
    # Numbers.
    ("Rating: [[7.5]]", 7.5),
    ("[[7.25]]", 7.25),
    ("[[8,5]]", 8.5),
    ("[[8.]]", 8.0),
    ("[[8.0]]", 8.0),
    ("[[08]]", 8.0),
    ("[[ 6 ]]", 6.0),
    ("[[7½]]", 7.5),
    ("[[7.5/10]]", 7.5),
    ("[[7 / 10]]", 7.0),
    ("[[8 out of 10]]", 8.0),
    ("[[8 of 10]]", 8.0),
    ("[[9 out of ten]]", 9.0),
    ("[[7 points]]", 7.0),
    ("[[8/10.0]]", 8.0),
    # Values that are not on the scale.
    ("[[85]]", None),
    ("Rating: [[85]]", None),
    ("Rating: [[0]]", None),
    ("Rating: [[-3]]", None),
    ("Rating: [[11]]", None),
    ("Rating: [[10.5]]", None),
    ("[[7/5]]", None),
    ("Rating: [[4/5]]", None),
    ("Rating: [[4]]/5", None),
    ("Rating: [[80/100]]", None),
    ("Rating: 85/100", None),
    ("Rating: 80%", None),
    ("Rating: 4 out of 5 stars", None),
    ("Rating: 100", None),
    ("Rating: [[1,000]]", None),
    ("Rating: [[7-8]]", None),
    ("Rating: [[7–8]]", None),
    ("Rating: 7-8", None),
    ("Rating: 7 to 8", None),
    ("Rating: 7 or 8", None),
    ("[[85]] per cent, which is [[8]]", None),
    ("Rating: [[7]] or [[8]]", None),
    ("Rating: [[7]]-[[8]]", None),
    ("Rating: [[7]][[8]]", None),
    ("Rating: [[7]] → [[8]]", None),
    ("Rating: 7/10 -> 8/10", None),
    ("Rating: 7/10 or 8/10", None),
    ("Rating: [[7]] - a good answer in 2 parts", 7.0),
    ("Rating: [[9]]\n\n[[9]]/10", 9.0),
    # Markdown.
    ("**Rating: [[8]]**", 8.0),
    ("**Rating:** [[8]]", 8.0),
    ("Rating: **[[8]]**", 8.0),
    ("[[**9**]]", 9.0),
    ("Rating: [[**9**]]", 9.0),
    ("[[__9__]]", 9.0),
    ("### Rating\n\n[[8]]", 8.0),
    ("## Final Rating\n**8/10**", 8.0),
    ("- Accuracy: good\n- Depth: poor\n\n* Rating: [[4]]", 4.0),
    ("| Criterion | Value |\n|---|---|\n| Rating | [[8]] |", 8.0),
    ("Rating: `[[8]]`", 8.0),
    ("Rating: `[[8]]`\n\nThe answer is complete.", 8.0),
    ("```\nRating: [[8]]\n```", 8.0),
    ("<b>Rating:</b> <strong>[[8]]</strong>", 8.0),
    ("> Rating: [[8]]", 8.0),
    ("***Rating:*** ***[[2]]***", 2.0),
    # Brackets and digits of other languages and keyboards.
    ("【【7】】", 7.0),
    ("评分：【【7】】", 7.0),
    ("最终评分：[[8]]", 8.0),
    ("回答很好，但不够深入。评分：8/10", 8.0),
    ("得分：［［９］］", 9.0),
    ("評価: [[7]]", 7.0),
    ("この回答は正確です。評価：「8」", 8.0),
    ("평점: [[6]]", 6.0),
    ("Bewertung: [[8,5]]", 8.5),
    ("Die Antwort ist knapp. Bewertung: 7 von 10", 7.0),
    ("Puntuación: [[7]]", 7.0),
    ("La respuesta es correcta.\nCalificación: 9/10", 9.0),
    ("Punteggio: 6 su 10", 6.0),
    ("Évaluation : [[8]]", 8.0),
    ("Оценка: [[8]]", 8.0),
    ("Оценка: 8 из 10", 8.0),
    ("التقييم: [[٨]]", 8.0),
    ("⟦8⟧", 8.0),
    (r"\[\[8\]\]", 8.0),
    (r"Rating: \\[\\[8\\]\\]", 8.0),
    ("[ [8] ]", 8.0),
    ("[[8] ]", 8.0),
    ("[[[8]]]", 8.0),
    ("\ufeffRating:\u00a0[[8]]", 8.0),
    ("Rating: \u200b[[8]]\u200b", 8.0),
    (r"Rating: $\boxed{8}$", 8.0),
    (r"$\boxed{[[8]]}$", 8.0),
    (r"\text{Rating: } [[8]]", 8.0),
    # Less than two brackets, or none.
    ("Rating: [8]", 8.0),
    ("The answer ignores half of the question, hence the rating: [4]", 4.0),
    ("Rating: [[8]", 8.0),
    ("Rating: [8/10]", 8.0),
    ("Overall Rating: [8]", 8.0),
    ("As shown in [1] and [2], it is good. Rating: 8", 8.0),
    ("Good work. Score: 7.5", 7.5),
    ("Rating: 10/10", 10.0),
    ("Rating: 8 - clear and complete", 8.0),
    ("Rating: 8 (very good)", 8.0),
    ("Rating - 8", 8.0),
    ("Rating: 8 points", 8.0),
    ("Rating: (8)", 8.0),
    ("Rating: 8, since the example is missing.", 8.0),
    ("Rating: a solid 8", None),
    ("My score is 7.", None),
    ("Grade: B+", None),
    ("1. Helpfulness: 8/10\n2. Accuracy: 9/10\nRating: 8/10", 8.0),
    ("Rating: [[8]]<|im_end|>", 8.0),
    ("Rating: [[8]]\n\nWould you like me to explain?", 8.0),
    ("Final score: 6", 6.0),
    ("My final rating is: 6/10", 6.0),
    ("Verdict: 9/10", 9.0),
    ("Rating (1-10): 7", 7.0),
    ("Rating (out of 10): [[7]]", 7.0),
    ("8", 8.0),
    ("[8]", 8.0),
    ("**8**", 8.0),
    ("8/10", 8.0),
    ("8.", 8.0),
    ("[[5]]", 5.0),
    # JSON and XML.
    ('{"rating": 8}', 8.0),
    ('{"rating": "8"}', 8.0),
    ('{"rating": "8/10"}', 8.0),
    ('{"rating": [[8]]}', 8.0),
    ('{"rating": "[[8]]"}', 8.0),
    ('{"explanation": "Good, with a gap in step 3.", "rating": 6.5}', 6.5),
    ('```json\n{\n  "explanation": "ok",\n  "score": 8\n}\n```', 8.0),
    ('{"helpfulness_score": 7, "accuracy_score": 9, "rating": 8}', 8.0),
    ('{"score": 7, "overall_rating": 8}', 8.0),
    ('{"rating": 8, "explanation": "The score of the game is 3."}', 8.0),
    ('{"rating":8.5,"confidence":0.9}', 8.5),
    ("{'rating': 8, 'reason': 'ok'}", 8.0),
    ('{"rating": null}', None),
    ('{"rating": 85}', None),
    ("<reasons>Correct.</reasons>\n<rating>8</rating>", 8.0),
    ("<score>7</score>", 7.0),
    # Reasoning judges.
    ("<think>Maybe [[3]]?</think>Rating: [[8]]", 8.0),
    ("<think>\nFirst 6, or 7. Rating: [[7]]\n</think>\n\nThe answer is thin. Rating: [[6]]", 6.0),
    ("The user wants a rating, perhaps [[3]].\n</think>\n\nRating: [[8]]", 8.0),
    ("<think>Maybe [[3]]?", None),
    ("<think>Rating: [[3]] seems fair, but wait", None),
    ("<think>Long.</think>", None),
    ("<think>a <think>b</think> Rating: [[2]]</think>Rating: [[8]]", 8.0),
    ("<think>one</think><think>two [[2]]</think>[[9]]", 9.0),
    ("<think>one</think>Rating: [[9]]<think>Or [[8]]", 9.0),
    ("Rating: [[7]]\n<think>done</think>", 7.0),
    ("<THINK>[[1]]</THINK>[[4]]", 4.0),
    ("<thinking>[[1]]</thinking>\nRating: [[4]]", 4.0),
    ("<reasoning>I lean to [[6]].</reasoning><rating>[[7]]</rating>", 7.0),
    ("[THINK]Is it [[5]]?[/THINK]Rating: [[8]]", 8.0),
    ("◁think▷Is it [[5]]?◁/think▷Rating: [[8]]", 8.0),
    ("<seed:think>Is it [[5]]?</seed:think>Rating: [[8]]", 8.0),
    ("<|begin_of_thought|>[[2]]<|end_of_thought|>\nRating: [[8]]", 8.0),
    (
        "<|channel|>analysis<|message|>Is it [[4]]?<|end|><|channel|>final<|message|>Rating: [[6]]",
        6.0,
    ),
    ("<|channel|>analysis<|message|>Maybe [[4]]", None),
    # Several values.
    ("Rating: [[8]]. With an example it would earn a [[10]].", 8.0),
    ("The function returns [[0]] for an empty list. Rating: [[7]]", 7.0),
    ("[[9]]. The expected output is [[2]].", None),
    ("First [[3]], on reflection [[4]].", None),
    ("Rating: [[5]]. No: Rating: [[6]]", None),
    ("Helpfulness rating: [[7]]\nAccuracy rating: [[9]]\nOverall rating: [[8]]", 8.0),
    ("Helpfulness: [[7]]\nAccuracy: [[9]]", None),
    ("Turn 1: [[9]]. Turn 2: [[4]].", None),
    ("Turn 1: [[9]]. Turn 2: [[4]]. Final rating: [[4]]", 4.0),
    ("Helpfulness score: 7\nAccuracy score: 9\nRating: 8", 8.0),
    ("Initial rating: [[5]]\nFinal rating: [[7]]", 7.0),
    ("Final rating: [[7]]\n...\nFinal rating: [[6]]", None),
    ("Python prints [[1, 2], [3, 4]]. Rating: [[10]]", 10.0),
    ("Python prints [[1, 2], [3, 4]]. I rate this [[10]].", 10.0),
    ("The matrix [[2]] has one element, so I rate this [[6]].", None),
    # The rubric and the answer, quoted.
    ('I use the form "Rating: [[5]]". Rating: [[8]]', 8.0),
    ('The format is "[[rating]]", for example: "Rating: [[5]]".\n\nRating: [[8]]', 8.0),
    ('I was told to reply in a form, for example: "Rating: [[5]]". I cannot rate this answer.', None),
    ('I was told to reply in the format "Rating: [[5]]".', None),
    ("I should rate from 1 to 10, e.g. Rating: [[5]]. The answer is fine: [[7]]", 7.0),
    ('The answer ends with "Rating: [[10]]", an attempt to steer me. Rating: [[2]]', 2.0),
    ('The answer ends with "Rating: [[10]]", an attempt to steer me.', None),
    ("The user's text reads:\n> Rating: [[10]]\nThat proves nothing. Rating: [[3]]", 3.0),
    ("“Rating: [[8]]”", 8.0),
    ('The answer is good. "Rating: [[8]]"', 8.0),
    ("Rating: [[rating]]", None),
    ("Rating: [[X]]", None),
    # Words, refusals, failures.
    ("", None),
    ("   \n", None),
    ("It is an eight.", None),
    ("Rating: eight", None),
    ("Rating: N/A", None),
    ("Rating: [[N/A]]", None),
    ("I'm sorry, but I can't assist with that request.", None),
    ("As an AI language model, I cannot rate this on a scale of 1 to 10.", None),
    ("As shown in [1] and [2], the claim holds.", None),
    ("On a scale of 1 to 10, the answer is rather good.", None),
    ("It solves 3/10 of the exercises.", None),
    ("The film has a score of 8 on that site.", None),
    ("It would have had a rating of 10 with an example.", None),
    ("The endpoint refused the prompt: 400", None),
    ("$ERROR$", None),
    ("Rating: [[", None),
    ("Rating: [[1", None),
    ("Rating:", None),
    ("operating: 8", None),
]

# A pairwise reply -> the preferred assistant; C is a tie.
PREFERENCES: list[tuple[str, str | None]] = [
    ("Assistant A covers more. [[A]]", "A"),
    ("Both are good, B is more exact. My final verdict is: [[B]]", "B"),
    ("They are equal. Final verdict: [[C]]", "C"),
    ("**Final Verdict: [[A]]**", "A"),
    ("[[**B**]]", "B"),
    ("[[ A ]]", "A"),
    ("[[a]]", "A"),
    ("【【B】】", "B"),
    (r"\[\[C\]\]", "C"),
    ("[[Assistant A]]", "A"),
    ("[[Tie]]", "C"),
    ("[[tie]] since both fail", "C"),
    ("最终判定：[[A]]", "A"),
    ("Verdict: [B]", "B"),
    ("Verdict: B", "B"),
    ("Winner: Assistant A", "A"),
    ("Winner: tie", "C"),
    ("Verdict: a tie.", "C"),
    ("Final verdict: B is better", "B"),
    ('{"winner": "A"}', "A"),
    ('{"explanation": "equal", "verdict": "tie"}', "C"),
    ("A", "A"),
    ("[B]", "B"),
    ("[[A]] ... again: [[A]]", "A"),
    ("<think>[[A]] it seems</think>[[B]]", "B"),
    ("<think>[[A]] it seems", None),
    ("[[A]] for turn 1, [[B]] for turn 2", None),
    ("[[A]] for turn 1, [[B]] for turn 2. Final verdict: [[B]]", "B"),
    ('"[[A]]" if assistant A is better, "[[B]]" if assistant B is better, and "[[C]]" for a tie.', None),
    ('I must write "[[A]]" if assistant A is better, "[[B]]" if B is, and "[[C]]" for a tie. So: [[C]]', "C"),
    ("[[A]] if assistant A is better, [[B]] if assistant B is better, and [[C]] for a tie.", None),
    ("Verdict: a mixed bag", None),
    ("Verdict: A or B, hard to say", None),
    ("Choice: (A)", "A"),
    ("[[A]] is better? No, [[B]].", None),
    ("[[A>B]]", None),
    ("The answer is B", None),
    ("[[A/B]]", None),
    ("[[D]]", None),
    ("[[8]]", None),
    ("Assistant A is better than assistant B.", None),
    ("A good question was asked.", None),
    ("I'm sorry, I cannot compare these.", None),
    ("", None),
]


@pytest.mark.parametrize(("reply", "rating"), RATINGS)
def test_parse_rating(reply: str, rating: float | None) -> None:
    assert parse_rating(reply) == rating


@pytest.mark.parametrize(("reply", "preference"), PREFERENCES)
def test_parse_preference(reply: str, preference: str | None) -> None:
    assert parse_preference(reply) == preference


@pytest.mark.parametrize("finish_reason", ["length", "max_tokens", "content_filter"])
def test_a_reply_that_was_cut_off_has_no_verdict(finish_reason: str) -> None:
    assert parse_rating("Rating: [[8]]. In detail,", finish_reason) is None
    assert parse_preference("[[A]]. In detail,", finish_reason) is None


@pytest.mark.parametrize("finish_reason", ["stop", "eos", None])
def test_a_whole_reply_has_its_verdict(finish_reason: str | None) -> None:
    assert parse_rating("Rating: [[8]]", finish_reason) == 8
    assert parse_preference("[[A]]", finish_reason) == "A"


def test_text_around_a_reply_leaves_its_verdict() -> None:
    explanation = "The answer is accurate [1], has two parts (see 3.2), and costs 10 dollars of 100.\n\n"
    for reply, rating in RATINGS:
        if rating is not None and ("[[" in reply or "【" in reply) and "<" not in reply:
            assert parse_rating(explanation + reply) == rating, reply


def test_without_reasoning_keeps_a_reply_without_reasoning() -> None:
    assert without_reasoning("I think <b>so</b>. [[8]]") == "I think <b>so</b>. [[8]]"


def test_long_replies_are_read_in_little_time() -> None:
    for filler in ("[[", "\n", " ", "Rating:", "<think>", "</think>", '"', "> ", "1", "my the "):
        assert parse_rating(filler * 5000 + "\nRating: [[8]]") in (8.0, None), filler


def test_the_480_real_judgments_have_their_recorded_scores(reference_data: Path) -> None:
    path = reference_data / "mt_bench" / "model_judgment" / "gpt-4_single.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 480
    assert [parse_rating(row["judgment"]) for row in rows] == [row["score"] for row in rows]

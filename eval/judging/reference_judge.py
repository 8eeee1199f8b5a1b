"""The reference-judge: a rule that compares an answer with the reference and the demanded form; it needs no model."""

import re
from collections.abc import Sequence

from eval.judging.judges import Verdict
from eval.judging.questions import Question
from winnow.errors import InputError

REFERENCE_JUDGE = "reference-judge"
RULE_NAME = "rule-v1"
WORD = re.compile(r"-?\d+(?:\.\d+)?|[^\W\d_]+")


class ReferenceJudge:
    """A judge that applies `reference_score`; its name in results is `reference-judge`."""

    name = REFERENCE_JUDGE
    num_parallel = 1

    def check(self) -> None:
        """Return at once: a rule is always there."""

    def judge(
        self, question: Question, answers: Sequence[str], reference: Sequence[str] | None, repetition: str = ""
    ) -> Verdict:
        """Score the last answer by the rule, equally in every repetition.

        Raises InputError for a turn without a reference answer.
        """
        turn = len(answers)
        if reference is None or len(reference) < turn:
            raise InputError(
                f"question {question.question_id} has no reference answer to turn {turn}, which {REFERENCE_JUDGE} "
                "needs; add it to evaluation.questions.references, or use judge kind llm"
            )
        overlap = word_overlap(answers[-1], reference[turn - 1])
        has_right_form = has_form(answers[-1], question.form_of(turn))
        score = reference_score(overlap, has_right_form)
        form = "right" if has_right_form else "wrong"
        explanation = f"word overlap {overlap:.2f} with the reference, {form} form"
        return Verdict(score, explanation, RULE_NAME)


def reference_score(overlap: float, has_right_form: bool) -> float:
    """Return 10 for the whole content in the right form, else 1 + 5 * overlap, and 1 more if the form is right.

    reference "fish, moss, boat", form "[a-z]+(, [a-z]+)+"

    | answer             | overlap | form  | score | why                               |
    |--------------------|---------|-------|-------|-----------------------------------|
    | fish, moss, boat   | 1       | right | 10    | exact                             |
    | Fish moss boat.    | 1       | wrong | 6     | right content, wrong form         |
    | fish, boat, moss   | 2/3     | right | 5.33  | partly right: order counts        |
    | fish, moss         | 0.8     | right | 6     | partly right: one word is missing |
    | red, blue, hat     | 0       | right | 2     | only the form is right            |
    | I do not know.     | 0       | wrong | 1     | wrong and malformed               |
    """
    if overlap == 1 and has_right_form:
        return 10.0
    return round(1 + 5 * overlap + has_right_form, 2)


def word_overlap(answer: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words (ROUGE-L, Lin 2004), without case and punctuation.

    >>> round(word_overlap("fish, boat, moss", "fish, moss, boat"), 2)
    0.67
    """
    answer_words = words(answer)
    reference_words = words(reference)
    num_common = _longest_common_subsequence(answer_words, reference_words)
    if num_common == 0:
        return 0.0
    return 2 * num_common / (len(answer_words) + len(reference_words))


def words(text: str) -> list[str]:
    """Split a text into words and numbers, with the case folded.

    >>> words("The sum is -7.5.")
    ['the', 'sum', 'is', '-7.5']
    """
    return WORD.findall(text.casefold())


def has_form(answer: str, pattern: str | None) -> bool:
    """Return True if the stripped answer matches the pattern as a whole; without a pattern, if it is not empty."""
    if pattern is None:
        return bool(answer.strip())
    return re.fullmatch(pattern, answer.strip()) is not None


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    # lengths[i] belongs to the words of `first` so far and the first i words of `second`.
    lengths = [0] * (len(second) + 1)
    for first_word in first:
        diagonal = 0
        for index, second_word in enumerate(second, start=1):
            above = lengths[index]
            if first_word == second_word:
                lengths[index] = diagonal + 1
            else:
                lengths[index] = max(above, lengths[index - 1])
            diagonal = above
    return lengths[-1]

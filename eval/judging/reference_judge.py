"""The reference-judge: a rule that compares with the reference answer and the asked form; it needs no model."""

import re
from collections.abc import Sequence

from eval.judging.judges import Verdict
from eval.judging.questions import Question
from winnow.errors import InputError

REFERENCE_JUDGE = "reference-judge"
RULE_NAME = "rule-v1"
WORD = re.compile(r"-?\d+(?:\.\d+)?|[^\W\d_]+")


class ReferenceJudge:
    """The rule as a judge."""

    name = REFERENCE_JUDGE
    num_parallel = 1

    def judge(self, question: Question, answers: Sequence[str], reference: Sequence[str] | None) -> Verdict:
        """The rule's score. Raises InputError for a turn without a reference answer."""
        turn = len(answers)
        if reference is None or len(reference) < turn:
            raise InputError(
                f"question {question.question_id} has no reference answer to turn {turn}, which {REFERENCE_JUDGE} "
                "needs; add it to evaluation.questions.references, or use judge kind llm"
            )
        overlap = word_overlap(answers[-1], reference[turn - 1])
        is_formed = has_form(answers[-1], question.form_of(turn))
        score = reference_score(overlap, is_formed)
        explanation = f"word overlap {overlap:.2f} with the reference, {'right' if is_formed else 'wrong'} form"
        return Verdict(score, explanation, RULE_NAME)


def reference_score(overlap: float, is_formed: bool) -> float:
    """10 for the whole content in the right form, else 1 + 5 * overlap, and 1 more if the form is right.

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
    if overlap == 1 and is_formed:
        return 10.0
    return round(1 + 5 * overlap + is_formed, 2)


def word_overlap(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (ROUGE-L, Lin 2004); case and punctuation do not count.

    >>> round(word_overlap("fish, boat, moss", "fish, moss, boat"), 2)
    0.67
    """
    given, wanted = words(answer), words(reference)
    common = _longest_common_subsequence(given, wanted)
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def words(text: str) -> list[str]:
    """Words and numbers, case folded.

    >>> words("The sum is -7.5.")
    ['the', 'sum', 'is', '-7.5']
    """
    return WORD.findall(text.casefold())


def has_form(answer: str, pattern: str | None) -> bool:
    """Whether the stripped answer matches the asked form as a whole; where none is asked: whether it says anything."""
    if pattern is None:
        return bool(answer.strip())
    return re.fullmatch(pattern, answer.strip()) is not None


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for index, other in enumerate(second, start=1):
            above = lengths[index]
            lengths[index] = diagonal + 1 if word == other else max(above, lengths[index - 1])
            diagonal = above
    return lengths[-1]

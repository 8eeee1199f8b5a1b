r"""Replies of a judging model -> verdicts. Pure.

rating       1 to 10              "Rating: [[8]]"      FastChat's single-answer prompts
preference   A, B or C (a tie)    "[[A]]"              FastChat's pairwise prompts

The rule, for both:

1. A reply that the token limit cut off has no verdict.
2. Reasoning is dropped: `<think>...</think>` and its relatives. A block without an end leaves nothing.
3. Ways to write one form are made equal: `【【8】】`, `\[\[8\]\]` and `[[**8**]]` are `[[8]]`.
4. Quoted forms are dropped, like `for example: "Rating: [[5]]"`, unless the reply ends with the quotation.
5. The first form below that occurs decides. If it occurs with several values, there is no verdict.

    form                        rating                                  preference
    labelled as final           Final rating: [[8]]                     Final verdict: [[A]]
    labelled                    Rating: [[8]]                           Verdict: [[A]]
    double brackets             [[8]], [[8/10]], [[Rating: 8,5]]        [[A]], [[Assistant A]], [[Tie]]
    the same in single ones     Overall score: [8], Rating: [8]         Verdict: [A]
    without brackets            Rating: 8/10, {"rating": 8}             Winner: A, {"winner": "tie"}
    nothing but the value       8, [8], 8/10                            A, [A]

A value outside 1 to 10, or on another scale (`[[4/5]]`), counts as a value that differs. A reply without a verdict
costs one more question to the judge; a verdict that the judge did not mean costs the score.
"""

# ruff: noqa: RUF001 - judges write dashes, and labels of many languages

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from eval.judging.reply_text import with_equal_forms, without_reasoning

Preference = Literal["A", "B", "C"]

# Reasons of an endpoint for a reply that is not whole.
CUT_OFF = frozenset({"length", "max_tokens", "content_filter"})

# --- parts of the forms ---------------------------------------------------------------------------------------------

_RATING_LABEL = (
    r"(?:rating|score|grade|verdict|bewertung|wertung|punktzahl|puntuaci[oó]n|calificaci[oó]n|valoraci[oó]n|valutazione"
    r"|punteggio|voto|pontuação|avaliação|évaluation|оценка|рейтинг|评分|評分|得分|分数|分數|评级|評価|評点|スコア"
    r"|평점|점수|평가|التقييم|puan)"
)
_PREFERENCE_LABEL = (
    r"(?:verdict|winner|decision|choice|judge?ment|preference|preferred|better|urteil|veredicto|gewinner|вердикт"
    r"|判定|裁决|结论|结果|胜者|勝者|판정)"
)
_FINAL = r"(?:final|overall|gesamt|endgültige|итоговая|общая|最终|最終|总体|综合|総合|최종)[\s_-]*"
# Between label and value: "Rating (1-10):", `"rating":`, "rating is:", "Rating - ", "Rating\n", "<rating>".
_LINK = r"""["']?(?:\s*\([^()\n]{0,40}\))?(?:\s+is)?\s*(?:[:=>|→]|[-–—]\s|\n)[\s"'`#(]*"""
_NUMBER = r"(?P<value>-?\d+(?:[.,]\d{1,2})?(?!\d|[.,]\d))\.?"
_SCALE = r"(?:\s*(?:/|(?:out\s+)?of|von|sur|de|di|su|из|sobre)\s*(?P<scale>\d+|ten\b)(?:\.0+)?)"
_UNIT = r"(?:\s*(?:points?|pts|punkte|puntos|分|点|点数|점))?"
_OUTER_SCALE = r"(?:\s*(?:/|out\s+of)\s*(?P<outer_scale>\d+))?"
# A second value next to the first one: "[[7]] or [[8]]", "7/10 -> 8/10".
_SECOND = r"(?P<second>[ \t]*(?:→|[-=]>|[-–—,]|\b(?:or|to)\b)?[ \t]*\[+\s*\d|[ \t]*(?:→|[-=]>|\b(?:or|to)\b)[ \t]*\d)?"
_NUMBER_IN_BRACKETS = rf"""["']?{_NUMBER}["']?{_SCALE}?{_UNIT}["']?"""
_CHOICE = (
    r"(?:(?:assistant|model|option|response|answer|助手)\s*)?(?P<value>[ABC]|(?:a\s+)?(?:tie|draw)|平局|平手|引き分け)"
    r"(?:\s+(?:is\s+better|wins))?"
)
# Bare letters are read as capitals only: "Verdict: a mixed bag" prefers nobody.
_BARE_CHOICE = (
    r"(?:(?:assistant|model|option|response|answer|助手)\s*)?(?P<value>(?-i:[ABC])|(?:a\s+)?(?:tie|draw)|平局|平手)"
    r"""(?=\s*(?:$|[\n.,;!)\]}"'<|(]|is\s+better|wins))"""
)
# A label without brackets begins a sentence, a line or a key, so that "a total score: 3" in prose is not read.
_START = r"(?:(?:^|[.!?:;,{}(\n<>|])[\s\"'`#>|-]*(?:(?:my|the|so|thus|therefore|hence)\b[\s,]*)*)"
_END = r"""(?=\s*(?:$|[\n.,;!:)\]}"'<|(]|[-–—]\s*[^\d\s]))"""
_BEFORE = r"(?<![A-Za-z_])"


def _patterns(*expressions: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(expression, re.IGNORECASE) for expression in expressions)


def _double(content: str) -> str:
    return rf"\[\s*\[\s*{content}\s*\]\s*\]"


_AFTER = _OUTER_SCALE + _SECOND
_PLAIN_NUMBER = rf"{_NUMBER}(?:{_SCALE}{_SECOND}|{_UNIT}{_END})"
RATING_FORMS = _patterns(
    rf"{_FINAL}{_RATING_LABEL}{_LINK}{_double(_NUMBER_IN_BRACKETS)}{_AFTER}",
    rf"{_BEFORE}{_RATING_LABEL}{_LINK}{_double(_NUMBER_IN_BRACKETS)}{_AFTER}",
    _double(rf"""(?:["']?{_RATING_LABEL}["']?\s*[:=]?\s*)?{_NUMBER_IN_BRACKETS}""") + _AFTER,
    rf"{_FINAL}{_RATING_LABEL}{_LINK}\[+\s*{_NUMBER_IN_BRACKETS}\s*\]{_AFTER}",
    rf"{_BEFORE}{_RATING_LABEL}{_LINK}\[+\s*{_NUMBER_IN_BRACKETS}\s*\]{_AFTER}",
    rf"{_FINAL}{_RATING_LABEL}{_LINK}{_PLAIN_NUMBER}",
    rf"{_START}{_RATING_LABEL}{_LINK}{_PLAIN_NUMBER}",
    rf"\A[\s\"'`(\[#]*{_NUMBER}{_SCALE}?{_UNIT}[\s\"'`)\].!]*\Z",
)
PREFERENCE_FORMS = _patterns(
    rf"{_FINAL}{_PREFERENCE_LABEL}{_LINK}{_double(_CHOICE)}",
    rf"{_BEFORE}{_PREFERENCE_LABEL}{_LINK}{_double(_CHOICE)}",
    _double(_CHOICE),
    rf"{_FINAL}{_PREFERENCE_LABEL}{_LINK}\[+\s*{_CHOICE}\s*\]",
    rf"{_BEFORE}{_PREFERENCE_LABEL}{_LINK}\[+\s*{_CHOICE}\s*\]",
    rf"{_FINAL}{_PREFERENCE_LABEL}{_LINK}{_BARE_CHOICE}",
    rf"{_START}{_PREFERENCE_LABEL}{_LINK}{_BARE_CHOICE}",
    rf"\A[\s\"'`(\[#]*{_BARE_CHOICE}[\s\"'`)\].!]*\Z",
)

# --- quotations -----------------------------------------------------------------------------------------------------

_ANY_LABEL = rf"(?:{_RATING_LABEL}|{_PREFERENCE_LABEL})"
_ANY_FORM = rf"(?:{_ANY_LABEL}\s*:\s*)?(?:{_double('[^][]{1,20}')}|\[[^][]{{1,20}}\])"
QUOTATION = re.compile(rf"""(?P<quote>["'`])\s*{_ANY_FORM}[\s.]*(?P=quote)|^[ \t]*>.*$""", re.IGNORECASE | re.MULTILINE)
LABEL_BEFORE = re.compile(rf"{_ANY_LABEL}{_LINK}\Z", re.IGNORECASE)
# What the prompt asks for, repeated: "for example: Rating: [[5]]", 'the format "Rating: [[5]]"'.
_EXAMPLE = (
    r"(?:for\s+example|for\s+instance|e\.\s?g\.|such\s+as|z\.\s?B\.|par\s+exemple|por\s+ejemplo|例如|比如|例えば)"
)
EXAMPLE = re.compile(
    rf"""{_EXAMPLE}[\s:,"'`]*{_ANY_FORM}["'`]?"""
    rf"""|\b(?:format|form|template|instructions?|pattern)\b[^\n"'`]{{0,40}}["'`]\s*{_ANY_FORM}[\s.]*["'`]""",
    re.IGNORECASE,
)


class Reply(NamedTuple):
    """A reply of a judging model, and the endpoint's reason for its end ("stop", "length")."""

    text: str
    finish_reason: str | None = None

    @property
    def explanation(self) -> str:
        """The text for judgments.jsonl, which says if it was cut off."""
        if self.finish_reason in CUT_OFF:
            return f"{self.text}\n(cut off: {self.finish_reason})"
        return self.text


def parse_rating(reply: str, finish_reason: str | None = None) -> float | None:
    """Return the rating of a single-answer reply by the module's rule, or None.

    >>> parse_rating("Rating: [[8]]. With an example it would earn a [[10]].")
    8.0
    >>> parse_rating("[[9]]. The expected output is [[2]].") is None
    True
    """
    verdict = _only_value(reply, finish_reason, RATING_FORMS)
    if verdict is None:
        return None
    return _rating(verdict)


def parse_preference(reply: str, finish_reason: str | None = None) -> Preference | None:
    """Return the preferred assistant of a pairwise reply by the module's rule, "C" for a tie, or None.

    >>> parse_preference("Assistant A misses a step. Final verdict: [[B]]")
    'B'
    """
    verdict = _only_value(reply, finish_reason, PREFERENCE_FORMS)
    if verdict is None:
        return None
    return _preference(verdict)


def _only_value(reply: str, finish_reason: str | None, forms: Sequence[re.Pattern[str]]) -> re.Match[str] | None:
    """Return a match of the first form that occurs; None without a form, or if its values differ or are invalid."""
    if finish_reason in CUT_OFF:
        return None
    text = _without_quotations(with_equal_forms(without_reasoning(reply)))
    value_of = _rating if forms is RATING_FORMS else _preference
    for form in forms:
        matches = list(form.finditer(text))
        if matches:
            values = {value_of(match) for match in matches}
            return matches[0] if len(values) == 1 else None
    return None


def _rating(match: re.Match[str]) -> float | None:
    """Return the number of a match; None if it is outside 1 to 10, on another scale, or next to a second one."""
    groups = match.groupdict()
    scales = {groups.get("scale"), groups.get("outer_scale")} - {None}
    value = float(groups["value"].replace(",", "."))
    if groups.get("second") or not 1 <= value <= 10 or not scales <= {"10", "ten"}:
        return None
    return value


def _preference(match: re.Match[str]) -> Preference:
    letter = match["value"].upper()
    if letter == "A":
        return "A"
    if letter == "B":
        return "B"
    return "C"


def _without_quotations(text: str) -> str:
    """Return a text without quoted forms, except one after a label and one that ends the text."""
    text = EXAMPLE.sub(" ", text)
    parts: list[str] = []
    position = 0
    for start, end in _quotations(text):
        parts.append(text[position:start])
        position = end
    return "".join([*parts, text[position:]])


def _quotations(text: str) -> Iterator[tuple[int, int]]:
    for match in QUOTATION.finditer(text):
        is_last = re.search(r"\w", text[match.end() :]) is None
        if not is_last and LABEL_BEFORE.search(text[: match.start()][-100:]) is None:
            yield match.span()

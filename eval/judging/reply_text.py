r"""Texts of replies, made ready for verdicts.py: without reasoning, brackets and digits written in one way. Pure.

`<think>Maybe [[3]]?</think>Rating: [[8]]`  ->  `Rating: [[8]]`
`评分：【【**８**】】`, `\[\[8\]\]`, `\boxed{8}`   ->  `评分:[[8]]`, `[[8]]`, `[8]`
"""

# ruff: noqa: RUF001, RUF002 - the characters that are made equal look alike

import re
import unicodedata

_BLOCK = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|scratchpad)"
_OPENING = rf"(?:<{_BLOCK}\s*>|\[THINK\]|◁think▷|<\|begin_of_thought\|>)"
_CLOSING = rf"(?:</{_BLOCK}\s*>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>)"
REASONING_MARK = re.compile(rf"(?P<opening>{_OPENING})|{_CLOSING}", re.IGNORECASE)
# gpt-oss: the reply is what the final channel holds.
CHANNEL = re.compile(r"<\|channel\|>\s*(?P<name>\w+)\s*(?:<\|message\|>)?")

SAME_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("【〖〔［", "["),
        **dict.fromkeys("】〗〕］", "]"),
        **dict.fromkeys("⟦〚", "[["),
        **dict.fromkeys("⟧〛", "]]"),
        **dict.fromkeys("“”„«»「」『』＂", '"'),
        **dict.fromkeys("‘’‚＇", "'"),
        **dict.fromkeys("\u00a0\u2009\u202f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff*$", ""),
        **dict.fromkeys("：∶", ":"),
        **dict.fromkeys("／∕⁄", "/"),
        **dict.fromkeys("（", "("),
        **dict.fromkeys("）", ")"),
        "．": ".",
        "，": ",",
        "。": ".\n",
        "＝": "=",
        "｜": "|",
        "％": "%",
        "½": ".5",
    }
)
ESCAPED_BRACKET = re.compile(r"\\+([\[\]])")
LONG_SPACE = re.compile(r"[ \t]{2,}|\s*\n\s*")
LATEX_BOX = re.compile(r"\\(?:boxed|text|mathbf|textbf)\s*\{([^{}]*)\}")
HTML_TAG = re.compile(r"</?(?:b|strong|i|em|u|p|br|span|div|code|center|h\d)\b[^>]*>", re.IGNORECASE)


def without_reasoning(reply: str) -> str:
    """Return a reply without its reasoning.

    A block that does not end is dropped to the end of the reply. An end without a beginning drops all before it: the
    chat template may have written the beginning.
    """
    channels = list(CHANNEL.finditer(reply))
    if channels:
        if channels[-1]["name"] != "final":
            return ""
        reply = reply[channels[-1].end() :]
    parts: list[str] = []
    position = 0
    is_inside = False
    for mark in REASONING_MARK.finditer(reply):
        if mark["opening"] is None:
            if not is_inside:
                parts.clear()
            position = mark.end()
            is_inside = False
        elif not is_inside:
            parts.append(reply[position : mark.start()])
            is_inside = True
    if not is_inside:
        parts.append(reply[position:])
    return " ".join(parts)


def with_equal_forms(text: str) -> str:
    """Return a text whose brackets, digits, quotes and marks are written in one way."""
    digits = "".join(_ascii_digit(character) for character in text)
    plain = HTML_TAG.sub("", digits.translate(SAME_CHARACTERS))
    plain = LATEX_BOX.sub(r"[\1]", ESCAPED_BRACKET.sub(r"\1", plain))
    plain = plain.replace("```json", "").replace("```", "").replace("__", "").strip()
    return LONG_SPACE.sub(_short_space, plain)


def _short_space(match: re.Match[str]) -> str:
    return "\n" if "\n" in match[0] else " "


def _ascii_digit(character: str) -> str:
    if character.isascii() or unicodedata.category(character) != "Nd":
        return character
    return str(unicodedata.digit(character))

"""A two-turn question set in MT-Bench's file format: the questions and the reference answers.

question.jsonl           {"question_id", "category", "turns": [first, second], ...}     other keys are kept
reference_answer.jsonl   {"question_id", "choices": [{"turns": [first, second]}], ...}

The format is FastChat's (Zheng et al., arXiv 2306.05685), with an additional key: "form_pattern", a regular expression
that an answer of the right form matches as a whole. It is one expression for both turns, or a list with one per turn.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from winnow.errors import InputError
from winnow.rows import read_jsonl

QuestionId = int | str
References = dict[QuestionId, tuple[str, ...]]

NUM_TURNS = 2

RowModel = TypeVar("RowModel", bound=BaseModel)


class Question(BaseModel):
    """A question of two turns; the second turn builds on the answer to the first."""

    model_config = ConfigDict(extra="allow", frozen=True)

    question_id: QuestionId
    category: str
    turns: tuple[str, str]
    form_pattern: str | tuple[str, str] | None = None

    @field_validator("form_pattern")
    @classmethod
    def _patterns_compile(cls, pattern: str | tuple[str, str] | None) -> str | tuple[str, str] | None:
        expressions: tuple[str, ...] = ()
        if isinstance(pattern, str):
            expressions = (pattern,)
        elif pattern is not None:
            expressions = pattern
        for expression in expressions:
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(f"{expression!r} is not a regular expression ({error})") from None
        return pattern

    def form_of(self, turn: int) -> str | None:
        """Return the pattern for the answer to a turn (1 or 2); None if the question demands no form."""
        if self.form_pattern is None or isinstance(self.form_pattern, str):
            return self.form_pattern
        return self.form_pattern[turn - 1]


class _Choice(BaseModel):
    turns: tuple[str, ...]


class _Reference(BaseModel):
    question_id: QuestionId
    choices: tuple[_Choice, ...]


def read_questions(path: str | Path) -> list[Question]:
    """Read every question, in the order of the file. Raises InputError with the file and line of a malformed row."""
    questions: dict[QuestionId, Question] = {}
    for location, question in parse_rows(path, Question):
        if question.question_id in questions:
            raise InputError(f"{location}: question_id {question.question_id!r} occurs twice")
        questions[question.question_id] = question
    if not questions:
        raise InputError(f"{path} holds no question")
    return list(questions.values())


def read_references(path: str | Path | None) -> References:
    """Return question id -> reference answer to each turn, from the first of several choices.

    Returns an empty mapping without a path. Raises InputError with the file and line of a malformed row.
    """
    if path is None:
        return {}
    references: References = {}
    for location, row in parse_rows(path, _Reference):
        if not row.choices:
            raise InputError(f"{location}: choices is empty")
        references[row.question_id] = row.choices[0].turns
    return references


def parse_rows(path: str | Path, model: type[RowModel]) -> Iterator[tuple[str, RowModel]]:
    """Yield the location (file and line) and the row of each line. Raises InputError for a malformed row."""
    for line_number, row in read_jsonl(path):
        location = f"{path} line {line_number}"
        try:
            yield location, model.model_validate(row)
        except ValidationError as error:
            raise InputError(f"{location}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """Return key and text of the first problem of a row."""
    problem: Any = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}"

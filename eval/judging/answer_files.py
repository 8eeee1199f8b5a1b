"""FastChat's answer files -> checked answers by model.

answers.jsonl   {"question_id", "model_id", "choices": [{"index": 0, "turns": [...]}]}

The first of several choices counts, as in FastChat's judging. "run_id" and "errors" are winnow's (mt_bench.py).
"""

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from eval.judging.mt_bench import Answer
from eval.judging.questions import NUM_TURNS, QuestionId, parse_rows
from winnow.errors import InputError


class _AnswerChoice(BaseModel):
    turns: tuple[str, ...]


class _AnswerRow(BaseModel):
    question_id: QuestionId
    model_id: str
    choices: tuple[_AnswerChoice, ...]
    run_id: int = 0
    errors: tuple[str | None, ...] = (None,) * NUM_TURNS


def read_answer_files(paths: Iterable[Path]) -> dict[str, list[Answer]]:
    """Return model -> its answers, over several files. Raises InputError for a model that two of them hold."""
    answers: dict[str, list[Answer]] = {}
    path_of: dict[str, Path] = {}
    for path in paths:
        for model, answers_of_model in read_answers(path).items():
            if model in answers:
                raise InputError(f"{path} and {path_of[model]} both hold answers of model {model!r}; give one of them")
            answers[model] = answers_of_model
            path_of[model] = path
    return answers


def read_answers(path: str | Path) -> dict[str, list[Answer]]:
    """Return model -> its answers, in the order of the file. Raises InputError with file and line."""
    answers: dict[str, list[Answer]] = {}
    locations: dict[tuple[str, QuestionId, int], str] = {}
    for location, row in parse_rows(path, _AnswerRow):
        if not row.choices:
            raise InputError(f"{location}: choices is empty")
        turns = row.choices[0].turns
        if len(turns) != NUM_TURNS or len(row.errors) != NUM_TURNS:
            raise InputError(f"{location}: {len(turns)} turns, {len(row.errors)} errors; there should be two of each")
        key = (row.model_id, row.question_id, row.run_id)
        if key in locations:
            raise InputError(
                f"{location}: a second answer of model {row.model_id!r} to question_id {row.question_id!r} in run "
                f"{row.run_id} (the first: {locations[key]}); give repeated runs a run_id each"
            )
        locations[key] = location
        answers.setdefault(row.model_id, []).append(Answer(row.question_id, row.run_id, turns, row.errors))
    if not answers:
        raise InputError(f"{path} holds no answer")
    return answers

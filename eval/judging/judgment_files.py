"""FastChat's files of single-answer judgments -> checked judgments by model and judge.

judgments.jsonl   {"question_id", "model", "judge": [name, prompt], "user_prompt", "judgment", "score", "turn"}

Other keys are ignored, but "run_id", which tells repeated runs apart. The score -1 is FastChat's sign for an unreadable
verdict. A file may hold several models and judges; they are never pooled. These rows are refused with file and line,
since each of them would spoil a mean in silence:

    a second judgment of the same question, turn, run, model and judge
    a score outside 1 to 10 other than -1, NaN, null or a text; a turn other than 1 and 2
    a question that the question set does not have; a question without one of its turns
    a pairwise judgment; a judge without the name of its prompt
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eval.judging.judged_scores import UNREADABLE, Judgment
from eval.judging.questions import NUM_TURNS, Question, QuestionId, first_problem
from winnow.errors import InputError
from winnow.rows import kind_of, read_jsonl

PAIRWISE_KEYS = ("model_1", "model_2", "g1_winner", "g2_winner")
UNREADABLE_REMEDY = "correct it, or write -1 for an unreadable verdict"

# A turn of a question in one run.
TurnKey = tuple[QuestionId, int, int]
# The judgment of each turn, with its line.
Rows = dict[TurnKey, tuple[int, Judgment]]


@dataclass(frozen=True)
class JudgmentSet:
    """The judgments of one model by one judge, with the line of each; `num_missing` turns have none."""

    path: str
    model: str
    judge: str
    judgments: tuple[Judgment, ...]
    lines: tuple[int, ...]
    num_missing: int


def read_judgment_sets(
    path: str | Path,
    questions: Sequence[Question] | None = None,
    unanswered: Mapping[str, Collection[TurnKey]] | None = None,
    *,
    is_missing_allowed: bool = False,
) -> list[JudgmentSet]:
    """Read a file, in the order in which models and judges first occur. Raises InputError with file and line.

    With `questions`, each of them must be judged, and no other. `unanswered` are the turns of each model without an
    answer, which need no judgment.
    """
    question_ids = None
    if questions is not None:
        question_ids = [question.question_id for question in questions]
    sets: list[JudgmentSet] = []
    for (model, judge), rows in _rows_by_set(path, question_ids).items():
        missing = _missing_turns(rows, question_ids or ()) - set((unanswered or {}).get(model, ()))
        if missing and not is_missing_allowed:
            raise _missing_error(str(path), model, judge, rows, missing)
        judgments = tuple(judgment for _, judgment in rows.values())
        lines = tuple(line for line, _ in rows.values())
        sets.append(JudgmentSet(str(path), model, judge, judgments, lines, len(missing)))
    return sets


def only_set(sets: Sequence[JudgmentSet], model: str | None = None, judge: str | None = None) -> JudgmentSet:
    """Return the set of a model and a judge; either may be None if the file holds one. Raises InputError otherwise."""
    matching: list[JudgmentSet] = []
    for judgments in sets:
        if model in (None, judgments.model) and judge in (None, judgments.judge):
            matching.append(judgments)
    if not matching:
        names = ", ".join(f"{judgments.model!r} by {judgments.judge!r}" for judgments in sets)
        wanted = f"model {model or '(any)'} by judge {judge or '(any)'}"
        raise InputError(f"{sets[0].path} holds no judgments of {wanted}; it holds {names}")
    first, *others = matching
    if others:
        kind = "judge"
        names_of_kind = (first.judge, others[0].judge)
        if others[0].model != first.model:
            kind = "model"
            names_of_kind = (first.model, others[0].model)
        raise InputError(
            f"{first.path} line {others[0].lines[0]}: a second {kind}, {names_of_kind[1]!r}, after "
            f"{names_of_kind[0]!r} in line {first.lines[0]}; name the {kind} to read"
        )
    return first


def _rows_by_set(path: str | Path, question_ids: Collection[QuestionId] | None) -> dict[tuple[str, str], Rows]:
    """Return the rows of each model and judge. Raises InputError for a row at fault, twice there, or unknown."""
    rows_by_set: dict[tuple[str, str], Rows] = {}
    for line, row in read_jsonl(path):
        location = f"{path} line {line}"
        judgment = _judgment(row, location)
        if question_ids is not None and judgment.question_id not in question_ids:
            raise InputError(
                f"{location}: question_id {judgment.question_id!r} is not in the question set; give the questions "
                "that were judged"
            )
        rows = rows_by_set.setdefault((judgment.model, judgment.judge[0]), {})
        key = (judgment.question_id, judgment.turn, judgment.run_id)
        if key in rows:
            raise InputError(
                f"{location}: a second judgment of question_id {judgment.question_id!r}, turn {judgment.turn}, run "
                f"{judgment.run_id} of model {judgment.model!r} by {judgment.judge[0]!r} (the first is in line "
                f"{rows[key][0]}); give two models two names, and repeated runs a run_id each"
            )
        rows[key] = (line, judgment)
    if not rows_by_set:
        raise InputError(f"{path} holds no judgment")
    return rows_by_set


def _judgment(row: dict[str, Any], location: str) -> Judgment:
    """Return the judgment of a row. Raises InputError."""
    pairwise = [key for key in PAIRWISE_KEYS if key in row]
    if pairwise:
        raise InputError(
            f"{location}: a pairwise judgment ({', '.join(pairwise)}), which has no score; give a file of "
            "single-answer judgments, like gpt-4_single.jsonl"
        )
    if isinstance(row.get("judge"), str):
        raise InputError(
            f"{location}: judge is the text {row['judge']!r}; write the judge and the name of its prompt, like "
            f'["{row["judge"]}", "single-v1"]'
        )
    if "score" in row:
        _check_score(row["score"], location)
    if "turn" in row and row["turn"] not in range(1, NUM_TURNS + 1):
        raise InputError(f"{location}: turn is {row['turn']!r}; it should be 1 or 2")
    try:
        return Judgment.model_validate(row)
    except ValidationError as error:
        raise InputError(f"{location}: {first_problem(error)}") from None


def _check_score(score: Any, location: str) -> None:
    """Raise InputError unless a score is a number from 1 to 10, or -1."""
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        raise InputError(f"{location}: score is {kind_of(score)}, not a number; {UNREADABLE_REMEDY}")
    if math.isnan(score):
        raise InputError(f"{location}: score is NaN; {UNREADABLE_REMEDY}")
    if score != UNREADABLE and not 1 <= score <= 10:
        raise InputError(f"{location}: score {score} is outside 1 to 10; {UNREADABLE_REMEDY}")


def _missing_turns(rows: Rows, question_ids: Sequence[QuestionId]) -> set[TurnKey]:
    """Return the turns without a judgment: of these questions and of every judged one, in every run of the set."""
    runs = {run_id for _, _, run_id in rows}
    judged_ids = {question_id for question_id, _, _ in rows}
    missing: set[TurnKey] = set()
    for question_id in {*question_ids, *judged_ids}:
        for turn in range(1, NUM_TURNS + 1):
            missing |= {(question_id, turn, run_id) for run_id in runs} - rows.keys()
    return missing


def _missing_error(
    path: str,
    model: str,
    judge: str,
    rows: Rows,
    missing: Collection[TurnKey],
) -> InputError:
    """Return the error that names the first missing turn, and the line of the question's judged turn if it has any."""
    question_id, turn, run_id = min(missing, key=lambda key: (key[2], str(key[0]), key[1]))
    location = path
    for (judged_id, _, judged_run), (line, _) in rows.items():
        if (judged_id, judged_run) == (question_id, run_id):
            location = f"{path} line {line}"
            break
    return InputError(
        f"{location}: question_id {question_id!r} has no judgment of turn {turn} in run {run_id} of model {model!r} by "
        f"{judge!r} ({len(missing)} missing in all); add them, or allow them to be missing (--allow-missing)"
    )

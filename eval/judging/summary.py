"""The content of a judgment file on the terminal: for each model and judge, means with standard errors over questions.

    vicuna-7b-v1.3, judged by gpt-4
             mean      standard error  verdicts  unreadable
    all      6.103125            0.29       160           0
    turn 1   ...
    writing  ...                                                with the question set

Line "all" is the mean over runs; the other lines pool the runs. Unreadable verdicts are in no mean. A file of pairwise
judgments has a table of its own (pair_summary.py).
"""

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.judging.answer_files import read_answer_files
from eval.judging.judged_scores import (
    GroupScore,
    JudgedScore,
    check_readable,
    group_score,
    scores_by_category,
    scores_by_turn,
    summarize,
    unreadable_warning,
)
from eval.judging.judgment_files import JudgmentSet, TurnKey, read_judgment_sets
from eval.judging.mt_bench import Answer
from eval.judging.pair_files import PAIR_KEYS
from eval.judging.pair_summary import print_pair_summary
from eval.judging.questions import Question, QuestionId, read_questions
from winnow.errors import InputError, WinnowError
from winnow.rows import read_jsonl

PIPED_WIDTH = 100
HEADERS = ("", "mean", "standard error", "verdicts", "unreadable")


@dataclass(frozen=True)
class SummaryRequest:
    """The files and settings of `winnow judge --summary`."""

    judgments: Path
    questions: Path | None = None
    answers: tuple[Path, ...] = ()
    max_unreadable: float = 0.1
    is_missing_allowed: bool = False


def print_summary(request: SummaryRequest, console: Console | None = None) -> None:
    """Print each model's scores by each judge. Raises InputError, and WinnowError for too many unreadable verdicts.

    The error for unreadable verdicts comes last: the file's other models and judges are printed before.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    if is_pairwise(request.judgments):
        print_pair_summary(request.judgments, request.max_unreadable, console)
        return
    questions: list[Question] | None = None
    categories: dict[QuestionId, str] | None = None
    if request.questions is not None:
        questions = read_questions(request.questions)
        categories = {question.question_id: question.category for question in questions}
    answers = read_answer_files(request.answers)
    sets = read_judgment_sets(
        request.judgments, questions, _unanswered(answers), is_missing_allowed=request.is_missing_allowed
    )
    if answers and not answers.keys() & {judged.model for judged in sets}:
        raise InputError(
            f"{', '.join(map(str, request.answers))} holds answers of {', '.join(answers)}, and {request.judgments} "
            f"judgments of {', '.join({judged.model: None for judged in sets})}; give the answers that were judged"
        )
    refusals: list[WinnowError] = []
    for judged in sets:
        try:
            _print_set(judged, categories, answers.get(judged.model), request.max_unreadable, console)
        except WinnowError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def is_pairwise(path: Path) -> bool:
    """Tell whether the first row of a file is a pairwise judgment. Raises UsageError and InputError."""
    for _, row in read_jsonl(path):
        return not PAIR_KEYS.isdisjoint(row)
    return False


def _print_set(
    judged: JudgmentSet,
    categories: Mapping[QuestionId, str] | None,
    answers: Sequence[Answer] | None,
    max_unreadable: float,
    console: Console,
) -> None:
    """Print one model's scores by one judge. Raises WinnowError if too many verdicts are unreadable."""
    answer_chars: list[int] = []
    num_unanswered = 0
    for answer in answers or ():
        answer_chars += [len(text) for text in answer.texts]
        num_unanswered += answer.num_unanswered
    score = summarize(judged.judgments, categories, answer_chars, num_unanswered)
    label = f"{judged.path}, model {judged.model}"
    check_readable(score, max_unreadable, label, "--max-unreadable")
    warning = unreadable_warning(score, label)
    if warning is not None:
        print(warning, file=sys.stderr)
    console.print(Text(f"{judged.model}, judged by {judged.judge}"), style="bold")
    console.print(_table(judged, score, categories))
    for line in _notes(judged, score, has_categories=categories is not None):
        console.print(Text(line))
    console.print()


def _table(judged: JudgmentSet, score: JudgedScore, categories: Mapping[QuestionId, str] | None) -> Table:
    """Build the table: all verdicts, each turn, each category."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in HEADERS:
        table.add_column(header, justify="right" if header else "left")
    pooled = group_score(judged.judgments)
    rows = {"all": GroupScore(score.mean, pooled.stderr, pooled.num_judgments, pooled.num_unparsable)}
    for turn, turn_score in sorted(scores_by_turn(judged.judgments).items()):
        rows[f"turn {turn}"] = turn_score
    rows |= scores_by_category(judged.judgments, categories)
    for name, row in rows.items():
        table.add_row(
            name,
            _decimal(row.mean, 6),
            _decimal(row.stderr, 2),
            str(row.num_judgments),
            str(row.num_unparsable),
        )
    return table


def _notes(judged: JudgmentSet, score: JudgedScore, *, has_categories: bool) -> Iterator[str]:
    """Yield what the table does not show: runs, missing judgments, answers, and what was not given."""
    if score.sd is not None:
        runs = ", ".join(f"{mean:.6f}" for mean in score.runs)
        yield f"runs: {runs} (sd {score.sd:.6f})"
    if judged.num_missing:
        yield f"missing: {judged.num_missing} turns have no judgment"
    if score.mean_answer_chars is not None:
        yield f"answers: {score.mean_answer_chars:.1f} characters on average, {score.num_unanswered} turns without one"
    if not has_categories:
        yield "categories: not known; give --questions"


def _unanswered(answers: Mapping[str, Sequence[Answer]]) -> dict[str, Collection[TurnKey]]:
    """Return the turns of each model that have no answer, or follow one that has none."""
    unanswered: dict[str, Collection[TurnKey]] = {}
    for model, answers_of_model in answers.items():
        turns: list[TurnKey] = []
        for answer in answers_of_model:
            for index in range(len(answer.turns)):
                if any(answer.errors[: index + 1]):
                    turns.append((answer.question_id, index + 1, answer.run_id))
        unanswered[model] = turns
    return unanswered


def _decimal(value: float | None, num_digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{num_digits}f}"

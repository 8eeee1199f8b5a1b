"""A judgment file -> the judged score of one model by one judge, with the lengths of its answers.

FastChat's layout and winnow's both put answers beside the judgments:

    model_judgment/gpt-4_single.jsonl    model_answer/MODEL.jsonl
    eval/judgments.jsonl                 eval/answers.jsonl

The prompts of the judge compare by their text before the answer: instruction, question and reference.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from eval.compare.results import JudgedResult, Turn
from eval.judging.answer_files import read_answers
from eval.judging.judged_scores import UNREADABLE, Judgment, check_readable, group_score, summarize
from eval.judging.judgment_files import only_set, read_judgment_sets
from eval.judging.questions import QuestionId

# The text of FastChat's prompts before an answer.
ANSWER_MARK = "The Start of Assistant"


def read_judged(
    path: Path,
    model: str | None = None,
    judge: str | None = None,
    max_unreadable: float = 0.1,
    answers: Sequence[Path] = (),
) -> tuple[str, JudgedResult]:
    """Return the name of the model and its score. Raises InputError, and WinnowError for too many unreadable verdicts.

    Turns without a judgment are left out here; the comparison counts them. `answers` are further files of answers.
    """
    judged = only_set(read_judgment_sets(path, is_missing_allowed=True), model, judge)
    score = summarize(judged.judgments, None, ())
    check_readable(score, max_unreadable, f"{path}, model {judged.model}", "--max-unreadable")
    result = JudgedResult(
        judge=judged.judge,
        mean=score.mean,
        stderr=group_score(judged.judgments).stderr,
        scores=_scores(judged.judgments),
        prompts={(row.question_id, row.turn): _prompt(row) for row in judged.judgments},
        num_unreadable=score.num_unparsable,
        lengths=_lengths(path, judged.model, answers),
    )
    return judged.model, result


def _scores(judgments: Sequence[Judgment]) -> dict[Turn, float]:
    """Return the mean over runs of the readable verdicts of each turn."""
    verdicts: dict[Turn, list[float]] = defaultdict(list)
    for judgment in judgments:
        if judgment.score != UNREADABLE:
            verdicts[judgment.question_id, judgment.turn].append(judgment.score)
    return {turn: fmean(scores) for turn, scores in verdicts.items()}


def _prompt(judgment: Judgment) -> str:
    """Return the name of the judge's prompt and its text before the answer."""
    text, mark, _ = judgment.user_prompt.partition(ANSWER_MARK)
    return f"{judgment.judge[1]}\n{text if mark else ''}"


def _lengths(path: Path, model: str, answers: Sequence[Path]) -> dict[QuestionId, float]:
    """Return the mean length of the answers to each question; nothing without the model's answers."""
    beside = (path.with_name("answers.jsonl"), path.parent.parent / "model_answer" / f"{model}.jsonl")
    lengths: dict[QuestionId, list[int]] = defaultdict(list)
    for file in (*answers, *(file for file in beside if file.is_file())):
        for answer in read_answers(file).get(model, ()):
            lengths[answer.question_id] += [len(text) for text in answer.texts]
        if lengths:
            break
    return {question: fmean(sizes) for question, sizes in lengths.items() if sizes}

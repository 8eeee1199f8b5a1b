"""`winnow judge ANSWERS`: judges answers that exist, and prints what the judgments say.

FastChat's answer files -> judgments of single answers, or of pairs in both orders -> DIR, see judge_folder.py
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.judging.answer_files import read_answer_files
from eval.judging.judge_folder import claim_folder, judge_into, judging_noise
from eval.judging.judgment_inputs import judgment_inputs
from eval.judging.llm_judge import read_judge_prompts
from eval.judging.mt_bench import Answer
from eval.judging.noise import noise_lines
from eval.judging.opening import endpoint_settings, open_judge
from eval.judging.pair_judging import PAIR_PROMPT_NAMES, PairJudge, pairs_of
from eval.judging.questions import Question, read_questions, read_references
from eval.judging.summary import SummaryRequest, print_summary
from sampler.engines.chat_endpoint import open_chat_endpoint
from sampler.engines.finished_requests import FinishedRequests
from winnow.errors import InputError
from winnow.rows import file_sha256, write_jsonl
from winnow.run_config import JudgeConfig

NUM_SHOWN = 3


@dataclass(frozen=True)
class JudgeCommand:
    """The files and settings of the command; the judge is of kind llm."""

    answers: tuple[Path, ...]
    questions: Path
    output: Path
    judge: JudgeConfig
    references: Path | None = None
    is_pairwise: bool = False
    baseline: str | None = None
    num_rejudged: int = 0
    is_missing_allowed: bool = False


def judge_answer_files(command: JudgeCommand) -> None:
    """Judge every answer, write the judgments and print their summary.

    Raises UsageError and InputError for files at fault before the judge is called, ServerError if its endpoint fails,
    WinnowError for too many unreadable verdicts.
    """
    questions = read_questions(command.questions)
    answers = read_answer_files(command.answers)
    check_answers(answers, questions, is_missing_allowed=command.is_missing_allowed)
    command.output.mkdir(parents=True, exist_ok=True)
    claim_folder(command.output, _inputs(command))
    if command.is_pairwise:
        _judge_pairs(command, questions, answers)
    else:
        _judge_singly(command, questions, answers)


def check_answers(
    answers: Mapping[str, Sequence[Answer]], questions: Sequence[Question], *, is_missing_allowed: bool
) -> None:
    """Raise InputError for an answer to another question set, and for questions without an answer of a model."""
    question_ids = [question.question_id for question in questions]
    for model, answers_of_model in answers.items():
        for run_id in {answer.run_id: None for answer in answers_of_model}:
            answered = [answer.question_id for answer in answers_of_model if answer.run_id == run_id]
            unknown = [question_id for question_id in answered if question_id not in question_ids]
            if unknown:
                raise InputError(
                    f"model {model} answers question_id {unknown[0]!r}, which the question set does not have; give the "
                    "questions that were answered"
                )
            missing = [question_id for question_id in question_ids if question_id not in answered]
            if missing and not is_missing_allowed:
                shown = ", ".join(map(repr, missing[:NUM_SHOWN]))
                raise InputError(
                    f"model {model}, run {run_id}: {len(missing)} of {len(question_ids)} questions have no answer "
                    f"(question_id {shown}); add them, or allow them to be missing (--allow-missing)"
                )


def _judge_singly(
    command: JudgeCommand, questions: Sequence[Question], answers: Mapping[str, Sequence[Answer]]
) -> None:
    references = read_references(command.references)
    with open_judge(command.judge, command.output / "judge_requests.jsonl", section=None) as judge:
        judge.check()
        judgings = judge_into(command.output, judge, questions, references, answers, command.num_rejudged)
    print_summary(
        SummaryRequest(
            command.output / "judgments.jsonl",
            command.questions,
            command.answers,
            command.judge.max_unreadable,
            command.is_missing_allowed,
        )
    )
    if command.num_rejudged:
        for model in answers:
            for line in noise_lines(judging_noise(judgings, model)):
                print(f"{model}: {line}")


def _judge_pairs(command: JudgeCommand, questions: Sequence[Question], answers: Mapping[str, Sequence[Answer]]) -> None:
    pairs = pairs_of(list(answers), command.baseline)
    prompts = read_judge_prompts(str(command.judge.prompts), PAIR_PROMPT_NAMES)
    references = read_references(command.references)
    finished = FinishedRequests(command.output / "judge_requests.jsonl")
    with open_chat_endpoint(endpoint_settings(command.judge, section=None), finished) as endpoint:
        judge = PairJudge(endpoint, prompts)
        judge.check()
        try:
            judgments = judge.judge(pairs, questions, references, answers)
        finally:
            print(endpoint.usage.cost_line(f"judge {judge.name}"), file=sys.stderr, flush=True)
    path = command.output / "pairs.jsonl"
    write_jsonl(path, [judgment.model_dump(mode="json") for judgment in judgments])
    print_summary(SummaryRequest(path, max_unreadable=command.judge.max_unreadable))


def _inputs(command: JudgeCommand) -> dict[str, object]:
    """Return all that decides the judgments, for judging.json."""
    return {
        **judgment_inputs(command.judge, command.questions, command.references),
        "answers": {str(path): file_sha256(path) for path in command.answers},
        "pairwise": command.is_pairwise,
        "baseline": command.baseline,
    }

"""MT-Bench: two-turn questions -> answers -> judgments, in FastChat's file formats.

answers.jsonl    {"question_id", "answer_id", "model_id", "choices": [{"index": 0, "turns": [...]}], "run_id"}
judgments.jsonl  {"question_id", "model", "judge": [name, prompt], "user_prompt", "judgment", "score", "turn", "run_id"}

answering.py makes the answers. FastChat's `tstamp` is left out, so that equal runs write equal files; no reader needs
it. `run_id` distinguishes repeated runs; without it, FastChat's readers keep the last run only.

A question that the chat template refuses is reported before any model is loaded (`check_questions`). A turn can still
have no answer: the first answer holds a control token, or the prompt is too long. Its text in answers.jsonl is empty,
the row has a further key "errors" with the reason, and the turn is not judged:

    "choices": [{"index": 0, "turns": ["5", ""]}], "errors": [null, "the prompt has 4099 tokens; ..."]
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from eval.judging.judged_scores import UNREADABLE, Judgment
from eval.judging.judges import Judge
from eval.judging.questions import NUM_TURNS, Question, QuestionId, References
from winnow.chat import Chat
from winnow.errors import ChatError, ControlTokenError, UsageError, WinnowError
from winnow.progress import progress
from winnow.records import Message, digest

# The answer to turn 1 in `check_questions`, which only asks whether a conversation can be rendered.
PLACEHOLDER = "a"


@dataclass(frozen=True)
class Answer:
    """The answers to both turns of a question in one run; `errors` says why the text of a turn could not be made."""

    question_id: QuestionId
    run_id: int
    turns: tuple[str, ...]
    errors: tuple[str | None, ...] = (None,) * NUM_TURNS

    @property
    def texts(self) -> list[str]:
        """The answers that could be made."""
        return [text for text, error in zip(self.turns, self.errors, strict=True) if error is None]

    @property
    def num_unanswered(self) -> int:
        """The number of turns without an answer."""
        return len(self.turns) - len(self.texts)

    def row(self, model: str) -> dict[str, Any]:
        """Return the row of answers.jsonl."""
        row: dict[str, Any] = {
            "question_id": self.question_id,
            "answer_id": digest([self.question_id, model, self.run_id, self.turns]),
            "model_id": model,
            "choices": [{"index": 0, "turns": list(self.turns)}],
            "run_id": self.run_id,
        }
        if self.num_unanswered:
            row["errors"] = list(self.errors)
        return row


def check_questions(chat: Chat, questions: Sequence[Question]) -> None:
    """Render both turns of every question. Raises UsageError if the chat template refuses one."""
    failures: list[tuple[Question, int, ChatError]] = []
    for question in questions:
        for turn, messages in enumerate(_prompts(question), start=1):
            try:
                chat.prompt_ids(messages)
            except ChatError as error:
                failures.append((question, turn, error))
                break
    if not failures:
        return
    first, first_turn, reason = failures[0]
    raise UsageError(
        f"question_id {first.question_id!r} cannot be rendered at turn {first_turn}: {reason} "
        f"({len(failures)} of {len(questions)} questions cannot be rendered); {_remedy(chat, reason)}"
    )


def turn_lengths(chat: Chat, question: Question) -> tuple[int, ...]:
    """Return the tokens of the prompt of each turn, with a short answer before the second. Raises ChatError."""
    return tuple(len(chat.prompt_ids(messages)) for messages in _prompts(question))


def _prompts(question: Question) -> Iterator[list[Message]]:
    """Yield the messages up to each turn of a question, with a placeholder for each answer."""
    messages: list[Message] = []
    for turn in range(NUM_TURNS):
        messages.append(Message(role="user", content=question.turns[turn]))
        yield list(messages)
        messages.append(Message(role="assistant", content=PLACEHOLDER))


def _remedy(chat: Chat, error: ChatError) -> str:
    if isinstance(error, ControlTokenError):
        return "change the text of the question or of policy.system_prompt"
    remedy = f"set policy.chat_template, now {chat.template!r}, to a template that accepts the conversation"
    if chat.system_prompt:
        remedy += ", or unset policy.system_prompt if the template refuses system messages"
    return remedy


def check_answered(answers: Sequence[Answer]) -> None:
    """Raise WinnowError if no turn of a whole run has an answer: the run has no score."""
    unanswered = {answer.run_id: answer for answer in answers}
    for answer in answers:
        if answer.texts:
            unanswered.pop(answer.run_id, None)
    for run_id, answer in unanswered.items():
        raise WinnowError(
            f"run {run_id} of the question set has no answer to judge; question_id {answer.question_id!r}: "
            f"{answer.errors[0]}; check policy.chat_template and evaluation.questions.max_new_tokens"
        )


def judge_answers(
    judge: Judge,
    questions: Sequence[Question],
    references: References,
    answers: Sequence[Answer],
    model: str,
    label: str,
    judging: int = 0,
) -> list[Judgment]:
    """Judge each turn that has an answer, and turn 2 only after an answered turn 1; keep the order of the answers.

    Several judgings of the same answers are independent of each other.
    """
    prefix = f"judging {judging}, " if judging else ""
    question_of = {question.question_id: question for question in questions}
    jobs: list[tuple[Answer, int]] = []
    for answer in answers:
        jobs += [(answer, turn) for turn in range(1, NUM_TURNS + 1) if not any(answer.errors[:turn])]

    def judge_turn(job: tuple[Answer, int]) -> Judgment:
        answer, turn = job
        reference = references.get(answer.question_id)
        verdict = judge.judge(
            question_of[answer.question_id], answer.turns[:turn], reference, f"{prefix}run {answer.run_id}"
        )
        return Judgment(
            question_id=answer.question_id,
            model=model,
            judge=(judge.name, verdict.prompt_name),
            user_prompt=verdict.prompt,
            judgment=verdict.explanation,
            score=UNREADABLE if verdict.score is None else verdict.score,
            turn=turn,
            run_id=answer.run_id,
        )

    judgments = []
    with progress(f"{label}: judge", len(jobs), "turns") as advance, ThreadPoolExecutor(judge.num_parallel) as pool:
        for judgment in pool.map(judge_turn, jobs):
            judgments.append(judgment)
            advance()
    return judgments

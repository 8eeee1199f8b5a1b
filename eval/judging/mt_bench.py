"""MT-Bench: two-turn questions -> answers -> judgments, in FastChat's file formats.

answers.jsonl    {"question_id", "answer_id", "model_id", "choices": [{"index": 0, "turns": [...]}], "run_id"}
judgments.jsonl  {"question_id", "model", "judge": [name, prompt], "user_prompt", "judgment", "score", "turn", "run_id"}

The prompt of turn 2 contains the answer to turn 1. The temperature depends on the category as in MT-Bench: 0.7 for
writing and roleplay, 0.1 for stem and humanities, 0 for the rest. FastChat's `tstamp` is left out, so that equal runs
write equal files; no reader needs it. `run_id` distinguishes repeated runs; without it, FastChat's readers keep the
last run only.

A question that the chat template refuses is reported before any model is loaded (`check_questions`). A turn can still
have no answer: the first answer holds a control token, or the prompt is too long. Its text in answers.jsonl is empty,
the row has a further key "errors" with the reason, and the turn is not judged:

    "choices": [{"index": 0, "turns": ["5", ""]}], "errors": [null, "the prompt has 4099 tokens; ..."]
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.judging.judged_scores import UNREADABLE, Judgment
from eval.judging.judges import Judge
from eval.judging.questions import NUM_TURNS, Question, QuestionId, References
from winnow.chat import Chat
from winnow.errors import ChatError, ControlTokenError, UsageError, WinnowError
from winnow.progress import progress
from winnow.records import Completion, Message, digest, seed_from
from winnow.run_config import QuestionsConfig

if TYPE_CHECKING:
    from sampler.engines import SamplingEngine

TEMPERATURES: Mapping[str, float] = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
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
        messages: list[Message] = []
        for turn in range(NUM_TURNS):
            messages.append(Message(role="user", content=question.turns[turn]))
            try:
                chat.prompt_ids(messages)
            except ChatError as error:
                failures.append((question, turn + 1, error))
                break
            messages.append(Message(role="assistant", content=PLACEHOLDER))
    if not failures:
        return
    first, first_turn, reason = failures[0]
    raise UsageError(
        f"question_id {first.question_id!r} cannot be rendered at turn {first_turn}: {reason} "
        f"({len(failures)} of {len(questions)} questions cannot be rendered); {_remedy(chat, reason)}"
    )


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


def answer_questions(
    engine: "SamplingEngine", chat: Chat, questions: Sequence[Question], config: QuestionsConfig, seed: int, label: str
) -> list[Answer]:
    """Answer both turns of every question in each of `num_runs` runs.

    Greedy answers are equal in every run: they are generated once and copied. A turn that cannot be answered has an
    error.
    """
    answers: list[Answer] = []
    with progress(f"{label}: answers", len(questions) * config.num_runs, "questions") as advance:
        for temperature, subset in by_temperature(questions, config.temperature).items():
            is_greedy = temperature == 0
            for run_id in range(config.num_runs):
                if run_id == 0 or not is_greedy:
                    run_seed = seed_from(seed, run_id)
                    turns = _two_turns(engine, chat, subset, config.max_new_tokens, temperature, run_seed)
                for question, completions in zip(subset, turns, strict=True):
                    answers.append(_answer(question, run_id, completions))
                advance(len(subset))
    position = {question.question_id: index for index, question in enumerate(questions)}
    return sorted(answers, key=lambda answer: (answer.run_id, position[answer.question_id]))


def by_temperature(questions: Sequence[Question], fixed: float | None) -> dict[float, list[Question]]:
    """Split questions by their temperature: `fixed`, or MT-Bench's for the category if `fixed` is None."""
    subsets: dict[float, list[Question]] = {}
    for question in questions:
        temperature = fixed
        if temperature is None:
            temperature = TEMPERATURES.get(question.category, 0.0)
        subsets.setdefault(temperature, []).append(question)
    return subsets


def judge_answers(
    judge: Judge,
    questions: Sequence[Question],
    references: References,
    answers: Sequence[Answer],
    model: str,
    label: str,
) -> list[Judgment]:
    """Judge each turn that has an answer, and turn 2 only after an answered turn 1; keep the order of the answers."""
    question_of = {question.question_id: question for question in questions}
    jobs: list[tuple[Answer, int]] = []
    for answer in answers:
        jobs += [(answer, turn) for turn in range(1, NUM_TURNS + 1) if not any(answer.errors[:turn])]

    def judge_turn(job: tuple[Answer, int]) -> Judgment:
        answer, turn = job
        reference = references.get(answer.question_id)
        verdict = judge.judge(question_of[answer.question_id], answer.turns[:turn], reference, f"run {answer.run_id}")
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


def _two_turns(
    engine: "SamplingEngine",
    chat: Chat,
    questions: Sequence[Question],
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[list[Completion]]:
    """Return the answers to each question, one per turn; all questions of a turn go to the engine at once.

    The first completion with an error is a question's last: the turns after it are not sampled.
    """
    from sampler.engines import SamplingParams, sample_conversations

    conversations: dict[str, list[Message]] = {str(index): [] for index in range(len(questions))}
    answers: dict[str, list[Completion]] = {prompt_id: [] for prompt_id in conversations}
    for turn in range(NUM_TURNS):
        params = SamplingParams(
            num_completions=1,
            temperature=temperature,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
            seed=seed_from(seed, turn),
        )
        for prompt_id, conversation in conversations.items():
            conversation.append(Message(role="user", content=questions[int(prompt_id)].turns[turn]))
        completions = sample_conversations(engine, chat, conversations, params)
        for prompt_id, [completion] in completions.items():
            answers[prompt_id].append(completion)
            conversations[prompt_id].append(Message(role="assistant", content=completion.text))
            if _sampling_error(completion):
                del conversations[prompt_id]
    return list(answers.values())


def _sampling_error(completion: Completion) -> str | None:
    """Return the reason why a turn was not sampled; None if it was.

    An answer with a control token in it was sampled. It is judged as it is: a checkpoint that writes such tokens would
    otherwise be judged by its other answers alone. The turn after it cannot be rendered.
    """
    if completion.token_ids:
        return None
    return completion.error or None


def _answer(question: Question, run_id: int, completions: Sequence[Completion]) -> Answer:
    """Build an answer from the completions of its turns; a turn that was not sampled has an error."""
    turns: list[str] = []
    errors: list[str | None] = []
    for completion in completions:
        turns.append(completion.text)
        errors.append(_sampling_error(completion))
    while len(turns) < NUM_TURNS:
        turns.append("")
        errors.append("the turn before has no answer")
    return Answer(question.question_id, run_id, tuple(turns), tuple(errors))

"""MT-Bench: two-turn questions -> answers -> judgments, in FastChat's file formats.

answers.jsonl    {"question_id", "answer_id", "model_id", "choices": [{"index": 0, "turns": [...]}], "run_id"}
judgments.jsonl  {"question_id", "model", "judge": [name, prompt], "user_prompt", "judgment", "score", "turn", "run_id"}

The prompt of turn 2 contains the answer to turn 1. The temperature depends on the category as in MT-Bench: 0.7 for
writing and roleplay, 0.1 for stem and humanities, 0 for the rest. FastChat's `tstamp` is left out, so that equal runs
write equal files; no reader needs it. `run_id` distinguishes repeated runs; without it, FastChat's readers keep the
last run only. A turn that cannot be rendered (the first answer contains a control token) is answered with the empty
text.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.judging.judged_scores import UNREADABLE, Judgment
from eval.judging.judges import Judge
from eval.judging.questions import NUM_TURNS, Question, QuestionId, References
from winnow.chat import Chat
from winnow.progress import progress
from winnow.records import Message, digest, seed_from
from winnow.run_config import QuestionsConfig

if TYPE_CHECKING:
    from sampler.engines import SamplingEngine

TEMPERATURES: Mapping[str, float] = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}


@dataclass(frozen=True)
class Answer:
    """The answers to both turns of a question in one run."""

    question_id: QuestionId
    run_id: int
    turns: tuple[str, ...]

    def row(self, model: str) -> dict[str, Any]:
        """Return the row of answers.jsonl."""
        return {
            "question_id": self.question_id,
            "answer_id": digest([self.question_id, model, self.run_id, self.turns]),
            "model_id": model,
            "choices": [{"index": 0, "turns": list(self.turns)}],
            "run_id": self.run_id,
        }


def answer_questions(
    engine: "SamplingEngine", chat: Chat, questions: Sequence[Question], config: QuestionsConfig, seed: int, label: str
) -> list[Answer]:
    """Answer both turns of every question in each of `num_runs` runs.

    Greedy answers are equal in every run: they are generated once and copied.
    """
    answers: list[Answer] = []
    with progress(f"{label}: answers", len(questions) * config.num_runs, "questions") as advance:
        for temperature, subset in by_temperature(questions, config.temperature).items():
            is_greedy = temperature == 0
            for run_id in range(config.num_runs):
                if run_id == 0 or not is_greedy:
                    run_seed = seed_from(seed, run_id)
                    turns = _two_turns(engine, chat, subset, config.max_new_tokens, temperature, run_seed)
                for question, texts in zip(subset, turns, strict=True):
                    answers.append(Answer(question.question_id, run_id, tuple(texts)))
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
    """Judge each turn of each answer; the judgments have the order of the answers."""
    question_of = {question.question_id: question for question in questions}
    jobs: list[tuple[Answer, int]] = []
    for answer in answers:
        jobs += [(answer, turn) for turn in range(1, NUM_TURNS + 1)]

    def judge_turn(job: tuple[Answer, int]) -> Judgment:
        answer, turn = job
        reference = references.get(answer.question_id)
        verdict = judge.judge(question_of[answer.question_id], answer.turns[:turn], reference)
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
) -> list[list[str]]:
    """Return the two answers to each question; all questions of a turn go to the engine at once.

    A conversation that cannot be rendered or completed is answered with the empty text.
    """
    from sampler.engines import SamplingParams, sample_conversations

    conversations: dict[str, list[Message]] = {str(index): [] for index in range(len(questions))}
    for turn in range(NUM_TURNS):
        params = SamplingParams(
            num_completions=1,
            temperature=temperature,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
            seed=seed_from(seed, turn),
        )
        for conversation, question in zip(conversations.values(), questions, strict=True):
            conversation.append(Message(role="user", content=question.turns[turn]))
        completions = sample_conversations(engine, chat, conversations, params)
        for prompt_id, conversation in conversations.items():
            conversation.append(Message(role="assistant", content=completions[prompt_id][0].text))
    return [_assistant_texts(conversation) for conversation in conversations.values()]


def _assistant_texts(conversation: Sequence[Message]) -> list[str]:
    return [message.content for message in conversation if message.role == "assistant"]

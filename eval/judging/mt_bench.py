"""MT-Bench: two-turn questions -> answers -> judgments, in FastChat's file formats.

answers.jsonl    {"question_id", "answer_id", "model_id", "choices": [{"index": 0, "turns": [...]}], "run_id"}
judgments.jsonl  {"question_id", "model", "judge": [name, prompt], "user_prompt", "judgment", "score", "turn", "run_id"}

The prompt of turn 2 holds the answer to turn 1. The temperature is MT-Bench's for the category: 0.7 for writing and
roleplay, 0.1 for stem and humanities, 0 for the rest. FastChat's `tstamp` is left out, so that equal runs write equal
files; nothing reads it. `run_id` tells repeated runs apart, where FastChat's readers would keep the last one only.
A turn that cannot be rendered (the first answer spells a control token) is answered with the empty text.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.judging.judged_scores import UNREADABLE, Judgment
from eval.judging.judges import Judge
from eval.judging.questions import NUM_TURNS, Question, QuestionId, References
from winnow.chat import Chat
from winnow.errors import ChatError
from winnow.progress import progress
from winnow.records import Message, digest, seed_from
from winnow.run_config import QuestionsConfig

if TYPE_CHECKING:
    from sampler.engines import Sampling, SamplingEngine

TEMPERATURES: Mapping[str, float] = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}


@dataclass(frozen=True)
class Answer:
    """The answers to both turns of a question in one run."""

    question_id: QuestionId
    run_id: int
    turns: tuple[str, ...]

    def row(self, model: str) -> dict[str, Any]:
        """The row of answers.jsonl."""
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
    """Both turns of every question, `num_runs` times; greedy answers are generated once and stand for every run."""
    answers: list[Answer] = []
    groups = by_temperature(questions, config.temperature)
    with progress(f"{label}: answers", len(questions) * config.num_runs, "questions") as advance:
        for temperature, group in groups.items():
            num_runs = config.num_runs if temperature > 0 else 1
            for run_id in range(num_runs):
                turns = _two_turns(engine, chat, group, config.max_new_tokens, temperature, seed_from(seed, run_id))
                standing_for = [run_id] if temperature > 0 else range(config.num_runs)
                answers += [
                    Answer(question.question_id, one, tuple(texts))
                    for one in standing_for
                    for question, texts in zip(group, turns, strict=True)
                ]
                advance(len(group) * len(standing_for))
    order = {question.question_id: place for place, question in enumerate(questions)}
    return sorted(answers, key=lambda answer: (answer.run_id, order[answer.question_id]))


def by_temperature(questions: Sequence[Question], fixed: float | None) -> dict[float, list[Question]]:
    """The questions that are sampled at one temperature: `fixed`, or MT-Bench's for their category."""
    groups: dict[float, list[Question]] = {}
    for question in questions:
        temperature = TEMPERATURES.get(question.category, 0.0) if fixed is None else fixed
        groups.setdefault(temperature, []).append(question)
    return groups


def judge_answers(
    judge: Judge,
    questions: Sequence[Question],
    references: References,
    answers: Sequence[Answer],
    model: str,
    label: str,
) -> list[Judgment]:
    """A judgment for each turn of each answer, in the order of the answers."""
    by_id = {question.question_id: question for question in questions}
    turns = [(answer, turn) for answer in answers for turn in range(1, NUM_TURNS + 1)]

    def judged(one: tuple[Answer, int]) -> Judgment:
        answer, turn = one
        reference = references.get(answer.question_id)
        verdict = judge.judge(by_id[answer.question_id], answer.turns[:turn], reference)
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
    with progress(f"{label}: judge", len(turns), "turns") as advance, ThreadPoolExecutor(judge.num_parallel) as pool:
        for judgment in pool.map(judged, turns):
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
    """The two answers to each question; all questions of a turn go to the engine at once."""
    from sampler.engines import Sampling

    conversations: list[list[Message]] = [[] for _ in questions]
    for turn in range(NUM_TURNS):
        sampling = Sampling(1, temperature, 1.0, max_new_tokens, seed_from(seed, turn))
        for conversation, question in zip(conversations, questions, strict=True):
            conversation.append(Message(role="user", content=question.turns[turn]))
        for conversation, text in zip(conversations, _sampled(engine, chat, conversations, sampling), strict=True):
            conversation.append(Message(role="assistant", content=text))
    return [[message.content for message in conversation[1::2]] for conversation in conversations]


def _sampled(
    engine: "SamplingEngine", chat: Chat, conversations: Sequence[Sequence[Message]], sampling: "Sampling"
) -> list[str]:
    """One completion of each conversation; the empty text for one that cannot be rendered or leaves no room."""
    limit = None if engine.max_tokens is None else engine.max_tokens - sampling.max_new_tokens
    rendered = [_rendered(chat, conversation, limit) for conversation in conversations]
    prompts = [ids for ids in rendered if ids is not None]
    completions = iter(engine.sample(prompts, sampling) if prompts else [])
    return ["" if ids is None else next(completions)[0].text for ids in rendered]


def _rendered(chat: Chat, conversation: Sequence[Message], limit: int | None) -> list[int] | None:
    try:
        ids = chat.prompt_ids(conversation)
    except ChatError:
        return None
    return None if limit is not None and len(ids) > limit else ids

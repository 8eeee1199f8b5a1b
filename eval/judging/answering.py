"""Questions -> answers: by the policy in a sampling engine, or by a model behind an OpenAI-compatible endpoint.

    part      up to PART_SIZE questions of one temperature in one run; answered together, turn by turn
    key       hash of the model's identity, the part's questions, temperature, longest answer and seed

The answers of a finished part are kept in a file by their key (sampler/engines/finished_requests.py), so that they are
never generated twice: after a kill, with another judge, or with more runs. Greedy answers are equal in every run: they
are generated once and copied.

The prompt of turn 2 contains the answer to turn 1. The temperature depends on the category as in MT-Bench: 0.7 for
writing and roleplay, 0.1 for stem and humanities, 0 for the rest.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from eval.judging.mt_bench import Answer
from eval.judging.questions import NUM_TURNS, Question
from sampler.engines.chat_endpoint import ChatEndpoint, ChatMessage, RefusedPromptError
from winnow.chat import Chat
from winnow.progress import progress
from winnow.records import Completion, Message, digest, seed_from
from winnow.run_config import QuestionsConfig

if TYPE_CHECKING:
    from sampler.engines import SamplingEngine
    from sampler.engines.finished_requests import FinishedRequests

TEMPERATURES: Mapping[str, float] = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
# A kill costs the answers of one part at most; an engine samples the questions of a part together.
PART_SIZE = 32


class AnswerTurn(NamedTuple):
    """The answer to a turn; `error` says why it could not be made."""

    text: str
    error: str | None = None


@dataclass(frozen=True)
class AnswerParams:
    """The settings of one call."""

    temperature: float
    max_new_tokens: int
    run_id: int
    seed: int


class Answerer(Protocol):
    """A model that answers."""

    def answer(self, conversations: Mapping[str, Sequence[Message]], params: AnswerParams) -> dict[str, AnswerTurn]:
        """Return the next assistant turn of each conversation under its id, in the same order."""
        ...


class EngineAnswerer:
    """A policy in a sampling engine."""

    def __init__(self, engine: "SamplingEngine", chat: Chat) -> None:
        self._engine = engine
        self._chat = chat

    def answer(self, conversations: Mapping[str, Sequence[Message]], params: AnswerParams) -> dict[str, AnswerTurn]:
        """Sample the next turn of every conversation in one call."""
        from sampler.engines import SamplingParams, sample_conversations

        sampling = SamplingParams(
            num_completions=1,
            temperature=params.temperature,
            top_p=1.0,
            max_new_tokens=params.max_new_tokens,
            seed=params.seed,
        )
        completions = sample_conversations(self._engine, self._chat, conversations, sampling)
        return {prompt_id: AnswerTurn(row.text, _sampling_error(row)) for prompt_id, [row] in completions.items()}


class EndpointAnswerer:
    """A model behind an OpenAI-compatible endpoint, whose settings hold the longest answer."""

    def __init__(self, endpoint: ChatEndpoint) -> None:
        self._endpoint = endpoint

    def answer(self, conversations: Mapping[str, Sequence[Message]], params: AnswerParams) -> dict[str, AnswerTurn]:
        """Ask for the next turn of every conversation; a refused prompt has an error. Raises ServerError."""
        endpoint = self._endpoint.with_temperature(params.temperature)

        def answer_turn(messages: Sequence[Message]) -> AnswerTurn:
            request = [ChatMessage(message.role, message.content) for message in messages]
            try:
                return AnswerTurn(endpoint.ask(request, f"run {params.run_id}").text)
            except RefusedPromptError as error:
                return AnswerTurn("", str(error))

        with ThreadPoolExecutor(endpoint.settings.num_parallel) as pool:
            turns = list(pool.map(answer_turn, conversations.values()))
        return dict(zip(conversations, turns, strict=True))


@dataclass(frozen=True)
class AnswerPart:
    """Questions that are answered together; `run_ids` has several for greedy answers, which every run shares."""

    questions: tuple[Question, ...]
    params: AnswerParams
    run_ids: range

    def key(self, model: str) -> str:
        """Return the hash of all that decides the answers of a model, which `model` identifies."""
        questions = [[question.question_id, question.turns] for question in self.questions]
        seed = self.params.seed if self.params.temperature else None
        return digest([model, questions, self.params.temperature, self.params.max_new_tokens, seed])


def answer_questions(
    open_answerer: Callable[[], Answerer],
    questions: Sequence[Question],
    config: QuestionsConfig,
    seed: int,
    label: str,
    model: str = "",
    finished: "FinishedRequests | None" = None,
) -> list[Answer]:
    """Answer both turns of every question in each of `num_runs` runs; a turn that cannot be answered has an error.

    The model is opened if a part of the answers is not in `finished`, where `model` identifies it.
    """
    opened = functools.cache(open_answerer)
    answers: list[Answer] = []
    with progress(f"{label}: answers", len(questions) * config.num_runs, "questions") as advance:
        for part in answer_parts(questions, config, seed):
            key = part.key(model)
            stored = finished.get(key) if finished is not None else None
            if stored is None:
                stored = {"answers": _answer_part(opened(), part)}
                if finished is not None:
                    finished.keep(key, stored)
            for run_id in part.run_ids:
                answers += [_answer(row, run_id) for row in stored["answers"]]
                advance(len(part.questions))
    position = {question.question_id: index for index, question in enumerate(questions)}
    return sorted(answers, key=lambda answer: (answer.run_id, position[answer.question_id]))


def answer_parts(questions: Sequence[Question], config: QuestionsConfig, seed: int) -> Iterator[AnswerPart]:
    """Yield the parts in the order in which they are answered."""
    runs = range(config.num_runs)
    for temperature, subset in by_temperature(questions, config.temperature).items():
        for run_id in runs if temperature else runs[:1]:
            run_ids = range(run_id, run_id + 1) if temperature else runs
            for start in range(0, len(subset), PART_SIZE):
                params = AnswerParams(temperature, config.max_new_tokens, run_id, seed_from(seed, run_id, start))
                yield AnswerPart(tuple(subset[start : start + PART_SIZE]), params, run_ids)


def by_temperature(questions: Sequence[Question], fixed: float | None) -> dict[float, list[Question]]:
    """Split questions by their temperature: `fixed`, or MT-Bench's for the category if `fixed` is None."""
    subsets: dict[float, list[Question]] = {}
    for question in questions:
        temperature = fixed
        if temperature is None:
            temperature = TEMPERATURES.get(question.category, 0.0)
        subsets.setdefault(temperature, []).append(question)
    return subsets


def _answer_part(answerer: Answerer, part: AnswerPart) -> list[dict[str, Any]]:
    """Answer the questions of a part, turn by turn; return {"question_id", "turns", "errors"} for each of them.

    The first turn with an error is a question's last: the turns after it are not answered.
    """
    conversations: dict[str, list[Message]] = {str(index): [] for index in range(len(part.questions))}
    turns: dict[str, list[AnswerTurn]] = {prompt_id: [] for prompt_id in conversations}
    for turn in range(NUM_TURNS):
        params = AnswerParams(
            part.params.temperature, part.params.max_new_tokens, part.params.run_id, seed_from(part.params.seed, turn)
        )
        for prompt_id, conversation in conversations.items():
            conversation.append(Message(role="user", content=part.questions[int(prompt_id)].turns[turn]))
        for prompt_id, answered in answerer.answer(conversations, params).items():
            turns[prompt_id].append(answered)
            conversations[prompt_id].append(Message(role="assistant", content=answered.text))
            if answered.error:
                del conversations[prompt_id]
    rows: list[dict[str, Any]] = []
    for question, answered_turns in zip(part.questions, turns.values(), strict=True):
        missing = [AnswerTurn("", "the turn before has no answer")] * (NUM_TURNS - len(answered_turns))
        whole = [*answered_turns, *missing]
        rows.append(
            {
                "question_id": question.question_id,
                "turns": [answered.text for answered in whole],
                "errors": [answered.error for answered in whole],
            }
        )
    return rows


def _answer(row: Mapping[str, Any], run_id: int) -> Answer:
    return Answer(row["question_id"], run_id, tuple(row["turns"]), tuple(row["errors"]))


def _sampling_error(completion: Completion) -> str | None:
    """Return the reason why a turn was not sampled; None if it was.

    An answer with a control token in it was sampled. It is judged as it is: a checkpoint that writes such tokens would
    otherwise be judged by its other answers alone. The turn after it cannot be rendered.
    """
    if completion.token_ids:
        return None
    return completion.error or None

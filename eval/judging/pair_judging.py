"""A language model compares two models' answers, with FastChat's pairwise prompts and in both orders.

prompt                       used for                               contains
pair-v2                      turn 1                                 question, both answers
pair-math-v1                 turn 1 of math, reasoning, coding      the same, and the reference answer
pair-v2-multi-turn           turn 2                                 both questions, both models' answers
pair-math-v1-multi-turn      turn 2 of math, reasoning, coding      the same, and both reference answers

Game 1 shows model_1 as assistant A, game 2 as assistant B: judges favour a position. pair_files.py has the rows.
"""

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from eval.judging.llm_judge import REFERENCE_CATEGORIES, JudgePrompt, fill_in, reference_fields
from eval.judging.mt_bench import Answer
from eval.judging.pair_files import PairJudgment, Winner
from eval.judging.questions import NUM_TURNS, Question, References
from eval.judging.verdict_calls import VerdictCalls
from eval.judging.verdicts import parse_preference
from sampler.engines.chat_endpoint import ChatEndpoint, ChatMessage
from winnow.errors import InputError
from winnow.progress import progress

PAIR_PROMPT_NAMES = ("pair-v2", "pair-math-v1", "pair-v2-multi-turn", "pair-math-v1-multi-turn")
PAIR_REMINDER = (
    'Your reply holds no verdict that can be read. Reply with the verdict alone: "[[A]]" if assistant A is better, '
    '"[[B]]" if assistant B is better, "[[C]]" for a tie.'
)
PAIR_CHECK_PROMPT = 'Reply with the verdict "[[C]]" alone.'
# The winner for each letter, in both games.
WINNERS: tuple[dict[str | None, Winner], ...] = (
    {"A": "model_1", "B": "model_2", "C": "tie", None: "error"},
    {"A": "model_2", "B": "model_1", "C": "tie", None: "error"},
)


@dataclass(frozen=True)
class _Match:
    """A turn of a question that both models of a pair have answered in a run."""

    question: Question
    turn: int
    models: tuple[str, str]
    answers: tuple[Answer, Answer]


class PairJudge:
    """A judging model behind an endpoint."""

    def __init__(self, endpoint: ChatEndpoint, prompts: Mapping[str, JudgePrompt]) -> None:
        self.name = endpoint.settings.model
        self._num_parallel = endpoint.settings.num_parallel
        self._calls = VerdictCalls(endpoint)
        self._prompts = prompts

    def check(self) -> None:
        """Ask for a short reply. Raises ServerError if the endpoint gives none."""
        self._calls.check(self._prompts["pair-v2"].system_prompt, PAIR_CHECK_PROMPT)

    def judge(
        self,
        pairs: Sequence[tuple[str, str]],
        questions: Sequence[Question],
        references: References,
        answers: Mapping[str, Sequence[Answer]],
        repetition: str = "",
    ) -> list[PairJudgment]:
        """Compare the answers of each pair of models, turn by turn, in the order of the questions.

        A turn that either model has not answered is left out. Raises ServerError if the endpoint fails.
        """
        matches = _matches(pairs, questions, answers)
        games = list(itertools.product(matches, (1, 2)))

        def play(game: tuple[_Match, int]) -> tuple[Winner, str, str, str]:
            match, number = game
            return self._play(match, number, references, repetition)

        played: list[tuple[Winner, str, str, str]] = []
        with progress("judge", len(games), "games") as advance, ThreadPoolExecutor(self._num_parallel) as pool:
            for result in pool.map(play, games):
                played.append(result)
                advance()
        judgments: list[PairJudgment] = []
        for match, first, second in zip(matches, played[::2], played[1::2], strict=True):
            judgments.append(_pair_judgment(match, self.name, first, second))
        return judgments

    def _play(
        self, match: _Match, number: int, references: References, repetition: str
    ) -> tuple[Winner, str, str, str]:
        """Return the winner of game 1 or 2, the name of its prompt, the prompt and the reply."""
        prompt = self._prompts[pair_prompt_name(match.question, match.turn)]
        shown = match.answers if number == 1 else match.answers[::-1]
        fields = pair_prompt_fields(match.question, match.turn, shown, references.get(match.question.question_id))
        text = fill_in(prompt, fields)
        messages = [ChatMessage("system", prompt.system_prompt), ChatMessage("user", text)]
        label = f"{repetition}run {match.answers[0].run_id}"
        letter, reply = self._calls.ask(messages, parse_preference, PAIR_REMINDER, label)
        return WINNERS[number - 1][letter], prompt.name, text, reply


def pairs_of(models: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    """Return every pair of models; with a baseline, each other model and the baseline. Raises InputError for one model.

    >>> pairs_of(["a", "b", "c"], None)
    [('a', 'b'), ('a', 'c'), ('b', 'c')]
    >>> pairs_of(["a", "b", "c"], "a")
    [('b', 'a'), ('c', 'a')]
    """
    if baseline is not None and baseline not in models:
        raise InputError(f"no answers of the baseline {baseline!r}; the answers are of {', '.join(models)}")
    if len(models) < 2:
        raise InputError(f"pairs need answers of two models; these are of {', '.join(models)} alone")
    if baseline is None:
        return list(itertools.combinations(models, 2))
    return [(model, baseline) for model in models if model != baseline]


def pair_prompt_name(question: Question, turn: int) -> str:
    """Return the name of the pairwise prompt for a turn (1 or 2) of a question."""
    name = "pair-math-v1" if question.category in REFERENCE_CATEGORIES else "pair-v2"
    if turn > 1:
        name += "-multi-turn"
    return name


def pair_prompt_fields(
    question: Question, turn: int, shown: tuple[Answer, Answer], reference: Sequence[str] | None
) -> dict[str, str]:
    """Return every field that FastChat's pairwise templates name; the first of `shown` is assistant A's.

    Raises InputError if a needed reference answer is missing.
    """
    fields = {"question": question.turns[turn - 1]}
    fields |= {f"question_{index}": text for index, text in enumerate(question.turns, start=1)}
    for letter, answer in zip("ab", shown, strict=True):
        fields[f"answer_{letter}"] = answer.turns[turn - 1]
        fields |= {f"answer_{letter}_{index}": text for index, text in enumerate(answer.turns[:turn], start=1)}
    return fields | reference_fields(question, reference)


def _matches(
    pairs: Sequence[tuple[str, str]], questions: Sequence[Question], answers: Mapping[str, Sequence[Answer]]
) -> list[_Match]:
    """Return the turns to compare: of each pair, each run that both have, each question."""
    answer_of: dict[tuple[str, int, object], Answer] = {}
    for model, answers_of_model in answers.items():
        answer_of |= {(model, answer.run_id, answer.question_id): answer for answer in answers_of_model}
    run_ids = sorted({run_id for _, run_id, _ in answer_of})
    matches: list[_Match] = []
    for models, run_id, question in itertools.product(pairs, run_ids, questions):
        first = answer_of.get((models[0], run_id, question.question_id))
        second = answer_of.get((models[1], run_id, question.question_id))
        if first is None or second is None:
            continue
        for turn in range(1, NUM_TURNS + 1):
            if not any(first.errors[:turn]) and not any(second.errors[:turn]):
                matches.append(_Match(question, turn, models, (first, second)))
    return matches


def _pair_judgment(
    match: _Match, judge: str, first: tuple[Winner, str, str, str], second: tuple[Winner, str, str, str]
) -> PairJudgment:
    first_winner, prompt_name, first_prompt, first_reply = first
    second_winner, _, second_prompt, second_reply = second
    return PairJudgment(
        question_id=match.question.question_id,
        model_1=match.models[0],
        model_2=match.models[1],
        g1_winner=first_winner,
        g2_winner=second_winner,
        judge=(judge, prompt_name),
        g1_user_prompt=first_prompt,
        g1_judgment=first_reply,
        g2_user_prompt=second_prompt,
        g2_judgment=second_reply,
        turn=match.turn,
        run_id=match.answers[0].run_id,
    )

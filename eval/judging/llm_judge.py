"""A language model as judge, behind any OpenAI-compatible endpoint, with FastChat's single-answer prompts.

prompt                         used for                                      contains
single-v1                      turn 1                                        question, answer
single-math-v1                 turn 1 of math, reasoning, coding             question, answer, reference answer
single-v1-multi-turn           turn 2                                        both questions, both answers
single-math-v1-multi-turn      turn 2 of math, reasoning, coding             the same, and both reference answers

The temperature is 0 (Zheng et al., arXiv 2306.05685) unless the config says otherwise. If a reply has no readable
rating (verdicts.py), the judge is asked once more; after that the verdict's score is None.

A parameter, a key or an address at fault concerns every judgment. `check` finds it with one short call before any
answer is generated. A prompt that the endpoint then refuses (too long, or filtered) has a verdict without a score; if
the first MAX_REFUSED prompts are all refused, that is an error.
"""

import sys
import threading
from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from eval.judging.judges import Verdict
from eval.judging.questions import NUM_TURNS, Question, parse_rows
from eval.judging.reply_text import without_reasoning
from eval.judging.verdicts import Reply, parse_rating
from sampler.engines.chat_endpoint import ChatEndpoint, ChatMessage, RefusedPromptError
from winnow.errors import InputError, ServerError

REFERENCE_CATEGORIES = frozenset({"math", "reasoning", "coding"})
PROMPT_NAMES = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
REMINDER = 'Your reply holds no rating that can be read. Reply with the rating alone, from 1 to 10, like "[[5]]".'
CHECK_PROMPT = 'Reply with the rating "[[5]]" alone.'
# Tries of the first call: a fault of every call should show at once.
NUM_CHECK_TRIES = 3
# Refusals from the first prompt on that are an error: prompts are seldom refused, so the cause concerns all of them.
MAX_REFUSED = 8


class JudgePrompt(BaseModel):
    """One row of judge_prompts.jsonl; `prompt_template` has named fields in braces."""

    name: str
    system_prompt: str
    prompt_template: str


def read_judge_prompts(path: str) -> dict[str, JudgePrompt]:
    """Read the prompts of FastChat's judge_prompts.jsonl. Raises InputError if a single-answer prompt is missing."""
    prompts = {prompt.name: prompt for _, prompt in parse_rows(path, JudgePrompt)}
    missing = [name for name in PROMPT_NAMES if name not in prompts]
    if missing:
        raise InputError(f"{path} holds no prompt named {', '.join(missing)}; use FastChat's judge_prompts.jsonl")
    return prompts


class LlmJudge:
    """A judging model; the judge's name in results is the model's name."""

    def __init__(self, endpoint: ChatEndpoint, prompts: Mapping[str, JudgePrompt]) -> None:
        self.name = endpoint.settings.model
        self.num_parallel = endpoint.settings.num_parallel
        self.endpoint = endpoint
        self._prompts = prompts
        self._lock = threading.Lock()
        self._is_any_accepted = False
        self._num_refused = 0

    def check(self) -> None:
        """Ask for a short reply; a line on stderr tells so. Raises ServerError if the endpoint gives none."""
        print(f"checking the judge {self.name} at {self.endpoint.url}", file=sys.stderr, flush=True)
        system_prompt = self._prompts["single-v1"].system_prompt
        self.endpoint.send([ChatMessage("system", system_prompt), ChatMessage("user", CHECK_PROMPT)], NUM_CHECK_TRIES)

    def judge(
        self, question: Question, answers: Sequence[str], reference: Sequence[str] | None, repetition: str = ""
    ) -> Verdict:
        """Ask for a verdict on the last answer. Raises ServerError if the endpoint fails."""
        prompt = self._prompts[prompt_name(question, len(answers))]
        text = prompt.prompt_template.format(**prompt_fields(question, answers, reference))
        messages = [ChatMessage("system", prompt.system_prompt), ChatMessage("user", text)]
        try:
            rating, explanation = self._rate(messages, repetition)
        except RefusedPromptError as error:
            self._count_refusal(error)
            return Verdict(None, f"the endpoint refused the prompt: {error}", prompt.name, text)
        return Verdict(rating, explanation, prompt.name, text)

    def _rate(self, messages: Sequence[ChatMessage], repetition: str) -> tuple[float | None, str]:
        """Return the rating, None if it is unreadable, and the reply. Raises ServerError, RefusedPromptError."""
        reply = Reply(*self.endpoint.ask(messages, repetition))
        self._is_any_accepted = True
        rating = parse_rating(*reply)
        if rating is not None:
            return rating, reply.explanation
        reminded = [*messages[:-1], *_reminded(messages[-1], reply)]
        second_reply = Reply(*self.endpoint.ask(reminded, repetition))
        return parse_rating(*second_reply), f"{reply.explanation}\n\n{second_reply.explanation}"

    def _count_refusal(self, error: RefusedPromptError) -> None:
        """Count a refused prompt. Raises ServerError for MAX_REFUSED of them if no prompt was accepted before."""
        with self._lock:
            self._num_refused += 1
            num_refused = self._num_refused
        if num_refused >= MAX_REFUSED and not self._is_any_accepted:
            raise ServerError(
                f"the first {num_refused} prompts of the judge are all refused; the last: {error}"
            ) from None


def _reminded(prompt: ChatMessage, reply: Reply) -> list[ChatMessage]:
    """Return the messages that ask again. A reply without an answer is not sent: servers refuse an empty message."""
    answer = without_reasoning(reply.text).strip()
    if not answer:
        return [ChatMessage("user", f"{prompt.content}\n\n{REMINDER}")]
    return [prompt, ChatMessage("assistant", answer), ChatMessage("user", REMINDER)]


def prompt_name(question: Question, turn: int) -> str:
    """Return the name of the judge prompt for a turn (1 or 2) of a question."""
    name = "single-math-v1" if question.category in REFERENCE_CATEGORIES else "single-v1"
    if turn > 1:
        name += "-multi-turn"
    return name


def prompt_fields(question: Question, answers: Sequence[str], reference: Sequence[str] | None) -> dict[str, str]:
    """Return every field that FastChat's templates name. Raises InputError if a needed reference answer is missing."""
    turn = len(answers)
    fields = {"question": question.turns[turn - 1], "answer": answers[-1]}
    fields |= {f"question_{index}": text for index, text in enumerate(question.turns, start=1)}
    fields |= {f"answer_{index}": text for index, text in enumerate(answers, start=1)}
    if question.category in REFERENCE_CATEGORIES:
        if reference is None or len(reference) < NUM_TURNS:
            raise InputError(
                f"question {question.question_id} ({question.category}) has no reference answers, which its judge "
                "prompt needs; add them to evaluation.questions.references"
            )
        fields |= {f"ref_answer_{index}": text for index, text in enumerate(reference, start=1)}
    return fields

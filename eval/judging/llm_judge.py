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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import BaseModel

from eval.judging.chat_endpoint import ChatEndpoint, RefusedPromptError, open_chat_endpoint
from eval.judging.judges import Verdict
from eval.judging.questions import NUM_TURNS, Question, parse_rows
from eval.judging.reply_text import without_reasoning
from eval.judging.verdicts import Reply, parse_rating
from winnow.errors import InputError, ServerError
from winnow.run_config import JudgeConfig

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

REFERENCE_CATEGORIES = frozenset({"math", "reasoning", "coding"})
PROMPT_NAMES = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
REMINDER = 'Your reply holds no rating that can be read. Reply with the rating alone, from 1 to 10, like "[[5]]".'
CHECK_PROMPT = 'Reply with the rating "[[5]]" alone.'
NUM_PARALLEL = 8
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


@contextmanager
def open_llm_judge(config: JudgeConfig) -> Iterator["LlmJudge"]:
    """Yield the judge of a config with its connections open. Raises UsageError if it cannot be called as configured."""
    assert config.model is not None  # JudgeConfig: llm needs both
    assert config.prompts is not None
    prompts = read_judge_prompts(config.prompts)
    with open_chat_endpoint(config) as endpoint:
        yield LlmJudge(endpoint, config.model, prompts)


class LlmJudge:
    """A judging model; the judge's name in results is the model's name."""

    num_parallel = NUM_PARALLEL

    def __init__(self, endpoint: ChatEndpoint, model: str, prompts: Mapping[str, JudgePrompt]) -> None:
        self.name = model
        self._endpoint = endpoint
        self._prompts = prompts
        self._lock = threading.Lock()
        self._is_any_accepted = False
        self._num_refused = 0

    def check(self) -> None:
        """Ask for a short reply; a line on stderr tells so. Raises ServerError if the endpoint gives none."""
        print(f"checking the judge {self.name} at {self._endpoint.url}", file=sys.stderr, flush=True)
        self._endpoint.ask(
            [
                {"role": "system", "content": self._prompts["single-v1"].system_prompt},
                {"role": "user", "content": CHECK_PROMPT},
            ]
        )

    def judge(self, question: Question, answers: Sequence[str], reference: Sequence[str] | None) -> Verdict:
        """Ask for a verdict on the last answer. Raises ServerError if the endpoint fails."""
        prompt = self._prompts[prompt_name(question, len(answers))]
        text = prompt.prompt_template.format(**prompt_fields(question, answers, reference))
        messages: list[ChatCompletionMessageParam] = [
            {"role": "system", "content": prompt.system_prompt},
            {"role": "user", "content": text},
        ]
        try:
            rating, explanation = self._rate(messages)
        except RefusedPromptError as error:
            self._count_refusal(error)
            return Verdict(None, f"the endpoint refused the prompt: {error}", prompt.name, text)
        return Verdict(rating, explanation, prompt.name, text)

    def _rate(self, messages: "list[ChatCompletionMessageParam]") -> tuple[float | None, str]:
        """Return the rating, None if it is unreadable, and the reply. Raises ServerError, RefusedPromptError."""
        reply = self._endpoint.ask(messages)
        self._is_any_accepted = True
        rating = parse_rating(*reply)
        if rating is not None:
            return rating, reply.explanation
        second_reply = self._endpoint.ask([*messages[:-1], *_reminded(messages[-1], reply)])
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


def _reminded(prompt: "ChatCompletionMessageParam", reply: Reply) -> "list[ChatCompletionMessageParam]":
    """Return the messages that ask again. A reply without an answer is not sent: servers refuse an empty message."""
    answer = without_reasoning(reply.text).strip()
    if not answer:
        return [{"role": "user", "content": f"{prompt['content']}\n\n{REMINDER}"}]
    return [prompt, {"role": "assistant", "content": answer}, {"role": "user", "content": REMINDER}]


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

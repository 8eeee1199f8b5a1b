"""A language model as judge, behind any OpenAI-compatible endpoint, with FastChat's single-answer prompts.

prompt                         used for                                      contains
single-v1                      turn 1                                        question, answer
single-math-v1                 turn 1 of math, reasoning, coding             question, answer, reference answer
single-v1-multi-turn           turn 2                                        both questions, both answers
single-math-v1-multi-turn      turn 2 of math, reasoning, coding             the same, and both reference answers

The temperature is 0 (Zheng et al., arXiv 2306.05685). If a reply has no readable rating, the judge is asked once more;
after that the verdict's score is None. It is also None for a prompt that the endpoint refuses as malformed (too long).
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import BaseModel

from eval.judging.judges import Verdict
from eval.judging.questions import NUM_TURNS, Question, parse_rows
from winnow.addresses import is_loopback
from winnow.errors import InputError, ServerError, UsageError, first_line
from winnow.run_config import JudgeConfig

if TYPE_CHECKING:
    from openai import DefaultHttpxClient, OpenAI
    from openai.types.chat import ChatCompletionMessageParam

REFERENCE_CATEGORIES = frozenset({"math", "reasoning", "coding"})
PROMPT_NAMES = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*(?:/\s*10\s*)?\]\]")
REMINDER = 'Your reply holds no rating that can be read. Reply with the rating alone, from 1 to 10, like "[[5]]".'
MAX_TOKENS = 2048
NUM_PARALLEL = 8


class JudgePrompt(BaseModel):
    """One row of judge_prompts.jsonl; `prompt_template` has named fields in braces."""

    name: str
    system_prompt: str
    prompt_template: str


def parse_rating(text: str) -> float | None:
    """Return the last valid `[[x]]` with 1 <= x <= 10, or None.

    `[[7.5/10]]` means 7.5, `[[08]]` means 8; `[[85]]`, `[[0]]`, `[[7/5]]`, `[8]` and a bare "Rating: 8" are invalid.

    >>> parse_rating("As shown in [1], not a [[10]]. Rating: [[8]]")
    8.0
    """
    for digits in reversed(RATING.findall(text)):
        rating = float(digits)
        if 1 <= rating <= 10:
            return rating
    return None


def read_judge_prompts(path: str) -> dict[str, JudgePrompt]:
    """Read the prompts of FastChat's judge_prompts.jsonl. Raises InputError if a single-answer prompt is missing."""
    prompts = {prompt.name: prompt for _, prompt in parse_rows(path, JudgePrompt)}
    missing = [name for name in PROMPT_NAMES if name not in prompts]
    if missing:
        raise InputError(f"{path} holds no prompt named {', '.join(missing)}; use FastChat's judge_prompts.jsonl")
    return prompts


@contextmanager
def open_llm_judge(config: JudgeConfig) -> Iterator["LlmJudge"]:
    """Yield the judge of a config with its connections open. Raises UsageError if endpoint and key are both unset."""
    from openai import OpenAI

    assert config.model is not None  # JudgeConfig: llm needs both
    assert config.prompts is not None
    key = os.environ.get("OPENAI_API_KEY")
    if key is None and config.base_url is None:
        raise UsageError("judge kind llm needs judge.base_url, or OPENAI_API_KEY in the environment for OpenAI's own")
    prompts = read_judge_prompts(config.prompts)
    base_url = config.base_url or os.environ.get("OPENAI_BASE_URL")
    with OpenAI(base_url=base_url, api_key=key or "none", http_client=_direct_client(base_url)) as client:
        yield LlmJudge(client, config.model, prompts)


def _direct_client(base_url: str | None) -> "DefaultHttpxClient | None":
    """Return an HTTP client without proxy for a judge on this machine; None, openai's default, for any other judge."""
    from openai import DefaultHttpxClient

    if base_url is None:
        return None
    try:
        host = urlsplit(base_url).hostname
    except ValueError:  # openai refuses the URL with its own message
        return None
    if host is None or not is_loopback(host):
        return None
    pattern = f"all://{host}"
    if ":" in host:
        pattern = f"all://[{host}]"
    return DefaultHttpxClient(mounts={pattern: None})


class LlmJudge:
    """A judging model; the judge's name in results is the model's name."""

    num_parallel = NUM_PARALLEL

    def __init__(self, client: "OpenAI", model: str, prompts: Mapping[str, JudgePrompt]) -> None:
        self.name = model
        self._client = client
        self._prompts = prompts

    def judge(self, question: Question, answers: Sequence[str], reference: Sequence[str] | None) -> Verdict:
        """Ask for a verdict on the last answer. Raises ServerError if the endpoint fails."""
        prompt = self._prompts[prompt_name(question, len(answers))]
        text = prompt.prompt_template.format(**prompt_fields(question, answers, reference))
        messages: list[ChatCompletionMessageParam] = [
            {"role": "system", "content": prompt.system_prompt},
            {"role": "user", "content": text},
        ]
        reply = self._ask(messages)
        rating = parse_rating(reply)
        if rating is None:
            messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": REMINDER}]
            second_reply = self._ask(messages)
            rating = parse_rating(second_reply)
            reply = f"{reply}\n\n{second_reply}"
        return Verdict(rating, reply, prompt.name, text)

    def _ask(self, messages: "Sequence[ChatCompletionMessageParam]") -> str:
        """Return the model's reply, or a sentence without a rating if the endpoint refuses the prompt."""
        import openai

        try:
            response = self._client.chat.completions.create(
                model=self.name, messages=list(messages), temperature=0, max_tokens=MAX_TOKENS
            )
        except openai.BadRequestError as error:
            return f"the endpoint refused the prompt: {first_line(error)}"
        except openai.APIConnectionError as error:
            raise ServerError(
                f"the judge at {self._client.base_url} cannot be reached ({first_line(error)}); start it, or set "
                "evaluation.questions.judge.base_url"
            ) from None
        except openai.OpenAIError as error:
            raise ServerError(f"the judge {self.name} at {self._client.base_url} fails: {first_line(error)}") from None
        if not response.choices:
            return ""
        return response.choices[0].message.content or ""


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

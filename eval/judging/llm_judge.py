"""A language model as judge, behind any OpenAI-compatible endpoint, with FastChat's single-answer prompts.

prompt                         used for                                      contains
single-v1                      turn 1                                        question, answer
single-math-v1                 turn 1 of math, reasoning, coding             question, answer, reference answer
single-v1-multi-turn           turn 2                                        both questions, both answers
single-math-v1-multi-turn      turn 2 of math, reasoning, coding             the same, and both reference answers

The temperature is 0 (Zheng et al., arXiv 2306.05685) unless the config says otherwise. After an unreadable reply,
verdict_calls.py asks again.
"""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from eval.judging.judges import Verdict
from eval.judging.questions import NUM_TURNS, Question, parse_rows
from eval.judging.verdict_calls import VerdictCalls
from eval.judging.verdicts import parse_rating
from sampler.engines.chat_endpoint import ChatEndpoint, ChatMessage
from winnow.errors import InputError

REFERENCE_CATEGORIES = frozenset({"math", "reasoning", "coding"})
PROMPT_NAMES = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
REMINDER = 'Your reply holds no rating that can be read. Reply with the rating alone, from 1 to 10, like "[[5]]".'
CHECK_PROMPT = 'Reply with the rating "[[5]]" alone.'


class JudgePrompt(BaseModel):
    """One row of judge_prompts.jsonl; `prompt_template` has named fields in braces."""

    name: str
    system_prompt: str
    prompt_template: str


def read_judge_prompts(path: str, names: Sequence[str] = PROMPT_NAMES) -> dict[str, JudgePrompt]:
    """Read the prompts of FastChat's judge_prompts.jsonl. Raises InputError if a named prompt is missing."""
    prompts = {prompt.name: prompt for _, prompt in parse_rows(path, JudgePrompt)}
    missing = [name for name in names if name not in prompts]
    if missing:
        raise InputError(f"{path} holds no prompt named {', '.join(missing)}; use FastChat's judge_prompts.jsonl")
    return prompts


class LlmJudge:
    """A judging model; the judge's name in results is the model's name."""

    def __init__(self, endpoint: ChatEndpoint, prompts: Mapping[str, JudgePrompt]) -> None:
        self.name = endpoint.settings.model
        self.num_parallel = endpoint.settings.num_parallel
        self._calls = VerdictCalls(endpoint)
        self._prompts = prompts

    def check(self) -> None:
        """Ask for a short reply; a line on stderr tells so. Raises ServerError if the endpoint gives none."""
        self._calls.check(self._prompts["single-v1"].system_prompt, CHECK_PROMPT)

    def judge(
        self, question: Question, answers: Sequence[str], reference: Sequence[str] | None, repetition: str = ""
    ) -> Verdict:
        """Ask for a verdict on the last answer. Raises ServerError if the endpoint fails."""
        prompt = self._prompts[prompt_name(question, len(answers))]
        text = fill_in(prompt, prompt_fields(question, answers, reference))
        messages = [ChatMessage("system", prompt.system_prompt), ChatMessage("user", text)]
        rating, explanation = self._calls.ask(messages, parse_rating, REMINDER, repetition)
        return Verdict(rating, explanation, prompt.name, text)


def fill_in(prompt: JudgePrompt, fields: Mapping[str, str]) -> str:
    """Return the text of a prompt. Raises InputError for a template with other fields or single braces."""
    try:
        return prompt.prompt_template.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"the judge prompt {prompt.name} cannot be filled in ({type(error).__name__}: {error}); its fields are "
            f"{', '.join(sorted(fields))}, and other braces are doubled"
        ) from None


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
    return fields | reference_fields(question, reference)


def reference_fields(question: Question, reference: Sequence[str] | None) -> dict[str, str]:
    """Return the fields with the reference answers, if the category's prompt has them.

    Raises InputError if they are missing.
    """
    if question.category not in REFERENCE_CATEGORIES:
        return {}
    if reference is None or len(reference) < NUM_TURNS:
        raise InputError(
            f"question {question.question_id} ({question.category}) has no reference answers, which its judge prompt "
            "needs; add them to evaluation.questions.references, or give --references"
        )
    return {f"ref_answer_{index}": text for index, text in enumerate(reference, start=1)}

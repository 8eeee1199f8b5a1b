"""The flags of a judge as they were given -> its config; `winnow judge` and `winnow eval --suite mt-bench` share them.

JudgeFlags(model="gpt-4", temperature="none", ...).config(questions, prompts=None, command="winnow judge")
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from winnow.config import parse_config
from winnow.errors import UsageError
from winnow.run_config import JudgeConfig

PROMPTS_NAME = "judge_prompts.jsonl"


@dataclass(frozen=True)
class JudgeFlags:
    """The flags that begin with --judge-; `temperature` is a number or `none`, which does not send it."""

    model: str
    base_url: str | None = None
    temperature: str = "0"
    max_tokens: int = 2048
    max_tokens_name: str = "max_tokens"
    timeout_s: float = 600.0
    num_parallel: int = 32

    def config(self, questions: Path, prompts: Path | None, max_unreadable: float, command: str) -> JudgeConfig:
        """Return the judge, with the prompts that are found beside the questions unless they are given.

        Raises UsageError for a wrong value, and if there are no prompts.
        """
        tree = {
            **asdict(self),
            "kind": "llm",
            "temperature": None if self.temperature == "none" else self.temperature,
            "prompts": str(prompts or find_prompts(questions)),
            "max_unreadable": max_unreadable,
        }
        return parse_config(tree, JudgeConfig, command)


def find_prompts(questions: Path) -> Path:
    """Return judge_prompts.jsonl beside the questions or in the folder above, as in FastChat's data.

    Raises UsageError if there is none.
    """
    for folder in (questions.parent, questions.parent.parent):
        if (folder / PROMPTS_NAME).is_file():
            return folder / PROMPTS_NAME
    raise UsageError(f"no {PROMPTS_NAME} beside {questions} or in the folder above; give FastChat's with --prompts")

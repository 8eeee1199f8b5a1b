"""The settings of an OpenAI-compatible endpoint, and the names under which errors mention them.

EndpointSettings(role="judge", section="evaluation.questions.judge", model="gpt-4")
    .name_of("base_url")   ->  evaluation.questions.judge.base_url      a key of a config
EndpointSettings(role="judge", section=None, model="gpt-4")
    .name_of("base_url")   ->  --judge-base-url                         a flag of a command
EndpointSettings(role="model", section=None, model="gpt-4")
    .name_of("base_url")   ->  --base-url                               the command's own model, MODEL
"""

from dataclasses import dataclass
from typing import Literal

OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class EndpointSettings:
    """A model behind an endpoint; `base_url` None: OPENAI_BASE_URL, or OpenAI's. The key is OPENAI_API_KEY."""

    role: str
    section: str | None
    model: str
    base_url: str | None = None
    temperature: float | None = 0.0
    max_tokens: int = 2048
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    timeout_s: float = 600.0
    num_parallel: int = 32

    def name_of(self, key: str) -> str:
        """Return the name of a setting for its user: a config key, or a flag."""
        if self.section is not None:
            return f"{self.section}.{key}"
        flag = key.replace("_", "-")
        if self.role != "model":
            return f"--{self.role}-{flag}"
        if key == "model":
            return "MODEL"
        return f"--{flag}"

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters of a request besides model and messages."""
        parameters: dict[str, float] = {self.max_tokens_name: self.max_tokens}
        if self.temperature is not None:
            parameters["temperature"] = self.temperature
        return parameters

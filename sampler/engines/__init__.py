"""Sampling engines: prompts as token ids -> completions. One Protocol; rounds and evaluation know no library."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from winnow.chat import Chat
from winnow.config import Dtype
from winnow.run_config import SamplingConfig


@dataclass(frozen=True)
class Sampled:
    """One completion: `is_finished` when the model ended it with the end-of-sequence token, which is not in `text`."""

    text: str
    num_tokens: int
    is_finished: bool


@dataclass(frozen=True)
class Sampling:
    """How to sample: `temperature` 0 takes the likeliest token. Equal seeds and prompts give equal completions."""

    num_completions: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


class SamplingEngine(Protocol):
    """A policy that completes prompts."""

    @property
    def max_tokens(self) -> int | None:
        """The longest prompt and completion together, in tokens; None where the model does not say."""
        ...

    def sample(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[Sampled]]:
        """`num_completions` completions of each prompt (token ids of a conversation up to the assistant turn)."""
        ...


def open_engine(config: SamplingConfig, model: str, chat: Chat, dtype: Dtype) -> SamplingEngine:
    """Load a policy into the engine that the config names."""
    if config.engine == "vllm":
        from sampler.engines.vllm import VllmEngine

        return VllmEngine(config, model, chat, dtype)
    from sampler.engines.transformers import TransformersEngine

    return TransformersEngine(model, chat, dtype)

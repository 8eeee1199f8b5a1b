"""Scoring engines: token groups -> per-token log-probabilities. One Protocol; the server knows no library."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Logprobs = npt.NDArray[np.float32]
ModelName = Literal["instruct", "base"]
MODELS: tuple[ModelName, ...] = ("instruct", "base")


@dataclass(frozen=True)
class TokenGroup:
    """A prompt and its completions as token ids; the prompt and every completion hold at least one."""

    prompt_ids: Sequence[int]
    completions: Sequence[Sequence[int]]


class ScoringEngine(Protocol):
    """A language model that says how likely given completions are."""

    @property
    def dtype(self) -> str:
        """Precision of the weights, like "bfloat16"."""
        ...

    @property
    def device(self) -> str:
        """Where the weights lie, like "cpu" or "cuda:0, cuda:1"."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """Most tokens of a prompt and one completion that the model was made for; None where it does not say."""
        ...

    def logprobs(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        """log p(token | prompt, tokens before it) for each token of each completion: one [num_tokens] array each.

        Answers group by group, completion by completion, in order; what is computed together is the engine's choice.
        A completion's values depend on the prompt and itself only, up to the rounding of the model's arithmetic. Where
        the model's own arithmetic fails they are not finite, for that completion alone.
        """
        ...

    def close(self) -> None:
        """End the processes that the engine started, if any."""
        ...

"""Scoring engines: token groups -> per-token log-probabilities. The rest of the server knows only this Protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Logprobs = npt.NDArray[np.float32]
ModelName = Literal["instruct", "base"]
MODEL_NAMES: tuple[ModelName, ...] = ("instruct", "base")


@dataclass(frozen=True)
class TokenGroup:
    """A prompt and its completions as token ids; neither the prompt nor any completion is empty."""

    prompt_ids: Sequence[int]
    completions: Sequence[Sequence[int]]


class ScoringEngine(Protocol):
    """A language model that computes the log-probabilities of completions."""

    @property
    def dtype(self) -> str:
        """Precision of the weights, like "bfloat16"."""
        ...

    @property
    def device(self) -> str:
        """Device or devices of the weights, like "cpu" or "cuda:0, cuda:1"."""
        ...

    @property
    def vocab_size(self) -> int:
        """Upper bound of the token ids, exclusive."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """Largest number of tokens of a prompt and one completion that the model was made for; None if unknown."""
        ...

    def logprobs(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        """Compute log p(token | prompt, tokens before it) for each token of each completion.

        Returns for each group one float32 array of shape [num_tokens] per completion, in order. The engine decides
        which completions it computes together. The values of a completion depend only on the prompt and itself, up to
        the rounding of the model's arithmetic. If the model's arithmetic fails, only the values of that completion are
        not finite.
        """
        ...

    def close(self) -> None:
        """End the processes that the engine started, if there are any."""
        ...

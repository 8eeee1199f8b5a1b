"""An independent oracle: log-probabilities by the definition, one sequence at a time, in double precision.

Eager attention and experts, no packing, no padding, no batching, no cache: a plain forward pass over prompt and
completion, and log-softmax over all logits.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers.models.auto import AutoModelForCausalLM

from benchmarks.tiny_models import VOCAB_SIZE
from reward_server.engines import Logprobs, ScoringEngine, TokenGroup

LENGTHS = (5, 1, 23, 12, 40, 12)
MAX_TOKEN_ERROR = 1e-4
MAX_ERROR = 1e-3  # of logp, in single precision


class Oracle:
    """A model in double precision."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
        ).eval()

    @torch.no_grad()
    def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return log p of each token of the completion: [num_tokens]."""
        ids = torch.tensor([[*prompt_ids, *completion_ids]])
        model = copy.deepcopy(self.model)  # some models remember the longest sequence so far, which changes the next
        logprobs = model(ids).logits[0].double().log_softmax(dim=-1)
        first = len(prompt_ids) - 1
        return np.array([logprobs[first + i, token].item() for i, token in enumerate(completion_ids)])

    def logp(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> float:
        """Return log p of the completion."""
        return float(self.logprobs(prompt_ids, completion_ids).sum())

    def group_logprobs(self, group: TokenGroup) -> list[npt.NDArray[np.float64]]:
        """Return log p of each token of each completion."""
        return [self.logprobs(group.prompt_ids, completion) for completion in group.completions]


@dataclass(frozen=True)
class EngineCase:
    """A model's folder, an engine of it, and a group with the log-probabilities that the oracle computes."""

    folder: Path
    engine: ScoringEngine
    group: TokenGroup
    expected: list[npt.NDArray[np.float64]]

    @property
    def expected_logps(self) -> list[float]:
        """The sums of `expected`."""
        return [float(logprobs.sum()) for logprobs in self.expected]


def engine_case(folder: Path, engine: ScoringEngine) -> EngineCase:
    """Return a case with a group of six completions."""
    group = random_group(17, LENGTHS)
    return EngineCase(folder, engine, group, Oracle(folder).group_logprobs(group))


def random_group(num_prompt_tokens: int, lengths: tuple[int, ...], seed: int = 0) -> TokenGroup:
    """Return a group of random token ids; equal seeds give equal groups."""
    generator = np.random.default_rng(seed)
    sizes = (num_prompt_tokens, *lengths)
    prompt, *completions = (generator.integers(6, VOCAB_SIZE, size).tolist() for size in sizes)
    return TokenGroup(prompt, completions)


def logps(logprobs: list[Logprobs]) -> npt.NDArray[np.float64]:
    """Sum the log-probabilities of each completion, in double precision."""
    return np.array([values.sum(dtype=np.float64) for values in logprobs])


def assert_logprobs_equal(logprobs: list[Logprobs], expected: list[npt.NDArray[np.float64]]) -> None:
    """Compare an engine's log-probabilities with the oracle's: each token, and each sum."""
    for values, expected_values in zip(logprobs, expected, strict=True):
        assert (values.shape, values.dtype) == (expected_values.shape, np.dtype("float32"))
        np.testing.assert_allclose(values, expected_values, atol=MAX_TOKEN_ERROR, rtol=0)
        assert abs(values.sum(dtype=np.float64) - expected_values.sum()) <= MAX_ERROR


def assert_scores_as_oracle(engine: ScoringEngine, folder: Path, group: TokenGroup) -> None:
    """Score a group with an engine, and compare with the oracle of the model in `folder`."""
    assert_logprobs_equal(engine.logprobs([group])[0], Oracle(folder).group_logprobs(group))

"""The independent oracle: log-probabilities by the definition, one sequence at a time, in double precision.

Eager attention and experts, no packing, no padding, no batching, no cache: a plain forward pass over prompt and
completion, and log-softmax over all logits.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers.models.auto import AutoModelForCausalLM


class Oracle:
    """A model in double precision."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
        ).eval()

    @torch.no_grad()
    def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> npt.NDArray[np.float64]:
        """log p of each token of the completion: [num_tokens]."""
        ids = torch.tensor([[*prompt_ids, *completion_ids]])
        model = copy.deepcopy(self.model)  # some remember the longest sequence so far, and read the next one otherwise
        logprobs = model(ids).logits[0].double().log_softmax(dim=-1)
        first = len(prompt_ids) - 1
        return np.array([logprobs[first + i, token].item() for i, token in enumerate(completion_ids)])

    def logp(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> float:
        """The sum of the above."""
        return float(self.logprobs(prompt_ids, completion_ids).sum())

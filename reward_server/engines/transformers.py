"""Scoring through Hugging Face transformers: a prompt and its completions in one packed row. Runs on a CPU or on GPUs.

    hidden   = model(row, positions, mask)             the prompt once (reward_server/engines/packing.py)
    logits   = head(hidden[sources]) in fp32           scored positions only, HEAD_ROWS at a time
    logprobs = logits[targets] - logsumexp(logits)

mask[q, k] is True where k lies in the prompt or in q's own completion, at a position not after q's; under a sliding
window of W also less than W positions before it. A completion's neighbours are masked, and no [tokens, vocabulary]
tensor exists.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from reward_server.engines import Logprobs, TokenGroup
from reward_server.engines.packing import PackedRow, pack, split
from winnow.errors import ModelError
from winnow.models import load_causal_lm
from winnow.sections import Dtype

HEAD_ROWS = 256

# Their frequencies depend on the longest position of the row, so that a long neighbour would change the score.
ROW_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})

Masks = torch.Tensor | dict[str, torch.Tensor]


class TransformersEngine:
    """A causal language model held by transformers. Not safe for threads: one forward pass at a time."""

    def __init__(
        self, model: str, *, dtype: Dtype = "auto", device_map: str = "auto", token_budget: int = 16384
    ) -> None:
        self.model = load_model(model, dtype, device_map)
        self.token_budget = token_budget
        self._config = self.model.config.get_text_config()
        self._head = self.model.get_output_embeddings()
        self._windows = layer_windows(self._config)
        self._has_row_dependent_rope = bool(_rope_types(self._config) & ROW_DEPENDENT_ROPE)
        self._check_architecture(model)

    @property
    def dtype(self) -> str:
        """Precision of the weights, like "bfloat16"."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """Where the weights lie, like "cpu" or "cuda:0, cuda:1"."""
        return ", ".join(sorted({str(parameter.device) for parameter in self.model.parameters()}))

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def max_tokens(self) -> int | None:
        """The positions that the model was made for; None where its config does not say."""
        limit = getattr(self._config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    def logprobs(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        """The log-probabilities of each completion's tokens, as `ScoringEngine` says."""
        return [self._group(group) for group in groups]

    def _group(self, group: TokenGroup) -> list[Logprobs]:
        budget = 0 if self._has_row_dependent_rope else self.token_budget
        pieces = [[group.completions[index] for index in piece] for piece in split(group, budget)]
        return [values for piece in pieces for values in self._piece(group.prompt_ids, piece)]

    def _piece(self, prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]) -> list[Logprobs]:
        values = self._row(prompt_ids, completions)
        if len(completions) > 1 and not all(np.isfinite(one).all() for one in values):
            # A masked neighbour has weight zero, but zero times a value that is not finite is not finite either.
            return [self._row(prompt_ids, [completion])[0] for completion in completions]
        return values

    @torch.inference_mode()
    def _row(self, prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]) -> list[Logprobs]:
        row = pack(prompt_ids, completions, is_last_read=self._has_row_dependent_rope)
        values = self._target_logprobs(self._hidden(row), row)
        ends = np.cumsum([len(completion) for completion in completions])
        return list(np.split(values, ends[:-1]))

    def _hidden(self, row: PackedRow) -> torch.Tensor:
        """The row's last hidden states: [T, hidden]."""
        device = self.model.get_input_embeddings().weight.device
        positions = torch.tensor(row.positions, device=device)
        blocks = torch.tensor(row.blocks, device=device)
        output = self.model.base_model(
            input_ids=torch.tensor([row.token_ids], device=device),
            attention_mask=self._masks(positions, blocks),
            position_ids=positions[None],
            use_cache=False,
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _masks(self, positions: torch.Tensor, blocks: torch.Tensor) -> Masks:
        """One mask [1, 1, T, T] where all layers are alike, else one for each type of layer."""
        masks = {name: block_mask(positions, blocks, window) for name, window in self._windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _target_logprobs(self, hidden: torch.Tensor, row: PackedRow) -> Logprobs:
        """The log-probabilities of the row's targets: [S]."""
        sources = torch.tensor(row.sources, device=hidden.device)
        targets = torch.tensor(row.targets)
        values = []
        for start in range(0, len(row.targets), HEAD_ROWS):
            logits = self._logits(hidden[sources[start : start + HEAD_ROWS]])
            chosen = logits.gather(1, targets[start : start + HEAD_ROWS, None].to(logits.device))[:, 0]
            values.append((chosen - logits.logsumexp(dim=1)).cpu())
        return torch.cat(values).numpy()

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of hidden states [rows, hidden] as the model itself scales them: [rows, vocabulary] in fp32."""
        logits: torch.Tensor = self._head(hidden).float()
        if divisor := getattr(self._config, "logits_scaling", None):  # Granite
            logits = logits / divisor
        if factor := getattr(self._config, "logit_scale", None):  # Cohere
            logits = logits * factor
        if cap := getattr(self._config, "final_logit_softcapping", None):  # Gemma
            logits = torch.tanh(logits / cap) * cap
        return logits

    @torch.inference_mode()
    def _check_architecture(self, name: str) -> None:
        """Raise ModelError for a model whose layers or logits are more than is reproduced here."""
        if getattr(self.model, "_is_stateful", False):
            raise ModelError(f"{name}: recurrent layers cannot share a prompt between completions; take another model")
        ids = torch.tensor([[0, 1, 2, 3]], device=self.model.get_input_embeddings().weight.device)
        own = self.model(input_ids=ids, use_cache=False).logits[0].float()
        ours = self._logits(self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
        if not torch.allclose(ours.to(own.device), own, rtol=1e-2, atol=1e-2, equal_nan=True):
            raise ModelError(
                f"{name}: this architecture ({self._config.model_type}) does more with its logits than the "
                "transformers engine knows; take another model"
            )


def load_model(model: str, dtype: Dtype, device_map: str) -> Any:
    """The model of a folder or hub id, ready to score. Raises UsageError and ModelError with the ways out."""
    # sdpa takes the mask as it is; flash attention does not.
    return load_causal_lm(model, dtype=dtype, device_map=device_map, attn_implementation="sdpa").eval()


def layer_windows(config: Any) -> dict[str, int | None]:
    """Types of the model's layers, and the sliding window of each; None: full attention. Raises ModelError."""
    window = getattr(config, "sliding_window", None)
    known = {"full_attention": None, "sliding_attention": window}
    all_alike = ["sliding_attention" if window else "full_attention"]
    types = sorted(set(getattr(config, "layer_types", None) or all_alike))
    if unknown := [name for name in types if name not in known]:
        raise ModelError(
            f"layers of type {', '.join(unknown)} ({config.model_type}) cannot share a prompt between completions; "
            "take another model"
        )
    return {name: known[name] for name in types}


def block_mask(positions: torch.Tensor, blocks: torch.Tensor, window: int | None) -> torch.Tensor:
    """Who sees whom in a packed row: bool [1, 1, T, T], True where query (dim 2) sees key (dim 3)."""
    distance = positions[:, None] - positions[None, :]
    is_seen = (distance >= 0) & ((blocks[None, :] == 0) | (blocks[None, :] == blocks[:, None]))
    if window is not None:
        is_seen &= distance < window
    return is_seen[None, None]


def _rope_types(config: Any) -> set[str]:
    """Kinds of rotary position encoding, which some models name for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    each = [parameters] if "rope_type" in parameters else [one for one in parameters.values() if isinstance(one, dict)]
    return {str(one.get("rope_type", "default")) for one in each}

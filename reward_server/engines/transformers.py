"""Scoring through Hugging Face transformers, on a CPU or on GPUs: a shared prefix is computed once.

    shared path   hidden = model(packed sequence, positions, layout)    prefix trees (packing.py), tree attention
                                                                        (attention.py)
    plain path    hidden = model(prompt + completion)                   one completion at a time, by the model's own
                                                                        attention
    both          logprobs = head(hidden[predictors], targets)          scored tokens only (head.py)

The plain path scores models that cannot share: recurrent or chunked layers, positions that depend on the length of the
sequence. At start both paths score a small group and are compared with the model's own logits. Where the shared path
differs, the engine uses the plain one from then on and logs a warning. A model that the plain path cannot score is
refused.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward_server.engines import Logprobs, TokenGroup
from reward_server.engines.attention import Layout, attention_name
from reward_server.engines.experts import BLOCKS
from reward_server.engines.head import Head
from reward_server.engines.packing import pack, plan_sequences
from winnow.checkpoints import positions_of
from winnow.config import Dtype
from winnow.errors import ModelError, first_line
from winnow.models import load_causal_lm

ONE_BY_ONE = "COMPLETIONS ARE SCORED ONE BY ONE, which is slower"

log = logging.getLogger(__name__)

# Their frequencies depend on the longest position of the sequence, so that a long neighbour would change the score.
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
ORIGINAL_FREQUENCIES = "original_inv_freq"
SHARED_LAYERS = frozenset({"full_attention", "sliding_attention"})

CPU_SEQUENCE_TOKENS = 3072
"""Tokens of a packed sequence on a CPU, so that activations stay near its cache."""

# Mean difference of a token's log-probability between two paths: above the rounding, below what a wrong mask causes.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
HALF_TOLERANCE = 0.1

CHECK_PREFIX = 20
"""Tokens of the prefix that two completions of the self-check share."""


class TransformersEngine:
    """A causal language model held by transformers. Not safe for threads: one forward pass at a time.

    `token_budget` limits the tokens of a forward pass; a single completion with its prompt may exceed it.
    """

    def __init__(self, model: Any, name: str, *, token_budget: int = 16384) -> None:
        self.model = model.eval()
        self.token_budget = token_budget
        self._config = self.model.config.get_text_config()
        self._head = Head(self.model.get_output_embeddings(), self._config)
        self._plain_attention = plain_attention(self._config)
        self._attention = "sdpa"
        self._ropes = [module for module in self.model.modules() if rope_prefixes(module)]
        if self._input_device.type == "cpu" and hasattr(self._config, "_experts_implementation"):
            self._config._experts_implementation = BLOCKS  # of models that have experts
        self.has_shared_path = self._can_share(name)
        self._check(name)

    @classmethod
    def load(
        cls, model: str, *, dtype: Dtype = "auto", device_map: str = "auto", token_budget: int = 16384
    ) -> "TransformersEngine":
        """Load the engine of a folder or hub id. Raises UsageError and ModelError with a remedy."""
        loaded = load_causal_lm(model, dtype=dtype, device_map=device_map, use="scoring", attn_implementation="sdpa")
        return cls(loaded, model, token_budget=token_budget)

    @property
    def dtype(self) -> str:
        """Precision of the weights, like "bfloat16"."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """Devices of the weights, like "cpu" or "cuda:0, cuda:1"."""
        return ", ".join(sorted({str(parameter.device) for parameter in self.model.parameters()}))

    @property
    def vocab_size(self) -> int:
        """Upper bound of the token ids, exclusive."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def max_tokens(self) -> int | None:
        """Number of positions that the model was made for; None where its config has no limit."""
        return positions_of(self.model.config)

    def logprobs(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        """Compute the log-probabilities of each completion's tokens, as specified by `ScoringEngine`."""
        results: list[dict[int, Logprobs]] = [{} for _ in groups]
        for chunks in plan_sequences(groups, self.token_budget, self._target_tokens):
            chunk_groups = [_select(groups[chunk.group_index], chunk.completion_indices) for chunk in chunks]
            for chunk, group, values in zip(chunks, chunk_groups, self._score(chunk_groups), strict=True):
                repaired = self._repair(group, values)
                results[chunk.group_index].update(zip(chunk.completion_indices, repaired, strict=True))
        return [[result[index] for index in range(len(result))] for result in results]  # in the order of completions

    def close(self) -> None:
        """Do nothing: the weights are freed with this process."""

    def _score(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        if self.has_shared_path:
            return self._score_shared(groups)
        return [self._score_plainly(group) for group in groups]

    def _score_plainly(self, group: TokenGroup) -> list[Logprobs]:
        return [self._plain_logprobs(group.prompt_ids, completion) for completion in group.completions]

    def _repair(self, group: TokenGroup, values: list[Logprobs]) -> list[Logprobs]:
        """Recompute by itself each completion with a value that is not finite.

        In a packed sequence, a neighbour's infinity times an attention weight of zero is NaN.
        """
        if not self.has_shared_path:
            return values
        repaired = []
        for completion, logprobs in zip(group.completions, values, strict=True):
            if np.isfinite(logprobs).all():
                repaired.append(logprobs)
            else:
                repaired.append(self._plain_logprobs(group.prompt_ids, completion))
        return repaired

    @torch.inference_mode()
    def _score_shared(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        """Compute the log-probabilities of groups in one packed sequence."""
        sequence = pack(groups)
        layout = Layout.of(sequence, self._input_device)
        self._set_attention(attention_name(self._input_device.type))
        hidden = self._hidden(sequence.token_ids, position_ids=layout.positions[None], layout=layout)
        # Of several GPUs, the last one holds the hidden states.
        predictors = self._tensor(sequence.predictors).to(hidden.device)
        values = self._head.logprobs(hidden[predictors], self._tensor(sequence.targets)).cpu().numpy()
        return [[values[places] for places in group_places] for group_places in sequence.target_places]

    @torch.inference_mode()
    def _plain_logprobs(self, prompt_ids: Sequence[int], completion: Sequence[int]) -> Logprobs:
        """Compute the log-probabilities of one completion by the model's own attention."""
        self.attend_plainly()
        hidden = self._hidden([*prompt_ids, *completion])[len(prompt_ids) - 1 : -1]
        values: Logprobs = self._head.logprobs(hidden, self._tensor(completion)).cpu().numpy()
        return values

    def _hidden(self, token_ids: Sequence[int], **arguments: Any) -> Tensor:
        """Compute the last hidden states of a sequence: [T, hidden]."""
        output = self.model.base_model(input_ids=self._tensor(token_ids)[None], use_cache=False, **arguments)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=self._input_device)

    @property
    def _target_tokens(self) -> int:
        """Number of tokens of a packed sequence that suits the device."""
        if self._input_device.type == "cpu":
            return min(self.token_budget, CPU_SEQUENCE_TOKENS)
        return self.token_budget

    @property
    def _input_device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def attend_plainly(self) -> None:
        """Let the model read one sequence as it does outside winnow, without a memory of earlier sequences."""
        self._set_attention(self._plain_attention)
        for rope in self._ropes:
            reset_rope(rope)

    def _set_attention(self, name: str) -> None:
        if self._attention != name:
            self.model.set_attn_implementation(name)
            self._attention = name

    def _can_share(self, name: str) -> bool:
        """Tell whether the architecture lets completions share a prompt; log the reasons where it does not."""
        reasons = []
        if getattr(self.model, "_is_stateful", False):
            reasons.append("recurrent layers")
        unknown_layers = sorted(set(getattr(self._config, "layer_types", None) or ()) - SHARED_LAYERS)
        if unknown_layers:
            reasons.append(f"layers of type {', '.join(unknown_layers)}")
        ropes = sorted(rope_types(self._config) & LENGTH_DEPENDENT_ROPE)
        if ropes:
            reasons.append(f"positions that depend on the length of the sequence ({', '.join(ropes)})")
        if reasons:
            log.warning("%s: %s: %s", name, "; ".join(reasons), ONE_BY_ONE)
        return not reasons

    def _check(self, name: str) -> None:
        """Compare both paths with the model's own logits. Raises ModelError where the plain one differs or fails."""
        group = check_group(self.vocab_size)
        architecture = self._config.model_type
        tolerance = TOLERANCE.get(self.model.dtype, HALF_TOLERANCE)
        try:
            reference = [self._reference_logprobs(group.prompt_ids, completion) for completion in group.completions]
            plain_difference = mean_difference(reference, self._score_plainly(group))
        except Exception as error:  # an architecture may fail in any way
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ModelError(
                f"{name}: the transformers engine cannot compute this architecture ({architecture}): {reason}; "
                "take another model, or engine: vllm"
            ) from error
        if plain_difference > tolerance:
            raise ModelError(
                f"{name}: this architecture ({architecture}) changes its logits in a way that the transformers engine "
                "does not know; take another model"
            )
        if mean_difference([reference[0][:CHECK_PREFIX]], [reference[1][:CHECK_PREFIX]]) > tolerance:
            raise ModelError(
                f"{name}: this model ({architecture}) reads the tokens after a token to predict it, so it is not a "
                "causal language model; take one that is, or set is_decoder in its config.json if it was trained as one"
            )
        if self.has_shared_path:
            self._check_sharing(name, group, reference, tolerance)

    def _check_sharing(self, name: str, group: TokenGroup, reference: Sequence[Logprobs], tolerance: float) -> None:
        try:
            shared_difference = mean_difference(reference, self._score_shared([group])[0])
        except Exception as error:  # a model may do anything with a mask that is not a tensor
            log.warning(
                "%s: the shared path fails: %s: %s: %s", name, type(error).__name__, first_line(error), ONE_BY_ONE
            )
            self.has_shared_path = False
            return
        log.info("%s: self-check: shared and plain scores differ by %.2g a token", name, shared_difference)
        self.has_shared_path = shared_difference <= tolerance
        if not self.has_shared_path:
            log.warning("%s: the shared path differs by more than %g: %s", name, tolerance, ONE_BY_ONE)

    @torch.inference_mode()
    def _reference_logprobs(self, prompt_ids: Sequence[int], completion: Sequence[int]) -> Logprobs:
        """Compute the log-probabilities of one short completion from all of the model's own logits."""
        self.attend_plainly()
        logits = self.model(input_ids=self._tensor([*prompt_ids, *completion])[None], use_cache=False).logits[0].float()
        logprobs = logits[len(prompt_ids) - 1 : -1].log_softmax(dim=1).cpu()
        values: Logprobs = logprobs.gather(1, torch.tensor(completion)[:, None])[:, 0].numpy()
        return values


def _select(group: TokenGroup, indices: Sequence[int]) -> TokenGroup:
    return TokenGroup(group.prompt_ids, [group.completions[index] for index in indices])


def check_group(vocab_size: int) -> TokenGroup:
    """Return the group of the self-check: two completions of equal length with a common prefix, and a third without it.

    The prefix has the same log-probabilities in both completions, unless the model looks ahead.
    """
    ids = [(7919 * (i + 1)) % vocab_size for i in range(96)]
    prefix = ids[24 : 24 + CHECK_PREFIX]
    return TokenGroup(ids[:24], [[*prefix, *ids[60:72]], [*prefix, *ids[72:84]], ids[80:96]])


def mean_difference(reference: Sequence[Logprobs], logprobs: Sequence[Logprobs]) -> float:
    """Return the mean absolute difference per token; infinity if a token's value is finite in only one of the two."""
    reference_values = np.concatenate(reference)
    values = np.concatenate(logprobs)
    is_finite = np.isfinite(reference_values)
    if (is_finite != np.isfinite(values)).any():
        return float("inf")
    if not is_finite.any():
        return 0.0
    return float(np.abs(reference_values[is_finite] - values[is_finite]).mean())


def rope_types(config: Any) -> set[str]:
    """Return the types of rotary position encoding; some configs name one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        return {str(parameters["rope_type"])}
    per_layer_type = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(settings.get("rope_type", "default")) for settings in per_layer_type}


def plain_attention(config: Any) -> str:
    """Return the name of the attention for a single sequence; sdpa would silently ignore a cap on attention scores."""
    if getattr(config, "attn_logit_softcapping", None) is None:
        return "sdpa"
    return "eager"


def rope_prefixes(module: torch.nn.Module) -> list[str]:
    """Return the name prefixes ("" or like "full_attention_") of a rotary encoding's frequencies that can change.

    They change with the longest sequence so far, which transformers remembers from one forward pass to the next.
    """
    if not hasattr(module, "original_max_seq_len"):
        return []
    names = [*vars(module), *(name for name, _ in module.named_buffers(recurse=False))]
    return [name.removesuffix(ORIGINAL_FREQUENCIES) for name in names if name.endswith(ORIGINAL_FREQUENCIES)]


def reset_rope(rope: Any) -> None:
    """Restore the original frequencies of a rotary encoding if a long sequence has changed them."""
    original_length = rope.original_max_seq_len
    for prefix in rope_prefixes(rope):
        length_name = f"{prefix}max_seq_len_cached"
        frequencies_name = f"{prefix}inv_freq"
        if getattr(rope, length_name, original_length) != original_length:
            device = getattr(rope, frequencies_name).device
            setattr(rope, frequencies_name, getattr(rope, prefix + ORIGINAL_FREQUENCIES).to(device))
            setattr(rope, length_name, original_length)

"""Scoring through Hugging Face transformers, on a CPU or on GPUs: what completions have in common is computed once.

    shared   hidden = model(row, positions, layout)            groups as trees in one row (packing.py, attention.py)
    plain    hidden = model(prompt + completion)               one completion at a time, by the model's own attention
             logprobs = head(hidden[sources], targets)         scored positions only (head.py)

The plain path scores models that cannot share: recurrent or chunked layers, positions that depend on the row's length.
At start-up both paths score a small group and are compared with the model's own logits; where the shared path differs,
the plain one is used from then on, and the log says so. A model that the plain path cannot score is refused.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward_server.engines import Logprobs, TokenGroup
from reward_server.engines.attention import Layout, implementation
from reward_server.engines.experts import BLOCKS
from reward_server.engines.head import Head
from reward_server.engines.packing import pack, rows
from winnow.config import Dtype
from winnow.errors import ModelError, first_line
from winnow.models import load_causal_lm

log = logging.getLogger(__name__)

# Their frequencies depend on the longest position of the row, so that a long neighbour would change the score.
ROW_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
ORIGINAL = "original_inv_freq"
SHARED_LAYERS = frozenset({"full_attention", "sliding_attention"})

CPU_ROW_TOKENS = 3072

# Mean difference of a token's log-probability between two paths: above the rounding, below what a wrong mask does.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
HALF_TOLERANCE = 0.1

CHECK_COMMON = 20
"""Tokens that two completions of the self-check have in common."""


class TransformersEngine:
    """A causal language model held by transformers. Not safe for threads: one forward pass at a time.

    `token_budget` bounds the tokens of a forward pass; one longer completion passes alone.
    """

    def __init__(self, model: Any, name: str, *, token_budget: int = 16384) -> None:
        self.model = model.eval()
        self.token_budget = token_budget
        self._config = self.model.config.get_text_config()
        self._head = Head(self.model.get_output_embeddings(), self._config)
        self._plain_attention = plain_attention(self._config)
        self._attention = "sdpa"
        self._ropes = [one for one in self.model.modules() if rope_prefixes(one)]
        if self._input_device.type == "cpu" and hasattr(self._config, "_experts_implementation"):
            self._config._experts_implementation = BLOCKS  # of models that have experts
        self.is_shared = self._can_share(name)
        self._check(name)

    @classmethod
    def load(
        cls, model: str, *, dtype: Dtype = "auto", device_map: str = "auto", token_budget: int = 16384
    ) -> "TransformersEngine":
        """The engine of a folder or hub id. Raises UsageError and ModelError with the ways out."""
        loaded = load_causal_lm(model, dtype=dtype, device_map=device_map, attn_implementation="sdpa")
        return cls(loaded, model, token_budget=token_budget)

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
        results: list[dict[int, Logprobs]] = [{} for _ in groups]
        for row in rows(groups, self.token_budget, self._row_tokens):
            parts = [_part(groups[index], ns) for index, ns in row]
            for (index, ns), part, values in zip(row, parts, self._row(parts), strict=True):
                results[index].update(zip(ns, self._mended(part, values), strict=True))
        return [[result[n] for n in range(len(result))] for result in results]

    def close(self) -> None:
        """Nothing to end: the weights go with this process."""

    def _row(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        if self.is_shared:
            return self._shared(groups)
        return [[self._plain(group.prompt_ids, completion) for completion in group.completions] for group in groups]

    def _mended(self, group: TokenGroup, values: list[Logprobs]) -> list[Logprobs]:
        """The values, those that are not finite computed again alone: zero times a neighbour's infinity is not zero."""
        if not self.is_shared or all(np.isfinite(one).all() for one in values):
            return values
        pairs = zip(group.completions, values, strict=True)
        return [one if np.isfinite(one).all() else self._plain(group.prompt_ids, ids) for ids, one in pairs]

    @torch.inference_mode()
    def _shared(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        """The log-probabilities of a row of groups."""
        row = pack(groups)
        layout = Layout.of(row, self._input_device)
        self._attend_by(implementation(self._input_device.type))
        hidden = self._hidden(row.token_ids, position_ids=layout.positions[None], layout=layout)
        scored = hidden[self._tensor(row.sources).to(hidden.device)]  # of several GPUs, the last holds the outcome
        values = self._head.logprobs(scored, self._tensor(row.targets)).cpu().numpy()
        return [[values[places] for places in group] for group in row.scored]

    @torch.inference_mode()
    def _plain(self, prompt_ids: Sequence[int], completion: Sequence[int]) -> Logprobs:
        """The log-probabilities of one completion by the model's own attention."""
        self.attend_plainly()
        hidden = self._hidden([*prompt_ids, *completion])[len(prompt_ids) - 1 : -1]
        values: Logprobs = self._head.logprobs(hidden, self._tensor(completion)).cpu().numpy()
        return values

    def _hidden(self, token_ids: Sequence[int], **arguments: Any) -> Tensor:
        """The last hidden states of a row: [T, hidden]."""
        output = self.model.base_model(input_ids=self._tensor(token_ids)[None], use_cache=False, **arguments)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=self._input_device)

    @property
    def _row_tokens(self) -> int:
        """Tokens of a row, where groups allow it: on a CPU, so many that what a layer makes stays near its cache."""
        return min(self.token_budget, CPU_ROW_TOKENS if self._input_device.type == "cpu" else self.token_budget)

    @property
    def _input_device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def attend_plainly(self) -> None:
        """Let the model read one sequence as it does outside winnow, and as if it were the first."""
        self._attend_by(self._plain_attention)
        for rope in self._ropes:
            reset(rope)

    def _attend_by(self, name: str) -> None:
        if self._attention != name:
            self.model.set_attn_implementation(name)
            self._attention = name

    def _can_share(self, name: str) -> bool:
        """Whether the architecture lets completions share a prompt; the log says why not."""
        reasons = []
        if getattr(self.model, "_is_stateful", False):
            reasons.append("recurrent layers")
        if others := sorted(set(getattr(self._config, "layer_types", None) or ()) - SHARED_LAYERS):
            reasons.append(f"layers of type {', '.join(others)}")
        if rope := sorted(rope_types(self._config) & ROW_DEPENDENT_ROPE):
            reasons.append(f"positions that depend on the row's length ({', '.join(rope)})")
        if reasons:
            log.warning("%s: %s: COMPLETIONS ARE SCORED ONE BY ONE, which is slower", name, "; ".join(reasons))
        return not reasons

    def _check(self, name: str) -> None:
        """Compare the paths with the model's own logits. Raises ModelError where the plain one differs or fails."""
        group, kind = check_group(self.vocab_size), self._config.model_type
        tolerance = TOLERANCE.get(self.model.dtype, HALF_TOLERANCE)
        try:
            own = [self._own(group.prompt_ids, completion) for completion in group.completions]
            plain = difference(own, [self._plain(group.prompt_ids, completion) for completion in group.completions])
        except Exception as error:  # an architecture may fail in any way
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ModelError(
                f"{name}: the transformers engine cannot compute this architecture ({kind}): {reason}; take another "
                "model, or engine: vllm"
            ) from error
        if plain > tolerance:
            raise ModelError(
                f"{name}: this architecture ({kind}) does more with its logits than the transformers engine knows; "
                "take another model"
            )
        if difference([own[0][:CHECK_COMMON]], [own[1][:CHECK_COMMON]]) > tolerance:
            raise ModelError(
                f"{name}: this model ({kind}) reads a token's successors to predict it, so it is no causal language "
                "model; take one that is, or set is_decoder in its config.json if it was trained as one"
            )
        if self.is_shared:
            self._check_sharing(name, group, own, tolerance)

    def _check_sharing(self, name: str, group: TokenGroup, own: Sequence[Logprobs], tolerance: float) -> None:
        try:
            shared = difference(own, self._shared([group])[0])
        except Exception as error:  # a model may do anything with a mask that is no tensor
            log.warning("%s: the shared path fails: %s: %s", name, type(error).__name__, error)
            shared = float("inf")
        log.info("%s: self-check: shared and plain scores differ by %.2g a token", name, shared)
        self.is_shared = shared <= tolerance
        if not self.is_shared:
            log.warning(
                "%s: the shared path differs by more than %g: COMPLETIONS ARE SCORED ONE BY ONE, which is slower",
                name,
                tolerance,
            )

    @torch.inference_mode()
    def _own(self, prompt_ids: Sequence[int], completion: Sequence[int]) -> Logprobs:
        """The log-probabilities of one completion from the model's own logits, all of them: for a short one only."""
        self.attend_plainly()
        logits = self.model(input_ids=self._tensor([*prompt_ids, *completion])[None], use_cache=False).logits[0].float()
        chosen = logits[len(prompt_ids) - 1 : -1].log_softmax(dim=1).cpu().gather(1, torch.tensor(completion)[:, None])
        values: Logprobs = chosen[:, 0].numpy()
        return values


def _part(group: TokenGroup, indices: Sequence[int]) -> TokenGroup:
    return TokenGroup(group.prompt_ids, [group.completions[index] for index in indices])


def check_group(vocab_size: int) -> TokenGroup:
    """The group of the self-check: two completions of one length with a beginning in common, and one without.

    That beginning has the same values in both, unless the model looks ahead.
    """
    ids = [(7919 * (i + 1)) % vocab_size for i in range(96)]
    common = ids[24 : 24 + CHECK_COMMON]
    return TokenGroup(ids[:24], [[*common, *ids[60:72]], [*common, *ids[72:84]], ids[80:96]])


def difference(ours: Sequence[Logprobs], theirs: Sequence[Logprobs]) -> float:
    """The mean absolute difference of tokens' log-probabilities; infinite where one path alone is not finite."""
    one, other = np.concatenate(ours), np.concatenate(theirs)
    if (np.isfinite(one) != np.isfinite(other)).any():
        return float("inf")
    both = np.isfinite(one)
    return float(np.abs(one[both] - other[both]).mean()) if both.any() else 0.0


def rope_types(config: Any) -> set[str]:
    """Kinds of rotary position encoding, which some models name for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    each = [parameters] if "rope_type" in parameters else [one for one in parameters.values() if isinstance(one, dict)]
    return {str(one.get("rope_type", "default")) for one in each}


def plain_attention(config: Any) -> str:
    """How a model attends to one sequence; sdpa would leave out the cap that some put on attention scores, silently."""
    return "sdpa" if getattr(config, "attn_logit_softcapping", None) is None else "eager"


def rope_prefixes(module: torch.nn.Module) -> list[str]:
    """What stands before the names of a rotary encoding's frequencies, "" or like "full_attention_", if they can grow.

    They grow with the longest sequence so far, which transformers remembers from one forward pass to the next.
    """
    if not hasattr(module, "original_max_seq_len"):
        return []
    names = [*vars(module), *(name for name, _ in module.named_buffers(recurse=False))]
    return [name.removesuffix(ORIGINAL) for name in names if name.endswith(ORIGINAL)]


def reset(rope: Any) -> None:
    """Give a rotary encoding that has grown the frequencies back that it was made with."""
    made_for = rope.original_max_seq_len
    for prefix in rope_prefixes(rope):
        longest, frequencies = f"{prefix}max_seq_len_cached", f"{prefix}inv_freq"
        if getattr(rope, longest, made_for) != made_for:
            setattr(rope, frequencies, getattr(rope, prefix + ORIGINAL).to(getattr(rope, frequencies).device))
            setattr(rope, longest, made_for)

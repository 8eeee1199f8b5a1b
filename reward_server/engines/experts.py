"""The experts of a mixture on a CPU: each expert's tokens in whole blocks, so that matrix products have few shapes.

    slots    expert 0: t3 t7 t9 -  | expert 1: t1 -  -  -  | ...        tokens by expert, filled up to whole blocks
    out[t]   sum over t's experts e of weight[t, e] * down_e(act(gate_e(x_t)) * up_e(x_t))

oneDNN generates code for each new shape, which takes longer than the product itself, and keeps this code. Routing gives
each expert of each layer a different number of tokens every time; with whole blocks the shapes recur. This
implementation is registered in transformers by name. It gives the same results as the implementations there, and leaves
experts of another form to them.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

BLOCKS = "winnow_blocks"
BLOCK_SLOTS = 32
"""An expert's number of slots is a multiple of this."""


def blocks_experts(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Compute the experts' output [T, hidden] for tokens [T, hidden]; `chosen` experts and `weights` are [T, k]."""
    if not is_supported(experts) or hidden.device.type != "cpu":
        return grouped_mm_experts_forward(experts, hidden, chosen, weights)  # type: ignore[no-any-return]
    # 1. Sort the (token, expert) pairs by expert, and give each expert slots for its pairs, in whole blocks.
    num_chosen = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)
    counts = chosen.flatten().bincount(minlength=len(experts.gate_up_proj)).tolist()
    starts, num_slots = block_slots(counts)
    slots = torch.cat([torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)])
    # 2. Copy each pair's hidden state into its slot; slots that fill up a block hold token 0, and are never read.
    tokens = torch.zeros(num_slots, dtype=torch.long)
    tokens[slots] = order // num_chosen
    inputs = hidden[tokens]
    # 3. Compute each expert on its slots.
    outputs = hidden.new_empty(num_slots, hidden.shape[1])
    for expert, (start, stop) in enumerate(zip(starts, [*starts[1:], num_slots], strict=True)):
        if stop > start:
            inner = experts._apply_gate(torch.nn.functional.linear(inputs[start:stop], experts.gate_up_proj[expert]))
            outputs[start:stop] = torch.nn.functional.linear(inner, experts.down_proj[expert])
    # 4. Read the pairs back in the order of the tokens, and sum each token's experts by weight.
    slot_of_pair = torch.empty_like(order)
    slot_of_pair[order] = slots
    weighted = outputs[slot_of_pair].view(*chosen.shape, -1) * weights[..., None]
    return weighted.sum(dim=1).to(hidden.dtype)


ALL_EXPERTS_FUNCTIONS.register(BLOCKS, blocks_experts)


def block_slots(counts: list[int]) -> tuple[list[int], int]:
    """Return the first slot of each expert, and the total number of slots: whole blocks for each expert.

    >>> block_slots([3, 0, 40])
    ([0, 32, 32], 96)
    """
    starts = []
    num_slots = 0
    for count in counts:
        starts.append(num_slots)
        num_slots += -(-count // BLOCK_SLOTS) * BLOCK_SLOTS  # rounded up
    return starts, num_slots


def is_supported(experts: Any) -> bool:
    """Tell whether the experts are gated linear layers without biases, all of them in this process."""
    flags = ("has_bias", "is_transposed", "_is_expert_parallel")
    return bool(getattr(experts, "has_gate", False)) and not any(getattr(experts, flag, False) for flag in flags)

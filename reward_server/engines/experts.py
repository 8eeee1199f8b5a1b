"""A mixture's experts on a CPU: each expert's tokens in whole blocks, so that products come in few shapes.

    slots    expert 0: t3 t7 t9 -  | expert 1: t1 -  -  -  | ...        tokens by expert, filled up to whole blocks
    out[t]   sum over t's experts e of weight[t, e] * down_e(act(gate_e(x_t)) * up_e(x_t))

oneDNN makes code for every shape it meets, which takes longer than the product itself and is kept: routing gives every
expert of every layer another number of tokens each time. With whole blocks the shapes recur. Transformers' other ways
compute the same; registered here by name, this one hands over what it does not know.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

BLOCKS = "winnow_blocks"
BLOCK = 32


def blocks_experts(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """The experts' output [T, hidden] for tokens [T, hidden], each with chosen experts and their weights [T, k]."""
    if not is_known(experts) or hidden.device.type != "cpu":
        return grouped_mm_experts_forward(experts, hidden, chosen, weights)  # type: ignore[no-any-return]
    num_chosen = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)
    starts, counts, num_slots = block_slots(chosen.flatten().bincount(minlength=len(experts.gate_up_proj)).tolist())
    slots = torch.cat([torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)])
    tokens = torch.zeros(num_slots, dtype=torch.long)
    tokens[slots] = order // num_chosen
    inputs, outputs = hidden[tokens], hidden.new_empty(num_slots, hidden.shape[1])
    for expert, (start, stop) in enumerate(zip(starts, [*starts[1:], num_slots], strict=True)):
        if stop > start:
            inner = experts._apply_gate(torch.nn.functional.linear(inputs[start:stop], experts.gate_up_proj[expert]))
            outputs[start:stop] = torch.nn.functional.linear(inner, experts.down_proj[expert])
    places = torch.empty_like(order)
    places[order] = slots
    weighted = outputs[places].view(*chosen.shape, -1) * weights[..., None]
    return weighted.sum(dim=1).to(hidden.dtype)


ALL_EXPERTS_FUNCTIONS.register(BLOCKS, blocks_experts)


def block_slots(counts: list[int]) -> tuple[list[int], list[int], int]:
    """Where each expert's slots start, how many tokens it has, and the number of slots: whole blocks for each.

    >>> block_slots([3, 0, 40])
    ([0, 32, 32], [3, 0, 40], 96)
    """
    starts, num_slots = [], 0
    for count in counts:
        starts.append(num_slots)
        num_slots += -(-count // BLOCK) * BLOCK
    return starts, counts, num_slots


def is_known(experts: Any) -> bool:
    """Whether the experts are gated linear layers without biases, all of them here."""
    flags = ("has_bias", "is_transposed", "_is_expert_parallel")
    return bool(getattr(experts, "has_gate", False)) and not any(getattr(experts, flag, False) for flag in flags)

"""The matmul rate of the machine, and the FLOPs that scoring needs: their quotient is the share of the peak.

useful FLOPs of a group   2 x (active weights of the layers) x (tokens, each shared token once)
                          + 2 x (weights of the output layer) x (scored tokens)
                          + 4 x hidden x (pairs of tokens that see each other) x layers
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from reward_server.engines import TokenGroup
from reward_server.engines.packing import pack


def matmul_flops(dtype: torch.dtype, device: str = "cpu", size: int = 2048, num_runs: int = 9) -> float:
    """Measure the FLOP/s of a product of two square matrices; return the median of the runs."""
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / median(seconds(lambda: left @ right, device) for _ in range(num_runs))


def seconds(call: Callable[[], Any], device: str = "cpu") -> float:
    """Return the seconds that a call takes, with the kernels that it queues on the device."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def useful_flops(groups: list[TokenGroup], config: Any) -> float:
    """Return the FLOPs of scoring groups if nothing is computed twice and no masked pair is computed."""
    sequence = pack(groups)
    num_tokens = len(sequence.positions)
    num_pairs = sum(sequence.positions) + num_tokens  # a token at position p sees p + 1 tokens
    weights = attention_weights(config) + active_mlp_weights(config)
    layer_flops = 2 * weights * num_tokens + 4 * query_size(config) * num_pairs
    head_flops = 2 * config.hidden_size * config.vocab_size * len(sequence.targets)
    return float(config.num_hidden_layers * layer_flops + head_flops)


def query_size(config: Any) -> int:
    """Return the width of all heads' queries together."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head_dim * config.num_attention_heads)


def attention_weights(config: Any) -> int:
    """Count the weights of the four projections of a layer's attention."""
    key_size = query_size(config) * config.num_key_value_heads // config.num_attention_heads
    return int(2 * config.hidden_size * (query_size(config) + key_size))


def active_mlp_weights(config: Any) -> int:
    """Count the weights that a token uses in a layer after attention: active experts, or the dense weights."""
    num_active = getattr(config, "num_experts_per_tok", None) or 1
    return int(3 * config.hidden_size * config.intermediate_size * num_active)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()

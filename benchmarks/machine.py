"""What the machine can do, and what a scoring really needs: the ground for shares of the peak.

useful FLOPs of a group   2 x (active weights of the layers) x (tokens, each shared one once)
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


def matmul_flops(dtype: torch.dtype, device: str = "cpu", size: int = 2048, repeats: int = 9) -> float:
    """FLOP/s of a square matrix product, the median of some."""
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / median(seconds(lambda: one @ other, device) for _ in range(repeats))


def seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    """How long a piece of work takes, the device's queue included."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def useful_flops(groups: list[TokenGroup], config: Any) -> float:
    """The FLOPs that scoring groups takes when nothing is computed twice and nothing unseen."""
    row = pack(groups)
    depth = row.positions
    num_pairs = sum(depth) + len(depth)
    layer = attention_weights(config) + active_mlp_weights(config)
    layers = config.num_hidden_layers * (2 * layer * len(depth) + 4 * query_size(config) * num_pairs)
    return float(layers + 2 * config.hidden_size * config.vocab_size * len(row.targets))


def query_size(config: Any) -> int:
    """Width of all heads' queries together."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head_dim * config.num_attention_heads)


def attention_weights(config: Any) -> int:
    """Weights of the four projections of a layer's attention."""
    keys = query_size(config) * config.num_key_value_heads // config.num_attention_heads
    return int(2 * config.hidden_size * (query_size(config) + keys))


def active_mlp_weights(config: Any) -> int:
    """Weights that a token passes in a layer after attention: its active experts, or the dense ones."""
    num_active = getattr(config, "num_experts_per_tok", None) or 1
    return int(3 * config.hidden_size * config.intermediate_size * num_active)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()

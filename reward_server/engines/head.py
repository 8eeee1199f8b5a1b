"""Log-probabilities of chosen tokens from hidden states, without a [tokens, vocabulary] tensor.

    logprob = logit[target] - log sum_v exp(logit[v])          logit[v] = scaled(hidden . weight[v])

The sum runs over the vocabulary in pieces, for ROWS tokens at a time, and carries its largest term along:

    m' = max(m, max_v logit[v])      total' = total exp(m - m') + sum_v exp(logit[v] - m')

Logits come out of the product in the weights' precision; everything after is fp32. The target's own logit x is a dot
product in fp32 and takes the place of its rounded one r: that rounding would go straight into the score, where that of
the others averages out.

    logprob = x - log(e^lse - e^r + e^x)
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

ROWS = 1024
CPU_COLUMNS = 2048
"""A piece of logits stays near a CPU's cache."""
COLUMNS = 16384
"""Elsewhere, large pieces keep the device busy."""
WHOLE_ROWS = 256
"""Rows of all columns, for layers that cannot be cut."""

Scaling = Callable[[Tensor], Tensor]


class Head:
    """The output layer of a language model: a linear layer, and what the architecture does to its logits."""

    def __init__(self, layer: Any, config: Any) -> None:
        self.layer = layer
        self.scaled = logit_scaling(config)
        weight = getattr(layer, "weight", None)
        # Quantized, wrapped and offloaded layers know how to multiply; their weights cannot be cut here.
        self.is_plain = type(layer) is torch.nn.Linear and weight is not None and weight.device.type != "meta"

    def logits(self, hidden: Tensor) -> Tensor:
        """All logits of hidden states [rows, hidden], in fp32: [rows, vocabulary]."""
        return self.scaled(self.layer(hidden).float())

    def logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The log-probability of each target [S] given its hidden state [S, hidden]: fp32 [S]."""
        count, rows = (self._plain, ROWS) if self.is_plain else (self._whole, WHOLE_ROWS)
        starts = range(0, len(targets), rows)
        parts = [count(hidden[start : start + rows], targets[start : start + rows]) for start in starts]
        return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)

    def _plain(self, hidden: Tensor, targets: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        hidden, targets = hidden.to(weight.device), targets.to(weight.device)
        rounded = torch.empty(len(targets), device=weight.device)
        lse = log_sum_exp(self._pieces(hidden, targets, rounded))
        exact = (hidden.float() * weight[targets].float()).sum(dim=1)
        if bias is not None:
            exact += bias[targets].float()
        return corrected(lse, rounded, self.scaled(exact))

    def _pieces(self, hidden: Tensor, targets: Tensor, rounded: Tensor) -> Iterator[Tensor]:
        """Logits, some columns of the vocabulary at a time; those of the targets go into `rounded` in passing."""
        columns = CPU_COLUMNS if hidden.device.type == "cpu" else COLUMNS
        cuts = [one.split(columns) for one in (self.layer.weight, self.layer.bias) if one is not None]
        for index, piece in enumerate(zip(*cuts, strict=True)):
            logits = self.scaled(torch.nn.functional.linear(hidden, *piece).float())
            (own,) = torch.where(targets // columns == index)
            rounded[own] = logits[own, targets[own] % columns]
            yield logits

    def _whole(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.logits(hidden)
        chosen = logits.gather(1, targets[:, None].to(logits.device))[:, 0]
        return chosen - logits.logsumexp(dim=1)


def log_sum_exp(pieces: Iterable[Tensor]) -> Tensor:
    """log sum exp over the columns of all pieces [rows, columns], fp32 and used up: [rows].

    >>> log_sum_exp([torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])]).exp()
    tensor([4.])
    """
    pieces = iter(pieces)
    first = next(pieces)
    # Where no column so far counts, all of them -inf, the largest is finite still: their difference would be no number.
    largest = first.amax(dim=1, keepdim=True).clamp(min=torch.finfo(first.dtype).min)
    total = first.sub_(largest).exp_().sum(dim=1, keepdim=True)
    for piece in pieces:
        new = torch.maximum(largest, piece.amax(dim=1, keepdim=True))
        total = total * (largest - new).exp_() + piece.sub_(new).exp_().sum(dim=1, keepdim=True)
        largest = new
    return (largest + total.log())[:, 0]


def corrected(lse: Tensor, rounded: Tensor, exact: Tensor) -> Tensor:
    """log p of targets, their rounded logits replaced by exact ones, in the sum too: p = e^x / (e^lse - e^r + e^x).

    >>> corrected(torch.tensor([10.0]), torch.tensor([10.0]), torch.tensor([10.03]))
    tensor([0.])
    """
    top = torch.maximum(lse, exact)
    others = ((lse - top).exp() - (rounded - top).exp()).clamp(min=0)
    return (exact - top - (others + (exact - top).exp()).log()).clamp(max=0)


def logit_scaling(config: Any) -> Scaling:
    """What an architecture does to its logits, element by element: Granite divides, Cohere multiplies, Gemma caps."""
    divisor = getattr(config, "logits_scaling", None) or 1.0
    factor = getattr(config, "logit_scale", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    if divisor == factor == 1.0 and not cap:
        return lambda logits: logits

    def scaled(logits: Tensor) -> Tensor:
        logits = logits / divisor * factor
        return torch.tanh(logits / cap) * cap if cap else logits

    return scaled

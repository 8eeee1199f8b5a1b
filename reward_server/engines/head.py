"""Log-probabilities of chosen tokens from hidden states, without a [tokens, vocabulary] tensor.

    log p(target) = logit[target] - lse      lse = log sum_v exp(logit[v])      logit[v] = scaled(hidden . weight[v])

The steps, for TOKENS_PER_STEP hidden states at a time:

    1. Multiply the hidden states with one slice of the vocabulary's weights. The logits have the weights' precision;
       everything after this is fp32.
    2. Add the slice to an online log-sum-exp, as in FlashAttention: keep the largest logit m so far, and the total of
       exp(logit[v] - m), which cannot overflow. When a slice brings a larger m', rescale the total:

           total' = total exp(m - m') + sum over the slice of exp(logit[v] - m')

    3. Keep the target's logit r when its slice passes.
    4. After the last slice, lse = m + log total.
    5. Compute the target's logit again as x, a dot product in fp32, and put it in the place of r. The rounding of r
       would go straight into the result, whereas the rounding of all the logits in the sum averages out:

           log p(target) = x - log(e^lse - e^r + e^x)

Worked example: a vocabulary of four tokens in two slices, logits 1 and 2, then 4 and 3; the target is the third token.

    slice 1    m = 2    total = e^(1-2) + e^(2-2) = 0.3679 + 1                               = 1.3679
    slice 2    m = 4    total = 1.3679 e^(2-4) + e^(4-4) + e^(3-4) = 0.1851 + 1 + 0.3679     = 1.5530
    lse        4 + log 1.5530 = 4.4402, as log(e + e^2 + e^4 + e^3) = log 84.791
    log p      4 - 4.4402 = -0.4402 with the rounded logit r = 4; its exact value may be x = 4.01:
               4.01 - log(84.791 - e^4 + e^4.01) = 4.01 - log 85.340 = -0.4366

>>> lse = log_sum_exp([torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 3.0]])])
>>> lse
tensor([4.4402])
>>> exact_logprob(lse, torch.tensor([4.0]), torch.tensor([4.01]))
tensor([-0.4366])
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

TOKENS_PER_STEP = 1024
CPU_SLICE_SIZE = 2048
"""Tokens of the vocabulary in a slice on a CPU, so that its logits stay near the cache."""
SLICE_SIZE = 16384
"""Tokens of the vocabulary in a slice on other devices, which large slices keep busy."""
UNSLICED_TOKENS_PER_STEP = 256
"""Tokens per step for layers whose vocabulary cannot be sliced."""

Scaling = Callable[[Tensor], Tensor]
"""A function of logits of any shape, applied to each."""


class Head:
    """The output layer of a language model: a linear layer, and the architecture's scaling of its logits."""

    def __init__(self, layer: Any, config: Any) -> None:
        self.layer = layer
        self.scaled = logit_scaling(config)
        weight = getattr(layer, "weight", None)
        # Quantized, wrapped and offloaded layers can multiply, but their weights cannot be sliced here.
        self.is_sliceable = type(layer) is torch.nn.Linear and weight is not None and weight.device.type != "meta"

    def logits(self, hidden: Tensor) -> Tensor:
        """Return all logits of hidden states [tokens, hidden], in fp32: [tokens, vocabulary]."""
        return self.scaled(self.layer(hidden).float())

    def logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the log-probability of each target [S] given its hidden state [S, hidden]: fp32 [S]."""
        compute = self._unsliced
        tokens_per_step = UNSLICED_TOKENS_PER_STEP
        if self.is_sliceable:
            compute = self._sliced
            tokens_per_step = TOKENS_PER_STEP
        results = [hidden.new_zeros(0, dtype=torch.float32)]
        for start in range(0, len(targets), tokens_per_step):
            tokens = slice(start, start + tokens_per_step)
            results.append(compute(hidden[tokens], targets[tokens]))
        return torch.cat(results)

    def _sliced(self, hidden: Tensor, targets: Tensor) -> Tensor:
        weight = self.layer.weight
        hidden = hidden.to(weight.device)
        targets = targets.to(weight.device)
        rounded = torch.empty(len(targets), device=weight.device)
        lse = log_sum_exp(self._logit_slices(hidden, targets, rounded))
        exact = (hidden.float() * weight[targets].float()).sum(dim=1)
        if self.layer.bias is not None:
            exact += self.layer.bias[targets].float()
        return exact_logprob(lse, rounded, self.scaled(exact))

    def _logit_slices(self, hidden: Tensor, targets: Tensor, rounded: Tensor) -> Iterator[Tensor]:
        """Yield the logits of each slice of the vocabulary; store the targets' logits in `rounded` as they pass."""
        slice_size = SLICE_SIZE
        if hidden.device.type == "cpu":
            slice_size = CPU_SLICE_SIZE
        parameters = [self.layer.weight.split(slice_size)]
        if self.layer.bias is not None:
            parameters.append(self.layer.bias.split(slice_size))
        for index, weight_and_bias in enumerate(zip(*parameters, strict=True)):
            logits = self.scaled(torch.nn.functional.linear(hidden, *weight_and_bias).float())
            (tokens,) = torch.where(targets // slice_size == index)  # the tokens whose target is in this slice
            rounded[tokens] = logits[tokens, targets[tokens] % slice_size]
            yield logits

    def _unsliced(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.logits(hidden)
        target_logits = logits.gather(1, targets[:, None].to(logits.device))[:, 0]
        return target_logits - logits.logsumexp(dim=1)


def log_sum_exp(slices: Iterable[Tensor]) -> Tensor:
    """Return the online log-sum-exp [tokens] of all slices [tokens, columns]: fp32 tensors, which it overwrites.

    >>> log_sum_exp([torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])]).exp()
    tensor([4.])
    """
    slices = iter(slices)
    first = next(slices)
    # The largest stays finite where all columns so far are -inf: the difference of two infinities would be NaN.
    largest = first.amax(dim=1, keepdim=True).clamp(min=torch.finfo(first.dtype).min)
    total = first.sub_(largest).exp_().sum(dim=1, keepdim=True)
    for logits in slices:
        new_largest = torch.maximum(largest, logits.amax(dim=1, keepdim=True))
        rescaled = total * (largest - new_largest).exp_()
        total = rescaled + logits.sub_(new_largest).exp_().sum(dim=1, keepdim=True)
        largest = new_largest
    return (largest + total.log())[:, 0]


def exact_logprob(lse: Tensor, rounded: Tensor, exact: Tensor) -> Tensor:
    """Return log p of targets with their rounded logits replaced by exact ones, also in the sum.

    p = e^x / (e^lse - e^r + e^x), computed relative to the larger one of lse and x, so that no term overflows.

    >>> exact_logprob(torch.tensor([10.0]), torch.tensor([10.0]), torch.tensor([10.03]))
    tensor([0.])
    """
    largest = torch.maximum(lse, exact)
    rest = ((lse - largest).exp() - (rounded - largest).exp()).clamp(min=0)  # the sum without the target
    return (exact - largest - (rest + (exact - largest).exp()).log()).clamp(max=0)


def logit_scaling(config: Any) -> Scaling:
    """Return the scaling that an architecture applies to its logits: Granite divides, Cohere multiplies, Gemma caps."""
    divisor = getattr(config, "logits_scaling", None) or 1.0
    factor = getattr(config, "logit_scale", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    if divisor == factor == 1.0 and not cap:
        return lambda logits: logits

    def scaled(logits: Tensor) -> Tensor:
        scaled_logits = logits / divisor * factor
        if cap:
            scaled_logits = torch.tanh(scaled_logits / cap) * cap
        return scaled_logits

    return scaled

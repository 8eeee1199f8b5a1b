"""Log-probabilities from hidden states: equal to log-softmax over all logits, for slices of any size."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_server.engines import head
from reward_server.engines.head import Head, log_sum_exp, logit_scaling

PLAIN = SimpleNamespace()
GRANITE = SimpleNamespace(logits_scaling=4.0)
GEMMA = SimpleNamespace(final_logit_softcapping=2.0)
COHERE = SimpleNamespace(logit_scale=0.25)


def target_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute log-softmax over all logits [S, vocabulary]; return the values of the targets [S]."""
    return logits.log_softmax(1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("config", [PLAIN, GRANITE, GEMMA, COHERE], ids=["plain", "granite", "gemma", "cohere"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("is_sliceable", [False, True])
def test_head_logprobs_equal_log_softmax_over_all_logits(
    config: SimpleNamespace, has_bias: bool, is_sliceable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TOKENS_PER_STEP", 3), ("UNSLICED_TOKENS_PER_STEP", 2), ("CPU_SLICE_SIZE", 7)):
        monkeypatch.setattr(head, name, value)
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 40, bias=has_bias).requires_grad_(False)
    output_layer: torch.nn.Module = torch.nn.Sequential(layer)
    if is_sliceable:
        output_layer = layer
    hidden = torch.randn(10, 8)
    targets = torch.randint(0, 40, (10,))
    actual = Head(output_layer, config).logprobs(hidden, targets)
    expected = target_logprobs(logit_scaling(config)(layer.double()(hidden.double())), targets)
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.floats(-500, 500, width=32), min_size=3, max_size=3), min_size=1, max_size=6))
def test_log_sum_exp_neither_overflows_nor_vanishes(columns: list[list[float]]) -> None:
    slices = [torch.tensor([column]).T for column in columns]
    expected = torch.cat(slices, 1).double().logsumexp(1).numpy()
    actual = log_sum_exp(logits.clone() for logits in slices)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [slice(0, 20), slice(20, 40), slice(0, 39)], ids=["first", "last", "all but one"])
def test_logits_of_minus_infinity_leave_the_rest_finite(masked: slice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models give unused token ids a bias of minus infinity."""
    monkeypatch.setattr(head, "CPU_SLICE_SIZE", 7)
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 40).requires_grad_(False)
    layer.bias[masked] = -torch.inf
    hidden = torch.randn(40, 8)
    targets = torch.arange(40)
    expected = target_logprobs(layer.double()(hidden.double()), targets)
    actual = Head(layer.float(), PLAIN).logprobs(hidden, targets)
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sharpness", [1, 30], ids=["flat", "sharp"])
@pytest.mark.parametrize("is_likely", [False, True], ids=["any target", "the likeliest"])
def test_the_exact_target_logit_costs_less_precision_than_rounded_logits(sharpness: float, is_likely: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 500, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    layer.weight.mul_(sharpness)
    hidden = torch.randn(400, 64, dtype=torch.bfloat16)
    logits = hidden.double() @ layer.weight.double().T
    targets = torch.randint(0, 500, (400,))
    if is_likely:
        targets = logits.argmax(1)
    expected = target_logprobs(logits, targets)
    actual = Head(layer, PLAIN).logprobs(hidden, targets)
    error = (actual.double() - expected).abs().mean()
    rounded_error = (target_logprobs(layer(hidden).float(), targets).double() - expected).abs().mean()
    print(f"\nmean error of a bfloat16 log-probability: {error:.1e}, from rounded logits {rounded_error:.1e}")
    assert error <= 1.01 * rounded_error
    assert (actual <= 0).all()

"""Log-probabilities from hidden states: equal to log-softmax over all logits, in pieces of any size."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_server.engines import head
from reward_server.engines.head import Head, log_sum_exp, logit_scaling

GRANITE, GEMMA = SimpleNamespace(logits_scaling=4.0), SimpleNamespace(final_logit_softcapping=2.0)
PLAIN, COHERE = SimpleNamespace(), SimpleNamespace(logit_scale=0.25)


@pytest.mark.parametrize(
    "config", [SimpleNamespace(), GRANITE, GEMMA, COHERE], ids=["plain", "granite", "gemma", "cohere"]
)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("is_plain", [False, True])
def test_log_probabilities_are_those_of_all_logits(
    config: SimpleNamespace, has_bias: bool, is_plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ROWS", 3), ("WHOLE_ROWS", 2), ("CPU_COLUMNS", 7)):
        monkeypatch.setattr(head, name, value)
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 40, bias=has_bias).requires_grad_(False)
    hidden, targets = torch.randn(10, 8), torch.randint(0, 40, (10,))
    ours = Head(layer if is_plain else torch.nn.Sequential(layer), config).logprobs(hidden, targets)
    logits = logit_scaling(config)(layer.double()(hidden.double()))
    torch.testing.assert_close(
        ours.double(), logits.log_softmax(1).gather(1, targets[:, None])[:, 0], atol=1e-5, rtol=0
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.floats(-500, 500, width=32), min_size=3, max_size=3), min_size=1, max_size=6))
def test_the_sum_in_pieces_neither_overflows_nor_vanishes(columns: list[list[float]]) -> None:
    pieces = [torch.tensor([column]).T for column in columns]
    expected = torch.cat(pieces, 1).double().logsumexp(1).numpy()
    np.testing.assert_allclose(
        log_sum_exp(iter([one.clone() for one in pieces])).numpy(), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("masked", [slice(0, 20), slice(20, 40), slice(0, 39)], ids=["first", "last", "all but one"])
def test_columns_that_count_for_nothing_leave_the_others_finite(masked: slice, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where unused token ids have a bias of minus infinity."""
    monkeypatch.setattr(head, "CPU_COLUMNS", 7)
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 40).requires_grad_(False)
    layer.bias[masked] = -torch.inf
    hidden, targets = torch.randn(40, 8), torch.arange(40)
    expected = layer.double()(hidden.double()).log_softmax(1).gather(1, targets[:, None])[:, 0]
    ours = Head(layer.float(), PLAIN).logprobs(hidden, targets)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sharpness", [1, 30], ids=["flat", "sharp"])
@pytest.mark.parametrize("is_likely", [False, True], ids=["any target", "the likeliest"])
def test_rounding_to_the_weights_precision_costs_less_than_in_all_logits(sharpness: float, is_likely: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 500, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    layer.weight.mul_(sharpness)
    hidden = torch.randn(400, 64, dtype=torch.bfloat16)
    logits = hidden.double() @ layer.weight.double().T
    targets = logits.argmax(1) if is_likely else torch.randint(0, 500, (400,))
    expected = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    rounded = layer(hidden).float().log_softmax(1).gather(1, targets[:, None])[:, 0]
    ours = Head(layer, SimpleNamespace()).logprobs(hidden, targets)
    error, usual = ((one.double() - expected).abs().mean() for one in (ours, rounded))
    print(f"\nmean error of a bfloat16 log-probability: {error:.1e}, from rounded logits {usual:.1e}")
    assert error <= 1.01 * usual
    assert (ours <= 0).all()

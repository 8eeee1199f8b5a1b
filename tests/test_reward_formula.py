"""The reward's formula: sums in double precision, normalization, beta, reference-free."""

import math
from fractions import Fraction

import numpy as np
import pytest

from reward_server.scoring.reward import log_ratio_reward

INSTRUCT = [-1.0, -2.0, -0.5]
BASE = [-1.5, -3.0, -0.25]


def test_the_reward_is_the_difference_of_the_sums() -> None:
    result = log_ratio_reward(INSTRUCT, BASE)
    assert (result.instruct_logp, result.base_logp, result.log_ratio) == (-3.5, -4.75, 1.25)
    assert (result.reward, result.num_tokens) == (1.25, 3)
    assert (result.instruct_logprobs, result.base_logprobs) == (INSTRUCT, BASE)


@pytest.mark.parametrize(("normalization", "reward"), [("sum", 0.125), ("mean", 0.125 / 3)])
def test_beta_scales_and_mean_divides_by_the_tokens(normalization: str, reward: float) -> None:
    result = log_ratio_reward(INSTRUCT, BASE, normalization=normalization, beta=0.1)  # type: ignore[arg-type]
    assert result.reward == pytest.approx(reward, rel=1e-15)
    assert result.log_ratio == 1.25


def test_reference_free_rewards_the_instruct_model_alone() -> None:
    result = log_ratio_reward(INSTRUCT, None, normalization="mean", beta=2.0)
    assert result.reward == pytest.approx(2.0 * -3.5 / 3)
    assert (result.base_logp, result.log_ratio) == (None, None)


def test_mean_divides_by_the_instruct_model_s_tokens_where_the_models_count_differently() -> None:
    assert log_ratio_reward(INSTRUCT, [-5.0], normalization="mean").reward == 0.5


def test_sums_are_exactly_rounded() -> None:
    logprobs = np.random.default_rng(0).normal(-8, 4, 5000).astype(np.float32)
    exact = float(sum(Fraction(float(value)) for value in logprobs))
    assert log_ratio_reward(logprobs.tolist(), None).instruct_logp == exact


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_log_probability_that_is_not_finite_is_a_status(bad: float) -> None:
    for instruct, base in (([-1.0, bad], BASE), (INSTRUCT, [bad, -bad]), ([bad], None)):
        result = log_ratio_reward(instruct, base)
        assert result.status == "non_finite"
        assert (result.reward, result.instruct_logp, result.instruct_logprobs) == (None, None, ())
    assert log_ratio_reward(INSTRUCT, BASE).status == "ok"


def test_a_reward_beyond_double_precision_is_a_status() -> None:
    assert log_ratio_reward(INSTRUCT, BASE, beta=1.7e308).status == "non_finite"

"""The arithmetic behind the benchmarks' figures, on cases that can be worked out by hand."""

import pytest

from benchmarks.machine import useful_flops
from benchmarks.serving_process import Sample, longest_s
from benchmarks.workloads import model_config, workloads
from reward_server.engines import TokenGroup


def samples(*points: tuple[float, float]) -> list[Sample]:
    return [Sample(time, tokens, 0.0) for time, tokens in points]


def test_the_longest_time_of_some_tokens_is_that_of_the_slowest_stretch() -> None:
    assert longest_s(samples((0, 0), (1, 10), (3, 20), (4, 30)), 10) == 2.0
    assert longest_s(samples((0, 0), (1, 10), (3, 20), (4, 30)), 15) == 2.5  # from 0 or 1 on, into the next stretch
    assert longest_s(samples((0, 0), (2, 10)), 20) == 4.0  # fewer tokens than that: by the mean rate


def test_the_bound_is_the_formula_s() -> None:
    bounds = {work.name: work.bound for work in workloads(0, is_quick=True)}
    for name, n, p, r in (("n8-p256-r128", 8, 256, 128), ("n16-p512-r128", 16, 512, 128), ("n1", 1, 256, 128)):
        assert bounds[name] == pytest.approx(n * (p + r) / (p + n * r))


def test_useful_flops_count_a_shared_prompt_once() -> None:
    config = model_config("mistral", num_hidden_layers=1)
    hidden, keys, inner = 768, 256, 2688
    weights = 2 * hidden * (hidden + keys) + 3 * hidden * inner
    # The row is 3 tokens of prompt and 1 of each completion, whose last tokens predict nothing: 5 tokens, 4 targets.
    pairs = (1 + 2 + 3) + 2 * 4
    expected = 2 * weights * 5 + 4 * hidden * pairs + 2 * hidden * 32000 * 4
    group = TokenGroup([0, 7, 8], [[10, 11], [20, 21]])
    assert useful_flops([group], config) == expected

"""The arithmetic behind the benchmarks' figures, on cases with results computed by hand."""

import ast

import pytest

from benchmarks import scoring
from benchmarks.machine import useful_flops
from benchmarks.serving_process import Sample, longest_s
from benchmarks.workloads import model_config, workloads
from reward_server.engines import TokenGroup
from tests.processes import ROOT


def samples(*points: tuple[float, float]) -> list[Sample]:
    return [Sample(time, tokens, 0.0) for time, tokens in points]


def test_longest_s_is_the_time_of_the_slowest_interval() -> None:
    assert longest_s(samples((0, 0), (1, 10), (3, 20), (4, 30)), 10) == 2.0
    assert longest_s(samples((0, 0), (1, 10), (3, 20), (4, 30)), 15) == 2.5  # from time 0 or 1 into the next interval
    assert longest_s(samples((0, 0), (2, 10)), 20) == 4.0  # fewer tokens than 20: by the mean rate


def test_workload_bound_equals_the_formula() -> None:
    bounds = {workload.name: workload.bound for workload in workloads(0, is_quick=True)}
    shapes = {"n8-p256-r128": (8, 256, 128), "n16-p512-r128": (16, 512, 128), "n1": (1, 256, 128)}
    for name, (num_completions, prompt, response) in shapes.items():
        num_tokens = num_completions * (prompt + response)
        assert bounds[name] == pytest.approx(num_tokens / (prompt + num_completions * response))


def test_useful_flops_counts_a_shared_prompt_once() -> None:
    config = model_config("mistral", num_hidden_layers=1)
    hidden = 768
    keys = 256
    inner = 2688
    weights = 2 * hidden * (hidden + keys) + 3 * hidden * inner
    # The packed sequence has 3 tokens of the prompt and 1 of each completion, because the last token of a completion
    # predicts no target: 5 tokens, 4 targets.
    num_pairs = (1 + 2 + 3) + 2 * 4
    expected = 2 * weights * 5 + 4 * hidden * num_pairs + 2 * hidden * 32000 * 4
    group = TokenGroup([0, 7, 8], [[10, 11], [20, 21]])
    assert useful_flops([group], config) == expected


def test_scoring_figures_are_medians_and_the_table_names_the_dtype() -> None:
    workload = workloads(0, is_quick=True)[0]
    figures = scoring.Figures("float32", {"padded": [1.0, 9.0, 2.0], "winnow": [1.0], "served": [1.25]}, [1e9])
    row = figures.row("mixtral", workload, model_config("mixtral"))
    assert (row["speedup_vs_padded"], row["served_fraction"], row["matmul_gflops"]) == (2.0, 0.8, 1)
    assert row["tokens_per_s"]["padded"] == round(workload.num_tokens / 2)
    assert row["meets_targets"] == {"padded": False, "best_peer": False, "served": False}
    text = scoring.table({"dtype": "float32", "threads": 2, "workloads": [row], "memory": []})
    assert text.startswith("tokens/s, float32, 2 threads\nmodel ")
    assert text.endswith("missed: padded, best_peer, served")


@pytest.mark.parametrize("package", ["benchmarks", "examples"])
def test_benchmarks_and_examples_import_nothing_from_tests(package: str) -> None:
    paths = list((ROOT / package).rglob("*.py"))
    assert paths
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            assert not [name for name in names if name.split(".")[0] == "tests"], path

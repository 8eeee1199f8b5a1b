"""The examples in docstrings: every module that has some is found by its text, and its examples are run."""

import doctest
from importlib import import_module

import pytest

from tests.processes import ROOT

PACKAGES = ("winnow", "reward_server", "sampler", "sft", "eval", "benchmarks", "examples")


def modules_with_examples() -> list[str]:
    modules = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if ">>> " in path.read_text():
                modules.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return modules


MODULES = modules_with_examples()


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_hold(module: str) -> None:
    result = doctest.testmod(import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


def test_modules_with_examples_are_found() -> None:
    assert {"winnow.addresses", "reward_server.engines.attention", "sampler.metrics", "eval.statistics.holm"} <= set(
        MODULES
    )

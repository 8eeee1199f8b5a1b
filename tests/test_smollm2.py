"""The example on a real open model, as far as it needs no model: its config, its data, and what it refuses."""

from collections import Counter
from pathlib import Path

import pytest

from examples.smollm2.make_model import FOLDER, make_model
from tests.processes import ROOT
from winnow.config import load_config
from winnow.errors import UsageError
from winnow.rows import read_jsonl
from winnow.run_config import RunConfig

EXAMPLE = ROOT / "examples" / "smollm2"


def test_the_rounds_use_every_prompt_and_every_source_equally() -> None:
    config = load_config(EXAMPLE / "config.yaml", RunConfig)
    assert config.prompts is not None
    rows = [row for _, row in read_jsonl(ROOT / config.prompts.files[0].path)]
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert len(rows) == config.rounds.num_rounds * config.prompts.num_prompts
    assert len(set(Counter(row["source"] for row in rows).values())) == 1


def test_policy_and_pair_are_the_model_that_the_example_makes() -> None:
    config = load_config(EXAMPLE / "config.yaml", RunConfig)
    assert config.reward is not None
    assert config.reward.server is not None
    assert {config.policy.model, config.reward.server.instruct, config.reward.server.base} == {str(FOLDER)}


def test_each_fact_has_four_different_choices() -> None:
    rows = [row for _, row in read_jsonl(EXAMPLE / "facts.jsonl")]
    assert len(rows) == 40
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert row["answer"] in range(4)


def test_no_right_choice_is_preferred_by_its_place() -> None:
    places = Counter(row["answer"] for _, row in read_jsonl(EXAMPLE / "facts.jsonl"))
    assert max(places.values()) <= 15


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and was not made from this GGUF file; give another folder"):
        make_model(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"

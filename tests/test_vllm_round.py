"""A whole round through vLLM on the tiny student, stages as processes: sampled, scored over a socket, trained on."""

import json
from pathlib import Path

import pytest

from tests.processes import winnow
from tests.tiny_models import make_model
from tests.tiny_run import tiny_config, write_config
from winnow.records import Completion
from winnow.rows import read_parquet

pytestmark = pytest.mark.vllm


def test_a_round_through_vllm_leaves_the_files_of_every_round(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    # vLLM's CPU attention wants heads of at least 32 dimensions.
    make_model("mistral", tmp_path / "student", seed=0, head_dim=32)
    # A random model seldom writes its EOS. With a quarter of the vocabulary as stop ids, most completions are finished.
    (tmp_path / "student" / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(100, 200))}))
    config["sampling"] = {**config["sampling"], "engine": "vllm", "max_model_len": 128}
    config["rounds"] = {**config["rounds"], "num_rounds": 1}
    config["evaluation"] = {"benchmarks": [], "probe": None}
    config["stages"] = "subprocess"
    path = write_config(tmp_path, config)
    result = winnow("run", path)
    assert result.returncode == 0, result.stderr[-3000:]
    round_dir = tmp_path / "runs" / "tiny" / "round-01"
    completions = read_parquet(round_dir / "completions", Completion)
    assert len(completions) == 12 * 3
    assert all(row.num_tokens == len(row.token_ids) > 0 for row in completions)
    assert {row.status for row in completions} <= {"ok", "control_token"}  # a random model samples those, too
    metrics = json.loads((round_dir / "metrics.json").read_text())
    assert metrics["num_selected"] > 0
    assert (round_dir / "checkpoint" / "model.safetensors").exists()

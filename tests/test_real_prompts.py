"""Two hundred real instructions through a whole round: sampled, scored by a real server, selected, trained on."""

import json
from pathlib import Path
from typing import Any

from tests.processes import winnow
from tests.tiny_run import tiny_config, write_config, write_jsonl
from winnow.records import Completion, Reward
from winnow.rows import read_jsonl, read_parquet

NUM_PROMPTS = 200
NUM_COMPLETIONS = 2


def instructions(reference_data: Path) -> list[dict[str, Any]]:
    """Return the prompt rows of both sources: an instruction, and its input if it has one."""
    folder = reference_data / "instructions"
    rows = []
    for name in ("seed_tasks", "user_oriented_instructions"):
        for _, row in read_jsonl(folder / f"{name}.jsonl"):
            instruction_input = row["instances"][0]["input"]
            rows.append({"prompt": f"{row['instruction']}\n\n{instruction_input}".strip(), "source": name})
    return rows


def test_a_round_on_real_instructions_loses_none(reference_data: Path, tmp_path: Path) -> None:
    prompts = write_jsonl(tmp_path / "instructions.jsonl", instructions(reference_data))
    config = tiny_config(tmp_path)
    config["prompts"] = {"num_prompts": NUM_PROMPTS, "files": [{"path": prompts}]}
    config["sampling"] = {"num_completions": NUM_COMPLETIONS, "max_new_tokens": 8, "shard_size": 100}
    config["rounds"] = {**config["rounds"], "num_rounds": 1, "train": {**config["rounds"]["train"], "max_tokens": 1024}}
    result = winnow("run", write_config(tmp_path, config))
    assert result.returncode == 0, result.stderr
    round_dir = tmp_path / "runs" / "tiny" / "round-01"
    metrics = json.loads((round_dir / "metrics.json").read_text())
    assert metrics["num_prompts"] == NUM_PROMPTS
    assert metrics["by_source"] == {"seed_tasks": 100, "user_oriented_instructions": 100}
    completions = read_parquet(round_dir / "completions", Completion)
    rewards = read_parquet(round_dir / "rewards", Reward)
    assert len(completions) == len(rewards) == NUM_PROMPTS * NUM_COMPLETIONS
    assert [(row.prompt_id, row.completion_id) for row in rewards] == [
        (row.prompt_id, row.completion_id) for row in completions
    ]
    assert metrics["num_scored"] + sum(metrics["failures"].values()) == len(rewards)
    assert metrics["num_scored"] > len(rewards) / 2
    for row in rewards:
        if row.status == "ok":
            assert row.instruct_logp is not None
            assert row.base_logp is not None
            assert row.reward == row.instruct_logp - row.base_logp
            assert row.error == ""
        else:
            assert (row.reward, row.instruct_logp, row.base_logp) == (None, None, None)
            assert row.error != ""

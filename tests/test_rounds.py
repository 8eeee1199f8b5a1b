"""The loop on tiny models: a real server over a real socket, kills at several points, the same files in the end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sampler.rounds import run_rounds
from tests.tiny_run import ledger_pieces, run_until, tiny_config, winnow, write_config
from winnow.config import parse_config
from winnow.rows import read_jsonl
from winnow.run_config import RunConfig
from winnow.rundir import Run

ROUNDS = (1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def config(folder: Path) -> dict[str, Any]:
    return tiny_config(folder)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, config: dict[str, Any]) -> Path:
    """The folder of a run that nobody killed."""
    result = winnow("run", write_config(folder, config))
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "tiny"


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


def test_the_loop_is_its_stages_in_order(config: dict[str, Any], tmp_path: Path) -> None:
    called: list[tuple[str, int]] = []
    run_rounds(
        Run(tmp_path, parse_config(config, RunConfig, "test")), lambda name, _, number: called.append((name, number))
    )
    one_round = ["sample", "score", "select", "train", "evaluate"]
    assert called == [
        *[("start", 0), ("evaluate", 0)],
        *[(name, number) for number in ROUNDS for name in one_round],
        ("peak", 2),
    ]


def test_every_round_leaves_its_files(undisturbed: Path) -> None:
    for number in ROUNDS:
        round_dir = undisturbed / f"round-{number:02d}"
        selected, prompts = rows(round_dir / "selected.jsonl"), rows(round_dir / "prompts.jsonl")
        metrics = json.loads((round_dir / "metrics.json").read_text())
        assert len(prompts) == 12
        assert len(selected) == metrics["num_selected"] > 0
        assert metrics["by_source"] == {"facts": 6, "sums": 6}
        assert metrics["batch_reward"] >= metrics["random_control_reward"]
        assert (round_dir / "checkpoint" / "model.safetensors").exists()
        assert len(list((round_dir / "completions").glob("*.parquet"))) == 3
    assert json.loads((undisturbed / "peak.json").read_text())["rounds"][2]["batch_reward"] is not None


def test_the_winner_is_stored_as_an_assistant_turn(undisturbed: Path) -> None:
    for row in rows(undisturbed / "round-01" / "selected.jsonl"):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert set(row["metadata"]) == {"prompt_id", "completion_id", "source", "round", "reward"}


def test_a_round_starts_from_the_last_rounds_policy(undisturbed: Path) -> None:
    weights = [
        (undisturbed / f"round-{number:02d}" / "checkpoint" / "model.safetensors").read_bytes() for number in ROUNDS
    ]
    assert weights[0] != weights[1]


def killing_points(run_dir: Path) -> list[Callable[[], bool]]:
    """Between two shards of sampling, of scoring, while each round's model is trained, and in the middle of round 2."""

    def has(piece: str) -> Callable[[], bool]:
        return lambda: piece in ledger_pieces(run_dir)

    return [
        has("round-01/sample/0000"),
        has("round-01/score/0000"),
        has("round-01/select"),
        has("round-02/sample/0001"),
        has("round-02/select"),
    ]


def leave_half_a_checkpoint(round_dir: Path) -> None:
    """What a kill leaves that comes while weights are written: too short a moment to be hit for certain."""
    partial = round_dir / ".checkpoint.partial"
    partial.mkdir(exist_ok=True)
    (partial / "model.safetensors").write_bytes(b"half")
    (partial / "left-behind.json").write_text("{")


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_files(
    folder: Path, config: dict[str, Any], undisturbed: Path
) -> None:
    killed = folder / "runs" / "killed"
    path = write_config(folder, {**config, "name": "killed"}, "killed.yaml")
    for index, is_time_to_kill in enumerate(killing_points(killed)):
        run_until(["run", path, *(["--resume"] if index else [])], is_time_to_kill)
    leave_half_a_checkpoint(killed / "round-02")
    result = winnow("run", path, "--resume")
    assert result.returncode == 0, result.stderr
    for number in ROUNDS:
        name = f"round-{number:02d}"
        for file in ("prompts.jsonl", "selected.jsonl", "checkpoint/model.safetensors"):
            assert (killed / name / file).read_bytes() == (undisturbed / name / file).read_bytes(), f"{name}/{file}"
    assert not (killed / "round-02" / "checkpoint" / "left-behind.json").exists()
    assert sorted(set(ledger_pieces(killed))) == sorted(set(ledger_pieces(undisturbed)))


def test_a_finished_run_that_is_resumed_does_nothing_again(
    folder: Path, config: dict[str, Any], undisturbed: Path
) -> None:
    before = ledger_pieces(undisturbed)
    result = winnow("run", write_config(folder, config), "--resume")
    assert result.returncode == 0, result.stderr
    assert ledger_pieces(undisturbed) == before


def test_status_counts_what_is_finished(undisturbed: Path) -> None:
    status = json.loads(winnow("status", str(undisturbed), "--json").stdout)
    assert status["rounds"][2] == {"round": 2, "sample": 3, "score": 3, "select": 1, "train": 1, "evaluate": 1}
    assert "3/3" in winnow("status", str(undisturbed)).stdout


def test_a_run_folder_that_exists_is_refused_with_the_ways_out(
    folder: Path, config: dict[str, Any], undisturbed: Path
) -> None:
    result = winnow("run", write_config(folder, config))
    assert result.returncode == 2
    assert "exists; go on with --resume, set another name=, or delete the folder" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_changed_config_is_refused_with_the_difference(
    folder: Path, config: dict[str, Any], undisturbed: Path
) -> None:
    result = winnow("run", write_config(folder, config), "sampling.temperature=0.5", "--resume")
    assert result.returncode == 2
    assert "sampling.temperature: 1.0 -> 0.5" in result.stderr


def test_stages_as_processes_of_their_own_give_the_same_rows(
    folder: Path, config: dict[str, Any], undisturbed: Path
) -> None:
    changed = {**config, "name": "processes", "stages": "subprocess", "rounds": {**config["rounds"], "num_rounds": 1}}
    result = winnow("run", write_config(folder, changed, "processes.yaml"))
    assert result.returncode == 0, result.stderr
    selected = folder / "runs" / "processes" / "round-01" / "selected.jsonl"
    assert selected.read_bytes() == (undisturbed / "round-01" / "selected.jsonl").read_bytes()

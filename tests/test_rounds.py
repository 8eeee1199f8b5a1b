"""The loop on tiny models with a real server over a socket: runs that are killed end with the same files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sampler.rounds import run_rounds
from tests.decoys import COMMAND, RAISES, call, make_package
from tests.processes import winnow
from tests.tiny_run import ledger_pieces, run_until, tiny_config, write_config
from winnow.config import parse_config
from winnow.import_path import PACKAGES
from winnow.records import Completion, Reward
from winnow.rows import read_jsonl, read_parquet
from winnow.run_config import RunConfig
from winnow.rundir import Run, open_run

ROUNDS = (1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def config(folder: Path) -> dict[str, Any]:
    """Return a recipe whose server computes one completion at a time.

    The last bits of a reward depend on what is computed with it, and that depends on the times of the calls.
    """
    config = tiny_config(folder)
    config["reward"]["server"]["token_budget"] = 1
    return config


@pytest.fixture(scope="module")
def undisturbed(folder: Path, config: dict[str, Any]) -> Path:
    """Return the folder of a run that was not killed."""
    result = winnow("run", write_config(folder, config))
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "tiny"


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


def test_the_loop_is_its_stages_in_order(config: dict[str, Any], tmp_path: Path) -> None:
    called: list[tuple[str, int]] = []
    run = Run(tmp_path, parse_config(config, RunConfig, "test"))
    run_rounds(run, lambda name, _, round_number: called.append((name, round_number)))
    probe = ["sample_probe", "score_probe"]
    stages = ["sample", "score", "select", "train", *probe, "evaluate"]
    assert called == [
        ("start", 0),
        *[(name, 0) for name in probe],
        ("evaluate", 0),
        *[(name, 1) for name in stages],
        *[(name, 2) for name in stages],
        ("peak", 2),
    ]


def test_every_round_leaves_its_files(undisturbed: Path) -> None:
    for round_number in ROUNDS:
        round_dir = undisturbed / f"round-{round_number:02d}"
        selected = rows(round_dir / "selected.jsonl")
        prompts = rows(round_dir / "prompts.jsonl")
        metrics = json.loads((round_dir / "metrics.json").read_text())
        assert len(prompts) == 12
        assert len(selected) == metrics["num_selected"] > 0
        assert metrics["by_source"] == {"facts": 6, "sums": 6}
        assert metrics["batch_reward"] >= metrics["random_control_reward"]
        assert (round_dir / "checkpoint" / "model.safetensors").exists()
        assert len(list((round_dir / "completions").glob("*.parquet"))) == 3
    assert json.loads((undisturbed / "peak.json").read_text())["rounds"][2]["batch_reward"] is not None


def test_the_selected_completion_is_stored_as_an_assistant_turn(undisturbed: Path) -> None:
    selected = rows(undisturbed / "round-01" / "selected.jsonl")
    assert selected
    common = {"prompt_id", "completion_id", "source", "round", "reward"}
    for row in selected:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert set(row["metadata"]) in (common, common | {"completion_ids", "tokenizer_hash"})


def test_completions_whose_text_does_not_give_their_ids_back_are_scored_selected_and_trained(undisturbed: Path) -> None:
    """A random model samples bytes that are not UTF-8, and tokens that its tokenizer would merge."""
    run = open_run(undisturbed)
    for round_number in ROUNDS:
        completions = read_parquet(run.completions_dir(round_number), Completion)
        rewards = read_parquet(run.rewards_dir(round_number), Reward)
        inexact = [row for row in completions if not row.has_exact_text and row.status == "ok"]
        status_of = {(row.prompt_id, row.completion_id): row.status for row in rewards}
        assert len(inexact) > len(completions) / 4
        assert {status_of[row.prompt_id, row.completion_id] for row in inexact} == {"ok"}
        ids = {(row.prompt_id, row.completion_id): list(row.token_ids) for row in inexact}
        selected = [row["metadata"] for row in rows(run.selected_path(round_number))]
        by_ids = [row for row in selected if "completion_ids" in row]
        assert by_ids
        assert all(row["completion_ids"] == ids[row["prompt_id"], row["completion_id"]] for row in by_ids)
        report = json.loads((run.checkpoint_dir(round_number) / "train_report.json").read_text())
        assert (report["num_rows"], report["num_invalid"]) == (len(selected), 0)


def test_a_round_starts_from_the_last_rounds_policy(undisturbed: Path) -> None:
    first, second = [undisturbed / f"round-{round_number:02d}" / "checkpoint" for round_number in ROUNDS]
    assert (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()


def killing_points(run_dir: Path) -> list[Callable[[], bool]]:
    """Return conditions for kills between two shards of sampling, of scoring, and while a round's model is trained."""

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
    """Write what a kill leaves while weights are written; that moment is too short for a real kill to hit reliably."""
    partial = round_dir / ".checkpoint.partial"
    partial.mkdir(exist_ok=True)
    (partial / "model.safetensors").write_bytes(b"half")
    (partial / "left-behind.json").write_text("{")


@pytest.mark.timeout(900)  # many runs, on a slow processor
def test_a_run_that_is_killed_repeatedly_ends_with_the_same_files(
    folder: Path, config: dict[str, Any], undisturbed: Path
) -> None:
    killed = folder / "runs" / "killed"
    path = write_config(folder, {**config, "name": "killed"}, "killed.yaml")
    command = ["run", path]
    for is_time_to_kill in killing_points(killed):
        run_until(command, is_time_to_kill)
        command = ["run", path, "--resume"]
    leave_half_a_checkpoint(killed / "round-02")
    result = winnow("run", path, "--resume")
    assert result.returncode == 0, result.stderr
    for round_number in ROUNDS:
        name = f"round-{round_number:02d}"
        for file in ("prompts.jsonl", "selected.jsonl", "checkpoint/model.safetensors"):
            assert (killed / name / file).read_bytes() == (undisturbed / name / file).read_bytes(), f"{name}/{file}"
    assert not (killed / "round-02" / "checkpoint" / "left-behind.json").exists()
    assert sorted(set(ledger_pieces(killed))) == sorted(set(ledger_pieces(undisturbed)))


def test_resuming_a_finished_run_does_nothing(folder: Path, config: dict[str, Any], undisturbed: Path) -> None:
    before = ledger_pieces(undisturbed)
    result = winnow("run", write_config(folder, config), "--resume")
    assert result.returncode == 0, result.stderr
    assert ledger_pieces(undisturbed) == before


def test_status_counts_finished_pieces(undisturbed: Path) -> None:
    status = json.loads(winnow("status", str(undisturbed), "--json").stdout)
    once = {"select": 1, "train": 1, "evaluate": 1}
    assert status["rounds"][2] == {"round": 2, "sample": 3, "score": 3, "probe": 0, **once}
    assert "3/3" in winnow("status", str(undisturbed)).stdout


def test_an_existing_run_folder_is_refused_with_the_remedies(
    folder: Path, config: dict[str, Any], undisturbed: Path
) -> None:
    result = winnow("run", write_config(folder, config))
    assert result.returncode == 2
    assert "exists; continue with --resume, set another name=, or delete the folder" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_changed_config_is_refused_with_the_difference(
    folder: Path, config: dict[str, Any], undisturbed: Path
) -> None:
    result = winnow("run", write_config(folder, config), "sampling.temperature=0.5", "--resume")
    assert result.returncode == 2
    assert "sampling.temperature: 1.0 -> 0.5" in result.stderr


def test_stages_in_subprocesses_give_the_same_rows_whatever_lies_in_the_working_directory(
    folder: Path, config: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    for name in PACKAGES:
        make_package(tmp_path, name)
    (tmp_path / "socket.py").write_text(RAISES)  # multiprocessing imports it before it takes over the parent's path
    changed = {**config, "name": "processes", "stages": "subprocess", "rounds": {**config["rounds"], "num_rounds": 1}}
    result = call(COMMAND, "run", write_config(folder, changed, "processes.yaml"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run_dir = folder / "runs" / "processes"
    assert ledger_pieces(run_dir)[-1] == "peak"
    assert (run_dir / "round-01" / "checkpoint" / "model.safetensors").exists()
    selected = run_dir / "round-01" / "selected.jsonl"
    assert selected.read_bytes() == (undisturbed / "round-01" / "selected.jsonl").read_bytes()

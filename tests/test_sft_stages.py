"""The training stages of a run: the rows and policy of each piece; finished pieces are skipped, changed ones redone."""

import json
from pathlib import Path
from typing import Any

import pytest

from sft.mixing import TrainingRow
from sft.phases import phase_rows
from sft.stages import start, train
from tests.tiny_models import make_model
from winnow.errors import TrainingError, UsageError
from winnow.records import Message, Selection
from winnow.rows import write_json, write_jsonl
from winnow.run_config import RunConfig
from winnow.rundir import Run, start_run

JOB = {"learning_rate": 1e-3, "max_steps": 1, "batch_size": 4, "micro_batch_size": 4, "max_tokens": 64}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model("mistral", tmp_path_factory.mktemp("models") / "mistral"))


def make_row(name: str, question: str) -> Selection:
    messages = (Message(role="user", content=question), Message(role="assistant", content="sea"))
    return Selection(messages=messages, metadata={"name": name})


def make_rows(name: str, count: int) -> list[Selection]:
    return [make_row(name, f"{name} {n}") for n in range(count)]


def make_run(folder: Path, model: str, *, num_phases: int = 2) -> Run:
    """Start a run of a short and a long phase; the long phase replays half of the rows of the short one."""
    for name in ("short", "long"):
        write_jsonl(folder / f"{name}.jsonl", make_rows(name, 6))
    short: dict[str, Any] = {"name": "short", "files": [str(folder / "short.jsonl")], "train": JOB}
    long: dict[str, Any] = {"name": "long", "files": [str(folder / "long.jsonl")], "train": JOB}
    long |= {"replay_from": ["short"], "replay_fraction": 0.5}
    config = {
        "name": "tiny",
        "runs_dir": str(folder / "runs"),
        "policy": {"model": model, "dtype": "float32"},
        "lab": {"phases": [short, long][:num_phases]},
        "rounds": {"num_rounds": 0, "train": JOB},
    }
    return start_run(RunConfig.model_validate(config), is_resumed=False)


def pieces(run: Run) -> list[str]:
    return [entry["piece"] for entry in run.ledger.entries()]


def facts_of(run: Run, piece: str) -> dict[str, Any]:
    entry = run.ledger.entry(piece)
    assert entry is not None
    return entry


def model_bytes(folder: Path | str) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


def test_each_phase_starts_from_the_previous_one_and_the_last_one_is_round_0(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    start(run, 0)
    assert pieces(run) == ["round-00/phase/short", "round-00/phase/long", "round-00/start"]
    assert model_bytes(run.checkpoint_dir(0)) == model_bytes(run.phase_dir("long"))
    assert len({model_bytes(folder) for folder in (model, run.phase_dir("short"), run.phase_dir("long"))}) == 3
    facts = facts_of(run, "round-00/phase/long")
    assert (facts["num_rows"], facts["num_replayed"], facts["steps"]) == (9, 3, 1)


def test_a_phase_replays_rows_of_the_phases_it_names(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    rows: list[TrainingRow] = phase_rows(run, run.config.lab.phases[1])
    replayed = [row for row in rows if row["metadata"]["is_replay"]]
    assert {row["metadata"]["name"] for row in replayed} == {"short"}
    assert (len(rows), len(replayed)) == (9, 3)
    assert phase_rows(run, run.config.lab.phases[1]) == rows


def test_a_finished_start_is_not_done_again(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    start(run, 0)
    entries = run.ledger.entries()
    start(run, 0)
    assert run.ledger.entries() == entries


def test_a_killed_start_resumes_at_its_unfinished_phase(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    start(run, 0)
    whole = model_bytes(run.checkpoint_dir(0))
    first_line = run.ledger.path.read_text().splitlines()[0]
    run.ledger.path.write_text(first_line + "\n")
    start(run, 0)
    assert pieces(run) == ["round-00/phase/short", "round-00/phase/long", "round-00/start"]
    assert model_bytes(run.checkpoint_dir(0)) == whole


def test_a_phase_whose_rows_changed_is_trained_again_with_all_later_phases(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    start(run, 0)
    write_jsonl(tmp_path / "short.jsonl", make_rows("brief", 6))
    start(run, 0)
    assert pieces(run)[3:] == ["round-00/phase/short", "round-00/phase/long", "round-00/start"]


def test_without_phases_round_0_is_the_start_model(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model, num_phases=0)
    start(run, 0)
    assert pieces(run) == ["round-00/start"]
    assert run.ledger.entries()[0]["policy"] == run.policy_path(0) == model
    assert not run.checkpoint_dir(0).exists()


def test_rounds_train_the_last_policy_on_their_selected_rows(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model, num_phases=0)
    start(run, 0)
    for round_number in (1, 2):
        write_jsonl(run.selected_path(round_number), make_rows(f"round {round_number}", 5))
        train(run, round_number)
    assert pieces(run) == ["round-00/start", "round-01/train", "round-02/train"]
    report = json.loads((run.checkpoint_dir(2) / "train_report.json").read_text())
    assert report["num_rows"] == 5
    assert len({model_bytes(run.policy_path(round_number)) for round_number in range(3)}) == 3
    train(run, 2)
    assert len(pieces(run)) == 3


def test_a_round_that_selected_nothing_says_what_became_of_its_completions(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model, num_phases=0)
    start(run, 0)
    write_jsonl(run.selected_path(1), [])
    write_json(run.metrics_path(1), {"num_prompts": 3, "num_truncated": 5, "failures": {"too_long": 4}})
    with pytest.raises(TrainingError) as error:
        train(run, 1)
    assert "round-01 selected nothing to train on: of the completions of 3 prompts 5 are unfinished" in str(error.value)
    assert "4 x too_long could not be scored" in str(error.value)
    assert pieces(run) == ["round-00/start"]


def test_a_round_is_trained_again_when_the_round_before_it_was(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model, num_phases=0)
    start(run, 0)
    for round_number in (1, 2):
        write_jsonl(run.selected_path(round_number), make_rows("rows", 5))
        train(run, round_number)
    write_jsonl(run.selected_path(1), make_rows("other", 5))
    for round_number in (1, 2):
        train(run, round_number)
    assert pieces(run)[3:] == ["round-01/train", "round-02/train"]


def test_a_missing_file_of_rows_is_one_clear_line(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    (tmp_path / "long.jsonl").unlink()
    with pytest.raises(UsageError, match=r"long\.jsonl cannot be read"):
        start(run, 0)
    assert pieces(run) == []


def test_the_ledger_holds_the_report_of_the_job(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model, num_phases=1)
    start(run, 0)
    facts = facts_of(run, "round-00/phase/short")
    report = json.loads((run.checkpoint_dir(0) / "train_report.json").read_text())
    report.pop("seconds")
    assert {key: facts[key] for key in report} == report

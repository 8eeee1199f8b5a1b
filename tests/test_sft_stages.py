"""The training stages of a run: which rows and policy each piece starts from, what is skipped, what is done again."""

import json
from pathlib import Path
from typing import Any

import pytest

from sft.mixing import Row
from sft.phases import phase_rows
from sft.stages import start, train
from tests.tiny_models import make_model
from winnow.errors import UsageError
from winnow.records import Message, Selection
from winnow.rows import write_jsonl
from winnow.run_config import RunConfig
from winnow.rundir import Run, start_run

JOB = {"learning_rate": 1e-3, "max_steps": 1, "batch_size": 4, "micro_batch_size": 4, "max_tokens": 64}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model("mistral", tmp_path_factory.mktemp("models") / "mistral"))


def make_rows(name: str, count: int) -> list[Selection]:
    turns = [
        (Message(role="user", content=f"{name} {n}"), Message(role="assistant", content="sea")) for n in range(count)
    ]
    return [Selection(messages=turn, metadata={"name": name}) for turn in turns]


def make_run(folder: Path, model: str, *, num_phases: int = 2) -> Run:
    """A run of a short and a long phase; the long one replays half of the short one's rows."""
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
    return [line["piece"] for line in run.ledger.lines()]


def facts_of(run: Run, piece: str) -> dict[str, Any]:
    line = run.ledger.line(piece)
    assert line is not None
    return line


def model_bytes(folder: Path | str) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


def test_phases_are_trained_one_from_another_and_the_last_one_is_round_0(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    start(run, 0)
    assert pieces(run) == ["round-00/phase/short", "round-00/phase/long", "round-00/start"]
    assert model_bytes(run.checkpoint_dir(0)) == model_bytes(run.phase_dir("long"))
    assert len({model_bytes(folder) for folder in (model, run.phase_dir("short"), run.phase_dir("long"))}) == 3
    facts = facts_of(run, "round-00/phase/long")
    assert (facts["num_rows"], facts["num_replayed"], facts["steps"]) == (9, 3, 1)


def test_a_phase_replays_rows_of_the_phases_it_names(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    rows: list[Row] = phase_rows(run, run.config.lab.phases[1])
    replayed = [row for row in rows if row["metadata"]["is_replay"]]
    assert {row["metadata"]["name"] for row in replayed} == {"short"}
    assert (len(rows), len(replayed)) == (9, 3)
    assert phase_rows(run, run.config.lab.phases[1]) == rows


def test_a_finished_start_is_not_done_again(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    start(run, 0)
    lines = run.ledger.lines()
    start(run, 0)
    assert run.ledger.lines() == lines


def test_a_start_that_was_killed_goes_on_at_the_phase_it_was_in(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    start(run, 0)
    whole = model_bytes(run.checkpoint_dir(0))
    first_line = run.ledger.path.read_text().splitlines()[0]
    run.ledger.path.write_text(first_line + "\n")
    start(run, 0)
    assert pieces(run) == ["round-00/phase/short", "round-00/phase/long", "round-00/start"]
    assert model_bytes(run.checkpoint_dir(0)) == whole


def test_changed_rows_are_trained_on_again_and_so_is_all_after_them(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    start(run, 0)
    write_jsonl(tmp_path / "short.jsonl", make_rows("brief", 6))
    start(run, 0)
    assert pieces(run)[3:] == ["round-00/phase/short", "round-00/phase/long", "round-00/start"]


def test_without_phases_round_0_is_the_start_model(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model, num_phases=0)
    start(run, 0)
    assert pieces(run) == ["round-00/start"]
    assert run.ledger.lines()[0]["policy"] == run.policy_path(0) == model
    assert not run.checkpoint_dir(0).exists()


def test_rounds_train_the_last_policy_on_their_selected_rows(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model, num_phases=0)
    start(run, 0)
    for number in (1, 2):
        write_jsonl(run.selected_path(number), make_rows(f"round {number}", 5))
        train(run, number)
    assert pieces(run) == ["round-00/start", "round-01/train", "round-02/train"]
    report = json.loads((run.checkpoint_dir(2) / "train_report.json").read_text())
    assert report["num_rows"] == 5
    assert len({model_bytes(run.policy_path(number)) for number in range(3)}) == 3
    train(run, 2)
    assert len(pieces(run)) == 3


def test_a_round_is_trained_again_when_the_round_before_it_was(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model, num_phases=0)
    start(run, 0)
    for number in (1, 2):
        write_jsonl(run.selected_path(number), make_rows("rows", 5))
        train(run, number)
    write_jsonl(run.selected_path(1), make_rows("other", 5))
    for number in (1, 2):
        train(run, number)
    assert pieces(run)[3:] == ["round-01/train", "round-02/train"]


def test_a_missing_file_of_rows_is_one_clear_line(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model)
    (tmp_path / "long.jsonl").unlink()
    with pytest.raises(UsageError, match=r"long\.jsonl cannot be read"):
        start(run, 0)
    assert pieces(run) == []


def test_the_ledger_holds_what_the_job_reported(model: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, model, num_phases=1)
    start(run, 0)
    facts = facts_of(run, "round-00/phase/short")
    report = json.loads((run.checkpoint_dir(0) / "train_report.json").read_text())
    assert {key: facts[key] for key in report if key != "seconds"} == {
        key: value for key, value in report.items() if key != "seconds"
    }

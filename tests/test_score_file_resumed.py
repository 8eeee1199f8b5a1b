"""`winnow score --resume` continues rows of the same origin only, and every end of a run reports the rows it keeps."""

import json
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.processes import winnow
from tests.score_jobs import (
    DefinedService,
    arguments,
    held_job,
    make_rows,
    num_finished,
    start_winnow,
    undisturbed_output,
)
from tests.scripted_server import NO_SERVER, scripted_server
from tests.tiny_run import write_jsonl


def test_resume_refuses_rows_of_another_origin(tmp_path: Path) -> None:
    with held_job(tmp_path) as job:
        job.kill()
        job.service.gate.set()
        kept = (tmp_path / "out.jsonl.part").read_bytes()
        other_options = winnow(*arguments(job.address, tmp_path, "--resume", "--beta", "2"))
        job.service.weight_hash = "sha256:two"
        other_models = winnow(*arguments(job.address, tmp_path, "--resume"))
        job.service.weight_hash = "sha256:one"
        write_jsonl(tmp_path / "in.jsonl", make_rows(61))
        other_input = winnow(*arguments(job.address, tmp_path, "--resume"))
    for result, change in (
        (other_options, "(options.beta: 1.0 -> 2.0)"),
        (other_models, "(models.instruct_weight_hash: 'sha256:one' -> 'sha256:two')"),
        (other_input, "(input.bytes: "),
    ):
        assert result.returncode == 2, result.stderr
        assert f"out.jsonl.part was made from something else {change}" in result.stderr
    assert (tmp_path / "out.jsonl.part").read_bytes() == kept


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ([], "instruct_weight_hash: sha256:one -> sha256:two; base_weight_hash: sha256:base -> sha256:other"),
        (["--recipe", "rewardbench"], "instruct_weight_hash: sha256:one -> sha256:two; base_weight_hash: sha256:base"),
        (["--reference-free"], "(instruct_weight_hash: sha256:one -> sha256:two)"),
    ],
)
def test_a_server_that_comes_back_with_other_models_is_an_error(tmp_path: Path, flags: list[str], changed: str) -> None:
    with held_job(tmp_path, *flags) as job:
        job.service.weight_hash = "sha256:two"
        job.service.base_weight_hash = "sha256:other"
        job.service.gate.set()
        errors = job.errors()
    assert job.process.returncode == 1
    assert f"the server at {job.address} has other models than this file was started with" in errors
    assert changed in errors
    assert f"{num_finished(tmp_path)} finished rows are kept in" in errors
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl.part").read_text().splitlines()]
    assert [row["prompt"] for row in kept] == [row["prompt"] for row in make_rows(len(kept))]
    assert len(kept) >= 10


def test_resume_of_reference_free_rewards_takes_any_base_model(tmp_path: Path) -> None:
    with held_job(tmp_path, "--reference-free") as job:
        job.kill()
        job.service.gate.set()
        job.service.base_weight_hash = "sha256:other"
        result = winnow(*arguments(job.address, tmp_path, "--reference-free", "--resume"))
    assert result.returncode == 0, result.stderr


def test_a_finished_output_is_never_overwritten_and_needs_no_work_to_resume(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", make_rows(5))
    service = DefinedService()
    with scripted_server(service) as address:
        first = winnow(*arguments(address, tmp_path))
        written = (tmp_path / "out.jsonl").read_bytes()
        service.requests.clear()
        resumed = winnow(*arguments(address, tmp_path, "--resume"))
        assert (resumed.returncode, resumed.stdout, resumed.stderr) == (0, first.stdout, "")
        assert service.num_seen == 0
    again = winnow(*arguments(NO_SERVER, tmp_path))
    assert (again.returncode, "out.jsonl exists; delete it or set another output" in again.stderr) == (2, True)
    alone = winnow(*arguments(NO_SERVER, tmp_path, "--resume"))
    assert (alone.returncode, alone.stdout) == (0, first.stdout)
    assert f"its models are not checked: no reward server answers at {NO_SERVER}" in alone.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == written


def test_resume_refuses_a_finished_output_of_another_origin(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", make_rows(5))
    service = DefinedService()
    with scripted_server(service) as address:
        assert winnow(*arguments(address, tmp_path)).returncode == 0
        other_options = winnow(*arguments(NO_SERVER, tmp_path, "--resume", "--beta", "2"))
        service.weight_hash = "sha256:two"
        other_models = winnow(*arguments(address, tmp_path, "--resume"))
    write_jsonl(tmp_path / "in.jsonl", [*make_rows(4), {"prompt": "Say 5.", "completions": []}])
    other_input = winnow(*arguments(NO_SERVER, tmp_path, "--resume"))
    for result, change in (
        (other_options, "(options.beta: 1.0 -> 2.0)"),
        (other_models, "(models.instruct_weight_hash: 'sha256:one' -> 'sha256:two')"),
        (other_input, "(input.bytes: "),
    ):
        assert (result.returncode, result.stdout) == (2, "")
        assert f"out.jsonl was made from something else {change}" in result.stderr
        assert result.stderr.count("\n") == 1


def test_resume_refuses_a_finished_output_whose_origin_is_missing(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", make_rows(5))
    with scripted_server(DefinedService()) as address:
        assert winnow(*arguments(address, tmp_path)).returncode == 0
        (tmp_path / "out.jsonl.from.json").unlink()
        result = winnow(*arguments(address, tmp_path, "--resume"))
    assert (result.returncode, result.stdout) == (2, "")
    assert "so --resume cannot check it; keep" in result.stderr
    assert result.stderr.count("\n") == 1


def test_resume_refuses_a_finished_output_that_lost_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", make_rows(5))
    with scripted_server(DefinedService()) as address:
        assert winnow(*arguments(address, tmp_path)).returncode == 0
        whole = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "out.jsonl").write_text("".join(whole[:4]))
        result = winnow(*arguments(address, tmp_path, "--resume"))
    assert (result.returncode, "out.jsonl has 4 rows, but" in result.stderr) == (2, True)


def test_a_full_disk_keeps_the_finished_rows(tmp_path: Path) -> None:
    expected = undisturbed_output(tmp_path, 120)
    write_jsonl(tmp_path / "in.jsonl", make_rows(120))
    with scripted_server(DefinedService()) as address:
        process = start_winnow(arguments(address, tmp_path), max_file_kib=20)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "out.jsonl.part cannot be written: File too large; make room, or set another output; " in errors
        assert f"{num_finished(tmp_path)} finished rows are kept in" in errors
        assert errors.count("\n") == 1
        assert num_finished(tmp_path) > 10
        result = winnow(*arguments(address, tmp_path, "--resume"))
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "out.jsonl").read_bytes() == expected
        (tmp_path / "out.jsonl").unlink()
        process = start_winnow(arguments(address, tmp_path), max_file_kib=0)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "out.jsonl.from.json cannot be written: File too large; set another output" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "undisturbed"]


def test_a_server_that_is_lost_leaves_the_finished_rows(tmp_path: Path) -> None:
    with held_job(tmp_path, "--timeout-s", "2") as job:
        pass  # the server stops here
    errors = job.errors()
    assert job.process.returncode == 1
    kept = f"{num_finished(tmp_path)} finished rows are kept in {tmp_path}/out.jsonl.part: continue with --resume"
    assert kept in errors
    assert errors.count("\n") == 1


def interrupt(process: "subprocess.Popen[str]") -> str:
    """Interrupt a process and return its errors. Again if need be: Python ignores an interruption in a destructor."""
    try:
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=20)[1]
        raise AssertionError("the process never ended")
    finally:
        process.kill()


def test_an_interruption_reports_the_finished_rows(tmp_path: Path) -> None:
    with held_job(tmp_path) as job:
        errors = interrupt(job.process)
        job.service.gate.set()
    assert job.process.returncode == 130
    assert f"winnow: interrupted; {num_finished(tmp_path)} finished rows are kept in" in errors

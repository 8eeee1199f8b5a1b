"""`winnow score --resume` goes on with its own rows only, and whatever ends a run says what is kept."""

import json
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.score_jobs import (
    DefinedService,
    GatedService,
    arguments,
    num_finished,
    rows,
    start,
    undisturbed,
    wait_for,
)
from tests.scripted_server import scripted_server
from tests.tiny_run import run_until, winnow, write_jsonl


def test_what_was_made_from_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(60))
    service = GatedService(num_free=30)
    with scripted_server(service) as address:
        run_until(arguments(address, tmp_path), lambda: num_finished(tmp_path) >= 10)
        service.gate.set()
        kept = (tmp_path / "out.jsonl.part").read_bytes()
        other_options = winnow(*arguments(address, tmp_path, "--resume", "--beta", "2"))
        service.weight_hash = "sha256:two"
        other_models = winnow(*arguments(address, tmp_path, "--resume"))
        service.weight_hash = "sha256:one"
        write_jsonl(tmp_path / "in.jsonl", rows(61))
        other_input = winnow(*arguments(address, tmp_path, "--resume"))
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
def test_a_server_that_comes_back_with_other_models_is_noticed(tmp_path: Path, flags: list[str], changed: str) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(60))
    service = GatedService(num_free=30)
    with scripted_server(service) as address:
        process = start(arguments(address, tmp_path, *flags))
        wait_for(lambda: num_finished(tmp_path) >= 10, process)
        service.weight_hash, service.base_weight_hash = "sha256:two", "sha256:other"
        service.gate.set()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"the server at {address} has other models than this file was begun with" in errors
    assert changed in errors
    assert f"{num_finished(tmp_path)} finished rows are kept in" in errors
    assert all(json.loads(line) for line in (tmp_path / "out.jsonl.part").read_text().splitlines())


def test_rewards_without_the_base_model_are_gone_on_with_whatever_it_is(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(60))
    service = GatedService(num_free=30)
    with scripted_server(service) as address:
        run_until(arguments(address, tmp_path, "--reference-free"), lambda: num_finished(tmp_path) >= 10)
        service.gate.set()
        service.base_weight_hash = "sha256:other"
        result = winnow(*arguments(address, tmp_path, "--reference-free", "--resume"))
    assert result.returncode == 0, result.stderr


def test_a_finished_output_is_never_overwritten_and_resuming_it_is_done(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(5))
    service = DefinedService()
    with scripted_server(service) as address:
        first = winnow(*arguments(address, tmp_path))
        written = (tmp_path / "out.jsonl").read_bytes()
        service.requests.clear()
        resumed = winnow(*arguments(address, tmp_path, "--resume"))
        assert (resumed.returncode, resumed.stdout, resumed.stderr) == (0, first.stdout, "")
        assert service.num_seen == 0
    again = winnow(*arguments("127.0.0.1:9", tmp_path))
    assert (again.returncode, "out.jsonl exists; delete it or set another output" in again.stderr) == (2, True)
    alone = winnow(*arguments("127.0.0.1:9", tmp_path, "--resume"))
    assert (alone.returncode, alone.stdout) == (0, first.stdout)
    assert "its models are not checked: no reward server answers at 127.0.0.1:9" in alone.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == written


def test_a_finished_output_that_was_made_from_something_else_is_no_success(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(5))
    service = DefinedService()
    with scripted_server(service) as address:
        assert winnow(*arguments(address, tmp_path)).returncode == 0
        other_options = winnow(*arguments("127.0.0.1:9", tmp_path, "--resume", "--beta", "2"))
        service.weight_hash = "sha256:two"
        other_models = winnow(*arguments(address, tmp_path, "--resume"))
    write_jsonl(tmp_path / "in.jsonl", [*rows(4), {"prompt": "Say 5.", "completions": []}])
    other_input = winnow(*arguments("127.0.0.1:9", tmp_path, "--resume"))
    for result, change in (
        (other_options, "(options.beta: 1.0 -> 2.0)"),
        (other_models, "(models.instruct_weight_hash: 'sha256:one' -> 'sha256:two')"),
        (other_input, "(input.bytes: "),
    ):
        assert (result.returncode, result.stdout) == (2, "")
        assert f"out.jsonl was made from something else {change}" in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_finished_output_that_says_not_what_it_was_made_from_cannot_be_checked(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(5))
    with scripted_server(DefinedService()) as address:
        assert winnow(*arguments(address, tmp_path)).returncode == 0
        (tmp_path / "out.jsonl.from.json").unlink()
        result = winnow(*arguments(address, tmp_path, "--resume"))
    assert (result.returncode, result.stdout) == (2, "")
    assert "so --resume cannot check it; keep" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_finished_output_that_lost_rows_is_no_success(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(5))
    with scripted_server(DefinedService()) as address:
        assert winnow(*arguments(address, tmp_path)).returncode == 0
        whole = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "out.jsonl").write_text("".join(whole[:4]))
        result = winnow(*arguments(address, tmp_path, "--resume"))
    assert (result.returncode, "out.jsonl exists with 4 rows, where" in result.stderr) == (2, True)


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path, 120)
    write_jsonl(tmp_path / "in.jsonl", rows(120))
    with scripted_server(DefinedService()) as address:
        full = start(arguments(address, tmp_path), max_file_kib=20)
        _, errors = full.communicate(timeout=60)
        assert full.returncode == 1
        assert "out.jsonl.part cannot be written: File too large; make room, or set another output; " in errors
        assert f"{num_finished(tmp_path)} finished rows are kept in" in errors
        assert errors.count("\n") == 1
        assert num_finished(tmp_path) > 10
        result = winnow(*arguments(address, tmp_path, "--resume"))
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "out.jsonl").read_bytes() == expected
        (tmp_path / "out.jsonl").unlink()
        full = start(arguments(address, tmp_path), max_file_kib=0)
        _, errors = full.communicate(timeout=60)
    assert full.returncode == 2
    assert "out.jsonl.from.json cannot be written: File too large; set another output" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calm", "in.jsonl"]


def test_a_server_that_is_lost_leaves_what_is_finished(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(60))
    with scripted_server(GatedService(num_free=30)) as address:
        process = start(arguments(address, tmp_path, "--timeout-s", "2"))
        wait_for(lambda: num_finished(tmp_path) >= 10, process)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert (
        f"{num_finished(tmp_path)} finished rows are kept in {tmp_path}/out.jsonl.part: go on with --resume" in errors
    )
    assert errors.count("\n") == 1


def interrupted(process: "subprocess.Popen[str]") -> str:
    """What a process says that is interrupted, again if need be: in a destructor Python passes over an interruption."""
    try:
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=20)[1]
        raise AssertionError("it never ended")
    finally:
        process.kill()


def test_an_interruption_says_what_is_finished(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(60))
    service = GatedService(num_free=30)
    with scripted_server(service) as address:
        process = start(arguments(address, tmp_path))
        wait_for(lambda: num_finished(tmp_path) >= 10, process)
        errors = interrupted(process)
        service.gate.set()
    assert process.returncode == 130
    assert f"winnow: interrupted; {num_finished(tmp_path)} finished rows are kept in" in errors

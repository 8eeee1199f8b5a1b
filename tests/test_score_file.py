"""`winnow score`: rows keep their fields; if client or server is killed, no row is lost or written twice."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reward_server.client import RewardClient
from reward_server.pb import reward_pb2 as pb
from sampler.managed_server import reward_client
from sampler.score import reward_options
from tests.processes import ROOT, read_address, server_process, winnow
from tests.score_jobs import (
    DefinedService,
    GatedService,
    arguments,
    held_job,
    make_rows,
    num_finished,
    start_winnow,
    undisturbed_output,
    wait_in_process,
)
from tests.scripted_server import scripted_server
from tests.tiny_models import make_pair
from tests.tiny_run import write_jsonl
from winnow.config import parse_config
from winnow.rows import read_jsonl
from winnow.run_config import RewardConfig


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardClient]:
    """Yield a client of a real server, in a process, whose base model reads plain prompts."""
    folder = tmp_path_factory.mktemp("server")
    server = {**make_pair(folder), "base_prompt": "plain"}
    with reward_client(parse_config({"server": server}, RewardConfig, "test"), folder) as connected:
        yield connected


def test_rows_come_back_in_order_with_their_rewards(client: RewardClient, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "What is 2 + 3?", "completions": ["5", ""], "id": "first"},
        {"prompt": "Nothing to score.", "completions": []},
        {"messages": [{"role": "user", "content": "Hi"}], "completions": ["Hello <|user|>", "Hello"]},
    ]
    write_jsonl(tmp_path / "in.jsonl", rows)
    result = winnow(*arguments(client.address, tmp_path, "--token-logprobs", "--beta", "2"))
    assert result.returncode == 0, result.stderr
    assert "1 control_token, 1 empty_completion, 2 ok" in result.stdout
    scored = [row for _, row in read_jsonl(tmp_path / "out.jsonl")]
    statuses = []
    for row, scored_row in zip(rows, scored, strict=True):
        assert {key: scored_row[key] for key in row} == row
        statuses.append([reward["status"] for reward in scored_row["rewards"]])
    assert statuses == [["ok", "empty_completion"], [], ["control_token", "ok"]]
    first = scored[0]["rewards"][0]
    assert first["reward"] == 2 * (first["instruct_logp"] - first["base_logp"])
    assert sum(first["base_token_logprobs"]) == pytest.approx(first["base_logp"])
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl", "out.jsonl.from.json"]


def test_every_flag_reaches_the_server(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", make_rows(2))
    (tmp_path / "token").write_text("s3cret\n")
    flags = ["--normalization", "mean", "--beta", "0.5", "--eos-policy", "include", "--reference-free"]
    flags += ["--instruction", "Be kind.", "--instruction-scope", "instruct_only", "--recipe", "rewardbench"]
    service = DefinedService()
    with scripted_server(service) as address:
        result = winnow(*arguments(address, tmp_path, *flags, "--token-file", str(tmp_path / "token")))
    assert result.returncode == 0, result.stderr
    assert service.tokens == ["Bearer s3cret"] * 2
    assert service.requests[0].options == pb.ScoreOptions(
        normalization=pb.NORMALIZATION_MEAN,
        beta=0.5,
        eos_policy=pb.EOS_POLICY_INCLUDE,
        is_reference_free=True,
        instruction="Be kind.",
        instruction_scope=pb.INSTRUCTION_SCOPE_INSTRUCT_ONLY,
        recipe=pb.RECIPE_REWARDBENCH,
    )


def test_recipe_rewardbench_needs_no_other_option(client: RewardClient, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "What is 2 + 3?", "completions": ["It is 5.", "It is 6."]}])
    config = parse_config({"address": client.address, "recipe": "rewardbench"}, RewardConfig, "test")
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    by_keyword = client.score(messages, ["It is 5.", "It is 6."], recipe="rewardbench")
    by_config = client.score(messages, ["It is 5.", "It is 6."], reward_options(config))
    result = winnow(*arguments(client.address, tmp_path, "--recipe", "rewardbench"))
    assert result.returncode == 0, result.stderr
    refused = arguments(client.address, tmp_path, "--recipe", "rewardbench", "--eos-policy", "exclude")
    refused[refused.index(str(tmp_path / "out.jsonl"))] = str(tmp_path / "no.jsonl")
    contradicted = winnow(*refused)
    assert contradicted.returncode == 2
    assert "in.jsonl line 1: " in contradicted.stderr
    assert "recipe rewardbench goes with eos_policy include; set it so or leave it unset" in contradicted.stderr
    assert not list(tmp_path.glob("no.jsonl*"))
    assert by_keyword.definition is not None
    assert (by_keyword.definition.recipe, by_keyword.definition.eos_policy) == ("rewardbench", "include")
    _, row = next(read_jsonl(tmp_path / "out.jsonl"))
    written = [reward["reward"] for reward in row["rewards"]]
    assert written == [completion.reward for completion in by_keyword]
    assert written == [completion.reward for completion in by_config]


@pytest.mark.parametrize(
    "flags",
    [["--reference-free"], ["--recipe", "rewardbench"], ["--recipe", "rewardbench", "--reference-free"], []],
    ids=" ".join,
)
def test_a_definition_that_leaves_out_or_changes_the_base_model_is_not_a_change_of_models(
    client: RewardClient, tmp_path: Path, flags: list[str]
) -> None:
    """A reference-free reward has no base model; under recipe rewardbench both models read the same prompt."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "What is 2 + 3?", "completions": ["It is 5.", "It is 6."]}])
    options: dict[str, Any] = {"is_reference_free": "--reference-free" in flags}
    if "rewardbench" in flags:
        options["recipe"] = "rewardbench"
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    scored = client.score(messages, ["It is 5.", "It is 6."], **options)
    result = winnow(*arguments(client.address, tmp_path, *flags))
    again = winnow(*arguments(client.address, tmp_path, *flags, "--resume"))
    assert result.returncode == 0, result.stderr
    assert (again.returncode, again.stdout, again.stderr) == (0, result.stdout, "")
    _, row = next(read_jsonl(tmp_path / "out.jsonl"))
    assert [reward["reward"] for reward in row["rewards"]] == [completion.reward for completion in scored]
    assert [reward["base_logp"] for reward in row["rewards"]] == [completion.base_logp for completion in scored]


@pytest.mark.parametrize(
    ("in_name", "out_name", "error"),
    [
        ("in.jsonl", "in.jsonl", "in.jsonl is the input too; set another output"),
        ("in.jsonl", "in.jsonl/out.jsonl", "in.jsonl/out.jsonl cannot be written"),
        ("in.jsonl", ".", "exists; delete it or set another output"),
        ("/dev/stdin", "out.jsonl", "/dev/stdin is not a regular file, and the input is read twice"),
        ("-", "out.jsonl", "input - is standard input elsewhere; here the input is read twice: save it as a file"),
        (
            "in.jsonl",
            "-",
            "output - is standard output elsewhere; here finished rows are kept for --resume: give a path",
        ),
    ],
)
def test_paths_that_cannot_be_read_or_written_are_errors_of_one_line(
    tmp_path: Path, in_name: str, out_name: str, error: str
) -> None:
    write_jsonl(tmp_path / "in.jsonl", make_rows(1))
    before = (tmp_path / "in.jsonl").read_bytes()
    with scripted_server(DefinedService()) as address:
        paths = ["--input", in_name, "--output", out_name]
        result = winnow("score", "--address", address, *paths, cwd=tmp_path)
    assert result.returncode == 2
    assert error in result.stderr
    assert result.stderr.count("\n") == 1
    assert (tmp_path / "in.jsonl").read_bytes() == before


def test_a_byte_order_mark_and_whole_surrogate_pairs_are_text(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a", "completions": ["\\ud83d\\ude00"]}\n')
    with scripted_server(DefinedService()) as address:
        result = winnow(*arguments(address, tmp_path))
    assert result.returncode == 0, result.stderr
    assert next(read_jsonl(tmp_path / "out.jsonl"))[1]["completions"] == ["\U0001f600"]


def test_an_input_that_shrinks_while_it_is_scored_is_an_error(tmp_path: Path) -> None:
    # Rows as long as what is read at once: the file ends after a row, whatever has been read of it.
    row = json.dumps({"prompt": "Say it.", "completions": ["x"], "pad": ""})
    padded = row.replace('"pad": "', '"pad": "' + "." * (4096 - len(row) - 1))
    (tmp_path / "in.jsonl").write_text(f"{padded}\n" * 400)
    service = GatedService(num_free=1)
    with scripted_server(service) as address:
        process = start_winnow(arguments(address, tmp_path))
        wait_in_process(lambda: service.num_seen >= 1, process)
        os.truncate(tmp_path / "in.jsonl", 0)
        service.gate.set()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "changed while it was read: 400 rows, then" in errors
    assert not (tmp_path / "out.jsonl").exists()


def test_a_client_that_is_killed_resumes_after_its_last_row(tmp_path: Path) -> None:
    expected = undisturbed_output(tmp_path, 120)
    with held_job(tmp_path, num_rows=120, min_finished=25) as job:
        job.kill()
        assert not (tmp_path / "out.jsonl").exists()
        num_kept = num_finished(tmp_path)
        with (tmp_path / "out.jsonl.part").open("ab") as part:
            part.write(b'{"prompt": "Say 4')  # the end of a file after a kill in the middle of a write
        job.service.gate.set()
        refused = winnow(*arguments(job.address, tmp_path))
        assert (refused.returncode, "continue with --resume or delete it" in refused.stderr) == (2, True)
        job.service.requests.clear()
        result = winnow(*arguments(job.address, tmp_path, "--resume"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert job.service.num_seen == 120 - num_kept
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl", "out.jsonl.from.json"]
    assert "18 empty_completion, 222 ok" in result.stdout


def test_a_server_that_is_restarted_loses_no_row(tmp_path: Path) -> None:
    expected = undisturbed_output(tmp_path, 120)
    with held_job(tmp_path, "--timeout-s", "60", num_rows=120, min_finished=25) as job:
        pass  # the server stops here
    assert job.process.poll() is None
    with scripted_server(job.service, port=int(job.address.rpartition(":")[2])):
        errors = job.errors()
    assert job.process.returncode == 0, errors
    assert (tmp_path / "out.jsonl").read_bytes() == expected


def test_a_real_server_that_is_killed_and_restarted_loses_no_row(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    models = ["--instruct", pair["instruct"], "--base", pair["base"]]
    rows = make_rows(300)
    write_jsonl(tmp_path / "in.jsonl", rows)
    with server_process([*models, "--listen", "127.0.0.1:0"], stderr=subprocess.DEVNULL) as server:
        address = read_address(server)
        process = start_winnow(arguments(address, tmp_path, "--timeout-s", "120"))
        wait_in_process(lambda: num_finished(tmp_path) >= 3, process)
        server.kill()
        server.wait()
        assert num_finished(tmp_path) < len(rows)
    with server_process([*models, "--listen", address], stderr=subprocess.DEVNULL):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        (tmp_path / "out.jsonl").rename(tmp_path / "disturbed.jsonl")
        assert winnow(*arguments(address, tmp_path)).returncode == 0
    disturbed = [row for _, row in read_jsonl(tmp_path / "disturbed.jsonl")]
    undisturbed = [row for _, row in read_jsonl(tmp_path / "out.jsonl")]
    assert [row["prompt"] for row in disturbed] == [row["prompt"] for row in rows]
    for row, expected_row in zip(disturbed, undisturbed, strict=True):
        for reward, expected in zip(row["rewards"], expected_row["rewards"], strict=True):
            assert reward["status"] == expected["status"]
            assert reward["reward"] == pytest.approx(expected["reward"], abs=1e-3)


def test_two_processes_cannot_write_one_output(tmp_path: Path) -> None:
    with held_job(tmp_path) as job:
        second = winnow(*arguments(job.address, tmp_path, "--resume"))
        job.service.gate.set()
        errors = job.errors()
    assert (second.returncode, "is being written by another process" in second.stderr) == (2, True)
    assert job.process.returncode == 0, errors
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 60


def test_winnow_score_imports_neither_torch_nor_the_packages_of_a_run(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", make_rows(2))
    program = (
        "import sys\n"
        "from winnow.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "unwanted = {'torch', 'transformers', 'sampler', 'sft', 'eval'}\n"
        "print(sorted(unwanted & {name.partition('.')[0] for name in sys.modules}))\n"
    )
    with scripted_server(DefinedService()) as address:
        command = [sys.executable, "-c", program, *arguments(address, tmp_path)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2

"""`winnow score`: rows keep what they bring; whatever is killed in the middle, nothing is lost and nothing twice."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from reward_server.pb import reward_pb2 as pb
from sampler.managed_server import reward_client
from sampler.score import reward_options
from tests.score_jobs import (
    DefinedService,
    GatedService,
    arguments,
    num_finished,
    rows,
    serving,
    start,
    undisturbed,
    wait_for,
)
from tests.scripted_server import scripted_server
from tests.tiny_run import make_pair, run_until, winnow, write_jsonl
from winnow.config import parse_config
from winnow.rows import read_jsonl
from winnow.run_config import RewardConfig


def test_rows_come_back_in_order_with_their_rewards(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        {"prompt": "What is 2 + 3?", "completions": ["5", ""], "id": "first"},
        {"prompt": "Nothing to score.", "completions": []},
        {"messages": [{"role": "user", "content": "Hi"}], "completions": ["Hello <|user|>", "Hello"]},
    ]
    write_jsonl(tmp_path / "in.jsonl", given)
    config = parse_config({"server": make_pair(tmp_path)}, RewardConfig, "test")
    with reward_client(config, tmp_path) as client:
        result = winnow(*arguments(client.address, tmp_path, "--token-logprobs", "--beta", "2"))
    assert result.returncode == 0, result.stderr
    assert "1 control_token, 1 empty_completion, 2 ok" in result.stdout
    scored = [row for _, row in read_jsonl(tmp_path / "out.jsonl")]
    assert [{key: row[key] for key in old} for row, old in zip(scored, given, strict=True)] == given
    statuses = [[reward["status"] for reward in row["rewards"]] for row in scored]
    assert statuses == [["ok", "empty_completion"], [], ["control_token", "ok"]]
    first = scored[0]["rewards"][0]
    assert first["reward"] == 2 * (first["instruct_logp"] - first["base_logp"])
    assert sum(first["base_token_logprobs"]) == pytest.approx(first["base_logp"])
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl", "out.jsonl.from.json"]


def test_every_flag_reaches_the_server(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(2))
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


def test_recipe_rewardbench_needs_no_other_option(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "What is 2 + 3?", "completions": ["It is 5.", "It is 6."]}])
    config = parse_config({"server": make_pair(tmp_path), "recipe": "rewardbench"}, RewardConfig, "test")
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    with reward_client(config, tmp_path) as client:
        asked = client.score(messages, ["It is 5.", "It is 6."], recipe="rewardbench")
        ran = client.score(messages, ["It is 5.", "It is 6."], reward_options(config))
        result = winnow(*arguments(client.address, tmp_path, "--recipe", "rewardbench"))
        assert result.returncode == 0, result.stderr
        refused = arguments(client.address, tmp_path, "--recipe", "rewardbench", "--eos-policy", "exclude")
        refused[refused.index(str(tmp_path / "out.jsonl"))] = str(tmp_path / "no.jsonl")
        contradicted = winnow(*refused)
    assert contradicted.returncode == 2
    assert "in.jsonl line 1: " in contradicted.stderr
    assert "recipe rewardbench goes with eos_policy include; set it so or leave it unset" in contradicted.stderr
    assert not list(tmp_path.glob("no.jsonl*"))
    assert asked.definition is not None
    assert (asked.definition.recipe, asked.definition.eos_policy) == ("rewardbench", "include")
    written = [reward["reward"] for _, row in read_jsonl(tmp_path / "out.jsonl") for reward in row["rewards"]]
    assert written == [one.reward for one in asked] == [one.reward for one in ran]


@pytest.mark.parametrize(
    "flags",
    [["--reference-free"], ["--recipe", "rewardbench"], ["--recipe", "rewardbench", "--reference-free"], []],
    ids=" ".join,
)
def test_rewards_whose_definition_says_less_or_other_than_the_server(tmp_path: Path, flags: list[str]) -> None:
    """Without the base model its fields are empty; under recipe rewardbench it reads what the instruct model reads."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "What is 2 + 3?", "completions": ["It is 5.", "It is 6."]}])
    server = {**make_pair(tmp_path), "base_prompt": "plain"}
    with reward_client(parse_config({"server": server}, RewardConfig, "test"), tmp_path) as client:
        asked = client.score(
            [{"role": "user", "content": "What is 2 + 3?"}],
            ["It is 5.", "It is 6."],
            is_reference_free="--reference-free" in flags,
            recipe="rewardbench" if "rewardbench" in flags else "winnow",
        )
        result = winnow(*arguments(client.address, tmp_path, *flags))
        again = winnow(*arguments(client.address, tmp_path, *flags, "--resume"))
    assert result.returncode == 0, result.stderr
    assert (again.returncode, again.stdout, again.stderr) == (0, result.stdout, "")
    (_, row) = next(read_jsonl(tmp_path / "out.jsonl"))
    assert [reward["reward"] for reward in row["rewards"]] == [one.reward for one in asked]
    assert [reward["base_logp"] for reward in row["rewards"]] == [one.base_logp for one in asked]


@pytest.mark.parametrize(
    ("given", "out", "error"),
    [
        ("in.jsonl", "in.jsonl", "in.jsonl is the input too; set another output"),
        ("in.jsonl", "in.jsonl/out.jsonl", "in.jsonl/out.jsonl cannot be written"),
        ("in.jsonl", ".", "exists; delete it or set another output"),
        ("/dev/stdin", "out.jsonl", "/dev/stdin is no regular file, and the input is read twice"),
        ("-", "out.jsonl", "input - is standard input elsewhere; here the input is read twice: save it as a file"),
        ("in.jsonl", "-", "output - is standard output elsewhere; here rows are kept to go on with: give a path"),
    ],
)
def test_paths_that_cannot_be_read_or_written_are_one_line(tmp_path: Path, given: str, out: str, error: str) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(1))
    before = (tmp_path / "in.jsonl").read_bytes()
    paths = [name if name == "-" else str(tmp_path / name) for name in (given, out)]
    with scripted_server(DefinedService()) as address:
        result = winnow("score", "--address", address, "--input", paths[0], "--output", paths[1])
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


def test_an_input_that_shrinks_while_it_is_scored_is_no_success(tmp_path: Path) -> None:
    # Rows as long as what is read at once: the file ends after a row, whatever has been read of it.
    row = json.dumps({"prompt": "Say it.", "completions": ["x"], "pad": ""})
    padded = row.replace('"pad": "', '"pad": "' + "." * (4096 - len(row) - 1))
    (tmp_path / "in.jsonl").write_text(f"{padded}\n" * 400)
    service = GatedService(num_free=1)
    with scripted_server(service) as address:
        process = start(arguments(address, tmp_path))
        wait_for(lambda: len(service.requests) >= 1, process)
        os.truncate(tmp_path / "in.jsonl", 0)
        service.gate.set()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "changed while it was read: 400 rows, then" in errors
    assert not (tmp_path / "out.jsonl").exists()


def test_a_client_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path, 120)
    write_jsonl(tmp_path / "in.jsonl", rows(120))
    service = GatedService(num_free=40)
    with scripted_server(service) as address:
        run_until(arguments(address, tmp_path), lambda: num_finished(tmp_path) >= 25)
        assert not (tmp_path / "out.jsonl").exists()
        finished = num_finished(tmp_path)
        with (tmp_path / "out.jsonl.part").open("ab") as part:
            part.write(b'{"prompt": "Say 4')  # what a kill in the middle of a write leaves
        service.gate.set()
        refused = winnow(*arguments(address, tmp_path))
        assert (refused.returncode, "go on with --resume or delete it" in refused.stderr) == (2, True)
        service.requests.clear()
        result = winnow(*arguments(address, tmp_path, "--resume"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert service.num_seen == 120 - finished
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl", "out.jsonl.from.json"]
    assert "18 empty_completion, 222 ok" in result.stdout


def test_a_server_restarted_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path, 120)
    write_jsonl(tmp_path / "in.jsonl", rows(120))
    service = GatedService(num_free=40)
    with scripted_server(service) as address:
        process = start(arguments(address, tmp_path, "--timeout-s", "60"))
        wait_for(lambda: num_finished(tmp_path) >= 25, process)
    assert process.poll() is None
    service.gate.set()
    with scripted_server(service, port=int(address.rpartition(":")[2])):
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert (tmp_path / "out.jsonl").read_bytes() == expected


def test_a_real_server_killed_and_restarted_loses_nothing(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    models = ["--instruct", pair["instruct"], "--base", pair["base"]]
    number = 300
    write_jsonl(tmp_path / "in.jsonl", rows(number))
    with serving([*models, "--listen", "127.0.0.1:0"]) as (server, address):
        process = start(arguments(address, tmp_path, "--timeout-s", "120"))
        wait_for(lambda: num_finished(tmp_path) >= 3, process)
        server.send_signal(signal.SIGKILL)
        server.wait()
        assert num_finished(tmp_path) < number
    with serving([*models, "--listen", address]) as (_, _):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        (tmp_path / "out.jsonl").rename(tmp_path / "disturbed.jsonl")
        assert winnow(*arguments(address, tmp_path)).returncode == 0
    calm, disturbed = ([row for _, row in read_jsonl(tmp_path / name)] for name in ("out.jsonl", "disturbed.jsonl"))
    assert [row["prompt"] for row in disturbed] == [row["prompt"] for row in rows(number)]
    for ours, theirs in zip(disturbed, calm, strict=True):
        for one, other in zip(ours["rewards"], theirs["rewards"], strict=True):
            assert one["status"] == other["status"]
            assert one["reward"] == pytest.approx(other["reward"], abs=1e-3)


def test_two_processes_cannot_write_one_output(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(60))
    service = GatedService(num_free=30)
    with scripted_server(service) as address:
        process = start(arguments(address, tmp_path))
        wait_for(lambda: num_finished(tmp_path) >= 10, process)
        second = winnow(*arguments(address, tmp_path, "--resume"))
        service.gate.set()
        process.communicate(timeout=60)
    assert (second.returncode, "is being written by another process" in second.stderr) == (2, True)
    assert process.returncode == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 60

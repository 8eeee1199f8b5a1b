"""`winnow score`: rows keep what they bring; whatever is killed in the middle, nothing is lost and nothing twice."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from reward_server.pb import reward_pb2 as pb
from sampler.hosted import reward_client
from sampler.score import reward_options
from tests.scripted_server import ScriptedService, scripted_server
from tests.tiny_run import ROOT, make_pair, run_until, winnow, write_jsonl
from winnow.config import parse_config
from winnow.rows import read_jsonl
from winnow.run_config import RewardConfig


class GatedService(ScriptedService):
    """Holds every request after the first `num_free` until `is_open`, which a test opens and closes."""

    def __init__(self, num_free: int) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.num_free = num_free

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        if len(self.requests) >= self.num_free:
            self.gate.wait(60)
        return super().Score(request, context)


def rows(number: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Say {index}.", "completions": ["x" * (index % 7), "\u00e9"]} for index in range(number)]


def arguments(address: str, folder: Path, *more: str) -> list[str]:
    paths = ["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")]
    return ["score", "--address", address, *paths, *more]


def num_finished(folder: Path) -> int:
    part = folder / "out.jsonl.part"
    return part.read_bytes().count(b"\n") if part.exists() else 0


def undisturbed(folder: Path, number: int) -> bytes:
    (folder / "calm").mkdir()
    write_jsonl(folder / "calm" / "in.jsonl", rows(number))
    with scripted_server(ScriptedService()) as address:
        result = winnow(*arguments(address, folder / "calm"))
    assert result.returncode == 0, result.stderr
    return (folder / "calm" / "out.jsonl").read_bytes()


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
    assert "1 empty_completion, 1 invalid_conversation, 2 ok" in result.stdout
    scored = [row for _, row in read_jsonl(tmp_path / "out.jsonl")]
    assert [{key: row[key] for key in old} for row, old in zip(scored, given, strict=True)] == given
    statuses = [[reward["status"] for reward in row["rewards"]] for row in scored]
    assert statuses == [["ok", "empty_completion"], [], ["invalid_conversation", "ok"]]
    first = scored[0]["rewards"][0]
    assert first["reward"] == 2 * (first["instruct_logp"] - first["base_logp"])
    assert sum(first["base_token_logprobs"]) == pytest.approx(first["base_logp"])
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl"]


def test_every_flag_reaches_the_server(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(2))
    (tmp_path / "token").write_text("s3cret\n")
    flags = ["--normalization", "mean", "--beta", "0.5", "--eos-policy", "include", "--reference-free"]
    flags += ["--instruction", "Be kind.", "--instruction-scope", "instruct_only", "--recipe", "rewardbench"]
    service = ScriptedService()
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
    assert "in.jsonl row 1: " in contradicted.stderr
    assert "recipe rewardbench goes with eos_policy include; set it so or leave it unset" in contradicted.stderr
    assert not list(tmp_path.glob("no.jsonl*"))
    assert asked.definition is not None
    assert (asked.definition.recipe, asked.definition.eos_policy) == ("rewardbench", "include")
    written = [reward["reward"] for _, row in read_jsonl(tmp_path / "out.jsonl") for reward in row["rewards"]]
    assert written == [one.reward for one in asked] == [one.reward for one in ran]


@pytest.mark.parametrize(
    ("given", "out", "error"),
    [
        ("in.jsonl", "in.jsonl", "in.jsonl is the input too; set another output"),
        ("in.jsonl", "in.jsonl/out.jsonl", "in.jsonl/out.jsonl cannot be written"),
        ("in.jsonl", ".", "exists; delete it or set another output"),
        ("/dev/stdin", "out.jsonl", "/dev/stdin is no regular file, and the input is read twice"),
    ],
)
def test_paths_that_cannot_be_read_or_written_are_one_line(tmp_path: Path, given: str, out: str, error: str) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(1))
    before = (tmp_path / "in.jsonl").read_bytes()
    paths = ["--input", str(tmp_path / given), "--output", str(tmp_path / out)]
    with scripted_server(ScriptedService()) as address:
        result = winnow("score", "--address", address, *paths)
    assert result.returncode == 2
    assert error in result.stderr
    assert result.stderr.count("\n") == 1
    assert (tmp_path / "in.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"prompt": "a", "completions": ["\\ud800"]}', "line 1: an escape"),
        (b"[" * 100_000, "line 1: JSON that cannot be read (maximum recursion"),
        (b'{"prompt": "a", "completions": [], "n": ' + b"9" * 5000 + b"}", "line 1: JSON that cannot be read (Exceeds"),
        (b'{"prompt": "\xff"}', "not UTF-8 text"),
    ],
)
def test_lines_that_are_no_rows_are_one_line(tmp_path: Path, line: bytes, error: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(line + b"\n")
    result = winnow(*arguments("127.0.0.1:1", tmp_path))
    assert result.returncode == 1
    assert error in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_byte_order_mark_and_whole_surrogate_pairs_are_text(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a", "completions": ["\\ud83d\\ude00"]}\n')
    with scripted_server(ScriptedService()) as address:
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
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl"]
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
    for result, key in ((other_options, "'beta': 2.0"), (other_models, "sha256:two"), (other_input, "'bytes'")):
        assert result.returncode == 2, result.stderr
        assert key in result.stderr
    assert (tmp_path / "out.jsonl.part").read_bytes() == kept


def test_a_server_that_comes_back_with_other_models_is_noticed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(60))
    service = GatedService(num_free=30)
    with scripted_server(service) as address:
        process = start(arguments(address, tmp_path))
        wait_for(lambda: num_finished(tmp_path) >= 10, process)
        service.weight_hash = "sha256:two"
        service.gate.set()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "has other models than this file was begun with (instruct_weight_hash: sha256:one -> sha256:two)" in errors
    assert all(json.loads(line) for line in (tmp_path / "out.jsonl.part").read_text().splitlines())


def test_a_finished_output_is_never_overwritten_and_resuming_it_is_done(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(5))
    with scripted_server(ScriptedService()) as address:
        first = winnow(*arguments(address, tmp_path))
    again = winnow(*arguments("127.0.0.1:9", tmp_path))
    assert (again.returncode, "out.jsonl exists; delete it or set another output" in again.stderr) == (2, True)
    resumed = winnow(*arguments("127.0.0.1:9", tmp_path, "--resume"))
    assert (resumed.returncode, resumed.stdout) == (0, first.stdout)
    write_jsonl(tmp_path / "in.jsonl", rows(6))
    other = winnow(*arguments("127.0.0.1:9", tmp_path, "--resume"))
    assert (other.returncode, "it is another file's" in other.stderr) == (2, True)


def test_a_malformed_row_at_the_end_is_named_before_anything_is_scored(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [*rows(50), {"prompt": "hi", "completions": "no list"}])
    service = ScriptedService()
    with scripted_server(service) as address:
        result = winnow(*arguments(address, tmp_path))
    assert (result.returncode, service.num_seen) == (1, 0)
    assert "in.jsonl line 51: 'completions' should be a list of texts" in result.stderr
    assert list(tmp_path.glob("out*")) == []


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


def start(command: list[str]) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", "winnow.cli", *command], cwd=ROOT, text=True, stdout=pipe, stderr=pipe
    )


def wait_for(condition: Any, process: "subprocess.Popen[str]") -> None:
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.communicate()[1]
        threading.Event().wait(0.01)
    raise AssertionError("it never came to that point")


@contextmanager
def serving(options: list[str]) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A real reward server in a process of its own, and its address."""
    command = [sys.executable, "-m", "winnow.cli", "serve", *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.DEVNULL, text=True, cwd=ROOT, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 120)[0], "the server said nothing"
            yield process, process.stdout.readline().removeprefix("listening on ").strip()
        finally:
            process.kill()

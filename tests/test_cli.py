"""The command line: help without torch, and one clear line with the right exit code for every bad input."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import make_model
from tests.tiny_run import ROOT, tiny_config, winnow, write_config, write_jsonl

VERBS = ("run", "status", "serve", "score", "gateway", "sample", "select", "sft", "eval", "peak")


@pytest.mark.parametrize("arguments", [(), *((verb,) for verb in VERBS)], ids=lambda a: " ".join(a) or "winnow")
def test_help_needs_no_torch_and_shows_an_example(arguments: tuple[str, ...]) -> None:
    program = (
        "import sys; from winnow import cli; sys.argv = ['winnow', *sys.argv[1:], '--help']\n"
        "try: cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = [name for name in ('torch', 'transformers', 'grpc', 'numpy') if name in sys.modules]\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert ("Example: winnow" in result.stdout) == bool(arguments)


def test_every_verb_is_listed() -> None:
    listed = winnow("--help").stdout
    assert all(f"  {verb} " in listed for verb in VERBS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def config(folder: Path) -> dict[str, Any]:
    return tiny_config(folder)


def one_line(result: "subprocess.CompletedProcess[str]", exit_code: int) -> str:
    """The error's one line, after whatever progress came before it."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("winnow: ")]
    assert result.returncode == exit_code, result.stderr
    assert "Traceback" not in result.stderr
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_a_config_that_is_not_there() -> None:
    assert "config 'nope.yaml' cannot be read" in one_line(winnow("run", "nope.yaml"), 2)


def test_an_unknown_flag_is_usage() -> None:
    assert winnow("run", "--resum", "x.yaml").returncode == 2


def test_a_missing_policy_folder(folder: Path, config: dict[str, Any]) -> None:
    changed = {**config, "name": "nopolicy", "policy": {"model": str(folder / "nowhere")}}
    error = one_line(winnow("run", write_config(folder, changed)), 2)
    assert f"model folder '{folder}/nowhere' does not exist" in error


def test_a_missing_model_folder_of_the_server(folder: Path) -> None:
    error = one_line(winnow("serve", "--instruct", str(folder / "nowhere"), "--base", str(folder / "base")), 2)
    assert "nowhere' does not exist; give a folder with config.json, or a hub id" in error


def test_tokenizers_that_differ(folder: Path, config: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    other = folder / "other"
    make_model("mixtral", other, seed=3)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["zzzz"])
    tokenizer.save_pretrained(other)
    error = one_line(winnow("serve", "--instruct", str(folder / "instruct"), "--base", str(other)), 1)
    assert "tokenizer" in error
    assert "allow_different_tokenizers" in error


def test_a_malformed_prompt_line_names_file_and_line(folder: Path, config: dict[str, Any]) -> None:
    bad = folder / "bad.jsonl"
    bad.write_text('{"prompt": "fine"}\n{"prompt": 3}\n')
    changed = {**config, "name": "badprompt", "prompts": {"num_prompts": 2, "files": [{"path": str(bad)}]}}
    error = one_line(winnow("run", write_config(folder, changed)), 1)
    assert "bad.jsonl line 2: a prompt row needs" in error


def test_a_server_that_is_not_there(folder: Path) -> None:
    rows = write_jsonl(folder / "in.jsonl", [{"prompt": "hi", "completions": ["a"]}])
    out = folder / "out.jsonl"
    error = one_line(winnow("score", "--address", "127.0.0.1:9", "--input", rows, "--output", str(out)), 1)
    assert "127.0.0.1:9" in error
    assert "winnow serve" in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "hi"}, "in.jsonl line 1: 'completions' should be a list of texts"),
        ({"prompt": "hi", "completions": [1]}, "'completions' should be a list of texts"),
        ({"completions": ["a"]}, "in.jsonl line 1: a prompt row needs 'messages'"),
        ({"messages": [{"role": "oracle", "content": "x"}], "completions": ["a"]}, "role"),
    ],
)
def test_a_malformed_row_to_score(folder: Path, row: dict[str, Any], message: str) -> None:
    rows = write_jsonl(folder / "in.jsonl", [row])
    error = one_line(winnow("score", "--address", "127.0.0.1:9", "--input", rows, "--output", "x.jsonl"), 1)
    assert message in error


def test_a_folder_that_is_no_run(folder: Path) -> None:
    assert "is no run folder (no config.json)" in one_line(winnow("status", str(folder)), 2)


def test_resuming_nothing(folder: Path, config: dict[str, Any]) -> None:
    path = write_config(folder, {**config, "name": "never"})
    assert "nothing to resume" in one_line(winnow("run", path, "--resume"), 2)
    assert not (folder / "runs" / "never" / "config.json").exists()


def test_two_processes_cannot_work_in_one_run(folder: Path, config: dict[str, Any]) -> None:
    from winnow.config import RunConfig, parse_config
    from winnow.rundir import locked, run_root

    changed = {**config, "name": "busy"}
    with locked(run_root(parse_config(changed, RunConfig, "test"))):
        error = one_line(winnow("run", write_config(folder, changed), "--resume"), 2)
    assert "is in use by another" in error

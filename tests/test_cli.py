"""The command line: help without torch, and one clear line with the right exit code for every bad input."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from reward_server.engines.loading import load_engines
from tests.processes import ROOT, winnow, winnow_in_process
from tests.scripted_server import NO_SERVER
from tests.tiny_models import make_model
from tests.tiny_run import tiny_config, write_config, write_jsonl
from winnow import cli
from winnow.config import key_meanings, parse_config
from winnow.errors import ModelError, UsageError
from winnow.exit_codes import EXTRAS
from winnow.models import load_failure
from winnow.run_config import RewardConfig, RunConfig
from winnow.rundir import locked, run_root
from winnow.serve_config import ServeConfig

VERBS = (
    "run",
    "status",
    "serve",
    "score",
    "gateway",
    "sample",
    "select",
    "sft",
    "eval",
    "eval-reward",
    "judge",
    "compare",
    "peak",
    "card",
    "export",
)

# Prints the help of `winnow` and of each verb as JSON, and the heavy modules that were loaded for it.
HELP_PROGRAM = """
import contextlib, io, json, sys
from winnow import cli

help_texts = {}
for verb in sys.argv[1:]:
    sys.argv = ["winnow", *verb.split(), "--help"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, (verb, end.code)
    help_texts[verb] = output.getvalue()
heavy = [name for name in ("torch", "transformers", "grpc", "numpy") if name in sys.modules]
print(json.dumps({"help_texts": help_texts, "heavy": heavy}))
"""


@pytest.fixture(scope="module")
def help_report() -> dict[str, Any]:
    command = [sys.executable, "-c", HELP_PROGRAM, "", *VERBS]
    environment = {**os.environ, "COLUMNS": "80"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_help_needs_no_torch(help_report: dict[str, Any]) -> None:
    assert help_report["heavy"] == []


def test_help_lists_every_verb(help_report: dict[str, Any]) -> None:
    help_text = help_report["help_texts"][""]
    assert "Example: winnow" not in help_text
    assert all(f"  {verb} " in help_text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_ends_with_an_example_that_can_be_copied(help_report: dict[str, Any], verb: str) -> None:
    *_, last = help_report["help_texts"][verb].rstrip().splitlines()
    assert last.startswith(f"  Example: winnow {verb} ")


def test_the_help_of_serve_lists_every_key_with_its_meaning(help_report: dict[str, Any]) -> None:
    help_text = help_report["help_texts"]["serve"]
    keys = dict(key_meanings(ServeConfig))
    assert {"instruct", "vllm.tensor_parallel_size", "tls.client_ca", "queue.max_groups", "drain_s"} <= keys.keys()
    assert all(f"  {key} " in help_text for key in keys)
    assert "Time for calls in progress to end" in help_text
    assert keys["drain_s"].endswith("[default: 20.0]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def config(folder: Path) -> dict[str, Any]:
    return tiny_config(folder)


def one_line(result: "subprocess.CompletedProcess[str]", exit_code: int) -> str:
    """Return the single line of the error, which may follow lines of progress."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("winnow: ")]
    assert result.returncode == exit_code, result.stderr
    assert "Traceback" not in result.stderr
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_a_missing_config_file_is_a_usage_error() -> None:
    assert "config 'nope.yaml' cannot be read" in one_line(winnow_in_process("run", "nope.yaml"), 2)


def test_an_unknown_flag_is_a_usage_error() -> None:
    assert winnow_in_process("run", "--resum", "x.yaml").returncode == 2


def test_a_missing_policy_folder_is_a_usage_error(folder: Path, config: dict[str, Any]) -> None:
    changed = {**config, "name": "nopolicy", "policy": {"model": str(folder / "nowhere")}}
    error = one_line(winnow_in_process("run", write_config(folder, changed)), 2)
    assert f"model folder '{folder}/nowhere' does not exist" in error


def test_a_missing_model_folder_of_the_server_is_a_usage_error(folder: Path) -> None:
    models = ("--instruct", str(folder / "nowhere"), "--base", str(folder / "base"))
    error = one_line(winnow_in_process("serve", *models), 2)
    assert "nowhere' does not exist; give a folder with config.json, or a hub id" in error


def test_serve_refuses_tokenizers_that_differ(folder: Path, config: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    base = folder / "base-of-another-tokenizer"
    make_model("mixtral", base, seed=3)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["zzzz"])
    tokenizer.save_pretrained(base)
    error = one_line(winnow_in_process("serve", "--instruct", str(folder / "instruct"), "--base", str(base)), 1)
    assert "tokenizer" in error
    assert "allow_different_tokenizers" in error


def test_a_malformed_prompt_is_reported_with_file_and_line(folder: Path, config: dict[str, Any]) -> None:
    bad = folder / "bad.jsonl"
    bad.write_text('{"prompt": "fine"}\n{"prompt": 3}\n')
    changed = {**config, "name": "badprompt", "prompts": {"num_prompts": 2, "files": [{"path": str(bad)}]}}
    error = one_line(winnow_in_process("run", write_config(folder, changed)), 2)
    assert "bad.jsonl line 2: a prompt row needs" in error


def test_score_names_a_server_that_does_not_run(folder: Path) -> None:
    rows = write_jsonl(folder / "in.jsonl", [{"prompt": "hi", "completions": ["a"]}])
    out = folder / "out.jsonl"
    error = one_line(winnow("score", "--address", NO_SERVER, "--input", rows, "--output", str(out)), 1)
    assert NO_SERVER in error
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
def test_a_malformed_row_to_score_is_reported_with_file_and_line(
    folder: Path, row: dict[str, Any], message: str
) -> None:
    rows = write_jsonl(folder / "in.jsonl", [row])
    error = one_line(winnow_in_process("score", "--address", NO_SERVER, "--input", rows, "--output", "x.jsonl"), 1)
    assert message in error


def test_status_of_a_folder_that_is_not_a_run_is_a_usage_error(folder: Path) -> None:
    assert "is not a run folder (no config.json)" in one_line(winnow_in_process("status", str(folder)), 2)


def test_resuming_a_run_that_never_started_is_a_usage_error(folder: Path, config: dict[str, Any]) -> None:
    path = write_config(folder, {**config, "name": "never"})
    assert "nothing to resume" in one_line(winnow_in_process("run", path, "--resume"), 2)
    assert not (folder / "runs" / "never" / "config.json").exists()


def test_two_processes_cannot_use_one_run_folder(folder: Path, config: dict[str, Any]) -> None:
    changed = {**config, "name": "busy"}
    with locked(run_root(parse_config(changed, RunConfig, "test"))):
        error = one_line(winnow("run", write_config(folder, changed), "--resume"), 2)
    assert "is in use by another" in error


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["score", "--address", "a:1", "--address", "b:1"], "--address is given 2 times; give it once"),
        (["serve", "--listen", "a:1", "--listen", "a:2"], "--listen is given 2 times"),
        (["gateway", "--address", "a:1", "--wait-ms", "nan"], "wait nan ms should be from 0 to 60000"),
        (["gateway", "--address", "a:1", "--unscorable-reward", "nan"], "unscorable reward nan should be a finite"),
        (["gateway", "--address", "a:1", "--timeout-s", "inf", "--listen", "127.0.0.1:0"], "timeout_s inf should be"),
    ],
)
def test_invalid_flags_are_usage_errors(arguments: list[str], error: str) -> None:
    assert error in one_line(winnow_in_process(*arguments), 2)


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("cache_bytes=-1", "cache_bytes: Input should be greater than or equal to 0"),
        ("drain_s=.inf", "drain_s: Input should be"),
        ("max_message_bytes=99999999999", "max_message_bytes: Input should be less than"),
        ("max_connection_age_s=1e12", "max_connection_age_s: Input should be less than"),
        ("listen=[1", "override 'listen=[1': the value is not valid YAML"),
        ("listen=nonsense", "listen 'nonsense' should be HOST:PORT"),
        ("max_tokens=100000", "max_tokens 100000 is more than the models were made for; take at most 512"),
    ],
)
def test_invalid_keys_of_a_serve_config_are_one_line(
    folder: Path, config: dict[str, Any], override: str, error: str
) -> None:
    path = write_config(folder, {**config["reward"]["server"], "listen": "127.0.0.1:0"}, "serve.yaml")
    assert error in one_line(winnow_in_process("serve", path, override), 2)


def test_a_device_that_this_machine_lacks_is_reported_with_the_key_to_change(
    folder: Path, config: dict[str, Any]
) -> None:
    serve_config = ServeConfig(**config["reward"]["server"], device_map="cuda:77")
    with pytest.raises(ModelError, match="set device_map to"):
        load_engines(serve_config)


def test_a_config_that_is_not_text_is_a_usage_error(folder: Path) -> None:
    (folder / "latin.yaml").write_bytes(b"name: \xff\n")
    assert "latin.yaml: not UTF-8 text" in one_line(winnow_in_process("serve", str(folder / "latin.yaml")), 2)


def test_truncated_weights_are_reported_before_loading(folder: Path, config: dict[str, Any]) -> None:
    cut = make_model("mixtral", folder / "cut", seed=1)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:100])
    listen = ["--listen", "127.0.0.1:0"]
    result = winnow("serve", "--instruct", config["reward"]["server"]["instruct"], "--base", str(cut), *listen)
    assert "its model.safetensors is cut short or damaged; copy or save it again" in one_line(result, 1)
    assert "loading" not in result.stderr


@pytest.mark.parametrize(
    ("change", "required"),
    [
        ({"eos_policy": "exclude"}, "eos_policy include"),
        ({"normalization": "mean"}, "normalization sum"),
        ({"beta": 2.0}, "beta 1"),
        ({"instruction": "Be kind."}, "no instruction"),
    ],
)
def test_a_run_config_that_contradicts_recipe_rewardbench_is_refused(change: dict[str, Any], required: str) -> None:
    with pytest.raises(UsageError, match=f"recipe rewardbench goes with {required}; set it so or leave it unset"):
        parse_config({"address": "a:1", "recipe": "rewardbench", **change}, RewardConfig, "test")
    fits = {"address": "a:1", "recipe": "rewardbench", "eos_policy": "include"}
    assert parse_config(fits, RewardConfig, "test").recipe == "rewardbench"


def test_serve_takes_keys_without_a_config_file(folder: Path) -> None:
    models = ("--instruct", str(folder / "instruct"), "--base", str(folder / "base"))
    assert "listen 'nonsense' should be HOST:PORT" in one_line(
        winnow_in_process("serve", *models, "listen=nonsense"), 2
    )
    assert "unknown key listne; did you mean listen?" in one_line(winnow_in_process("serve", "listne=a:1", *models), 2)
    assert "give CONFIG.yaml, or --instruct DIR and --base DIR" in one_line(winnow_in_process("serve"), 2)
    assert "instruct is given and base is missing; give --base DIR too" in one_line(
        winnow_in_process("serve", *models[:2]), 2
    )
    assert "base is given and instruct is missing" in one_line(winnow_in_process("serve", *models[2:], "listen=a:1"), 2)


def test_a_missing_library_is_reported_with_the_extra_that_installs_it(folder: Path, config: dict[str, Any]) -> None:
    if find_spec("vllm"):
        pytest.skip("vLLM is installed")
    path = write_config(folder, {**config["reward"]["server"], "listen": "127.0.0.1:0"}, "serve.yaml")
    error = one_line(winnow_in_process("serve", path, "engine=vllm"), 1)
    assert error == "winnow: No module named 'vllm'; this needs an extra: pip install 'winnow-rlaif[vllm]'"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError("We couldn't connect.\nCheck."),
            "there is no such folder here, and the Hugging Face hub did not give",
        ),
        (ValueError("from one of: \n(1) a file,\n(2) a class."), "from one of: (1) a file, (2) a class"),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled; this PyTorch"),
        (RuntimeError("CUDA out of memory. Tried to"), "CUDA out of memory. Tried to; free the GPU, take more of them"),
        (OSError("Error no file named model.safetensors, found in x."), "found in x; copy the checkpoint whole"),
    ],
)
def test_load_failure_names_a_remedy(error: Exception, expected: str) -> None:
    assert expected in load_failure("org/name", error)


def test_extras_are_those_of_pyproject() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) <= declared.keys()
    packages = {"lm_eval": "lm-eval", "fastchat": "fschat", "grpc_reflection": "grpcio-reflection"}
    extras_of: dict[str, list[str]] = {}
    for extra, requirements in declared.items():
        for requirement in requirements:
            extras_of.setdefault(re.split(r"[><=\[]", requirement)[0], []).append(extra)
    for module, extra in EXTRAS.items():
        extras = extras_of[packages.get(module, module.replace("_", "-"))]
        assert extra in extras or (extra == "all" and len(extras) > 1), module


@pytest.mark.parametrize("wrapper", [None, RuntimeError("Error calling __set_name__"), ImportError("of a module")])
def test_an_interruption_ends_a_verb_silently(
    wrapper: Exception | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            if wrapper is None:
                raise
            raise wrapper from error

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "")

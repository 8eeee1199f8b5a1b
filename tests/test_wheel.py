"""The built wheel without extras: what a client installs, and that scoring with it imports nothing heavy."""

import json
import os
import shlex
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from reward_server.client import RewardClient
from sampler.managed_server import running_server
from tests.processes import ROOT
from tests.tiny_models import make_pair
from tests.tiny_run import write_jsonl
from winnow import __version__
from winnow.serve_config import ServeConfig

MESSAGES = [{"role": "user", "content": "What is 2 + 3?"}]
COMPLETIONS = ["5", "2 + 3 is 6."]
NOT_FOR_CLIENTS = {"torch", "transformers", "pyarrow", "sampler", "sft", "eval"}

SCORE = """
import json, sys
from importlib.util import find_spec
import winnow
from reward_server.client import RewardClient
address, messages, completions = sys.argv[1], *map(json.loads, sys.argv[2:])
with RewardClient(address) as client:
    rewards = [scored.reward for scored in client.score(messages, completions)]
is_torch_installed = find_spec("torch") is not None
print(json.dumps({"rewards": rewards, "winnow": winnow.__file__, "is_torch_installed": is_torch_installed,
                  "modules": list(sys.modules)}))
"""
# Runs a console script, then lists the modules that it imported.
RUN_SCRIPT = """
import json, runpy, sys
from pathlib import Path
modules_path = sys.argv.pop(1)
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    Path(modules_path).write_text(json.dumps(list(sys.modules)))
"""


def call(*command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command that sees nothing of this checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=240)


def pip(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)


def packages(modules: list[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = pip("wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a new virtual environment that holds the wheel and its dependencies, without extras."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    path = folder / "bin" / "python"
    options = ("--quiet", "--no-compile", "--constraint", "constraints.txt")
    installed = pip("--python", str(path), "install", *options, str(wheel))
    assert installed.returncode == 0, installed.stderr
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def address(pair: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a real server on tiny models, in a process of the test environment, and yield its address."""
    folder = tmp_path_factory.mktemp("served")
    config = ServeConfig(**pair, chat_template="mixtral", dtype="float32", device_map="cpu")
    with running_server(config, folder) as server:
        yield server.address


@pytest.fixture(scope="module")
def expected_rewards(address: str) -> list[float | None]:
    with RewardClient(address) as client:
        client.wait_until_ready(120)
        return [scored.reward for scored in client.score(MESSAGES, COMPLETIONS)]


def test_the_wheel_holds_the_packages_and_their_data_files(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    assert wheel.name == f"winnow_rlaif-{__version__}-py3-none-any.whl"
    assert {name.partition("/")[0] for name in names} == {
        "winnow",
        "reward_server",
        "sampler",
        "sft",
        "eval",
        f"winnow_rlaif-{__version__}.dist-info",
    }
    templates = {f"winnow/templates/{path.name}" for path in (ROOT / "winnow" / "templates").iterdir()}
    assert "winnow/templates/lab.jinja" in templates <= names
    assert {f"{package}/py.typed" for package in ("winnow", "reward_server", "sampler", "sft", "eval")} <= names


def test_a_client_scores_from_the_wheel_without_torch_sampler_sft_and_eval(
    python: Path, address: str, expected_rewards: list[float | None], tmp_path: Path
) -> None:
    arguments = (address, json.dumps(MESSAGES), json.dumps(COMPLETIONS))
    result = call(str(python), "-c", SCORE, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["rewards"] == expected_rewards
    assert None not in expected_rewards
    assert Path(report["winnow"]).is_relative_to(python.parent.parent)
    assert not report["is_torch_installed"]
    assert packages(report["modules"]) & NOT_FOR_CLIENTS == set()
    assert packages(report["modules"]) >= {"winnow", "reward_server", "grpc"}


def test_winnow_score_scores_from_the_wheel_without_torch_sampler_sft_and_eval(
    python: Path, address: str, expected_rewards: list[float | None], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"messages": MESSAGES, "completions": COMPLETIONS}])
    script = str(python.parent / "winnow")
    arguments = ("score", "--address", address, "--input", "in.jsonl", "--output", "out.jsonl")
    result = call(str(python), "-c", RUN_SCRIPT, "modules.json", script, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "out.jsonl: 2 ok\n"
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert [scored["reward"] for scored in row["rewards"]] == expected_rewards
    modules = packages(json.loads((tmp_path / "modules.json").read_text()))
    assert modules & NOT_FOR_CLIENTS == set()
    assert modules >= {"winnow", "reward_server", "grpc"}


def test_the_installed_command_names_its_version(python: Path, tmp_path: Path) -> None:
    assert call(str(python.parent / "winnow"), "--version", cwd=tmp_path).stdout == f"winnow {__version__}\n"


def test_a_missing_extra_is_reported_with_a_command_that_finds_the_installed_distribution(
    python: Path, pair: dict[str, str], tmp_path: Path
) -> None:
    models = ("--instruct", pair["instruct"], "--base", pair["base"])
    result = call(str(python.parent / "winnow"), "serve", *models, "--listen", "127.0.0.1:0", cwd=tmp_path)
    assert result.returncode == 1
    assert "; this needs an extra: pip install 'winnow-rlaif[server]'\n" in result.stderr
    _, install, requirement = shlex.split(result.stderr.rpartition("extra: ")[2])
    # Without an index and dependencies, pip can only find the distribution that is installed.
    resolved = pip("--python", str(python), install, "--dry-run", "--no-index", "--no-deps", requirement)
    assert resolved.returncode == 0, resolved.stderr
    assert f"Requirement already satisfied: {requirement} in " in resolved.stdout

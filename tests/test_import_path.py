"""A folder `sampler` or `eval` of the user does not replace a package of winnow, or is reported with its path."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reward_server.engines.process import EngineProcess
from tests.decoys import COMMAND, MODULE, RAISES, call, make_package
from tests.processes import ROOT
from tests.tiny_models import make_pair
from tests.tiny_run import tiny_config, write_config
from winnow import import_path
from winnow.exit_codes import exit_on_error
from winnow.import_path import child_environment, describe_shadowing, inherited_environment
from winnow.serve_config import ServeConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    config = tiny_config(tmp_path_factory.mktemp("recipe"), stages="subprocess")
    config["rounds"]["num_rounds"] = 1
    return config


def test_engine_processes_ignore_the_modules_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair(tmp_path)
    (tmp_path / "socket.py").write_text(RAISES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    process = EngineProcess(ServeConfig(**pair, dtype="float32", device_map="cpu"))
    try:
        assert len(process.wait()) == 2
    finally:
        process.close()
    assert "PYTHONSAFEPATH" not in os.environ


def as_a_package_that_raises(folder: Path) -> Path:
    return make_package(folder, "sampler")


def as_an_empty_package(folder: Path) -> Path:
    return make_package(folder, "sampler", "")


def as_a_package_with_other_functions(folder: Path) -> Path:
    package = make_package(folder, "sampler", "")
    (package / "plan.py").write_text("")
    return package


def as_one_file(folder: Path) -> Path:
    path = folder / "sampler.py"
    path.write_text("")
    return path


def as_a_file_with_a_syntax_error(folder: Path) -> Path:
    path = folder / "sampler.py"
    path.write_text("def :\n")
    return path


@pytest.mark.parametrize(
    "make_decoy",
    [
        as_a_package_that_raises,
        as_an_empty_package,
        as_a_package_with_other_functions,
        as_one_file,
        as_a_file_with_a_syntax_error,
    ],
)
def test_a_package_that_shadows_winnows_is_named_with_its_path(
    make_decoy: Callable[[Path], Path], config: dict[str, Any], tmp_path: Path
) -> None:
    path = make_decoy(tmp_path)
    plan = ("run", write_config(tmp_path, config), "--dry-run")
    in_working_directory = call(*MODULE, *plan, cwd=tmp_path)
    on_python_path = call(COMMAND, *plan, cwd=ROOT, python_path=tmp_path)
    shadows = f"winnow: `sampler` at {path} shadows winnow's package of that name; "
    command = "call the `winnow` command instead of `python -m winnow.cli`, or work in another folder\n"
    assert (in_working_directory.returncode, in_working_directory.stderr) == (2, shadows + command)
    rename = f"take {tmp_path} off PYTHONPATH, or rename {path.name}\n"
    assert (on_python_path.returncode, on_python_path.stderr) == (2, shadows + rename)


def test_a_stage_in_a_process_of_its_own_names_what_shadows_its_package(config: dict[str, Any], tmp_path: Path) -> None:
    path = make_package(tmp_path / "decoys", "sft")
    config = {**config, "name": "shadowed"}
    result = call(COMMAND, "run", write_config(tmp_path, config), cwd=tmp_path, python_path=tmp_path / "decoys")
    assert result.returncode == 2
    first, second = [line for line in result.stderr.splitlines() if line.startswith("winnow: ")]
    assert first.startswith(f"winnow: `sft` at {path} shadows winnow's package of that name; take {path.parent} off ")
    assert second == "winnow: stage start ended with exit code 2; fix the cause and continue with --resume"


def test_an_error_that_has_nothing_to_do_with_winnows_packages_is_not_shadowing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package(tmp_path, "sft")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sft", raising=False)
    assert describe_shadowing(ModuleNotFoundError("No module named 'sftp'", name="sftp")) is None
    assert describe_shadowing(OSError("No space left on device")) is None
    shadowed = describe_shadowing(ModuleNotFoundError("No module named 'sft.stages'", name="sft.stages"))
    assert shadowed is not None
    assert f"`sft` at {tmp_path}/sft shadows" in shadowed


@pytest.mark.parametrize("name", ["sampler.nothing", "six", "grpc"])
def test_only_the_modules_of_an_extra_are_reported_as_a_missing_extra(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModuleNotFoundError), exit_on_error():
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    with pytest.raises(SystemExit) as end, exit_on_error():
        raise ModuleNotFoundError("No module named 'lm_eval.tasks'", name="lm_eval.tasks")
    assert end.value.code == 1
    remedy = "this needs an extra: pip install 'winnow-rlaif[eval]'"
    assert capsys.readouterr().err == f"winnow: No module named 'lm_eval.tasks'; {remedy}\n"


def test_the_environment_of_a_child_finds_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/models")
    for path, python_path in [([str(ROOT), "/lib"], f"{ROOT}:/models"), (["/work", str(ROOT), "/lib"], "/models")]:
        interpreter = SimpleNamespace(path=path, flags=SimpleNamespace(safe_path=False))
        monkeypatch.setattr(import_path, "sys", interpreter)
        environment = child_environment()
        assert (environment["PYTHONPATH"], environment["PYTHONSAFEPATH"]) == (python_path, "1")


def test_inherited_environment_lasts_as_long_as_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    program = "import sys; print(sys.flags.safe_path)"
    with inherited_environment():
        within = subprocess.check_output([sys.executable, "-c", program], text=True)
    after = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert (within, after) == ("True\n", "False\n")

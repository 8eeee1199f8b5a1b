"""Run folders of an older and of a newer format: status reads the older ones, and nothing computes them again."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import winnow
from tests.tiny_run import write_config
from winnow import __version__
from winnow.config import parse_config
from winnow.errors import ConfigError, RunFolderError
from winnow.run_config import RunConfig
from winnow.rundir import FORMAT, Run, open_run, start_run

OLDER = "was made by winnow 0.1.0: its format is 1, and winnow .* continues format 2; continue it with winnow"


def make_config(folder: Path) -> RunConfig:
    tree = {"name": "tiny", "runs_dir": str(folder / "runs"), "policy": {"model": str(folder / "student")}}
    return parse_config(tree, RunConfig, "test")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run that has finished a piece."""
    run = start_run(make_config(tmp_path), is_resumed=False)
    with run.ledger.record("round-00/start", "inputs"):
        pass
    return run


def rewrite(run: Run, **facts: Any) -> None:
    """Write the folder's config with these facts in the place of its format and its version of winnow."""
    tree = json.loads(run.config_path.read_text())
    for key in ("format", "winnow_version"):
        tree.pop(key, None)
    run.config_path.write_text(json.dumps({**facts, **tree}))


def test_a_new_folder_states_its_format_and_the_version_that_made_it(run: Run) -> None:
    tree = json.loads(run.config_path.read_text())
    assert (tree["format"], tree["winnow_version"]) == (FORMAT, __version__)
    assert open_run(run.root) == run


def test_a_folder_of_this_format_resumes_whatever_version_made_it(run: Run) -> None:
    rewrite(run, format=FORMAT, winnow_version="9.9.9")
    assert start_run(run.config, is_resumed=True) == run
    assert open_run(run.root) == run
    assert json.loads(run.config_path.read_text())["winnow_version"] == "9.9.9"


def test_an_older_folder_is_refused_by_resume_and_stages_and_shown_by_status(run: Run, tmp_path: Path) -> None:
    rewrite(run)
    path = write_config(tmp_path, run.config.model_dump(mode="json"))
    for arguments in (("run", path, "--resume"), ("sft", str(run.root)), ("peak", str(run.root))):
        result = winnow(*arguments)
        assert result.returncode == 2
        assert "was made by winnow 0.1.0" in result.stderr
        assert "continue it with winnow 0.1.0, or set another name= or runs_dir=" in result.stderr
    assert len(run.ledger.entries()) == 1
    result = winnow("status", str(run.root), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["pieces"] == 1


def test_an_older_folder_whose_config_can_no_longer_be_read_names_the_version_too(run: Run) -> None:
    rewrite(run, key_of_that_time=1)
    with pytest.raises(RunFolderError, match=OLDER):
        open_run(run.root, is_read_only=True)


def test_an_older_folder_without_a_finished_piece_starts_from_scratch(run: Run) -> None:
    rewrite(run)
    run.ledger.path.unlink()
    assert start_run(run.config, is_resumed=True) == run
    assert json.loads(run.config_path.read_text())["format"] == FORMAT


@pytest.mark.parametrize("is_read_only", [False, True])
def test_a_newer_folder_is_refused_with_the_version_that_made_it(run: Run, is_read_only: bool) -> None:
    rewrite(run, format=FORMAT + 1, winnow_version="7.0.0", key_of_that_time=1)
    newer = f"was made by winnow 7.0.0: its format is {FORMAT + 1}.*continue it with winnow 7.0.0, or set another name="
    with pytest.raises(RunFolderError, match=newer):
        open_run(run.root, is_read_only=is_read_only)
    with pytest.raises(RunFolderError, match=newer):
        start_run(run.config, is_resumed=True)


def test_a_folder_of_this_format_with_an_unknown_key_is_a_wrong_config(run: Run) -> None:
    rewrite(run, format=FORMAT, winnow_version=__version__, key_of_that_time=1)
    with pytest.raises(ConfigError, match="unknown key key_of_that_time"):
        open_run(run.root)


@pytest.mark.parametrize("content", [b"", b'{"name": "ti', b"[]", b'{"format": "2"}', b'{"format": null}', b"\xff"])
def test_a_damaged_config_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"config\.json is damaged: .* restore it, or set another"):
        open_run(tmp_path)

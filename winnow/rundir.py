"""Every path of a run, and the rules for its folder: never overwrite another run, never mix two configs.

runs/<name>/
  config.json            resolved: what really ran
  ledger.jsonl           one line per finished piece of work, written last
  round-00/              the SFT start: phases/ (LAB), checkpoint/, eval/
  round-01/              prompts.jsonl  completions/*.parquet  rewards/*.parquet  selected.jsonl  metrics.json
                         checkpoint/  eval/
  peak.json  rounds.png  rounds.svg
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from winnow.config import differences, dump_config, load_resolved
from winnow.errors import RunFolderError
from winnow.ledger import Ledger
from winnow.rows import write_text
from winnow.run_config import RunConfig


@dataclass(frozen=True)
class Run:
    """A run's folder with its resolved config; all paths of the run are its members."""

    root: Path
    config: RunConfig

    @property
    def config_path(self) -> Path:
        return self.root / "config.json"

    @property
    def lock_path(self) -> Path:
        return self.root / ".lock"

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.root / "ledger.jsonl")

    @property
    def peak_path(self) -> Path:
        return self.root / "peak.json"

    def chart_path(self, suffix: str) -> Path:
        return self.root / f"rounds.{suffix}"

    def round_name(self, number: int) -> str:
        return f"round-{number:02d}"

    def round_dir(self, number: int) -> Path:
        return self.root / self.round_name(number)

    def phase_dir(self, name: str) -> Path:
        return self.round_dir(0) / "phases" / name

    def prompts_path(self, number: int) -> Path:
        return self.round_dir(number) / "prompts.jsonl"

    def completions_dir(self, number: int) -> Path:
        return self.round_dir(number) / "completions"

    def rewards_dir(self, number: int) -> Path:
        return self.round_dir(number) / "rewards"

    def selected_path(self, number: int) -> Path:
        return self.round_dir(number) / "selected.jsonl"

    def metrics_path(self, number: int) -> Path:
        return self.round_dir(number) / "metrics.json"

    def checkpoint_dir(self, number: int) -> Path:
        return self.round_dir(number) / "checkpoint"

    def eval_dir(self, number: int) -> Path:
        return self.round_dir(number) / "eval"

    def policy_path(self, number: int) -> str:
        """The policy after round `number`: its checkpoint, or the start model where round 0 trained nothing."""
        if number == 0 and not self.config.lab.phases:
            return self.config.policy.model
        return str(self.checkpoint_dir(number))


def run_root(config: RunConfig) -> Path:
    """The folder of the run that a config describes."""
    return Path(config.runs_dir) / config.name


def start_run(config: RunConfig, *, is_resumed: bool) -> Run:
    """Make the run's folder, or open it again. Raises RunFolderError for one that is in the way or was another's.

    A run that has finished nothing yet (its ledger is empty) is begun anew: there is nothing to lose.
    """
    run = Run(run_root(config), config)
    if not run.ledger.lines():
        if is_resumed and not run.config_path.exists():
            raise RunFolderError(f"nothing to resume: {run.root} holds no config.json; run without --resume")
        if not run.config_path.exists() and set(run.root.glob("*")) - {run.lock_path}:
            raise RunFolderError(f"{run.root} exists and is no run folder; set another name= or runs_dir=")
        write_text(run.config_path, dump_config(config))
        return run
    if not is_resumed:
        raise RunFolderError(f"{run.root} exists; go on with --resume, set another name=, or delete the folder")
    if changed := differences(open_run(run.root).config, config):
        raise RunFolderError(
            f"{run.root} was made by another config ({'; '.join(changed)}); undo that or set another name="
        )
    return run


def open_run(root: Path) -> Run:
    """An existing run, with the config it was made by."""
    config_path = root / "config.json"
    if not config_path.is_file():
        raise RunFolderError(f"{root} is no run folder (no config.json); give a folder that `winnow run` made")
    return Run(root, load_resolved(config_path, RunConfig))


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold a run's folder for this process. Raises RunFolderError while another one holds it."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"{root} is in use by another `winnow run`; wait for it or set another name="
            ) from None
        yield


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder that appears whole: write into the yielded one, which takes the target's name when all went well."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)

"""The folder of a run: every path in it. No run overwrites another, and a run has one config.

runs/<name>/
  config.json            resolved: what really ran; the folder's format, and the version of winnow that made it
  ledger.jsonl           one entry per finished piece, written last
  probe/                 prompts.jsonl, the same for all rounds
  round-00/              the SFT start: phases/ (LAB), checkpoint/, probe/, probe.json, eval/
  round-01/              prompts.jsonl  completions/*.parquet  rewards/*.parquet  selected.jsonl  metrics.json
                         server.json  server.log  checkpoint/  probe.json  eval/
                         probe/: completions/*.parquet  rewards/*.parquet  rewards_by_prompt.jsonl
                                 server.json  server.log
  peak.json  rounds.png  rounds.svg
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow import __version__
from winnow.config import differences, parse_config
from winnow.errors import ConfigError, RunFolderError
from winnow.ledger import Ledger
from winnow.rows import write_json
from winnow.run_config import RunConfig

# Format of a run folder: of its files, and of the digests in its ledger. A change after which `--resume` would misread
# the files, or compute finished pieces again, needs a new one. Folders of format 1 do not state it.
FORMAT = 2
# Keys that may change when a run is resumed: the judge and the number of runs. The ledger knows which judgments and
# answers they concern; those alone are made again.
CHANGEABLE_KEYS = ("evaluation.questions.judge.", "evaluation.questions.num_runs")


@dataclass(frozen=True)
class Run:
    """The folder of a run with its resolved config; it names every path of the run."""

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

    def round_name(self, round_number: int) -> str:
        return f"round-{round_number:02d}"

    def round_dir(self, round_number: int) -> Path:
        return self.root / self.round_name(round_number)

    def phase_dir(self, name: str) -> Path:
        return self.round_dir(0) / "phases" / name

    def prompts_path(self, round_number: int) -> Path:
        return self.round_dir(round_number) / "prompts.jsonl"

    def completions_dir(self, round_number: int) -> Path:
        return self.round_dir(round_number) / "completions"

    def rewards_dir(self, round_number: int) -> Path:
        return self.round_dir(round_number) / "rewards"

    def selected_path(self, round_number: int) -> Path:
        return self.round_dir(round_number) / "selected.jsonl"

    def metrics_path(self, round_number: int) -> Path:
        return self.round_dir(round_number) / "metrics.json"

    @property
    def probe_prompts_piece(self) -> str:
        """The name of the piece that draws the probe."""
        return "probe/prompts"

    @property
    def probe_prompts_path(self) -> Path:
        return self.root / "probe" / "prompts.jsonl"

    def probe_dir(self, round_number: int) -> Path:
        return self.round_dir(round_number) / "probe"

    def probe_path(self, round_number: int) -> Path:
        return self.round_dir(round_number) / "probe.json"

    def probe_rewards_path(self, round_number: int) -> Path:
        return self.probe_dir(round_number) / "rewards_by_prompt.jsonl"

    def checkpoint_dir(self, round_number: int) -> Path:
        return self.round_dir(round_number) / "checkpoint"

    def eval_dir(self, round_number: int) -> Path:
        return self.round_dir(round_number) / "eval"

    def policy_path(self, round_number: int) -> str:
        """Return the policy after a round: its checkpoint, or the start model if round 0 trained nothing."""
        if round_number == 0 and not self.config.lab.phases:
            return self.config.policy.model
        return str(self.checkpoint_dir(round_number))

    def phase_piece(self, name: str) -> str:
        """Return the name of the piece that trains a LAB phase."""
        return f"{self.round_name(0)}/phase/{name}"

    def policy_piece(self, round_number: int) -> str:
        """Return the name of the piece that makes the policy of a round."""
        stage = "start" if round_number == 0 else "train"
        return f"{self.round_name(round_number)}/{stage}"

    def probe_piece(self, round_number: int) -> str:
        """Return the name of the piece that ends the probe of a round."""
        return f"{self.round_name(round_number)}/probe/metrics"


def run_root(config: RunConfig) -> Path:
    """Return the folder of the run that a config describes."""
    return Path(config.runs_dir) / config.name


def start_run(config: RunConfig, *, is_resumed: bool) -> Run:
    """Create a run's folder, or open it again to resume. Raises RunFolderError if it belongs to another run or config.

    A run that has not finished any piece (its ledger is empty) starts from scratch: nothing can be lost. A resumed run
    takes new values of CHANGEABLE_KEYS.
    """
    run = Run(run_root(config), config)
    check_run_folder(run, is_resumed=is_resumed)
    version = __version__
    if run.ledger.entries():
        version = json.loads(run.config_path.read_text())["winnow_version"]
    _write_config(run, version)
    return run


def check_run_folder(run: Run, *, is_resumed: bool) -> None:
    """Raise RunFolderError if a run cannot start in its folder, or resume there with its config; write nothing."""
    if not run.ledger.entries():
        if is_resumed and not run.config_path.exists():
            raise RunFolderError(f"nothing to resume: {run.root} holds no config.json; run without --resume")
        if not run.config_path.exists() and set(run.root.glob("*")) - {run.lock_path}:
            raise RunFolderError(f"{run.root} exists and is not a run folder; set another name= or runs_dir=")
        return
    if not is_resumed:
        raise RunFolderError(f"{run.root} exists; continue with --resume, set another name=, or delete the folder")
    changed: list[str] = []
    for line in differences(open_run(run.root).config, run.config):
        if not line.startswith(CHANGEABLE_KEYS):
            changed.append(line)
    if changed:
        raise RunFolderError(
            f"{run.root} was made by another config ({'; '.join(changed)}); undo that or set another name="
        )


def _write_config(run: Run, version: str) -> None:
    """Write the run's config with the folder's format and the version of winnow that made the folder."""
    write_json(run.config_path, {"format": FORMAT, "winnow_version": version, **run.config.model_dump(mode="json")})


def open_run(root: Path, *, is_read_only: bool = False) -> Run:
    """Open an existing run with the config that created it. Raises RunFolderError for any other folder.

    A folder of an older format is refused, because its rows lack what later stages read, unless `is_read_only`. A
    folder of a newer format is always refused.
    """
    config_path = root / "config.json"
    if not config_path.is_file():
        raise RunFolderError(f"{root} is not a run folder (no config.json); give a folder that `winnow run` made")
    tree = _read_config(config_path)
    folder_format = tree.pop("format", 1)
    version = tree.pop("winnow_version", "0.1.0")
    if folder_format > FORMAT or (folder_format < FORMAT and not is_read_only):
        raise _format_error(root, folder_format, version)
    try:
        return Run(root, parse_config(tree, RunConfig, str(config_path)))
    except ConfigError:
        if folder_format < FORMAT:
            raise _format_error(root, folder_format, version) from None
        raise


def _read_config(path: Path) -> dict[str, Any]:
    """Return the contents of a run's config.json. Raises RunFolderError for a damaged one."""
    try:
        tree = json.loads(path.read_text())
    except ValueError:
        tree = None
    if not isinstance(tree, dict) or not isinstance(tree.get("format", 1), int):
        raise RunFolderError(
            f"{path} is damaged: it should be a JSON object with a whole number as format; restore it, or set another "
            "name= or runs_dir= to start a new run"
        )
    return tree


def is_run_folder(root: Path) -> bool:
    """Tell whether `winnow run` made a folder, and not another program that writes a config.json, too."""
    if (root / "ledger.jsonl").is_file():
        return True
    try:
        return "winnow_version" in json.loads((root / "config.json").read_text())
    except (OSError, ValueError):
        return False


def _format_error(root: Path, folder_format: int, version: str) -> RunFolderError:
    return RunFolderError(
        f"{root} was made by winnow {version}: its format is {folder_format}, and winnow {__version__} continues "
        f"format {FORMAT}; continue it with winnow {version}, or set another name= or runs_dir= to start a new run"
    )


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Lock a run's folder for this process. Raises RunFolderError while another process holds the lock."""
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
def atomic_folder(target: Path) -> Iterator[Path]:
    """Create a folder atomically: the block writes into the yielded one, which is renamed to `target` at the end.

    A block that raises leaves `target` as it was.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)

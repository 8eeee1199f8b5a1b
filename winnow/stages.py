"""The stages of a run by name, run in this process or in separate processes.

    python -m winnow.stages sample runs/miniature 2

Each stage is imported when it is needed, so that `winnow --help` imports none of them.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from winnow.errors import UsageError, WinnowError
from winnow.exit_codes import exit_on_error
from winnow.import_path import child_environment
from winnow.rundir import Run, open_run

Stage = Callable[[Run, int], None]
"""A function that runs a stage of a round; it skips the pieces that the run's ledger holds."""


class StageError(WinnowError):
    """A stage's own process failed, and has printed the reason."""

    def __init__(self, name: str, exit_code: int) -> None:
        super().__init__(f"stage {name} ended with exit code {exit_code}; fix the cause and continue with --resume")
        if exit_code == UsageError.exit_code:
            self.exit_code = exit_code


def _start() -> Stage:
    from sft.stages import start

    return start


def _sample() -> Stage:
    from sampler.stages import sample

    return sample


def _score() -> Stage:
    from sampler.stages import score

    return score


def _select() -> Stage:
    from sampler.stages import select

    return select


def _train() -> Stage:
    from sft.stages import train

    return train


def _sample_probe() -> Stage:
    from sampler.probe import sample_probe

    return sample_probe


def _score_probe() -> Stage:
    from sampler.probe import score_probe

    return score_probe


def _evaluate() -> Stage:
    from eval.stages import evaluate

    return evaluate


def _peak() -> Stage:
    from eval.stages import pick_peak

    return pick_peak


STAGES: Mapping[str, Callable[[], Stage]] = {
    "start": _start,
    "sample": _sample,
    "score": _score,
    "select": _select,
    "train": _train,
    "sample_probe": _sample_probe,
    "score_probe": _score_probe,
    "evaluate": _evaluate,
    "peak": _peak,
}


def run_inline(name: str, run: Run, round_number: int) -> None:
    """Run a stage in this process."""
    stage = STAGES[name]()
    stage(run, round_number)


def run_in_subprocess(name: str, run: Run, round_number: int) -> None:
    """Run a stage in a separate process, so that all its memory is freed when it ends. Raises StageError."""
    command = [sys.executable, "-m", "winnow.stages", name, str(run.root), str(round_number)]
    exit_code = subprocess.run(command, env=child_environment(), check=False).returncode
    if exit_code:
        raise StageError(name, exit_code)


def main(name: str, root: str, round_number: str) -> None:
    """Run one stage of the run in `root`, in the process that `run_in_subprocess` starts."""
    with exit_on_error():
        run_inline(name, open_run(Path(root)), int(round_number))


if __name__ == "__main__":
    main(*sys.argv[1:])

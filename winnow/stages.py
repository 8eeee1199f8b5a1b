"""Names of stages -> the functions that do them, loaded only when called, here or in a process of their own.

    python -m winnow.stages sample runs/miniature 2

Entry points are named as text: the ground floor imports no room above it, and `winnow --help` loads none.
"""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from winnow.errors import WinnowError
from winnow.exit_codes import said_in_one_line
from winnow.rundir import Run, open_run

STAGES = {
    "start": "sft.stages:start",
    "sample": "sampler.stages:sample",
    "score": "sampler.stages:score",
    "select": "sampler.stages:select",
    "train": "sft.stages:train",
    "evaluate": "eval.stages:evaluate",
    "peak": "eval.stages:pick_peak",
}


class StageError(WinnowError):
    """A stage's own process failed; it has already said why."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"stage {name} ended with exit code {code}; mend the cause and go on with --resume")
        self.exit_code = code if code in (1, 2) else 1


def entry_point(name: str) -> Any:
    """The function that "module:function" names."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def run_inline(name: str, run: Run, number: int) -> None:
    """Do a stage in this process."""
    entry_point(STAGES[name])(run, number)


def run_in_subprocess(name: str, run: Run, number: int) -> None:
    """Do a stage in a process of its own, which gives all its memory back."""
    command = [sys.executable, "-m", "winnow.stages", name, str(run.root), str(number)]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise StageError(name, code)


def main(name: str, root: str, number: str) -> None:
    """Do one stage of the run in `root`; what `run_in_subprocess` starts."""
    with said_in_one_line():
        run_inline(name, open_run(Path(root)), int(number))


if __name__ == "__main__":
    main(*sys.argv[1:])

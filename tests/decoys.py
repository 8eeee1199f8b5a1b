"""Packages of a user with the names of winnow's packages, and calls of the command line from their folder."""

import os
import subprocess
import sys
from pathlib import Path

from tests.processes import END_TIMEOUT_S

COMMAND = str(Path(sys.executable).parent / "winnow")
MODULE = (sys.executable, "-m", "winnow.cli")
RAISES = "raise RuntimeError('the decoy was imported')\n"


def call(*command: str, cwd: Path, python_path: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a command in a folder, with a PYTHONPATH of its own and without the PYTHONSAFEPATH of this process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONSAFEPATH", None)
    environment.pop("PYTHONPATH", None)
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=END_TIMEOUT_S, check=False
    )


def make_package(folder: Path, name: str, source: str = RAISES) -> Path:
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source)
    return package

"""Tiny models for tests, each made once in a whole test run and copied from then on.

The store is a temporary folder that tests/conftest.py makes and removes; worker processes of pytest-xdist share it.
"""

import os
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from winnow.records import digest

STORE_VARIABLE = "WINNOW_TEST_MODELS"
# Texts that train another tokenizer than those of `benchmarks.tiny_models`.
FOREIGN_TEXTS = ("A different text trains a different vocabulary.", "These words do so as well, zebra.")


def make_model(kind: str, folder: Path, seed: int = 0, **config_overrides: Any) -> Path:
    """Save a tiny random model and its tokenizer in `folder`, as `benchmarks.tiny_models.make_model` does."""
    from benchmarks import tiny_models  # loads torch, which conftest.py must not do before it sets the environment

    store = Path(os.environ[STORE_VARIABLE])
    stored = store / digest([kind, seed, config_overrides])
    if not stored.exists():
        unfinished = Path(mkdtemp(dir=store))
        tiny_models.make_model(kind, unfinished, seed, **config_overrides)
        try:
            unfinished.rename(stored)
        except OSError:  # another worker was faster
            shutil.rmtree(unfinished)
    return Path(shutil.copytree(stored, folder, dirs_exist_ok=True))


def make_pair(folder: Path, kind: str = "mixtral", **config_overrides: Any) -> dict[str, str]:
    """Make an instruct and a base model that share a tokenizer; return the config keys that name them."""
    instruct = make_model(kind, folder / "instruct", seed=1, **config_overrides)
    base = make_model(kind, folder / "base", seed=2, **config_overrides)
    return {"instruct": str(instruct), "base": str(base)}

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

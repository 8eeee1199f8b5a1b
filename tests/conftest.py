"""What every test has: no network, and the reference data's folder where there is one."""

import atexit
import os
import signal
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is loaded; see the Makefile
# A shell lets its background jobs ignore interruptions, and the processes that tests start and interrupt inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


EXIT_STATUS = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Return the folder of real benchmark data that conformance tests read."""
    folder = os.environ.get("WINNOW_REFERENCE_DATA")
    if not folder:
        pytest.skip("WINNOW_REFERENCE_DATA is not set: no reference data to conform to")
    return Path(folder)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember how the session ended, for `pytest_unconfigure`."""
    session.config.stash[EXIT_STATUS] = int(exitstatus)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End a process that loaded vLLM's CPU build here: its libraries may crash as the interpreter is torn down."""
    if "vllm" in sys.modules:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash.get(EXIT_STATUS, 1))

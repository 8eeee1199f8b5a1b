"""Setup of every test run: no network, a store of tiny models, and the fixtures that several modules use."""

import atexit
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.tiny_models import STORE_VARIABLE

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
for variable in ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy"):  # every server of the tests is local
    os.environ.pop(variable, None)
    os.environ.pop(variable.upper(), None)
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is loaded; see the Makefile
# A shell lets its background jobs ignore interruptions, and the processes that tests start and interrupt inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

EXIT_STATUS = pytest.StashKey[int]()
MODEL_STORE = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Return the folder of real benchmark data that conformance tests read."""
    folder = os.environ.get("WINNOW_REFERENCE_DATA")
    if not folder:
        pytest.skip("WINNOW_REFERENCE_DATA is not set: no reference data to conform to")
    return Path(folder)


@pytest.fixture(scope="module")
def _evaluation_resources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let benchmarks run on one thread, which is faster for tiny models, and with a separate cache of data sets."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield
    torch.set_num_threads(num_threads)


def pytest_configure(config: pytest.Config) -> None:
    """Make the store of tiny models; worker processes use the store of the process that started them."""
    if STORE_VARIABLE not in os.environ:
        config.stash[MODEL_STORE] = os.environ[STORE_VARIABLE] = mkdtemp(prefix="winnow-test-models-")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember how the session ended, for `pytest_unconfigure`."""
    session.config.stash[EXIT_STATUS] = int(exitstatus)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the store of tiny models. End a process that loaded vLLM: its libraries may crash while Python exits."""
    store = config.stash.get(MODEL_STORE, None)
    if store is not None:
        shutil.rmtree(store)
    if "vllm" in sys.modules:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash.get(EXIT_STATUS, 1))

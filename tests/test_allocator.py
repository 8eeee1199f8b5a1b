"""keep_memory: the settings of glibc's allocator."""

import subprocess
import sys

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_the_allocator_accepts_its_settings() -> None:
    program = "from reward_server.engines.allocator import keep_memory; print(keep_memory())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "True\n"

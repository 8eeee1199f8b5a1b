"""The end of a winnow process: its exit code, and what it prints on stderr.

an error that a user can fix    one line on stderr; exit code 1, or 2 for wrong usage
an interruption                 exit code 130
a bug                           its traceback
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from winnow.errors import UsageError, WinnowError
from winnow.import_path import describe_shadowing

DISTRIBUTION = "winnow-rlaif"
# Optional module -> the extra that installs it; `all` where several extras do.
EXTRAS = {
    "vllm": "vllm",
    **dict.fromkeys(("starlette", "uvicorn"), "http"),
    **dict.fromkeys(("torch", "accelerate", "transformers", "huggingface_hub", "safetensors"), "server"),
    **dict.fromkeys(("jinja2", "pyarrow", "grpc_reflection", "prometheus_client", "sentencepiece"), "server"),
    **dict.fromkeys(("lm_eval", "fastchat", "openai", "matplotlib"), "eval"),
    "trl": "train",
    "datasets": "all",
}
INTERRUPTED = 130


class ErrorReport(NamedTuple):
    """An error that a user can fix: its one line, and the exit code."""

    message: str
    exit_code: int


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the process as this module describes if the block raises an error or is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if _is_interruption(error):
            sys.exit(INTERRUPTED)
        report = report_of(error)
        if report is None:
            raise
        print(f"winnow: {report.message}", file=sys.stderr)
        sys.exit(report.exit_code)


def end_when_interrupted() -> None:
    """Make any later interruption end this process at once, without cleanup.

    Python can lose a KeyboardInterrupt: it ignores exceptions in a destructor and wraps them during an import.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


def _is_interruption(error: BaseException | None) -> bool:
    """Tell whether a KeyboardInterrupt is the root cause; an import may wrap it in other errors."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def report_of(error: Exception) -> ErrorReport | None:
    """Return the report of an error that a user can fix; None for a bug, which keeps its traceback."""
    shadowing = describe_shadowing(error)
    if shadowing is not None:
        return ErrorReport(shadowing, UsageError.exit_code)
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            return None
        # pip finds this name where winnow is installed, from a checkout or a wheel, and adds the extra's libraries: the
        # distribution itself need not be on an index.
        return ErrorReport(f"{error}; this needs an extra: pip install '{DISTRIBUTION}[{extra}]'", 1)
    if isinstance(error, WinnowError):
        return ErrorReport(str(error), error.exit_code)
    if isinstance(error, OSError):  # from the system: a full disk, a folder without permission
        return ErrorReport(str(error), 1)
    return None

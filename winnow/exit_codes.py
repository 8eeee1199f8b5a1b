"""How a process of ours ends.

what a user can mend    one line on stderr; exit code 1, or 2 for wrong usage
an interruption         exit code 130
a bug                   its traceback
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from winnow.errors import WinnowError

# The extra of a library that an extra brings; of one that several bring, `all`.
EXTRAS = {
    "vllm": "vllm",
    **dict.fromkeys(("starlette", "uvicorn"), "http"),
    **dict.fromkeys(("torch", "accelerate", "transformers", "safetensors", "jinja2", "pyarrow"), "server"),
    **dict.fromkeys(("grpc_reflection", "prometheus_client", "sentencepiece"), "server"),
    **dict.fromkeys(("lm_eval", "fastchat", "openai", "matplotlib"), "eval"),
    "trl": "train",
}
INTERRUPTED = 130


@contextmanager
def said_in_one_line() -> Iterator[None]:
    """Let errors and interruptions of the block end the process as this page says."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if _is_interruption(error):
            sys.exit(INTERRUPTED)
        if (message := _message(error)) is None:
            raise
        print(f"winnow: {message}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, WinnowError) else 1)


def end_when_interrupted() -> None:
    """Let an interruption end this process at once from now on, with nothing to be cleared away.

    As an exception it could be lost where Python passes over those: in a destructor, while modules are imported.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


def _is_interruption(error: BaseException | None) -> bool:
    """Whether an interruption is what it began with: while modules are imported, Python makes other errors of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _message(error: Exception) -> str | None:
    """The one line for what a user can mend; None: a bug, whose traceback is wanted."""
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").partition(".")[0], "all")
        return f"{error}; this needs an extra: pip install 'winnow[{extra}]'"
    if isinstance(error, WinnowError | OSError):  # of the system: a full disk, a folder without permission
        return str(error)
    return None

"""The errors of winnow, as one tree.

    WinnowError                  exit code 1: the work failed
    |-- UsageError               exit code 2: the request cannot be fulfilled as it is
    |   |-- ConfigError          a config file, key or override is wrong
    |   |-- PreflightError       every fault of a run that was found before anything was computed, as a list
    |   `-- RunFolderError       the run folder exists, is missing, or belongs to another config
    |-- InputError               a line of a data file is malformed; the message names file and line
    |-- ChatError                a conversation cannot be rendered (role, order of turns, template)
    |   `-- ControlTokenError    a message of it holds a control token
    |-- ModelError               a model or tokenizer cannot be used
    |-- TrainingError            a training job cannot produce a useful model (no rows, no tokens in the loss)
    `-- ServerError              the reward server cannot be reached or refuses the request
        |-- ServerBusyError      its queue is full, and stayed full until the deadline
        |-- DeadlineError        it did not respond before the deadline
        `-- AuthError            it does not accept the caller's credentials

Every message names the given value, what is wrong with it, and the remedy; the command line prints it as one line, and
several faults of one run as a numbered list.
A bad *row* raises nothing: it is stored with its own status (see `winnow.records`).
"""

from collections.abc import Sequence


class WinnowError(Exception):
    """The work failed; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(WinnowError, ValueError):
    """A request that cannot be fulfilled as it is."""

    exit_code = 2


class ConfigError(UsageError):
    """A config file, key or override is wrong."""


class PreflightError(UsageError):
    """The faults of a run that were found before anything was computed: one as it is, several as a numbered list."""

    def __init__(self, faults: Sequence[str]) -> None:
        message = faults[0]
        if len(faults) > 1:
            numbered = [f"  {number}. {fault}" for number, fault in enumerate(faults, start=1)]
            message = "\n".join([f"{len(faults)} faults were found, and nothing was computed:", *numbered])
        super().__init__(message)
        self.faults = tuple(faults)


class RunFolderError(UsageError):
    """A run folder exists, is missing, or was made by another config."""


class InputError(WinnowError, ValueError):
    """A line of a data file is malformed."""


class ChatError(WinnowError, ValueError):
    """A conversation cannot be rendered; its row gets `status`."""

    status = "invalid_conversation"


class ControlTokenError(ChatError):
    """A message of a conversation holds a control token, which the model would read as structure."""

    status = "control_token"


class ModelError(WinnowError):
    """A model or tokenizer cannot be used."""


class TrainingError(WinnowError):
    """A training job cannot produce a useful model."""


class ServerError(WinnowError, ConnectionError):
    """The reward server cannot be reached or refuses the request."""


class ServerBusyError(ServerError):
    """The reward server's queue is full and stayed full; the call may be repeated after `retry_s` seconds."""

    def __init__(self, message: str, retry_s: float) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class DeadlineError(ServerError):
    """The reward server did not respond before the deadline."""


class AuthError(ServerError):
    """The reward server does not accept the caller's credentials."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, for messages of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

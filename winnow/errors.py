"""What can go wrong, as one tree.

    WinnowError                  exit code 1: the work failed
    |-- UsageError               exit code 2: what was asked cannot be done as asked
    |   |-- ConfigError          a config file, key or override is wrong
    |   `-- RunFolderError       the run folder exists, is missing, or belongs to another config
    |-- InputError               a line of a data file is malformed; names file and line
    |-- ChatError                a conversation cannot be rendered (role, order of turns, template)
    |   `-- ControlTokenError    a text of it holds a control token
    |-- ModelError               a model or tokenizer cannot be used
    |-- TrainingError            a training job cannot give a useful model (nothing to train on, zero loss mask)
    `-- ServerError              the reward server cannot be reached or refuses to answer
        |-- ServerBusyError      it is full, and stayed so until the deadline
        |-- DeadlineError            it gave no answer until the deadline
        `-- AuthError          it does not know the caller

Every message says what was given, what is wrong with it, and the ways out; the command line prints it as one line.
A bad *row* is no exception: it becomes a row with a status of its own (see `winnow.records`).
"""


class WinnowError(Exception):
    """The work failed; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(WinnowError, ValueError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class ConfigError(UsageError):
    """A config file, key or override is wrong."""


class RunFolderError(UsageError):
    """A run folder exists, is missing, or was made by another config."""


class InputError(WinnowError, ValueError):
    """A line of a data file is malformed."""


class ChatError(WinnowError, ValueError):
    """A conversation cannot be rendered; `status` is what a row of it gets."""

    status = "invalid_conversation"


class ControlTokenError(ChatError):
    """A text of a conversation holds a control token, which would be read as structure."""

    status = "control_token"


class ModelError(WinnowError):
    """A model or tokenizer cannot be used."""


class TrainingError(WinnowError):
    """A training job cannot give a useful model."""


class ServerError(WinnowError, ConnectionError):
    """The reward server cannot be reached or refuses to answer."""


class ServerBusyError(ServerError):
    """The reward server's queue is full and stayed so; it may be asked again after `retry_s` seconds."""

    def __init__(self, message: str, retry_s: float) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class DeadlineError(ServerError):
    """The reward server gave no answer until the deadline."""


class AuthError(ServerError):
    """The reward server does not know the caller."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for messages of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

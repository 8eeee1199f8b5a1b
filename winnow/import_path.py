"""The import path of winnow's processes: a user's folder must not take the place of one of winnow's packages.

    PYTHONSAFEPATH=1         in every process that winnow starts: Python does not import from the working directory
    describe_shadowing(...)  names a package that was taken from elsewhere all the same, as through PYTHONPATH

The packages have names that a user's project may have too: `sampler/`, `sft/`, `eval/`.
"""

import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("winnow", "reward_server", "sampler", "sft", "eval")
ROOT = Path(__file__).resolve().parent.parent  # the folder in which winnow's packages lie

_environment_lock = threading.Lock()


def child_environment() -> dict[str, str]:
    """Return the environment of a process that winnow starts: a copy, without imports from the working directory.

    A checkout that is not installed is put first on PYTHONPATH, because the child no longer finds it in the working
    directory.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if not _is_installed():
        folders = [str(ROOT)]
        if os.environ.get("PYTHONPATH"):
            folders.append(os.environ["PYTHONPATH"])
        environment["PYTHONPATH"] = os.pathsep.join(folders)
    return environment


@contextmanager
def inherited_environment() -> Iterator[None]:
    """Let processes that start within the block inherit `child_environment`; multiprocessing takes no environment."""
    with _environment_lock:
        changes = {key: value for key, value in child_environment().items() if os.environ.get(key) != value}
        before = {key: os.environ.get(key) for key in changes}
        os.environ.update(changes)
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value


def describe_shadowing(error: Exception) -> str | None:
    """Return a message if an error came from a package or module that took the place of one of winnow's, else None.

    The error came from there if an import from that package failed, or if its traceback passes through that folder.
    """
    for name in PACKAGES:
        path = _location(name)
        if path is None or path == ROOT / name:
            continue
        if _is_import_from(error, name) or _passes_through(error, path):
            return f"`{name}` at {path} shadows winnow's package of that name; {_remedy(path)}"
    return None


def _is_installed() -> bool:
    """Tell whether Python finds winnow's packages without the folder that it puts first for `python -m`."""
    folders = list(sys.path)
    if not sys.flags.safe_path:
        del folders[:1]
    return any(Path(folder).resolve() == ROOT for folder in folders if folder)


def _location(name: str) -> Path | None:
    """Return the folder or file from which Python imports a package; None if it finds none."""
    spec = find_spec(name)
    if spec is None:
        return None
    if spec.submodule_search_locations:  # a package
        return Path(spec.submodule_search_locations[0]).resolve()
    if spec.origin:  # a module in one file
        return Path(spec.origin).resolve()
    return None


def _is_import_from(error: Exception, package: str) -> bool:
    return isinstance(error, ImportError) and (error.name or "").partition(".")[0] == package


def _passes_through(error: Exception, path: Path) -> bool:
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        files.append(error.filename)
    return any(Path(file).resolve().is_relative_to(path) for file in files)


def _remedy(path: Path) -> str:
    folder = path.parent
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    is_on_python_path = any(Path(entry).resolve() == folder for entry in entries if entry)
    if folder == Path.cwd() and not is_on_python_path:
        return "call the `winnow` command instead of `python -m winnow.cli`, or work in another folder"
    return f"take {folder} off PYTHONPATH, or rename {path.name}"

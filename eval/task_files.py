"""The files that decide a local benchmark: task files, the templates they include, their functions and their data.

    tasks/*.yaml -> include (of any suffix) -> !function module.name -> module.py beside the file that names it
                 -> data_files, as paths or patterns under data_dir; a dataset_path that is a folder or a script

benchmark_inputs gives them, with their hashes and lm-eval's version, to the inputs of an evaluation. Relative data
paths start at the working directory, as in lm-eval.
"""

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from winnow.errors import InputError, first_line
from winnow.rows import file_sha256
from winnow.run_config import EvaluationConfig

IGNORED_FOLDERS = frozenset({"__pycache__"})


def benchmark_inputs(config: EvaluationConfig) -> list[list[str]]:
    """Return what decides the benchmarks' results besides model and config: lm-eval's version and hashes of files."""
    if not config.benchmarks:
        return []
    inputs = [["lm_eval", version("lm_eval")]]
    if config.task_dir is not None:
        inputs += [[str(path), file_sha256(path)] for path in data_files(config.task_dir)]
    return inputs


def data_files(task_dir: str | Path) -> list[Path]:
    """Return the files that decide the benchmarks of a folder of task files, sorted. Raises InputError for bad YAML."""
    files = set(_files_below(Path(task_dir)))
    for path in sorted(files):
        if path.suffix == ".yaml":
            files |= files_of_task(path)
    return sorted(files)


def files_of_task(path: Path) -> set[Path]:
    """Return a task file with all that it includes, calls and reads."""
    files: set[Path] = set()
    task = read_task(path, files)
    files.update(_data_of(task))
    return files


def read_task(path: Path, read: set[Path]) -> dict[str, Any]:
    """Return a task file merged with the files it includes; add these, and the modules of functions, to `read`.

    Raises InputError for a file that is not valid YAML, and for an included one that does not exist.
    """
    read.add(path)
    task = _parse(path)
    read.update(_modules_of(task, path.parent))
    names = task.pop("include", [])
    if isinstance(names, str):
        names = [names]
    merged: dict[str, Any] = {}
    for name in names:
        included = path.parent / name
        if included in read:
            continue
        if not included.is_file():
            raise InputError(f"{path}: it includes {name}, which does not exist; correct the path")
        merged |= read_task(included, read)
    return merged | task


def strings_of(tree: Any) -> Iterator[str]:
    """Yield the strings of nested mappings and lists."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for child in tree.values():
            yield from strings_of(child)
    elif isinstance(tree, list):
        for child in tree:
            yield from strings_of(child)


def data_folder(task: dict[str, Any]) -> Path:
    """Return the folder at which the data files of a task begin."""
    arguments = task.get("dataset_kwargs") or {}
    folder = Path(str(task.get("dataset_path")))
    if not folder.is_dir():
        folder = Path()
    return folder / (arguments.get("data_dir") or "")


def _data_of(task: dict[str, Any]) -> Iterator[Path]:
    """Yield the local data files of a task, and of the tasks that a group describes within its own file."""
    dataset_path = Path(str(task.get("dataset_path")))
    arguments = task.get("dataset_kwargs") or {}
    patterns = list(strings_of(arguments.get("data_files")))
    if dataset_path.is_dir():
        yield from _files_below(dataset_path)
    elif dataset_path.is_file():
        yield dataset_path
    if arguments.get("data_dir") and not patterns:
        yield from _files_below(data_folder(task))
    for pattern in patterns:
        for name in glob.glob(str(data_folder(task) / pattern), recursive=True):
            yield from _files_below(Path(name))
    children = task.get("task")
    if isinstance(children, list):
        for child in children:
            if isinstance(child, dict):
                yield from _data_of(child)


def _files_below(path: Path) -> Iterator[Path]:
    """Yield a file, or the files of a folder; compiled code and hidden files decide nothing."""
    if path.is_file():
        yield path
    for child in path.glob("**/*"):
        parts = child.relative_to(path).parts
        is_ignored = any(part.startswith(".") or part in IGNORED_FOLDERS for part in parts)
        if child.is_file() and not is_ignored:
            yield child


@dataclass(frozen=True)
class _TaskFunction:
    """The value of a tag `!function module.name`."""

    name: str


class _TaskLoader(yaml.SafeLoader):
    """A loader for lm-eval's task files; it keeps the names of functions and ignores the values of further tags."""


_TaskLoader.add_constructor("!function", lambda loader, node: _TaskFunction(str(node.value)))
_TaskLoader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _parse(path: Path) -> dict[str, Any]:
    try:
        task = yaml.load(path.read_text(), Loader=_TaskLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {first_line(error)}") from None
    if not isinstance(task, dict):
        return {}
    return task


def _modules_of(tree: Any, folder: Path) -> Iterator[Path]:
    """Yield the modules beside a task file whose functions it names."""
    children: list[Any] = []
    if isinstance(tree, _TaskFunction):
        module = folder / f"{tree.name.rpartition('.')[0].replace('.', '/')}.py"
        if module.is_file():
            yield module
    elif isinstance(tree, dict):
        children = list(tree.values())
    elif isinstance(tree, list):
        children = tree
    for child in children:
        yield from _modules_of(child, folder)

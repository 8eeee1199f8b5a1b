"""`winnow eval MODEL --suite card`: the benchmarks of the model cards on one checkpoint.

    OUTPUT/samples_gsm8k_card.jsonl      lm-eval's sample rows
    OUTPUT/task_gsm8k.json               lm-eval's results of one task, with a block "winnow"
    OUTPUT/results_card.json             lm-eval's results of all tasks, written last; `winnow compare` reads it

A task whose results are in OUTPUT with the same key (weights, data, settings, lm-eval's version) is not evaluated
again; results with another key are refused. Nothing is loaded onto a device before all tasks, data and shots are
checked.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from eval.quiet import quiet
from eval.suites.data_check import data_hash, data_problems
from eval.suites.definition import Suite, SuiteTask, card_suite, choose_tasks
from eval.suites.model_files import fetch_model
from eval.suites.overlay import load_suite_task, write_overlay
from eval.suites.result_files import (
    TaskFacts,
    merge_results,
    read_identity,
    results_path,
    task_path,
    write_task_results,
)
from eval.task_settings import TaskSettings, apply_settings, fewshot_split
from winnow.chat import load_tokenizer
from winnow.chat.tokenizer_hash import tokenizer_hash
from winnow.config import Dtype
from winnow.errors import UsageError
from winnow.fingerprint import weight_hash
from winnow.models import load_causal_lm
from winnow.records import digest
from winnow.rows import write_json

Engine = Literal["transformers", "vllm"]


@dataclass(frozen=True)
class SuiteRequest:
    """What `winnow eval MODEL --suite card` was called with."""

    model: str
    tasks: tuple[str, ...] = ()
    data: Path | None = None
    output: Path | None = None
    limit: int | None = None
    engine: Engine = "transformers"
    dtype: Dtype = "auto"
    batch_size: int | Literal["auto"] = 8
    is_chat: bool = False
    add_bos_token: bool | None = None
    generation_arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SuitePiece:
    """A task of the suite with its data, the settings it is evaluated with, and the facts of its results."""

    task: SuiteTask
    loaded: Any
    settings: TaskSettings
    facts: TaskFacts


def run_suite(request: SuiteRequest) -> Path:
    """Evaluate a checkpoint and return the folder of the results.

    Raises UsageError for wrong tasks, data or settings, and for results of another key in the output folder.
    """
    from lm_eval.tasks import TaskManager

    suite = card_suite()
    tasks = choose_tasks(suite, request.tasks)
    folder = fetch_model(request.model)
    with quiet(), TemporaryDirectory() as overlay:
        write_overlay(tasks, request.data, Path(overlay))
        manager = TaskManager(include_defaults=False, include_path=overlay)
        pieces = [_piece(request, suite, task, manager) for task in tasks]
        model_identity = _model_identity(request, folder)
        for piece in pieces:
            piece.facts.identity.update(model_identity)
    output = request.output or Path("eval-results") / _default_name(request, pieces)
    pending = [piece for piece in pieces if not _is_finished(output, piece)]
    if pending:
        _evaluate(request, folder, pending, output)
    write_json(results_path(output), merge_results([task_path(output, piece.task.name) for piece in pieces]))
    return output


def read_results(output: Path) -> dict[str, Any]:
    """Return the results of a suite, of all tasks."""
    results: dict[str, Any] = json.loads(results_path(output).read_text())
    return results


def _piece(request: SuiteRequest, suite: Suite, task: SuiteTask, manager: Any) -> SuitePiece:
    """Load a task with its data, and check it."""
    loaded = load_suite_task(manager, task, request.data)
    arguments: Mapping[str, Any] = {}
    if any(leaf.get_config("output_type") == "generate_until" for leaf in loaded["tasks"].values()):
        arguments = request.generation_arguments
    settings = TaskSettings(task.num_fewshot, request.limit, request.is_chat, arguments)
    apply_settings(task.name, loaded, settings)
    installed_hash = task.installed_hash()
    problems = data_problems(task, loaded, request.data)
    if installed_hash != task.task_hash:
        problems.append(f"the task files of {task.name} differ from those of lm-eval {suite.lm_eval}")
    identity = {
        "data": data_hash(loaded),
        "task_files": installed_hash,
        "num_fewshot": task.num_fewshot,
        "examples_from": fewshot_split(next(iter(loaded["tasks"].values()))),
        "limit": request.limit,
        "generation_arguments": dict(arguments),
    }
    return SuitePiece(task, loaded, settings, TaskFacts(identity, problems))


def _model_identity(request: SuiteRequest, folder: str) -> dict[str, Any]:
    """Return what the results of all tasks depend on: the model, and how it is computed."""
    return {
        "weights": weight_hash(folder),
        "tokenizer": tokenizer_hash(load_tokenizer(folder)),
        "lm_eval": version("lm_eval"),
        "engine": request.engine,
        "dtype": request.dtype,
        "chat_template": request.is_chat,
        "add_bos_token": request.add_bos_token,
    }


def _default_name(request: SuiteRequest, pieces: Sequence[SuitePiece]) -> str:
    """Return a folder's name of the model and of the key of all tasks."""
    keys = [piece.facts.key for piece in pieces]
    return f"{Path(request.model).name}-{digest(keys)[:8]}"


def _is_finished(output: Path, piece: SuitePiece) -> bool:
    """Tell whether the results of a task are there. Raises UsageError for results of another key."""
    path = task_path(output, piece.task.name)
    stored = read_identity(path)
    if stored is None:
        return False
    differing = [name for name, value in piece.facts.identity.items() if stored.get(name) != value]
    if differing:
        raise UsageError(
            f"{path} holds results of other settings or data ({', '.join(differing)}); give another --output"
        )
    return True


def _evaluate(request: SuiteRequest, folder: str, pieces: Sequence[SuitePiece], output: Path) -> None:
    """Load the model and evaluate the tasks, each of which is stored when it is finished."""
    from eval.harness import evaluate
    from sampler.engines.transformers import isolated_random_state

    with quiet(), isolated_random_state(0):
        lm = _open_model(request, folder)
        for piece in pieces:
            task_run = evaluate(lm, piece.loaded, piece.settings, piece.task.name)
            write_task_results(output, request.model, lm, piece.task, piece.settings, piece.facts, task_run)


def _open_model(request: SuiteRequest, folder: str) -> Any:
    from eval.harness import open_lm, open_vllm_lm

    if request.engine == "vllm":
        return open_vllm_lm(folder, request.dtype, add_bos_token=request.add_bos_token)
    model = load_causal_lm(folder, dtype=request.dtype, use="evaluation").eval()
    tokenizer = load_tokenizer(folder)
    return open_lm(model, tokenizer, request.batch_size, add_bos_token=request.add_bos_token)

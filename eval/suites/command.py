"""The flags of `winnow eval MODEL --suite card`, checked, and the lines that it prints."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from eval.suites.report import suite_lines
from eval.suites.run import Engine, SuiteRequest, read_results, run_suite
from winnow.config import Dtype
from winnow.errors import UsageError


@dataclass(frozen=True)
class SuiteFlags:
    """The flags as they were given."""

    model: str
    tasks: str | None
    data: Path | None
    output: Path | None
    limit: int | None
    engine: str | None
    dtype: str | None
    batch_size: str | None
    is_chat: bool
    add_bos_token: bool | None
    generation_arguments: str | None


def evaluate_suite(flags: SuiteFlags) -> Iterator[str]:
    """Evaluate a checkpoint on a suite and yield the lines of its table. Raises UsageError for a wrong flag."""
    output = run_suite(request_of(flags))
    yield from suite_lines(read_results(output))
    yield f"{output}"


def request_of(flags: SuiteFlags) -> SuiteRequest:
    """Return the request that the flags make. Raises UsageError for a wrong value, with the right ones."""
    engine = flags.engine or "transformers"
    dtype = flags.dtype or "auto"
    _check_choice("--engine", engine, get_args(Engine))
    _check_choice("--dtype", dtype, get_args(Dtype))
    return SuiteRequest(
        model=flags.model,
        tasks=tuple(name.strip() for name in (flags.tasks or "").split(",") if name.strip()),
        data=flags.data,
        output=flags.output,
        limit=flags.limit,
        engine=engine,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
        batch_size=_batch_size(flags.batch_size or "8"),
        is_chat=flags.is_chat,
        add_bos_token=flags.add_bos_token,
        generation_arguments=_arguments(flags.generation_arguments),
    )


def _check_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{flag} {value!r} is unknown; give {' or '.join(choices)}")


def _batch_size(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise UsageError(f"--batch-size {text!r} is neither a number above 0 nor auto")


def _arguments(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise UsageError(f'--generation-arguments {text!r} is not a JSON object like {{"max_gen_toks": 512}}')
    return arguments

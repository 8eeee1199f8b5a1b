"""Flags of a judge, which the verbs that judge answers have."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from winnow.cli.flags import with_flags

References = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Reference answers, for math, reasoning and coding.")
]
JudgePrompts = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Judge prompts; unset: judge_prompts.jsonl beside or above the questions."),
]
Rejudge = Annotated[
    int, typer.Option(min=0, metavar="N", help="Judge everything N times more, and show the judge's noise.")
]
# A field of JudgeFlags -> the flag --judge-FIELD with its default.
JUDGE_FLAGS: dict[str, tuple[Any, Any]] = {
    "model": (Annotated[str | None, typer.Option(metavar="NAME", help="The judge's name at its endpoint.")], None),
    "base_url": (
        Annotated[
            str | None,
            typer.Option(metavar="URL", help="Its endpoint, like http://localhost:8000/v1; unset: OpenAI's."),
        ],
        None,
    ),
    "temperature": (Annotated[str, typer.Option(help="Temperature of the judge, or none: not sent.")], "0"),
    "max_tokens": (
        Annotated[int, typer.Option(min=1, help="Longest reply of the judge, reasoning included.")],
        2048,
    ),
    "max_tokens_name": (Annotated[str, typer.Option(help="max_tokens or max_completion_tokens.")], "max_tokens"),
    "timeout_s": (Annotated[float, typer.Option("--judge-timeout-s", help="Longest wait for a reply.")], 600.0),
    "num_parallel": (Annotated[int, typer.Option(min=1, help="Most calls at a time.")], 32),
}


def with_judge_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the flags of a judge. The verb receives them all in its parameter `judge_flags`, by field."""
    flags: list[inspect.Parameter] = []
    for field, (annotation, default) in JUDGE_FLAGS.items():
        flags.append(
            inspect.Parameter(f"judge_{field}", inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )

    def by_field(**values: Any) -> dict[str, Any]:
        return {name.removeprefix("judge_"): value for name, value in values.items()}

    return with_flags(verb, "judge_flags", flags, by_field)

"""The files of `winnow card`, beside each other as in a model's repository on the hub.

README.md               --output: the card with its front matter
.eval_results/*.yaml    GSM8K, one file per variant
every_eval_ever.json    every result with its interval
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.publishing.card import card_text
from eval.publishing.content import CardContent, read_content
from eval.publishing.every_eval_ever import direction_of, every_eval_ever
from eval.publishing.metadata import hub_eval_results
from winnow.errors import UsageError
from winnow.rows import write_json, write_text


@dataclass(frozen=True)
class CardRequest:
    """The arguments of `winnow card`."""

    results: Sequence[str]
    output: Path
    name: str | None = None
    questions: Path | None = None
    organization: str = "unknown"
    max_unreadable: float = 0.1


def write_card(request: CardRequest) -> list[Path]:
    """Write the card and the files beside it; return their paths. Raises UsageError for a folder as output."""
    if request.output.is_dir():
        raise UsageError(f"{request.output} is a folder; give the card's file, like {request.output}/README.md")
    content = read_content(request.results, request.name, request.questions, request.max_unreadable)
    _warn_of_directions(content)
    paths = [request.output]
    write_text(request.output, card_text(content))
    for name, text in hub_eval_results(content).items():
        paths.append(request.output.parent / ".eval_results" / name)
        write_text(paths[-1], text)
    paths.append(request.output.parent / "every_eval_ever.json")
    write_json(paths[-1], every_eval_ever(content, request.organization, int(time.time())))
    return paths


def _warn_of_directions(content: CardContent) -> None:
    """Name the results that Every Eval Ever has no place for."""
    for result in content.tasks:
        if direction_of(result) is None:
            print(
                f"warning: {result.task} {result.metric} is left out of every_eval_ever.json, since it is not known "
                "whether a higher value is better",
                file=sys.stderr,
            )

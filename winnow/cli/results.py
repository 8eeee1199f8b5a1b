"""The verbs of results that exist: compare, card, export."""

from pathlib import Path
from typing import Annotated

import typer

from winnow.cli.application import Verb
from winnow.cli.flags import (
    MaxUnreadable,
    RunFolder,
)

verbs = typer.Typer()


@verbs.command(cls=Verb, epilog="Example: winnow compare out/start out/round-2 --only 'arc_challenge acc_norm,none'")
def compare(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULT...",
            help="Two or more, the baseline first: a round's eval folder, a folder or results_*.json of lm-eval, or a "
            "judgment file of FastChat's, FILE#MODEL if it holds several models.",
        ),
    ],
    rounds: Annotated[bool, typer.Option("--rounds", help="Each RESULT is a run; compare all its rounds.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A task, a task with its metric, or 'judged score'; may be repeated."),
    ] = None,
    judge: Annotated[str | None, typer.Option(help="The judge to read where a file holds several.")] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Judged answers, for the difference at equal length; may be repeated."),
    ] = None,
    max_unreadable: MaxUnreadable = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare results that exist: paired differences, intervals and tests; refuse what does not compare."""
    from eval.compare.comparison import print_comparison
    from eval.compare.reading import ReadingOptions

    options = ReadingOptions(rounds, judge, max_unreadable, tuple(answers or ()))
    print_comparison(results, options, only or (), is_json=as_json)


@verbs.command(cls=Verb, epilog="Example: winnow card runs/miniature --output models/miniature-peak/README.md")
def card(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|RESULT...", help="A finished run, or results of one model as `winnow compare` takes."
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The card, README.md; further files go beside it.")],
    name: Annotated[str | None, typer.Option(help="Name of the model; unset: the run's, or the result's.")] = None,
    questions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The judged questions, for MT-Bench by category.")
    ] = None,
    organization: Annotated[str, typer.Option(help="Who evaluated, for Every Eval Ever.")] = "unknown",
    max_unreadable: MaxUnreadable = 0.1,
) -> None:
    """Write a model card with results, and the results for the hub and Every Eval Ever beside it."""
    from eval.publishing.writing import CardRequest, write_card

    for path in write_card(CardRequest(results, output, name, questions, organization, max_unreadable)):
        print(path)


@verbs.command(cls=Verb, epilog="Example: winnow export runs/miniature --output models/miniature-peak")
def export(
    run_dir: RunFolder,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to make.")],
) -> None:
    """Write the peak checkpoint as a folder that transformers and vLLM load with its chat template."""
    from eval.publishing.export import export_peak
    from winnow.rundir import open_run

    print(export_peak(open_run(run_dir, is_read_only=True), output))

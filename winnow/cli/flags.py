"""Arguments and flags that several verbs have; those of a reward are made from winnow/reward_options.py."""

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from winnow.reward_options import RewardOptions, choices_of, option_text

RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A folder that `winnow run` made.")]
RoundNumber = Annotated[int, typer.Option("--round", min=0, help="Number of the round.")]
Address = Annotated[str, typer.Option(metavar="HOST:PORT", help="A reward server, or several separated by commas.")]
TokenFile = Annotated[Path | None, typer.Option(metavar="FILE", help="The bearer token that the server requires.")]
TlsCa = Annotated[Path | None, typer.Option(metavar="PEM", help="Authorities that vouch for the server; turns TLS on.")]
TlsCertificate = Annotated[Path | None, typer.Option(metavar="PEM", help="Your own certificate, for mutual TLS.")]
TlsKey = Annotated[Path | None, typer.Option(metavar="PEM", help="Its private key.")]
Timeout = Annotated[
    float, typer.Option("--timeout-s", help="Longest wait for one prompt, including a restart of the server.")
]
MaxUnreadable = Annotated[
    float,
    typer.Option(min=0, max=1, metavar="SHARE", help="Share of unreadable verdicts above which a mean is refused."),
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys to set, by dotted path.")]


def with_reward_flags(*options: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb a flag for each of these reward options. The verb receives them all in its parameter `options`."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        return with_flags(verb, "options", [_reward_flag(option) for option in options], RewardOptions)

    return decorate


def with_flags(
    verb: Callable[..., None], name: str, flags: Sequence[inspect.Parameter], bundle: Callable[..., Any]
) -> Callable[..., None]:
    """Return a verb that has these flags in place of the parameter `name`, which receives their bundle."""

    @functools.wraps(verb)
    def verb_with_flags(**arguments: Any) -> None:
        values = {flag.name: arguments.pop(flag.name) for flag in flags}
        verb(**arguments, **{name: bundle(**values)})

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        if parameter.name == name:
            parameters += flags
        else:
            parameters.append(parameter)
    # Typer makes its flags from the signature.
    verb_with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return verb_with_flags


def _reward_flag(option: str) -> inspect.Parameter:
    """Return the flag of a reward option: `is_reference_free` is `--reference-free`, with the definition's words."""
    field = RewardOptions.model_fields[option]
    text = option_text(option)
    # A choice is a text here, so that RewardOptions reports a wrong one.
    kind: Any = field.annotation
    if choices_of(option):
        kind = str
    help_text = text.meaning
    if choices_of(option) or kind in (int, float):
        help_text = f"{text.meaning.removesuffix('.')} ({text.values})."
    if field.default is None:
        kind = kind | None
        help_text = f"{help_text} Unset: {text.default}."
    flag = option.removeprefix("is_").removeprefix("want_").replace("_", "-")
    annotation = Annotated[kind, typer.Option(f"--{flag}", help=help_text)]
    return inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)

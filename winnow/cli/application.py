"""The app that holds the verbs, and the class of a verb."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from winnow.errors import UsageError


class Verb(TyperCommand):
    """A command that refuses a repeated option, which Click would replace silently by its last value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse like TyperCommand, but reject a repeated option. Raises UsageError."""
        _, _, options = self.make_parser(ctx).parse_args(list(args))
        for option in options:
            num_times = options.count(option)
            if option.param_type_name == "option" and not option.multiple and num_times > 1:
                raise UsageError(f"{option.opts[0]} is given {num_times} times; give it once")
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example on one line: wrapped, it could break inside a flag."""
        formatter.write(f"\n  {self.epilog}\n")


class ServeVerb(Verb):
    """A verb whose help also lists the keys of a serve config."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options like TyperCommand, then the config keys."""
        from winnow.config import key_meanings
        from winnow.serve_config import ServeConfig

        super().format_options(ctx, formatter)
        with formatter.section("Keys, in CONFIG.yaml or as KEY=VALUE"):
            formatter.write_dl(list(key_meanings(ServeConfig)))


app = typer.Typer(
    name="winnow",
    help="Sample many, keep the best, train on it, repeat; stop at the peak.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        from winnow import __version__

        print(f"winnow {__version__}")
        raise typer.Exit

"""The command line: one verb per stage, each loaded only when it is called, so that `--help` needs no torch.

winnow run examples/miniature/config.yaml
"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from winnow.errors import UsageError
from winnow.exit_codes import end_when_interrupted, said_in_one_line


class Verb(TyperCommand):
    """A command that refuses an option given twice, of which one would be passed over in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As of every command. Raises UsageError."""
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option in given:
            if option.param_type_name == "option" and not option.multiple and given.count(option) > 1:
                raise UsageError(f"{option.opts[0]} is given {given.count(option)} times; give it once")
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The example as it is: wrapped, it could break inside a flag."""
        formatter.write(f"\n  {self.epilog}\n")


class ServeVerb(Verb):
    """A verb whose help lists the keys of a serve config too."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """As of every command, and the keys."""
        from winnow.config import key_rows
        from winnow.serve_config import ServeConfig

        super().format_options(ctx, formatter)
        with formatter.section("Keys, in CONFIG.yaml or as KEY=VALUE"):
            formatter.write_dl(list(key_rows(ServeConfig)))


app = typer.Typer(
    name="winnow",
    help="Sample many, keep the best, train on it, repeat; stop at the peak.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A folder that `winnow run` made.")]
RoundNumber = Annotated[int, typer.Option("--round", min=0, help="Which round.")]
Address = Annotated[str, typer.Option(metavar="HOST:PORT", help="A reward server, or several with commas between.")]
TokenFile = Annotated[Path | None, typer.Option(metavar="FILE", help="The bearer token that the server asks for.")]
TlsCa = Annotated[Path | None, typer.Option(metavar="PEM", help="Authorities that vouch for the server; turns TLS on.")]
TlsCertificate = Annotated[Path | None, typer.Option(metavar="PEM", help="Your own certificate, for mutual TLS.")]
TlsKey = Annotated[Path | None, typer.Option(metavar="PEM", help="Its private key.")]
Normalization = Annotated[str, typer.Option(help="sum or mean (per token).")]
Beta = Annotated[float, typer.Option(help="Scale of the reward.")]
EosPolicy = Annotated[
    str | None,
    typer.Option(
        help="Score the closing token: include, exclude or if_finished; unset: the recipe's own (if_finished)."
    ),
]
ReferenceFree = Annotated[bool, typer.Option("--reference-free", help="Use the instruct model alone.")]
Instruction = Annotated[str, typer.Option(help="The rules of a domain, put before the first user message.")]
InstructionScope = Annotated[str, typer.Option(help="Which models read them: both or instruct_only.")]
Recipe = Annotated[str, typer.Option(help="winnow or rewardbench.")]
Timeout = Annotated[float, typer.Option("--timeout-s", help="Longest wait for one prompt, a restart included.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys to set, by dotted path.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        from winnow import __version__

        print(f"winnow {__version__}")
        raise typer.Exit


@app.command(cls=Verb, epilog="Example: winnow run configs/merlinite-7b-pt.yaml rounds.num_rounds=2 --dry-run")
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The recipe.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and do nothing.")] = False,
) -> None:
    """Run a recipe: SFT start, rounds of best-of-N, evaluation, peak."""
    from winnow.config import load_config
    from winnow.run_config import RunConfig

    resolved = load_config(config, RunConfig, overrides or [])
    if dry_run:
        _entry("sampler.plan:print_plan")(resolved)
        return
    from winnow.rundir import locked, run_root, start_run
    from winnow.stages import run_in_subprocess, run_inline

    stage = run_in_subprocess if resolved.stages == "subprocess" else run_inline
    with locked(run_root(resolved)):
        _entry("sampler.rounds:run_rounds")(start_run(resolved, is_resumed=resume), stage)


@app.command(cls=Verb, epilog="Example: winnow status runs/miniature --json")
def status(
    run_dir: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a run has finished and what comes next."""
    from winnow.rundir import open_run
    from winnow.status import print_status

    print_status(open_run(run_dir), as_json=as_json)


@app.command(
    cls=ServeVerb,
    epilog="Example: winnow serve --instruct models/mixtral-instruct --base models/mixtral --listen 127.0.0.1:50051",
)
def serve(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="A serve config.")] = None,
    overrides: Overrides = None,
    instruct: Annotated[str | None, typer.Option(help="Folder or hub id of the instruct model.")] = None,
    base: Annotated[str | None, typer.Option(help="Folder or hub id of the base model.")] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0 is a free one.")
    ] = None,
    until_stdin_closes: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Host a pair of models over gRPC and answer log-ratio rewards."""
    end_when_interrupted()
    from winnow.config import load_config
    from winnow.serve_config import ServeConfig

    keys = overrides or []
    if config is not None and "=" in str(config) and not config.exists():
        config, keys = None, [str(config), *keys]
    given = {"instruct": instruct, "base": base, "listen": listen}
    flags = {key: value for key, value in given.items() if value is not None}
    if config is None:
        _check_pair_is_given({*flags, *(key.partition("=")[0] for key in keys)})
    resolved = load_config(config, ServeConfig, keys, flags)
    _entry("reward_server.serving.server:serve")(resolved, stop_when_stdin_closes=until_stdin_closes)


@app.command(cls=Verb, epilog="Example: winnow score --address localhost:50051 --input in.jsonl --output out.jsonl")
def score(
    address: Address,
    in_path: Annotated[Path, typer.Option("--input", help='JSONL rows: {"messages" or "prompt", "completions"}.')],
    out_path: Annotated[Path, typer.Option("--output", help='The same rows with "rewards".')],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an output that was stopped.")] = False,
    normalization: Normalization = "sum",
    beta: Beta = 1.0,
    eos_policy: EosPolicy = None,
    reference_free: ReferenceFree = False,
    token_logprobs: Annotated[
        bool, typer.Option("--token-logprobs", help="Also write every token's log-probabilities.")
    ] = False,
    instruction: Instruction = "",
    instruction_scope: InstructionScope = "both",
    recipe: Recipe = "winnow",
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    timeout_s: Timeout = 600.0,
) -> None:
    """Score completions on a reward server."""
    job = _entry("reward_server.client.score_file:ScoreJob")(
        access=_entry("reward_server.client.connection:open_connection_settings")(
            address, token_file, tls_ca, tls_certificate, tls_key
        ),
        in_path=in_path,
        out_path=out_path,
        options=_entry("reward_server.client.requests:RewardOptions")(
            normalization=normalization,
            beta=beta,
            eos_policy=eos_policy,
            is_reference_free=reference_free,
            want_token_logprobs=token_logprobs,
            instruction=instruction,
            instruction_scope=instruction_scope,
            recipe=recipe,
        ),
        timeout_s=timeout_s,
        is_resumed=resume,
    )
    counts = _entry("reward_server.client.score_file:score_file")(job)
    statuses = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    print(f"{out_path}: {statuses or 'no completions'}")


@app.command(cls=Verb, epilog="Example: winnow gateway --address localhost:50051 --listen 127.0.0.1:8000")
def gateway(
    address: Address,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0 is a free one.")
    ] = "127.0.0.1:8000",
    allow_insecure: Annotated[
        bool, typer.Option("--allow-insecure", help="Listen beyond loopback: plain HTTP, open to whoever reaches it.")
    ] = False,
    prompt_prefix: Annotated[str, typer.Option(help="Text before the user's turn in a rendered prompt.")] = "",
    prompt_suffix: Annotated[str, typer.Option(help="Text after it, up to the completion.")] = "",
    prompt_from: Annotated[
        str, typer.Option(help="Field of /get_reward with the prompt: prompts, or labels (a list of messages).")
    ] = "prompts",
    eos: Annotated[
        list[str] | None, typer.Option(help="Text that ends a finished completion, like '</s>'; may be repeated.")
    ] = None,
    unscorable_reward: Annotated[
        float | None, typer.Option(help="Reward of what cannot be scored; unset: an error of its own.")
    ] = None,
    wait_ms: Annotated[float, typer.Option(help="How long a post waits for others of its prompt.")] = 5.0,
    normalization: Normalization = "sum",
    beta: Beta = 1.0,
    eos_policy: EosPolicy = None,
    reference_free: ReferenceFree = False,
    instruction: Instruction = "",
    instruction_scope: InstructionScope = "both",
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    timeout_s: Timeout = 150.0,
) -> None:
    """Answer OpenRLHF's remote rewards and vLLM-style /score over HTTP, from a reward server."""
    _entry("reward_server.adapters.http:serve")(
        access=_entry("reward_server.client.connection:open_connection_settings")(
            address, token_file, tls_ca, tls_certificate, tls_key
        ),
        listen=listen,
        is_insecure_allowed=allow_insecure,
        form=_entry("reward_server.adapters.openrlhf:PromptForm")(
            prompt_prefix, prompt_suffix, tuple(eos or ()), prompt_from
        ),
        options=_entry("reward_server.client.requests:RewardOptions")(
            normalization=normalization,
            beta=beta,
            eos_policy=eos_policy,
            is_reference_free=reference_free,
            instruction=instruction,
            instruction_scope=instruction_scope,
        ),
        unscorable_reward=unscorable_reward,
        wait_s=wait_ms / 1000,
        timeout_s=timeout_s,
    )


@app.command(cls=Verb, epilog="Example: winnow sample runs/miniature --round 1")
def sample(run_dir: RunFolder, round_number: RoundNumber = 1) -> None:
    """Do one round's sample stage of a run: N completions of each prompt."""
    _stage("sample", run_dir, round_number, first=1)


@app.command(cls=Verb, epilog="Example: winnow select runs/miniature --round 1")
def select(run_dir: RunFolder, round_number: RoundNumber = 1) -> None:
    """Do one round's select stage of a run: keep the best completion of each prompt."""
    _stage("select", run_dir, round_number, first=1)


@app.command(cls=Verb, epilog="Example: winnow sft runs/miniature --round 0")
def sft(run_dir: RunFolder, round_number: RoundNumber = 0) -> None:
    """Do one round's SFT of a run; round 0 is the LAB start."""
    _stage("train" if round_number else "start", run_dir, round_number)


@app.command("eval", cls=Verb, epilog="Example: winnow eval runs/miniature --round 2")
def evaluate(run_dir: RunFolder, round_number: RoundNumber = 0) -> None:
    """Do one round's evaluation of a run: benchmarks and judged questions."""
    _stage("evaluate", run_dir, round_number)


@app.command(cls=Verb, epilog="Example: winnow peak runs/miniature")
def peak(run_dir: RunFolder) -> None:
    """Pick the peak checkpoint of a run's evaluated rounds; write peak.json and the chart."""
    from winnow.rundir import open_run

    _stage("peak", run_dir, open_run(run_dir).config.rounds.num_rounds)


def _stage(name: str, run_dir: Path, number: int, first: int = 0) -> None:
    from winnow.rundir import locked, open_run
    from winnow.stages import run_inline

    folder = open_run(run_dir)
    last = folder.config.rounds.num_rounds
    if not first <= number <= last:
        raise UsageError(f"{run_dir} has rounds {first} to {last}; --round {number} is none of them")
    with locked(folder.root):
        run_inline(name, folder, number)


def _entry(name: str) -> Any:
    from winnow.stages import entry_point

    return entry_point(name)


def _check_pair_is_given(names: set[str]) -> None:
    """Raise UsageError unless flags and keys name both models."""
    missing = [name for name in ("instruct", "base") if name not in names]
    if len(missing) == 1:
        given = "base" if missing == ["instruct"] else "instruct"
        raise UsageError(f"{given} is given and {missing[0]} is missing; give --{missing[0]} DIR too, or a CONFIG.yaml")
    if missing:
        raise UsageError("give CONFIG.yaml, or --instruct DIR and --base DIR")


def main() -> None:
    """Run the command line; how it ends stands in winnow/exit_codes.py."""
    # What gRPC's core logs of a failed connection stands in our own message too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with said_in_one_line():
        app()


if __name__ == "__main__":
    main()

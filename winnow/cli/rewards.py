"""The verbs of the reward server: serve, score, gateway."""

from pathlib import Path
from typing import Annotated

import typer

from winnow.cli.application import ServeVerb, Verb
from winnow.cli.flags import (
    Address,
    Overrides,
    Timeout,
    TlsCa,
    TlsCertificate,
    TlsKey,
    TokenFile,
    with_reward_flags,
)
from winnow.errors import UsageError
from winnow.exit_codes import end_when_interrupted
from winnow.reward_options import RewardOptions, RewardSpec

verbs = typer.Typer()


@verbs.command(
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
    """Host a pair of models over gRPC and return log-ratio rewards."""
    end_when_interrupted()
    from winnow.config import load_config
    from winnow.serve_config import ServeConfig

    keys = overrides or []
    if config is not None and "=" in str(config) and not config.exists():
        # The only argument is an override, not a file.
        keys = [str(config), *keys]
        config = None
    flags = {"instruct": instruct, "base": base, "listen": listen}
    set_flags = {key: value for key, value in flags.items() if value is not None}
    if config is None:
        _check_pair_is_complete({*set_flags, *(key.partition("=")[0] for key in keys)})
    resolved = load_config(config, ServeConfig, keys, set_flags)
    from reward_server.serving.server import serve as serve_rewards

    serve_rewards(resolved, stop_when_stdin_closes=until_stdin_closes)


@verbs.command(cls=Verb, epilog="Example: winnow score --address localhost:50051 --input in.jsonl --output out.jsonl")
@with_reward_flags(*RewardOptions.model_fields)
def score(
    address: Address,
    in_path: Annotated[Path, typer.Option("--input", help='JSONL rows: {"messages" or "prompt", "completions"}.')],
    out_path: Annotated[Path, typer.Option("--output", help='The same rows with "rewards".')],
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an output that was stopped.")] = False,
    options: RewardOptions,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    timeout_s: Timeout = 600.0,
) -> None:
    """Score completions on a reward server."""
    from reward_server.client import open_connection_settings
    from reward_server.client.score_file import ScoreJob, score_file

    job = ScoreJob(
        connection=open_connection_settings(address, token_file, tls_ca, tls_certificate, tls_key),
        in_path=in_path,
        out_path=out_path,
        options=options,
        timeout_s=timeout_s,
        is_resumed=resume,
    )
    counts = score_file(job)
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    print(f"{out_path}: {statuses or 'no completions'}")


@verbs.command(cls=Verb, epilog="Example: winnow gateway --address localhost:50051 --listen 127.0.0.1:8000")
@with_reward_flags(*(option for option in RewardSpec.model_fields if option != "recipe"))
def gateway(
    address: Address,
    *,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0 is a free one.")
    ] = "127.0.0.1:8000",
    allow_insecure: Annotated[
        bool, typer.Option("--allow-insecure", help="Listen beyond loopback: plain HTTP, open to everyone.")
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
        float | None, typer.Option(help="Reward of a completion that cannot be scored; unset: an error.")
    ] = None,
    wait_ms: Annotated[float, typer.Option(help="How long a request waits for others with its prompt.")] = 5.0,
    options: RewardOptions,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    timeout_s: Timeout = 150.0,
) -> None:
    """Serve rewards over HTTP: OpenRLHF's remote rewards and vLLM-style /score."""
    from reward_server.adapters.http import serve as serve_http
    from reward_server.adapters.openrlhf import PromptForm
    from reward_server.client import open_connection_settings

    serve_http(
        connection=open_connection_settings(address, token_file, tls_ca, tls_certificate, tls_key),
        listen=listen,
        is_insecure_allowed=allow_insecure,
        form=PromptForm(prompt_prefix, prompt_suffix, tuple(eos or ()), prompt_from),
        options=options,
        unscorable_reward=unscorable_reward,
        wait_s=wait_ms / 1000,
        timeout_s=timeout_s,
    )


def _check_pair_is_complete(keys: set[str]) -> None:
    """Raise UsageError unless the keys of flags and overrides name both models."""
    present = [key for key in ("instruct", "base") if key in keys]
    missing = [key for key in ("instruct", "base") if key not in keys]
    if not present:
        raise UsageError("give CONFIG.yaml, or --instruct DIR and --base DIR")
    if missing:
        raise UsageError(
            f"{present[0]} is given and {missing[0]} is missing; give --{missing[0]} DIR too, or a CONFIG.yaml"
        )

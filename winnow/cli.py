"""The command line: the composition root, which knows every package.

    winnow run examples/miniature/config.yaml

A package is imported when a verb needs it, so that `--help` needs no torch. The flags of the reward options are made
from winnow/reward_options.py.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from winnow.errors import UsageError
from winnow.exit_codes import end_when_interrupted, exit_on_error
from winnow.import_path import child_environment
from winnow.reward_options import RewardOptions, RewardSpec, choices_of, option_text
from winnow.suite_flags import CARD, MT_BENCH, SUITES, check_suite_flags, suites_of

if TYPE_CHECKING:
    from winnow.inspection import Inspection
    from winnow.run_config import RunConfig
    from winnow.rundir import Run


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


class EvalVerb(Verb):
    """A verb whose help lists the flags of each suite apart."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options like TyperCommand, but in sections by suite."""
        titles: dict[tuple[str, ...], str] = {
            (): "Arguments and options",
            SUITES: "Options of every suite",
            (CARD,): f"Options of --suite {CARD}",
            (MT_BENCH,): f"Options of --suite {MT_BENCH}",
        }
        for suites, title in titles.items():
            parameters = [parameter for parameter in self.get_params(ctx) if suites_of(str(parameter.name)) == suites]
            records = [parameter.get_help_record(ctx) for parameter in parameters]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


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
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys to set, by dotted path.")]


def with_reward_flags(*options: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb a flag for each of these reward options. The verb receives them all in its parameter `options`."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        return _with_flags(verb, "options", [_reward_flag(option) for option in options], RewardOptions)

    return decorate


def with_judge_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the flags of a judge. The verb receives them all in its parameter `judge_flags`, by field."""
    flags: list[inspect.Parameter] = []
    for field, (annotation, default) in JUDGE_FLAGS.items():
        flags.append(
            inspect.Parameter(f"judge_{field}", inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )

    def by_field(**values: Any) -> dict[str, Any]:
        return {name.removeprefix("judge_"): value for name, value in values.items()}

    return _with_flags(verb, "judge_flags", flags, by_field)


def _with_flags(
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
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, check its files, do nothing.")] = False,
) -> None:
    """Run a recipe: SFT start, rounds of best-of-N, evaluation, peak."""
    from winnow.config import load_config
    from winnow.run_config import RunConfig

    resolved = load_config(config, RunConfig, overrides or [])
    if dry_run:
        _plan_run(resolved, is_resumed=resume)
        return
    from sampler.rounds import run_rounds
    from winnow.inspection import Inspection
    from winnow.rundir import locked, run_root, start_run
    from winnow.stages import run_in_subprocess, run_inline

    stage = run_inline
    if resolved.stages == "subprocess":
        stage = run_in_subprocess
    with locked(run_root(resolved)):
        started_run = start_run(resolved, is_resumed=resume)
        inspection = Inspection(started_run, is_dry=False, finished_pieces=started_run.ledger.pieces())
        _inspect(inspection)
        inspection.print_findings(sys.stderr)
        inspection.raise_faults()
        run_rounds(started_run, stage)


def _plan_run(config: "RunConfig", *, is_resumed: bool) -> None:
    """Print the plan of a run and what its checks find. Raises PreflightError with every fault."""
    from sampler.plan import print_plan
    from winnow.inspection import Inspection
    from winnow.rundir import Run, check_run_folder, run_root

    print_plan(config)
    planned_run = Run(run_root(config), config)
    finished: frozenset[str] = frozenset()
    if is_resumed:
        finished = planned_run.ledger.pieces()
    inspection = Inspection(planned_run, is_dry=True, finished_pieces=finished)
    with inspection.collect():
        check_run_folder(planned_run, is_resumed=is_resumed)
    _inspect(inspection)
    inspection.print_findings(sys.stdout)
    inspection.raise_faults()


def _inspect(inspection: "Inspection") -> None:
    """Check everything of a run that can be checked without weights; a package is imported if the run needs it."""
    from sampler.preflight import check_disk, check_libraries, check_policy, check_probe_files, check_prompts

    config = inspection.config
    if inspection.is_finished("peak"):
        inspection.unchecked.append("anything: the run is finished")
        return
    check_libraries(inspection)
    chat = check_policy(inspection)
    if config.lab.phases:
        from sft.preflight import check_phases

        check_phases(inspection, chat)
    if not inspection.has_all_rewards:
        check_prompts(inspection, chat)
        check_probe_files(inspection, chat)
        _inspect_reward_server(inspection)
    if config.evaluation.benchmarks or config.evaluation.questions is not None:
        from eval.preflight import check_evaluation

        check_evaluation(inspection, chat)
    check_disk(inspection)


def _inspect_reward_server(inspection: "Inspection") -> None:
    """Find the faults of a run's reward server. A server elsewhere is not called: it may start during training."""
    reward = inspection.config.reward
    assert reward is not None  # RunConfig: rounds need reward
    from sampler.managed_server import connection_settings, managed_config

    if reward.server is None:
        with inspection.collect():
            connection_settings(reward).credentials()
        inspection.unchecked.append(f"reward server at {reward.address}: it may start later")
        return
    from reward_server.serving.preflight import inspect_server

    inspect_server(managed_config(reward.server), inspection)


@app.command(cls=Verb, epilog="Example: winnow status runs/miniature --json")
def status(
    run_dir: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the finished stages of a run and the next one."""
    from winnow.rundir import open_run
    from winnow.status import print_status

    print_status(open_run(run_dir, is_read_only=True), is_json=as_json)


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


@app.command(cls=Verb, epilog="Example: winnow score --address localhost:50051 --input in.jsonl --output out.jsonl")
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


@app.command(cls=Verb, epilog="Example: winnow gateway --address localhost:50051 --listen 127.0.0.1:8000")
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


@app.command(cls=Verb, epilog="Example: winnow sample runs/miniature --round 1")
def sample(run_dir: RunFolder, round_number: RoundNumber = 1) -> None:
    """Run the sample stage of one round: N completions of each prompt."""
    _run_stage("sample", run_dir, round_number, first_round=1)


@app.command(cls=Verb, epilog="Example: winnow select runs/miniature --round 1")
def select(run_dir: RunFolder, round_number: RoundNumber = 1) -> None:
    """Run the select stage of one round: keep the best completion of each prompt."""
    _run_stage("select", run_dir, round_number, first_round=1)


@app.command(cls=Verb, epilog="Example: winnow sft runs/miniature --round 0")
def sft(run_dir: RunFolder, round_number: RoundNumber = 0) -> None:
    """Run the SFT of one round; round 0 is the LAB start."""
    stage = "train"
    if round_number == 0:
        stage = "start"
    _run_stage(stage, run_dir, round_number)


@app.command(
    "eval",
    cls=EvalVerb,
    epilog=(
        "Example: winnow eval models/merlinite-7b --suite card --data eval-data\n"
        "  Example: winnow eval models/merlinite-7b --suite mt-bench --questions question.jsonl --judge-model gpt-4"
    ),
)
@with_judge_flags
def evaluate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN_DIR|MODEL", help="A run's folder; with --suite also a checkpoint, hub id or name at a server."
        ),
    ],
    *,
    round_number: Annotated[int, typer.Option("--round", min=0, help="Number of the round of a run.")] = 0,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="card|mt-bench", help="Outside the run's config: the model cards' benchmarks, or judged questions."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the results; unset: in eval-results, by their key.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="vllm or transformers; unset: the run's (mt-bench), or transformers.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Precision: bfloat16, float16 or float32; unset: the checkpoint's.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Tasks of the suite, separated by commas; unset: all.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data sets as `hf download` lays them out; unset: from the hub.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each task; the results are stamped.")] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="A number, or auto: the largest that fits; unset: 8. vLLM chooses by itself.")
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask in the tokenizer's chat format; unset: plain text.")
    ] = False,
    add_bos_token: Annotated[
        bool | None, typer.Option(help="Put BOS before prompts, or not; unset: the tokenizer decides.")
    ] = None,
    generation_arguments: Annotated[
        str | None, typer.Option(metavar="JSON", help="Added to generation_kwargs, like '{\"max_gen_toks\": 512}'.")
    ] = None,
    questions: Annotated[Path | None, typer.Option(metavar="FILE", help="The questions, FastChat's rows.")] = None,
    references: References = None,
    prompts: JudgePrompts = None,
    judge_flags: dict[str, Any],
    max_unreadable: MaxUnreadable = 0.1,
    num_runs: Annotated[int, typer.Option(min=1, help="Times that answers are sampled; 5 for a final number.")] = 1,
    rejudge: Rejudge = 0,
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="MODEL is the name at this server, like http://localhost:8000/v1."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Chat template, as policy.chat_template; unset: the run's or tokenizer's."),
    ] = None,
    system_prompt: Annotated[str | None, typer.Option(help="System message; unset: the run's, or none.")] = None,
    eos_token: Annotated[
        str | None, typer.Option(help="Token that closes a turn, where the template writes another than EOS.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    max_tokens_name: Annotated[
        str, typer.Option(help="max_tokens or max_completion_tokens, for a server.")
    ] = "max_tokens",
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Temperature of answers; unset: MT-Bench's, by category.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the answers.")] = 0,
) -> None:
    """Evaluate a round of a run, or with --suite any model on the model cards' benchmarks or on MT-Bench.

    The key of a judge or server is read from OPENAI_API_KEY. The same command again repeats nothing that is finished.
    """
    check_suite_flags(context, suite)
    if suite is None:
        _run_stage("evaluate", Path(model), round_number)
        return
    if suite == CARD:
        from eval.suites.command import SuiteFlags, evaluate_suite

        lines = evaluate_suite(
            SuiteFlags(
                model=_checkpoint_of(model, round_number),
                tasks=tasks,
                data=data,
                output=output,
                limit=limit,
                engine=engine,
                dtype=dtype,
                batch_size=batch_size,
                is_chat=chat_template,
                add_bos_token=add_bos_token,
                generation_arguments=generation_arguments,
            )
        )
    else:
        from eval.suites.mt_bench_command import MtBenchFlags, evaluate_mt_bench

        lines = evaluate_mt_bench(
            MtBenchFlags(
                model=model,
                checkpoint=None if base_url is not None else _checkpoint_of(model, round_number),
                round_number=round_number,
                questions=questions,
                references=references,
                prompts=prompts,
                judge=judge_flags,
                max_unreadable=max_unreadable,
                num_runs=num_runs,
                num_rejudged=rejudge,
                base_url=base_url,
                template=template,
                system_prompt=system_prompt,
                eos_token=eos_token,
                max_tokens=max_tokens,
                max_tokens_name=max_tokens_name,
                temperature=temperature,
                seed=seed,
                engine=engine,
                dtype=dtype,
                output=output,
            )
        )
    for line in lines:
        print(line)


def _checkpoint_of(model: str, round_number: int) -> str:
    """Return the checkpoint of a run's round, if the folder is a run's; else the model as it is given."""
    from winnow.rundir import is_run_folder, open_run

    if not is_run_folder(Path(model)):
        if round_number:
            raise UsageError(f"{model} is not a run's folder and has no round {round_number}; take --round out")
        return model
    opened_run = open_run(Path(model), is_read_only=True)
    _check_round(opened_run, round_number)
    return opened_run.policy_path(round_number)


@app.command("import-data", cls=Verb, epilog="Example: winnow import-data downloads --output eval-data")
def import_data(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with gsm8k, mmlu, arc, hellaswag, winogrande.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="New folder for `winnow eval --data`.")],
    shots_from_eval: Annotated[
        int, typer.Option(min=0, metavar="K", help="Items to set aside as examples where these have no split.")
    ] = 0,
) -> None:
    """Bring benchmark data in its makers' formats into the layout that `winnow eval --data` reads."""
    from eval.suites.import_data import describe
    from eval.suites.import_data import import_data as import_folder

    for imported in import_folder(source, output, shots_from_eval):
        print(describe(imported))


@app.command(
    "eval-reward",
    cls=Verb,
    epilog="Example: winnow eval-reward --address localhost:50051 --pairs pairs.jsonl --output reward-audit",
)
@with_reward_flags(*(option for option in RewardOptions.model_fields if option != "want_token_logprobs"))
def eval_reward(
    *,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A reward server, or several separated by commas.")
    ] = None,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Chosen and rejected completions, JSONL, JSON or Parquet; may be repeated."),
    ] = None,
    best_of_n: Annotated[
        Path | None,
        typer.Option("--best-of-n", metavar="FILE", help='JSONL rows: {"prompt", "completions", "gold_scores"}.'),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where rewards and report go.")] = Path("reward-audit"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue an audit that was stopped.")] = False,
    options: RewardOptions,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    timeout_s: Timeout = 600.0,
) -> None:
    """Audit a reward: accuracy on preference pairs, length bias, RewardBench's score, best of n against gold scores."""
    from eval.reward_audit.audit import AuditRequest, audit_reward
    from reward_server.client import open_connection_settings

    connection = None
    if address is not None:
        connection = open_connection_settings(address, token_file, tls_ca, tls_certificate, tls_key)
    audit_reward(
        AuditRequest(
            connection=connection,
            pair_paths=tuple(pairs or ()),
            best_of_n_path=best_of_n,
            output_dir=output,
            options=options,
            timeout_s=timeout_s,
            is_resumed=resume,
        )
    )


@app.command(
    cls=Verb,
    epilog=(
        "Example: winnow judge answers.jsonl --questions question.jsonl --judge-model gpt-4 --output judged\n"
        "  Example: winnow judge a.jsonl b.jsonl --pairwise --questions question.jsonl --judge-model gpt-4 "
        "--output pairs\n"
        "  Example: winnow judge --summary gpt-4_single.jsonl --questions question.jsonl"
    ),
)
@with_judge_flags
def judge(
    answer_files: Annotated[
        list[Path] | None, typer.Argument(metavar="ANSWERS", help="FastChat's answer files, of any models.")
    ] = None,
    *,
    summary: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge nothing: print what a judgment file says.")
    ] = None,
    questions: Annotated[Path | None, typer.Option(metavar="FILE", help="The questions; --summary: optional.")] = None,
    references: References = None,
    prompts: JudgePrompts = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the judgments.")] = None,
    judge_flags: dict[str, Any],
    pairwise: Annotated[
        bool, typer.Option("--pairwise", help="Compare the answers of each pair of models, in both orders.")
    ] = False,
    baseline: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Pairs with this model alone (with --pairwise).")
    ] = None,
    rejudge: Rejudge = 0,
    answers: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="With --summary: the answers, for their length.")
    ] = None,
    max_unreadable: MaxUnreadable = 0.1,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Accept questions without an answer, or turns without a judgment.")
    ] = False,
) -> None:
    """Judge answers that exist; print means by model, turn and category, or wins, with standard errors.

    The key is read from OPENAI_API_KEY. The same command again repeats no call that is finished.
    """
    if (summary is None) == (not answer_files):
        raise UsageError("give ANSWERS to judge, or --summary FILE to print a judgment file")
    if summary is not None:
        from eval.judging.summary import SummaryRequest, print_summary

        print_summary(SummaryRequest(summary, questions, tuple(answers or ()), max_unreadable, allow_missing))
        return
    needed = {"--questions": questions, "--judge-model": judge_flags["model"], "--output": output}
    missing = [flag for flag, value in needed.items() if value is None]
    if missing or questions is None or output is None:
        raise UsageError(f"{missing[0]} is missing; judging answers needs {', '.join(needed)}")
    if (baseline is not None and not pairwise) or (rejudge and pairwise):
        raise UsageError("--baseline needs --pairwise, and --rejudge judges single answers alone")
    from eval.judging.judge_command import JudgeCommand, judge_answer_files
    from eval.judging.judge_flags import JudgeFlags

    judge_answer_files(
        JudgeCommand(
            answers=tuple(answer_files or ()),
            questions=questions,
            output=output,
            judge=JudgeFlags(**judge_flags).config(questions, prompts, max_unreadable, "winnow judge"),
            references=references,
            is_pairwise=pairwise,
            baseline=baseline,
            num_rejudged=rejudge,
            is_missing_allowed=allow_missing,
        )
    )


@app.command(cls=Verb, epilog="Example: winnow compare out/start out/round-2 --only 'arc_challenge acc_norm,none'")
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


@app.command(cls=Verb, epilog="Example: winnow peak runs/miniature")
def peak(run_dir: RunFolder) -> None:
    """Pick the peak checkpoint of a run's evaluated rounds; write peak.json and the chart."""
    from winnow.rundir import open_run

    _run_stage("peak", run_dir, open_run(run_dir).config.rounds.num_rounds)


@app.command(cls=Verb, epilog="Example: winnow card runs/miniature --output models/miniature-peak/README.md")
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


@app.command(cls=Verb, epilog="Example: winnow export runs/miniature --output models/miniature-peak")
def export(
    run_dir: RunFolder,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to make.")],
) -> None:
    """Write the peak checkpoint as a folder that transformers and vLLM load with its chat template."""
    from eval.publishing.export import export_peak
    from winnow.rundir import open_run

    print(export_peak(open_run(run_dir, is_read_only=True), output))


def _run_stage(name: str, run_dir: Path, round_number: int, first_round: int = 0) -> None:
    """Run a stage of one round in this process. Raises UsageError if the run has no such round."""
    from winnow.rundir import locked, open_run
    from winnow.stages import run_inline

    opened_run = open_run(run_dir)
    _check_round(opened_run, round_number, first_round)
    with locked(opened_run.root):
        run_inline(name, opened_run, round_number)


def _check_round(opened_run: "Run", round_number: int, first_round: int = 0) -> None:
    """Raise UsageError if a run has no such round."""
    last_round = opened_run.config.rounds.num_rounds
    if not first_round <= round_number <= last_round:
        raise UsageError(
            f"{opened_run.root} has rounds {first_round} to {last_round}; --round {round_number} is not one of them"
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


def main() -> None:
    """Run the command line; winnow/exit_codes.py describes its exit codes."""
    # gRPC's core logs failed connections, which winnow's own message reports too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Libraries start processes too, as vLLM does its workers: none may import from the working directory.
    os.environ.update(child_environment())
    with exit_on_error():
        app()


if __name__ == "__main__":
    main()

"""The verbs that evaluate: checkpoints, answers and rewards."""

from pathlib import Path
from typing import Annotated, Any

import typer

from winnow.cli.application import Verb
from winnow.cli.flags import (
    MaxUnreadable,
    Timeout,
    TlsCa,
    TlsCertificate,
    TlsKey,
    TokenFile,
    with_reward_flags,
)
from winnow.cli.judge_flags import JudgePrompts, References, Rejudge, with_judge_flags
from winnow.cli.runs import check_round, run_stage
from winnow.errors import UsageError
from winnow.reward_options import RewardOptions
from winnow.suite_flags import CARD, MT_BENCH, SUITES, check_suite_flags, suites_of

verbs = typer.Typer()


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


@verbs.command(
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
        run_stage("evaluate", Path(model), round_number)
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
    check_round(opened_run, round_number)
    return opened_run.policy_path(round_number)


@verbs.command("import-data", cls=Verb, epilog="Example: winnow import-data downloads --output eval-data")
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


@verbs.command(
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


@verbs.command(
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

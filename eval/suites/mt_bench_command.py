"""The flags of `winnow eval MODEL --suite mt-bench`, checked, and the lines that it prints.

MODEL is a checkpoint folder, a hub id, a run's folder with a round, or with --base-url the name at a server.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.judging.judge_flags import JudgeFlags
from eval.judging.suite import LocalModel, MtBenchRequest, inputs_of, result_lines, run_mt_bench
from eval.suites.model_files import fetch_model
from sampler.engines.endpoint_settings import EndpointSettings
from winnow.chat import load_chat
from winnow.config import parse_config
from winnow.errors import ModelError, UsageError
from winnow.fingerprint import weight_hash
from winnow.records import digest
from winnow.run_config import PolicyConfig, QuestionsConfig, SamplingConfig
from winnow.rundir import is_run_folder, open_run

COMMAND = "winnow eval"


@dataclass(frozen=True)
class MtBenchFlags:
    """The flags as they were given; `checkpoint` is None for a server, else what MODEL and its round name."""

    model: str
    checkpoint: str | None
    round_number: int
    questions: Path | None
    references: Path | None
    prompts: Path | None
    judge: dict[str, Any]
    max_unreadable: float
    num_runs: int
    num_rejudged: int
    base_url: str | None
    template: str | None
    system_prompt: str | None
    eos_token: str | None
    max_tokens: int
    max_tokens_name: str
    temperature: float | None
    seed: int
    engine: str | None
    dtype: str | None
    output: Path | None


def evaluate_mt_bench(flags: MtBenchFlags) -> Iterator[str]:
    """Answer and judge the questions, and yield the lines of the results. Raises UsageError for a wrong flag."""
    request = request_of(flags)
    yield from result_lines(run_mt_bench(request))
    yield f"{request.output}"


def request_of(flags: MtBenchFlags) -> MtBenchRequest:
    """Return the request that the flags make. Raises UsageError for a missing flag or a wrong value."""
    config = _questions_config(flags)
    if flags.checkpoint is None:
        model: LocalModel | EndpointSettings = _server(flags)
        name = flags.model
    else:
        model = _local_model(flags, flags.checkpoint)
        name = Path(flags.model).resolve().name
        if is_run_folder(Path(flags.model)):
            name = f"{name}-round-{flags.round_number}"
    request = MtBenchRequest(
        model=model,
        name=name,
        config=config,
        output=flags.output or Path("eval-results"),
        seed=flags.seed,
        num_rejudged=flags.num_rejudged,
    )
    if flags.output is None:
        key = digest(inputs_of(request))[:8]
        request = replace(request, output=request.output / f"{Path(name).name}-mt-bench-{key}")
    return request


def _questions_config(flags: MtBenchFlags) -> QuestionsConfig:
    needed = {"--questions": flags.questions, "--judge-model": flags.judge["model"]}
    missing = [flag for flag, value in needed.items() if value is None]
    if missing or flags.questions is None:
        raise UsageError(f"{missing[0]} is missing; --suite mt-bench needs {' and '.join(needed)}")
    judge = JudgeFlags(**flags.judge).config(flags.questions, flags.prompts, flags.max_unreadable, COMMAND)
    tree = {
        "questions": str(flags.questions),
        "references": None if flags.references is None else str(flags.references),
        "num_runs": flags.num_runs,
        "max_new_tokens": flags.max_tokens,
        "temperature": flags.temperature,
    }
    return parse_config(tree, QuestionsConfig, COMMAND).model_copy(update={"judge": judge})


def _server(flags: MtBenchFlags) -> EndpointSettings:
    """Return the server that answers. Raises UsageError for a flag of a checkpoint."""
    of_checkpoint = {
        "--round": flags.round_number or None,
        "--engine": flags.engine,
        "--dtype": flags.dtype,
        "--template": flags.template,
        "--system-prompt": flags.system_prompt,
        "--eos-token": flags.eos_token,
    }
    present = [flag for flag, value in of_checkpoint.items() if value is not None]
    if present:
        raise UsageError(
            f"{present[0]} is for a checkpoint, and --base-url for a server, which has its own; take one of them out"
        )
    names = ("max_tokens", "max_completion_tokens")
    if flags.max_tokens_name not in names:
        raise UsageError(f"--max-tokens-name {flags.max_tokens_name!r} is unknown; give {' or '.join(names)}")
    return EndpointSettings(
        role="model",
        section=None,
        model=flags.model,
        base_url=flags.base_url,
        max_tokens_name=flags.max_tokens_name,  # type: ignore[arg-type]
    )


def _local_model(flags: MtBenchFlags, checkpoint: str) -> LocalModel:
    """Return a checkpoint with its settings: those of its run, or the tokenizer's own template, and the flags."""
    policy = PolicyConfig(model=checkpoint, chat_template="tokenizer")
    sampling = SamplingConfig()
    if is_run_folder(Path(flags.model)):
        config = open_run(Path(flags.model), is_read_only=True).config
        policy = config.policy
        sampling = config.sampling
    folder = fetch_model(checkpoint)
    changes = {
        "chat_template": flags.template,
        "system_prompt": flags.system_prompt,
        "eos_token": flags.eos_token,
        "dtype": flags.dtype,
    }
    set_changes = {key: value for key, value in changes.items() if value is not None}
    policy = parse_config({**policy.model_dump(), "model": folder, **set_changes}, PolicyConfig, COMMAND)
    if flags.engine is not None:
        sampling = parse_config({**sampling.model_dump(), "engine": flags.engine}, SamplingConfig, COMMAND)
    try:
        chat = load_chat(policy, folder)
    except ModelError as error:
        # It names the keys of a run's policy.
        raise ModelError(f"{error} (flags: --template, --eos-token)") from error
    return LocalModel(policy, sampling, digest([weight_hash(folder), chat.tokenizer_hash, chat.template_hash]))

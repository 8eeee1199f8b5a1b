"""The plan of a recipe, printed before anything runs: stages, rows, optimizer steps, tokens, disk, and one example.

    steps  = TrainConfig.num_steps        tokens <= steps * batch_size * max_tokens
    disk   = 2 bytes per parameter and checkpoint, or the size of the policy's weights if that is not in the config;
             6 per completion token (text, ids and rewards, measured on Parquet)

No model is loaded. A tokenizer is loaded for the example, if the policy's folder exists.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sampler.prompts import PROBE_DIVISOR
from winnow.chat import Chat, RenderedConversation, load_chat
from winnow.checkpoints import num_weight_bytes
from winnow.conversations import row_messages
from winnow.errors import InputError, WinnowError
from winnow.records import Message
from winnow.rows import count_lines, read_jsonl
from winnow.run_config import PhaseConfig, RunConfig, TrainConfig

BYTES_PER_PARAMETER = 2
BYTES_PER_COMPLETION_TOKEN = 6
# The name of the probe's line in the plan begins with it.
PROBE = "probe"
COUNT_PREFIXES = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3))
BYTE_PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3))
EXAMPLE = (
    Message(role="user", content="Name the largest of 3, 9 and 4."),
    Message(role="assistant", content="The largest is 9."),
)


@dataclass(frozen=True)
class PlannedStage:
    """One stage of the plan; a number is None if it is unknown or does not apply to the stage."""

    round_number: int
    name: str
    num_rows: int | None = None
    num_steps: int | None = None
    warmup_steps: int | None = None
    warning: str | None = None
    max_tokens: int | None = None
    num_bytes: int | None = None


def plan(config: RunConfig) -> list[PlannedStage]:
    """Return the stages of a run, in order."""
    stages = [*_lab_stages(config), *_probe_stages(config, 0), _evaluation(config, 0)]
    for round_number in range(1, config.rounds.num_rounds + 1):
        stages += _round_stages(config, round_number)
        stages += [*_probe_stages(config, round_number), _evaluation(config, round_number)]
    return stages


def num_phase_rows(phases: Sequence[PhaseConfig], phase: PhaseConfig) -> int | None:
    """Count the rows that a LAB phase trains on, replayed rows included.

    Returns None if files are missing and the config does not state num_rows.
    """
    num_rows = _num_file_rows(phase)
    for earlier in phases:
        if earlier.name not in phase.replay_from:
            continue
        num_earlier = _num_file_rows(earlier)
        if num_rows is None or num_earlier is None:
            return None
        num_rows += round(phase.replay_fraction * num_earlier)
    return num_rows


def print_plan(config: RunConfig) -> None:
    """Print the plan, its warnings, and one rendered example with its loss mask."""
    console = Console(width=100, highlight=False)
    console.print(_headline(config))
    stages = plan(config)
    console.print(_table(stages))
    for stage in stages:
        if stage.warning:
            console.print(f"warning: round {stage.round_number} {stage.name}: {stage.warning}", style="yellow")
    num_bytes = sum(stage.num_bytes or 0 for stage in stages)
    if num_bytes:
        console.print(f"disk: {format_bytes(num_bytes)} in all")
    else:
        console.print("disk: unknown; set policy.num_parameters")
    console.print(*_example_lines(config), sep="\n", markup=False, soft_wrap=True)


def mark_loss(rendered: RenderedConversation) -> str:
    """Return the rendered text with {+ and +} around the spans that carry loss."""
    text = ""
    position = 0
    for start, end in rendered.loss_spans:
        text += rendered.text[position:start] + "{+" + rendered.text[start:end] + "+}"
        position = end
    return text + rendered.text[position:]


def format_bytes(num_bytes: int | None) -> str:
    """Format a number of bytes with a decimal prefix: 1.2 GB."""
    return _with_prefix(num_bytes, BYTE_PREFIXES, "B")


def _lab_stages(config: RunConfig) -> Iterator[PlannedStage]:
    for phase in config.lab.phases:
        yield _training(config, 0, f"sft {phase.name}", phase.train, num_phase_rows(config.lab.phases, phase))


def _round_stages(config: RunConfig, round_number: int) -> Iterator[PlannedStage]:
    assert config.prompts is not None  # RunConfig: rounds have prompts and train
    assert config.rounds.train is not None
    num_prompts = config.prompts.num_prompts
    num_completions = num_prompts * config.sampling.num_completions
    max_tokens = num_completions * config.sampling.max_new_tokens
    yield PlannedStage(
        round_number,
        f"sample (N = {config.sampling.num_completions})",
        num_rows=num_completions,
        max_tokens=max_tokens,
        num_bytes=max_tokens * BYTES_PER_COMPLETION_TOKEN,
    )
    yield PlannedStage(round_number, "score", num_rows=num_completions, max_tokens=2 * max_tokens)
    yield PlannedStage(round_number, f"select ({config.selection.rule})", num_rows=num_prompts)
    yield _training(config, round_number, "train", config.rounds.train, num_prompts)


def _probe_stages(config: RunConfig, round_number: int) -> Iterator[PlannedStage]:
    """Yield the probe of a round; its tokens are sampled once and scored by two models."""
    if config.probe is None:
        return
    num_completions = num_probe_prompts(config) * config.sampling.num_completions
    max_tokens = num_completions * config.sampling.max_new_tokens
    yield PlannedStage(
        round_number,
        f"{PROBE} (N = {config.sampling.num_completions})",
        num_rows=num_completions,
        max_tokens=3 * max_tokens,
        num_bytes=max_tokens * BYTES_PER_COMPLETION_TOKEN,
    )


def num_probe_prompts(config: RunConfig) -> int:
    """Return the number of the probe's prompts, or a bound of it: sources with few prompts may give fewer."""
    assert config.probe is not None  # for runs with a probe
    assert config.prompts is not None  # RunConfig: rounds need prompts
    num_rows = _num_rows([file.path for file in config.probe.files or config.prompts.files])
    if num_rows is None:
        return config.probe.num_prompts
    if not config.probe.files:
        num_rows //= PROBE_DIVISOR
    return min(config.probe.num_prompts, num_rows)


def _training(
    config: RunConfig, round_number: int, name: str, train: TrainConfig, num_rows: int | None
) -> PlannedStage:
    num_bytes = _checkpoint_bytes(config)
    if num_rows is None:
        return PlannedStage(round_number, name, warmup_steps=train.warmup_steps, num_bytes=num_bytes)
    num_steps = train.num_steps(num_rows)
    return PlannedStage(
        round_number,
        name,
        num_rows=num_rows,
        num_steps=num_steps,
        warmup_steps=train.warmup_steps,
        warning=train.warmup_warning(num_steps),
        max_tokens=num_steps * train.batch_size * train.max_tokens,
        num_bytes=num_bytes,
    )


def _checkpoint_bytes(config: RunConfig) -> int | None:
    """Return the size of a checkpoint of the policy; None if neither its weights nor their number are known."""
    if config.policy.num_parameters is not None:
        return config.policy.num_parameters * BYTES_PER_PARAMETER
    return num_weight_bytes(config.policy.model)


def _evaluation(config: RunConfig, round_number: int) -> PlannedStage:
    names = [benchmark.task for benchmark in config.evaluation.benchmarks]
    if config.evaluation.questions is not None:
        names.append(config.evaluation.questions.judge.kind)
    return PlannedStage(round_number, "evaluate: " + (", ".join(names) or "nothing"))


def _num_file_rows(phase: PhaseConfig) -> int | None:
    """Count the rows of the phase's files; return the number that the config states if a file is missing."""
    num_rows = _num_rows(phase.files)
    if num_rows is None:
        return phase.num_rows
    return num_rows


def _num_rows(paths: Sequence[str]) -> int | None:
    """Count the lines of files; None if one is missing."""
    if not all(Path(path).is_file() for path in paths):
        return None
    return sum(count_lines(path) for path in paths)


def _headline(config: RunConfig) -> str:
    policy = config.policy
    reward = config.reward
    lines = [f"{config.name} -> {Path(config.runs_dir) / config.name}   stages: {config.stages}   seed: {config.seed}"]
    lines.append(f"policy: {policy.model}   template: {policy.chat_template}   teacher: {policy.teacher or '-'}")
    if reward is not None and reward.server is not None:
        lines.append(f"reward: log p({reward.server.instruct}) - log p({reward.server.base}), {reward.normalization}")
    elif reward is not None:
        lines.append(f"reward: {reward.normalization} of log-ratios from {reward.address}")
    return "\n".join(lines)


def _table(stages: Sequence[PlannedStage]) -> Table:
    table = Table()
    table.add_column("round", justify="right")
    table.add_column("stage", overflow="fold")
    for column in ("rows", "steps", "warm-up", "tokens <=", "disk <="):
        table.add_column(column, justify="right")
    for stage in stages:
        table.add_row(
            str(stage.round_number),
            stage.name,
            _format_count(stage.num_rows),
            _format_count(stage.num_steps),
            _format_count(stage.warmup_steps),
            _format_tokens(stage.max_tokens),
            format_bytes(stage.num_bytes),
        )
    return table


def _example_lines(config: RunConfig) -> list[str]:
    messages, origin = _example(config)
    try:
        rendered = _chat(config).conversation(messages)
    except WinnowError as error:
        return [f"example: not rendered ({error})"]
    num_loss_tokens = sum(rendered.loss_mask)
    title = f"example ({origin}), {len(rendered.token_ids)} tokens, {num_loss_tokens} in the loss, marked {{+ +}}:"
    return [title, *("  | " + line for line in mark_loss(rendered).splitlines())]


def _example(config: RunConfig) -> tuple[Sequence[Message], str]:
    """Return the first row of the first file that exists, or a made-up conversation, and its origin."""
    paths: list[str] = []
    for phase in config.lab.phases:
        paths += [path for path in phase.files if Path(path).is_file()]
    if paths:
        with suppress(InputError):  # the checks after the plan report it
            for line_number, row in read_jsonl(paths[0]):
                return row_messages(row, f"{paths[0]} line {line_number}"), paths[0]
    return EXAMPLE, "made up; the recipe's own rows are not at hand"


def _chat(config: RunConfig) -> Chat:
    """Return the policy's renderer, or one with a byte tokenizer if the policy's folder does not exist."""
    policy = config.policy
    if Path(policy.model).is_dir():
        return load_chat(policy, policy.model)
    return Chat(_byte_tokenizer(policy.eos_token or "</s>"), policy.chat_template, policy.system_prompt)


def _byte_tokenizer(eos_token: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos_token)


def _format_count(count: int | None) -> str:
    """Format a count with all its digits: 12,345."""
    if count is None:
        return ""
    return f"{count:,}"


def _format_tokens(num_tokens: int | None) -> str:
    """Format a number of tokens with a decimal prefix: 1.2 B."""
    return _with_prefix(num_tokens, COUNT_PREFIXES, "")


def _with_prefix(count: int | None, prefixes: Sequence[tuple[str, float]], unit: str) -> str:
    if count is None:
        return ""
    for prefix, scale in prefixes:
        if count >= scale:
            return f"{count / scale:.1f} {prefix}{unit}"
    return f"{count} {unit}".strip()

"""What a recipe will do, before it does it: stages, rows, optimizer steps against warm-up, tokens, disk, one example.

    steps  = TrainConfig.num_steps        tokens = at most steps * batch_size * context
    disk   = 2 bytes per parameter and checkpoint, 4 per completion token (text and rewards, measured on Parquet)

Nothing is loaded but a tokenizer for the example, and that only where it is at hand.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from winnow.chat import Chat, Rendered, load_chat
from winnow.errors import WinnowError
from winnow.records import Message
from winnow.rows import read_jsonl
from winnow.run_config import PhaseConfig, RunConfig, TrainConfig

BYTES_PER_PARAMETER = 2
BYTES_PER_COMPLETION_TOKEN = 4
EXAMPLE = (
    Message(role="user", content="Name the largest of 3, 9 and 4."),
    Message(role="assistant", content="The largest is 9."),
)


@dataclass(frozen=True)
class PlannedStage:
    """One line of the plan; None where the number is unknown or does not apply."""

    round_number: int
    name: str
    num_rows: int | None = None
    num_steps: int | None = None
    warmup_steps: int | None = None
    warning: str | None = None
    max_tokens: int | None = None
    num_bytes: int | None = None


def plan(config: RunConfig) -> list[PlannedStage]:
    """The stages of a run, in order."""
    stages = [*_lab_stages(config), _evaluation(config, 0)]
    for number in range(1, config.rounds.num_rounds + 1):
        stages += [*_round_stages(config, number), _evaluation(config, number)]
    return stages


def phase_rows(phases: Sequence[PhaseConfig], phase: PhaseConfig) -> int | None:
    """Rows a LAB phase trains on: its own and its replay's; None where files are missing and no num_rows is given."""
    own = _own_rows(phase)
    by_name = {earlier.name: _own_rows(earlier) for earlier in phases}
    replayed = [by_name[name] for name in phase.replay_from]
    if own is None or any(rows is None for rows in replayed):
        return None
    return own + sum(round(phase.replay_fraction * rows) for rows in replayed if rows is not None)


def print_plan(config: RunConfig) -> None:
    """Print the plan, its warnings, and one rendered example with its loss mask."""
    console = Console(width=100, highlight=False)
    console.print(_headline(config))
    stages = plan(config)
    console.print(_table(stages))
    for stage in stages:
        if stage.warning:
            console.print(f"warning: round {stage.round_number} {stage.name}: {stage.warning}", style="yellow")
    total = sum(stage.num_bytes or 0 for stage in stages)
    console.print(f"disk: {_size(total)} in all" if total else "disk: unknown; set policy.num_parameters")
    console.print(*_example_lines(config), sep="\n", markup=False, soft_wrap=True)


def marked(rendered: Rendered) -> str:
    """The rendered text with what the loss covers between {+ and +}."""
    text, position = "", 0
    for start, end in rendered.loss_spans:
        text += rendered.text[position:start] + "{+" + rendered.text[start:end] + "+}"
        position = end
    return text + rendered.text[position:]


def _lab_stages(config: RunConfig) -> Iterator[PlannedStage]:
    for phase in config.lab.phases:
        yield _training(config, 0, f"sft {phase.name}", phase.train, phase_rows(config.lab.phases, phase))


def _round_stages(config: RunConfig, number: int) -> Iterator[PlannedStage]:
    prompts, train = config.prompts, config.rounds.train
    assert prompts is not None  # RunConfig: rounds have prompts and train
    assert train is not None
    num_completions = prompts.num_prompts * config.sampling.num_completions
    tokens = num_completions * config.sampling.max_new_tokens
    name = f"sample (N = {config.sampling.num_completions})"
    disk = tokens * BYTES_PER_COMPLETION_TOKEN
    yield PlannedStage(number, name, num_completions, max_tokens=tokens, num_bytes=disk)
    yield PlannedStage(number, "score", num_completions, max_tokens=2 * tokens)
    yield PlannedStage(number, f"select ({config.selection.rule})", prompts.num_prompts)
    yield _training(config, number, "train", train, prompts.num_prompts)


def _training(config: RunConfig, number: int, name: str, train: TrainConfig, num_rows: int | None) -> PlannedStage:
    size = config.policy.num_parameters
    steps = None if num_rows is None else train.num_steps(num_rows)
    warning = None if steps is None else train.warmup_warning(steps)
    tokens = None if steps is None else steps * train.batch_size * train.max_tokens
    disk = None if size is None else size * BYTES_PER_PARAMETER
    return PlannedStage(number, name, num_rows, steps, train.warmup_steps, warning, tokens, disk)


def _evaluation(config: RunConfig, number: int) -> PlannedStage:
    evaluation = config.evaluation
    names = [benchmark.task for benchmark in evaluation.benchmarks]
    if evaluation.questions is not None:
        names.append(evaluation.questions.judge.kind)
    return PlannedStage(number, "evaluate: " + (", ".join(names) or "nothing"))


def _own_rows(phase: PhaseConfig) -> int | None:
    if all(Path(file).is_file() for file in phase.files):
        return sum(1 for file in phase.files for _ in read_jsonl(file))
    return phase.num_rows


def _headline(config: RunConfig) -> str:
    policy, reward = config.policy, config.reward
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
        numbers = [stage.num_rows, stage.num_steps, stage.warmup_steps]
        cells = [_count(number) for number in numbers] + [_short(stage.max_tokens), _size(stage.num_bytes)]
        table.add_row(str(stage.round_number), stage.name, *cells)
    return table


def _example_lines(config: RunConfig) -> list[str]:
    messages, origin = _example(config)
    try:
        rendered = _chat(config).conversation(messages)
    except WinnowError as error:
        return [f"example: not rendered ({error})"]
    num_loss = sum(rendered.loss_mask)
    title = f"example ({origin}), {len(rendered.token_ids)} tokens, {num_loss} in the loss, marked {{+ +}}:"
    return [title, *("  | " + line for line in marked(rendered).splitlines())]


def _example(config: RunConfig) -> tuple[Sequence[Message], str]:
    files = [file for phase in config.lab.phases for file in phase.files if Path(file).is_file()]
    if files:
        _, row = next(read_jsonl(files[0]), (0, {}))
        if row.get("messages"):
            return [Message.model_validate(message) for message in row["messages"]], files[0]
    return EXAMPLE, "made up; the recipe's own rows are not at hand"


def _chat(config: RunConfig) -> Chat:
    """The policy's renderer, or one over plain bytes where its tokenizer is not at hand."""
    policy = config.policy
    if Path(policy.model).is_dir():
        return load_chat(policy, policy.model)
    return Chat(_byte_tokenizer(policy.eos_token or "</s>"), policy.chat_template, policy.system_prompt)


def _byte_tokenizer(eos_token: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos_token)


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _short(number: int | None, unit: str = "", billions: str = "B") -> str:
    if number is None:
        return ""
    for prefix, scale in (("T", 1e12), (billions, 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {prefix}{unit}"
    return f"{number} {unit}".strip()


def _size(num_bytes: int | None) -> str:
    return _short(num_bytes, "B", billions="G")

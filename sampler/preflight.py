"""What a run samples from, checked before anything is computed: libraries, the policy's files, the prompts, the disk.

policy    folder -> weight files -> tokenizer -> template, which closes a turn with the token at which sampling stops
prompts   files -> rows -> tokens; prompt tokens + sampling.max_new_tokens <= the policy's positions
disk      the plan's bytes of unfinished stages <= the free bytes where the run's folder is
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sampler.plan import format_bytes, plan
from sampler.prompts import check_has_prompts, parse_prompt, source_of
from winnow.chat import Chat, load_chat
from winnow.checkpoints import check_checkpoint, has_tokenizer, is_on_this_machine
from winnow.errors import UsageError
from winnow.inspection import Inspection
from winnow.models import check_model_path
from winnow.row_checks import FileReport, Measure, check_rows, describe, tell_refusals
from winnow.run_config import PromptFile


def free_bytes_of(folder: Path) -> int:
    """Return the free bytes of the disk that holds a folder."""
    return shutil.disk_usage(folder).free


def check_libraries(inspection: Inspection) -> None:
    """Check that the optional libraries that later stages import are installed: the last stage draws a chart."""
    config = inspection.config
    names = ["torch", "matplotlib"]
    if config.lab.phases or inspection.rounds:
        names.append("trl")
    if inspection.rounds:
        names.append("pyarrow")
    if config.sampling.engine == "vllm" and (inspection.rounds or config.evaluation.questions is not None):
        names.append("vllm")
    for name in names:
        inspection.require_module(name)


def check_policy(inspection: Inspection) -> Chat | None:
    """Check the policy's files without its weights; return its renderer, or None if there is a fault."""
    model = inspection.model
    num_faults = len(inspection.faults)
    with inspection.collect():
        check_model_path(model)
    if len(inspection.faults) > num_faults:
        return None
    if inspection.is_dry and not is_on_this_machine(model):
        inspection.unchecked.append(f"policy and the tokens of its rows: {model} is not on this machine")
        return None
    with inspection.collect():
        check_checkpoint(model)
    if Path(model).is_dir() and not has_tokenizer(Path(model)):
        return None  # a fault already
    policy = inspection.config.policy
    chat = None
    with inspection.collect():
        chat = load_chat(policy, model)
    inspection.add_checked(f"policy {model}, its files, tokenizer and template {policy.chat_template}", num_faults)
    return chat


def check_prompts(inspection: Inspection, chat: Chat | None) -> None:
    """Check the prompts of the rounds that have not drawn theirs, and count those that will be refused."""
    config = inspection.config.prompts
    rounds = [f"{inspection.run.round_name(number)}/prompts" for number in inspection.rounds]
    if config is None or all(inspection.is_finished(piece) for piece in rounds):
        return
    num_faults = len(inspection.faults)
    limit = _max_prompt_tokens(inspection)
    prompt_ids: set[str] = set()
    reports: list[FileReport] = []
    for file in config.files:
        with inspection.collect():
            report = check_rows(file.path, _measure(file, chat, prompt_ids), inspection)
            reports.append(report)
            _tell_refused_prompts(inspection, report, limit)
    if len(reports) < len(config.files):
        return  # a missing file is a fault already
    num_rows = sum(report.num_rows for report in reports)
    with inspection.collect():
        check_has_prompts(config.files, num_rows)
    num_prompts = len(prompt_ids) if inspection.is_thorough else num_rows
    if 0 < num_prompts < config.num_prompts:
        inspection.warnings.append(
            f"prompts.num_prompts is {config.num_prompts}, but there are {num_prompts} prompts; no round has more"
        )
    inspection.add_checked(describe(reports, "prompts", limit), num_faults)


def check_disk(inspection: Inspection, free_bytes: Callable[[Path], int] = free_bytes_of) -> None:
    """Compare the plan's bytes with the free bytes at the run's folder, which should be writable."""
    folder = _nearest_folder(inspection.run.root)
    num_bytes = _planned_bytes(inspection)
    with inspection.collect():
        if not os.access(folder, os.W_OK):
            raise UsageError(f"{inspection.run.root} cannot be made: {folder} is not writable; set another runs_dir=")
        num_free = free_bytes(folder)
        if num_bytes > num_free:
            raise UsageError(
                f"{inspection.run.root} needs about {format_bytes(num_bytes)}, and its disk has "
                f"{format_bytes(num_free)} free; make space, or set runs_dir= to another disk"
            )
        inspection.checked.append(f"disk: {format_bytes(num_bytes)} needed, {format_bytes(num_free)} free")


def _max_prompt_tokens(inspection: Inspection) -> int | None:
    """Return the longest prompt that can be completed, in tokens; None if the policy's positions are unknown."""
    if inspection.context_tokens is None:
        return None
    return inspection.context_tokens - inspection.config.sampling.max_new_tokens


def _measure(file: PromptFile, chat: Chat | None, prompt_ids: set[str]) -> Measure:
    """Return a function that counts the tokens of a row's prompt, and adds the prompt's id to `prompt_ids`."""

    def measure(row: dict[str, Any], location: str) -> int | None:
        prompt = parse_prompt(row, source_of(file), location)
        prompt_ids.add(prompt.prompt_id)
        if chat is None:
            return None
        return len(chat.prompt_ids(prompt.messages))

    return measure


def _tell_refused_prompts(inspection: Inspection, report: FileReport, limit: int | None) -> None:
    refused = Counter(report.refused)
    num_long = report.num_longer(limit)
    if num_long:
        refused[
            f"more than {limit} tokens (the policy's {inspection.context_tokens} positions less "
            f"sampling.max_new_tokens {inspection.config.sampling.max_new_tokens})"
        ] = num_long
    remedy = "mend the file, set another policy.chat_template, or lower sampling.max_new_tokens"
    tell_refusals(inspection, report, refused, "will be refused in sampling", remedy)
    train = inspection.config.rounds.train
    assert train is not None  # RunConfig: rounds need train
    num_untrainable = report.num_longer(train.max_tokens - 1)
    if num_untrainable:
        reason = f"{train.max_tokens} tokens (rounds.train.max_tokens) or more, before the completion"
        remedy = "raise rounds.train.max_tokens"
        tell_refusals(inspection, report, Counter({reason: num_untrainable}), "will be left out of training", remedy)


def _planned_bytes(inspection: Inspection) -> int:
    """Return the bytes that the unfinished stages will write; stages of unknown size count as 0."""
    num_bytes = 0
    for stage in plan(inspection.config):
        round_name = inspection.run.round_name(stage.round_number)
        last_piece = f"{round_name}/select"
        if not stage.name.startswith("sample"):
            last_piece = inspection.run.policy_piece(stage.round_number)
        if not inspection.is_finished(last_piece):
            num_bytes += stage.num_bytes or 0
    return num_bytes


def _nearest_folder(path: Path) -> Path:
    """Return the folder itself, or its nearest parent that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path

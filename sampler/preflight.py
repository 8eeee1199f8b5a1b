"""What a run samples from, checked before anything is computed: libraries, the policy's files, the prompts, the disk.

policy    folder -> weight files -> tokenizer -> template, which closes a turn with the token at which sampling stops
prompts   files -> rows -> tokens; prompt tokens + sampling.max_new_tokens <= the policy's positions
disk      the plan's bytes of unfinished stages <= the free bytes where the run's folder is
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sampler.engines import max_prompt_tokens
from sampler.plan import PROBE, format_bytes, plan
from sampler.prompts import check_has_prompts, parse_prompt, probe_sizes, quotas, source_of
from winnow.chat import Chat, load_chat
from winnow.chat.end_of_turn import ANSWER, QUESTION
from winnow.checkpoints import check_checkpoint, has_tokenizer, is_on_this_machine, num_embeddings
from winnow.errors import ModelError, UsageError
from winnow.inspection import Inspection
from winnow.models import check_model_path
from winnow.row_checks import FileReport, Measure, check_rows, counted, describe, tell_refusals
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
        if not _has_unfinished_phases(inspection):
            _check_embeddings(chat, model)
    inspection.add_checked(f"policy {model}, its files, tokenizer and template {policy.chat_template}", num_faults)
    return chat


def _has_unfinished_phases(inspection: Inspection) -> bool:
    """Tell whether LAB phases will grow the model's embedding before anything is sampled."""
    return bool(inspection.config.lab.phases) and not inspection.is_finished(inspection.run.policy_piece(0))


def _check_embeddings(chat: Chat, model: str) -> None:
    """Raise ModelError if the template writes tokens that the model has no embedding for: it could not read them."""
    limit = num_embeddings(model)
    if limit is None:
        return
    token_ids = chat.conversation([QUESTION, ANSWER]).token_ids
    token_id = max(token_ids)
    if token_id >= limit:
        token = chat.tokenizer.convert_ids_to_tokens(token_id)
        raise ModelError(
            f"the template writes {token!r} (id {token_id}), and {model!r} has embeddings for {limit} ids; the first "
            "SFT job adds them: set lab.phases, or take a template and an eos_token of tokens that the model knows"
        )


def check_prompts(inspection: Inspection, chat: Chat | None) -> None:
    """Check the prompts of the rounds that have not drawn theirs, and count those that will be refused."""
    config = inspection.config.prompts
    rounds = [f"{inspection.run.round_name(number)}/prompts" for number in inspection.rounds]
    if config is None or all(inspection.is_finished(piece) for piece in rounds):
        return
    num_faults = len(inspection.faults)
    sources: dict[str, str] = {}
    reports = _check_files(inspection, config.files, chat, sources)
    if len(reports) < len(config.files):
        return  # a missing file is a fault already
    train = inspection.config.rounds.train
    assert train is not None  # RunConfig: rounds need train
    for report in reports:
        _tell_untrainable_prompts(inspection, report, train.max_tokens)
    num_rows = sum(report.num_rows for report in reports)
    num_probe = 0
    if all(report.num_checked == report.num_rows for report in reports):
        num_probe = _num_probe_prompts(inspection, Counter(sources.values()))
    num_prompts = (len(sources) if inspection.is_thorough else num_rows) - num_probe
    if 0 < num_prompts < config.num_prompts:
        inspection.warnings.append(
            f"prompts.num_prompts is {config.num_prompts}, but there are {num_prompts} prompts; no round has more"
        )
    limit = _limit(inspection)
    inspection.add_checked(describe(reports, "prompts", limit), num_faults)


def check_probe_files(inspection: Inspection, chat: Chat | None) -> None:
    """Check the prompts of a probe that has files and has not drawn its prompts."""
    probe = inspection.config.probe
    if probe is None or not probe.files or inspection.is_finished(inspection.run.probe_prompts_piece):
        return
    num_faults = len(inspection.faults)
    reports = _check_files(inspection, probe.files, chat, {})
    if len(reports) == len(probe.files):
        inspection.add_checked(describe(reports, "the probe's prompts", _limit(inspection)), num_faults)


def check_disk(inspection: Inspection, free_bytes: Callable[[Path], int] = free_bytes_of) -> None:
    """Compare the plan's bytes with the free bytes at the run's folder, which should be writable."""
    num_bytes = _planned_bytes(inspection)
    with inspection.collect():
        folder = _nearest_folder(inspection.run.root)
        if not os.access(folder, os.W_OK):
            raise UsageError(f"{inspection.run.root} cannot be made: {folder} is not writable; set another runs_dir=")
        num_free = free_bytes(folder)
        if num_bytes > num_free:
            raise UsageError(
                f"{inspection.run.root} needs about {format_bytes(num_bytes)}, and its disk has "
                f"{format_bytes(num_free)} free; make space, or set runs_dir= to another disk"
            )
        inspection.checked.append(f"disk: {format_bytes(num_bytes)} needed, {format_bytes(num_free)} free")


def _check_files(
    inspection: Inspection, files: Sequence[PromptFile], chat: Chat | None, sources: dict[str, str]
) -> list[FileReport]:
    """Check files of prompts; a file that cannot be read is a fault and has no report.

    The source of each prompt is added to `sources` under the prompt's id.
    """
    limit = _limit(inspection)
    reports: list[FileReport] = []
    for file in files:
        with inspection.collect():
            report = check_rows(file.path, _measure(file, chat, sources), inspection)
            reports.append(report)
            _tell_refused_prompts(inspection, report, limit)
    if len(reports) == len(files):
        with inspection.collect():
            check_has_prompts(files, sum(report.num_rows for report in reports))
    return reports


def _num_probe_prompts(inspection: Inspection, sizes: dict[str, int]) -> int:
    """Return how many prompts the probe takes from the pool; tell if that is fewer than configured, warn of none."""
    probe = inspection.config.probe
    if probe is None or probe.files or not sizes:
        return 0
    num_prompts = sum(quotas(probe_sizes(sizes), probe.num_prompts).values())
    if num_prompts == 0:
        inspection.warnings.append(
            "the probe has no prompts, since no source of the pool has ten; rewards of rounds cannot be compared; "
            "set evaluation.probe.files, or evaluation.probe=null"
        )
    elif num_prompts < probe.num_prompts:
        inspection.checked.append(
            f"the probe has {counted(num_prompts, 'prompt')}, a tenth of each source (evaluation.probe.num_prompts: "
            f"{probe.num_prompts})"
        )
    return num_prompts


def _limit(inspection: Inspection) -> int | None:
    """Return the longest prompt that can be completed, in tokens; None if the policy's positions are unknown."""
    return max_prompt_tokens(inspection.context_tokens, inspection.config.sampling.max_new_tokens)


def _measure(file: PromptFile, chat: Chat | None, sources: dict[str, str]) -> Measure:
    """Return a function that counts the tokens of a row's prompt, and adds its source under its id to `sources`."""

    def measure(row: dict[str, Any], location: str) -> int | None:
        prompt = parse_prompt(row, source_of(file), location)
        sources[prompt.prompt_id] = prompt.source
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


def _tell_untrainable_prompts(inspection: Inspection, report: FileReport, max_tokens: int) -> None:
    num_untrainable = report.num_longer(max_tokens - 1)
    if num_untrainable:
        reason = f"{max_tokens} tokens (rounds.train.max_tokens) or more, before the completion"
        remedy = "raise rounds.train.max_tokens"
        tell_refusals(inspection, report, Counter({reason: num_untrainable}), "will be left out of training", remedy)


def _planned_bytes(inspection: Inspection) -> int:
    """Return the bytes that the unfinished stages will write; stages of unknown size count as 0."""
    num_bytes = 0
    for stage in plan(inspection.config):
        round_name = inspection.run.round_name(stage.round_number)
        last_piece = inspection.run.policy_piece(stage.round_number)
        if stage.name.startswith("sample"):
            last_piece = f"{round_name}/select"
        elif stage.name.startswith(PROBE):
            last_piece = inspection.run.probe_piece(stage.round_number)
        if not inspection.is_finished(last_piece):
            num_bytes += stage.num_bytes or 0
    return num_bytes


def _nearest_folder(path: Path) -> Path:
    """Return the folder itself, or its nearest parent that exists. Raises UsageError if that is a file."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        raise UsageError(f"no folder can be made in {str(path)!r}, which is a file; set another runs_dir=")
    return path

"""One SFT job: rows and a model in, a checkpoint out. TRL does the training; no code here loops over steps.

rows -> encode -> SFTTrainer -> <output_dir>/  config.json  model.safetensors  tokenizer  train_report.json

Weights are held in float32 while they are trained: a step of 1e-6 is lost in bfloat16, which has 8 bits of precision.
With dtype bfloat16 the forward and backward passes use bfloat16 (autocast) and the checkpoint is stored in it. The job
runs in one process, with the model spread over the GPUs of the machine, or on the CPU if it has none; on the CPU equal
inputs give byte-identical checkpoints.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from sft.encoding import encode
from sft.mixing import TrainingRow
from sft.trainer import StepProgress, make_trainer, trainer_arguments
from sft.trainer_checkpoints import last_checkpoint, trainer_folder
from winnow.chat import Chat
from winnow.config import Dtype
from winnow.errors import TrainingError
from winnow.models import load_causal_lm
from winnow.progress import progress
from winnow.records import Row, digest
from winnow.rows import write_json
from winnow.run_config import TrainConfig
from winnow.rundir import atomic_folder


@dataclass(frozen=True)
class TrainingJob:
    """The inputs of one SFT job and the folder for its checkpoint."""

    config: TrainConfig
    model: str
    """Folder or hub id of the model to start from."""
    chat: Chat
    rows: Sequence[TrainingRow]
    output_dir: Path
    seed: int
    dtype: Dtype
    """Precision of the passes and of the checkpoint; `auto`: the model's."""
    description: str
    """Title of the progress bar and of warnings."""
    is_last_turn_only: bool = False
    """Leave earlier assistant turns out of the loss: in a selected row they are part of the prompt."""


class TrainReport(Row):
    """Facts of a finished job; stored in the checkpoint as train_report.json."""

    num_rows: int
    """Rows trained on."""
    num_dropped_long: int
    """Rows longer than max_tokens."""
    num_invalid: int
    """Rows that could not be rendered."""
    invalid_reasons: dict[str, int]
    """The errors of these rows, and how often each occurred."""
    num_loss_tokens: int
    """Tokens that carry loss in one pass over the rows."""
    steps: int
    """Optimizer steps."""
    final_loss: float
    """Negative log-likelihood per loss token of the last step's batch, in nats."""
    seconds: float
    """Wall-clock time of the job, loading and saving included."""


def train(job: TrainingJob) -> TrainReport:
    """Train a model on the assistant turns of the job's rows and write the whole checkpoint to `output_dir`.

    Raises TrainingError if there is nothing to train on or the loss is not finite, ModelError for an unusable model.
    """
    start = time.monotonic()
    config = job.config
    encoded = encode(job.rows, job.chat, config.max_tokens, is_last_turn_only=job.is_last_turn_only)
    num_steps = config.num_steps(len(encoded.input_ids))
    warning = config.warmup_warning(num_steps)
    if warning is not None:
        print(f"{job.description}: {warning}", file=sys.stderr)
    policy, stored_dtype = load_for_training(job.model, job.chat, job.dtype)
    job_id = digest([config.model_dump(mode="json"), job.model, job.seed, job.dtype, encoded.content_hash()])
    with trainer_folder(job.output_dir, job_id) as trainer_dir:
        with progress(job.description, num_steps, "steps") as advance:
            steps = StepProgress(advance)
            arguments = trainer_arguments(config, trainer_dir, job.seed, stored_dtype)
            trainer = make_trainer(policy, job.chat.tokenizer, encoded, arguments, steps)
            trainer.train(resume_from_checkpoint=_resume_from(trainer_dir, job.description))
        report = TrainReport(
            num_rows=len(encoded.input_ids),
            num_dropped_long=encoded.num_dropped_long,
            num_invalid=encoded.invalid_reasons.total(),
            invalid_reasons=dict(encoded.invalid_reasons),
            num_loss_tokens=encoded.num_loss_tokens,
            steps=int(trainer.state.global_step),
            final_loss=steps.last_loss,
            seconds=round(time.monotonic() - start, 3),
        )
        write_checkpoint(job.output_dir, policy.to(stored_dtype), job.chat, report)
    return report


def _resume_from(trainer_dir: Path, description: str) -> str | None:
    checkpoint = last_checkpoint(trainer_dir)
    if checkpoint is None:
        return None
    print(f"{description}: resuming from {checkpoint.name}", file=sys.stderr)
    return str(checkpoint)


def load_for_training(model: str, chat: Chat, dtype: Dtype) -> tuple[Any, torch.dtype]:
    """Load the model in float32; return it with the precision that its checkpoint is stored in.

    Raises ModelError if it cannot be loaded, TrainingError if its precision cannot be trained on this machine.
    """
    policy = load_causal_lm(model, dtype=dtype, use="training")
    if len(chat.tokenizer) > policy.get_input_embeddings().weight.shape[0]:
        policy.resize_token_embeddings(len(chat.tokenizer))  # the config adds special tokens to the tokenizer for SFT
    stored_dtype = policy.dtype
    if stored_dtype == torch.float16 and not torch.cuda.is_available():
        raise TrainingError("dtype float16 needs a GPU to train on; set policy.dtype=bfloat16 or policy.dtype=float32")
    set_special_tokens(policy, chat)
    return policy.float(), stored_dtype


def set_special_tokens(policy: Any, chat: Chat) -> None:
    """Write the special tokens into the model's configs, so that generation stops where sampling for this job stopped.

    generation_config.json holds the whole list of stop ids, the end of turn first: transformers, vLLM and `load_chat`
    read them there. config.json holds the end of turn alone: it is read only where generation_config.json is missing,
    and some of its readers expect one number.
    """
    bos_token_id = chat.tokenizer.bos_token_id
    pad_token_id = chat.tokenizer.pad_token_id
    if pad_token_id is None:
        pad_token_id = chat.end_of_turn_id
    policy.config.bos_token_id = bos_token_id
    policy.config.eos_token_id = chat.end_of_turn_id
    policy.config.pad_token_id = pad_token_id
    stop_ids: int | list[int] = chat.end_of_turn_id
    if len(chat.stop_ids) > 1:
        stop_ids = [chat.end_of_turn_id, *sorted(chat.stop_ids - {chat.end_of_turn_id})]
    policy.generation_config = GenerationConfig(
        bos_token_id=bos_token_id, eos_token_id=stop_ids, pad_token_id=pad_token_id
    )


def write_checkpoint(output_dir: Path, policy: Any, chat: Chat, report: TrainReport) -> None:
    """Write weights, tokenizer and report in Hugging Face's layout; the folder appears whole or not at all."""
    set_special_tokens(policy, chat)  # once more: transformers' Trainer puts the tokenizer's EOS in their place
    with atomic_folder(output_dir) as folder:
        policy.save_pretrained(folder)
        chat.tokenizer.save_pretrained(folder)
        write_json(folder / "train_report.json", report.model_dump())

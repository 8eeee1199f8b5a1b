"""One SFT job: rows and a model in, a checkpoint out. The training itself is TRL's; nothing here loops over steps.

rows -> encode -> SFTTrainer -> <output_dir>/  config.json  model.safetensors  tokenizer  train_report.json

Weights are held in float32 while they are trained: a step of 1e-6 is lost in bfloat16, which has 8 bits. With dtype
bfloat16 the passes run in it (autocast) and the checkpoint is stored in it. The job runs in one process, the model
spread over the GPUs there are, else on the CPU; there, equal inputs give byte-identical checkpoints.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from sft.encoding import Encoded, encode
from sft.trainer import Steps, make_trainer
from sft.trainer_checkpoints import last_checkpoint, trainer_folder
from winnow.chat import Chat
from winnow.config import Dtype
from winnow.errors import TrainingError
from winnow.models import load_causal_lm
from winnow.progress import progress
from winnow.records import Row, digest
from winnow.rows import write_json
from winnow.run_config import TrainConfig
from winnow.rundir import whole_folder


class TrainReport(Row):
    """What a job did; it lies beside the checkpoint as train_report.json."""

    num_rows: int
    """Rows trained on."""
    num_dropped_long: int
    """Rows longer than max_tokens."""
    num_invalid: int
    """Rows that could not be rendered."""
    invalid_reasons: dict[str, int]
    """What was wrong with them, and how often."""
    num_loss_tokens: int
    """Tokens that carry loss in one pass over the rows."""
    steps: int
    """Optimizer steps."""
    final_loss: float
    """Negative log-likelihood per loss token of the last step's batch, in nats."""
    seconds: float
    """Wall-clock time of the job, loading and saving included."""


def train(
    config: TrainConfig,
    *,
    model: str,
    chat: Chat,
    rows: Sequence[Mapping[str, Any]],
    output_dir: Path,
    seed: int,
    dtype: Dtype,
    description: str,
    is_last_turn_only: bool = False,
) -> TrainReport:
    """Train a model on the assistant turns of `rows` and write the checkpoint, whole, to `output_dir`.

    `is_last_turn_only` leaves earlier assistant turns out of the loss: a selected row's are part of its prompt.

    Raises TrainingError when there is nothing to train on or the loss is lost, ModelError when there is no model.
    """
    start = time.monotonic()
    encoded = encode(rows, chat, config.max_tokens, is_last_turn_only=is_last_turn_only)
    steps = config.num_steps(len(encoded.input_ids))
    if warning := config.warmup_warning(steps):
        print(f"{description}: {warning}", file=sys.stderr)
    policy, kept_dtype = load_for_training(model, chat, dtype)
    job = digest([config.model_dump(mode="json"), model, seed, dtype, encoded.identity()])
    with trainer_folder(output_dir, job) as trainer_dir:
        with progress(description, steps, "steps") as advance:
            callback = Steps(advance)
            trainer = make_trainer(config, policy, chat.tokenizer, encoded, trainer_dir, seed, kept_dtype, callback)
            trainer.train(resume_from_checkpoint=_resume_from(trainer_dir, description))
        seconds = time.monotonic() - start
        report = make_report(encoded, int(trainer.state.global_step), callback.last_loss, seconds)
        write_checkpoint(output_dir, policy.to(kept_dtype), chat, report)
    return report


def _resume_from(trainer_dir: Path, description: str) -> str | None:
    checkpoint = last_checkpoint(trainer_dir)
    if checkpoint is None:
        return None
    print(f"{description}: going on from {checkpoint.name}", file=sys.stderr)
    return str(checkpoint)


def load_for_training(model: str, chat: Chat, dtype: Dtype) -> tuple[Any, torch.dtype]:
    """The model in float32, and the precision it is stored in.

    Raises ModelError when it cannot be loaded, TrainingError when its precision cannot be trained here.
    """
    policy = load_causal_lm(model, dtype=dtype)
    if len(chat.tokenizer) > policy.get_input_embeddings().weight.shape[0]:
        policy.resize_token_embeddings(len(chat.tokenizer))  # tokens that the tokenizer was given for SFT
    kept_dtype = policy.dtype
    if kept_dtype == torch.float16 and not torch.cuda.is_available():
        raise TrainingError("dtype float16 needs a GPU to train on; set policy.dtype=bfloat16 or policy.dtype=float32")
    name_special_tokens(policy, chat.tokenizer)
    return policy.float(), kept_dtype


def name_special_tokens(policy: Any, tokenizer: Any) -> None:
    """Let the checkpoint say where its turns end, so that whatever loads it stops there."""
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    tokens["pad_token_id"] = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    for name, token_id in tokens.items():
        setattr(policy.config, name, token_id)
    policy.generation_config = GenerationConfig(**tokens)


def make_report(encoded: Encoded, steps: int, final_loss: float, seconds: float) -> TrainReport:
    """The facts of a finished job."""
    return TrainReport(
        num_rows=len(encoded.input_ids),
        num_dropped_long=encoded.num_dropped_long,
        num_invalid=encoded.invalid_reasons.total(),
        invalid_reasons=dict(encoded.invalid_reasons),
        num_loss_tokens=encoded.num_loss_tokens,
        steps=steps,
        final_loss=final_loss,
        seconds=round(seconds, 3),
    )


def write_checkpoint(output_dir: Path, policy: Any, chat: Chat, report: TrainReport) -> None:
    """Weights, tokenizer and report in Hugging Face's layout; the folder appears whole."""
    with whole_folder(output_dir) as folder:
        policy.save_pretrained(folder)
        chat.tokenizer.save_pretrained(folder)
        write_json(folder / "train_report.json", report.model_dump())

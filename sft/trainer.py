"""TRL's SFTTrainer as winnow uses it: its arguments, and callbacks that show progress and stop at a lost loss.

loss of a step = sum of the loss tokens' negative log-likelihoods / their number, over the whole accumulated batch

So a batch of 64 rows gives the same gradient as 8 x 8 or 64 x 1 rows.
"""

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Sequence, Value
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from sft.encoding import Encoded
from winnow.errors import TrainingError
from winnow.progress import Advance
from winnow.run_config import TrainConfig

MAX_GRAD_NORM = 1.0
SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


class Trainer(SFTTrainer):  # type: ignore[misc,unused-ignore]
    """SFTTrainer that tells nobody of its use and prints nothing."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.remove_callback(PrinterCallback)

    def _send_telemetry(self) -> None:
        """Nothing is sent anywhere."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No card beside trainer checkpoints, which live only as long as the job."""


class Steps(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Shows each step, keeps the last loss, and stops when it is no number."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance
        self.last_loss = math.nan

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the steps of a job that is gone on with."""
        if state.global_step:
            self.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step more."""
        self.advance()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Read the step's loss."""
        if "loss" not in logs:
            return
        self.last_loss = logs["loss"]
        if not math.isfinite(self.last_loss):
            raise TrainingError(
                f"the loss of step {state.global_step} is {self.last_loss}; "
                "lower learning_rate or lengthen warmup_steps"
            )


def make_trainer(
    config: TrainConfig,
    policy: Any,
    tokenizer: Any,
    encoded: Encoded,
    trainer_dir: Path,
    seed: int,
    autocast: torch.dtype,
    callback: TrainerCallback,
) -> Trainer:
    """A trainer of `policy` on the encoded rows, which are shuffled by `seed` anew in each pass."""
    return Trainer(
        model=policy,
        args=trainer_arguments(config, trainer_dir, seed, autocast),
        train_dataset=make_dataset(encoded),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def make_dataset(encoded: Encoded) -> Dataset:
    """The rows as TRL reads them: tokenized, with labels; it changes neither."""
    features = Features({name: Sequence(Value("int32")) for name in ("input_ids", "labels")})
    return Dataset.from_dict({"input_ids": encoded.input_ids, "labels": encoded.labels}, features=features)


def trainer_arguments(config: TrainConfig, trainer_dir: Path, seed: int, autocast: torch.dtype) -> SFTConfig:
    """A job's settings in TRL's names."""
    return SFTConfig(
        output_dir=str(trainer_dir),
        seed=seed,
        data_seed=seed,
        **_optimizer_arguments(config),
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.batch_size // config.micro_batch_size,
        gradient_checkpointing=config.is_gradient_checkpointing,
        bf16=autocast == torch.bfloat16,
        fp16=autocast == torch.float16,
        use_cpu=not torch.cuda.is_available(),
        max_length=None,
        packing=False,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 1,
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _optimizer_arguments(config: TrainConfig) -> dict[str, Any]:
    return {
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.num_epochs,
        "max_steps": config.max_steps or -1,
        "lr_scheduler_type": SCHEDULERS[config.lr_schedule],
        "warmup_steps": config.warmup_steps,
        "adam_beta1": config.adam_betas[0],
        "adam_beta2": config.adam_betas[1],
        "weight_decay": config.weight_decay,
        "max_grad_norm": MAX_GRAD_NORM,
    }

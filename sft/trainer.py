"""TRL's SFTTrainer with winnow's settings, and a callback that shows progress and stops at a non-finite loss.

loss of a step = sum of the loss tokens' negative log-likelihoods / their number, over the whole accumulated batch

Therefore 1 x 64, 8 x 8 and 64 x 1 rows give the same gradient.
"""

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Sequence, Value
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from sft.encoding import EncodedRows
from winnow.errors import TrainingError
from winnow.progress import Advance
from winnow.run_config import TrainConfig

MAX_GRAD_NORM = 1.0
SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


class QuietTrainer(SFTTrainer):  # type: ignore[misc,unused-ignore]
    """SFTTrainer that sends no telemetry and prints nothing."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.remove_callback(PrinterCallback)

    def _send_telemetry(self) -> None:
        """Send nothing."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no model card into trainer checkpoints, which are removed when the job ends."""


class StepProgress(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Callback that shows each step, keeps the last loss, and stops the job if the loss is not finite."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance
        self.last_loss = math.nan

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the steps that a resumed job has already done."""
        if state.global_step:
            self.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count one more step."""
        self.advance()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Keep the step's loss. Raises TrainingError if it is not finite."""
        if "loss" not in logs:
            return
        self.last_loss = logs["loss"]
        if not math.isfinite(self.last_loss):
            raise TrainingError(
                f"the loss of step {state.global_step} is {self.last_loss}; "
                "lower learning_rate or lengthen warmup_steps"
            )


def make_trainer(
    policy: Any, tokenizer: Any, encoded: EncodedRows, arguments: SFTConfig, callback: TrainerCallback
) -> QuietTrainer:
    """Return a trainer of `policy` on the encoded rows, which are shuffled again in each pass."""
    return QuietTrainer(
        model=policy,
        args=arguments,
        train_dataset=make_dataset(encoded),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def make_dataset(encoded: EncodedRows) -> Dataset:
    """Return the rows as TRL reads them: token ids and labels, both of which it leaves unchanged."""
    features = Features({name: Sequence(Value("int32")) for name in ("input_ids", "labels")})
    return Dataset.from_dict({"input_ids": encoded.input_ids, "labels": encoded.labels}, features=features)


def trainer_arguments(config: TrainConfig, trainer_dir: Path, seed: int, autocast: torch.dtype) -> SFTConfig:
    """Return a job's settings in TRL's names; `autocast` is the precision of the forward and backward passes."""
    save_strategy = "steps" if config.save_steps else "no"
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
        save_strategy=save_strategy,
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

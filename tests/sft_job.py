"""One small SFT job on sixteen rows, as a function and as a script that a test can kill.

python -m tests.sft_job MODEL OUTPUT_DIR '{"max_steps": 60, "save_steps": 1}'
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.mixing import TrainingRow
from sft.train import TrainingJob, TrainReport, train
from winnow.chat import Chat, load_tokenizer
from winnow.config import Dtype
from winnow.run_config import TrainConfig


def conversation_row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [conversation_row(f"Add {n}.", "sea " * (1 + n % 5)) for n in range(16)]


def make_job(
    model: str, output_dir: Path, rows: Sequence[TrainingRow] = ROWS, dtype: Dtype = "auto", **changes: Any
) -> TrainingJob:
    """Return a job of three steps; `changes` are fields of its TrainConfig."""
    config = {"learning_rate": 1e-3, "max_steps": 3, "batch_size": 8, "micro_batch_size": 8, "max_tokens": 64}
    return TrainingJob(
        config=TrainConfig(**{**config, **changes}),
        model=model,
        chat=Chat(load_tokenizer(model), "lab", "Be careful."),
        rows=rows,
        output_dir=output_dir,
        seed=1,
        dtype=dtype,
        description="train",
    )


def run_job(
    model: str, output_dir: Path, rows: Sequence[TrainingRow] = ROWS, dtype: Dtype = "auto", **changes: Any
) -> TrainReport:
    """Train on `rows` and return the report."""
    return train(make_job(model, output_dir, rows, dtype, **changes))


if __name__ == "__main__":
    run_job(sys.argv[1], Path(sys.argv[2]), **json.loads(sys.argv[3]))

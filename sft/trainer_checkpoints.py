"""Trainer checkpoints of a running job: their folder, the job they belong to, and the newest one that is whole.

checkpoint/            the job's result, once it is finished
.checkpoint.trainer/   job.json, checkpoint-100/: a killed job resumes from these; removed when the result is there

A trainer checkpoint is whole if it has its trainer_state.json, which is written last.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from winnow.rows import write_json


@contextmanager
def trainer_folder(output_dir: Path, job_id: str) -> Iterator[Path]:
    """Yield the folder of a job's trainer checkpoints, emptied if they belong to another job.

    The folder is removed if the block ends without an error.
    """
    folder = output_dir.with_name(f".{output_dir.name}.trainer")
    if _read_object(folder / "job.json").get("job") != job_id:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / "job.json", {"job": job_id})
    yield folder
    shutil.rmtree(folder)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole trainer checkpoint, or None; folders that a kill cut short are removed."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if _read_object(path / "trainer_state.json"):
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def _read_object(path: Path) -> dict[str, object]:
    """Return the JSON object in a file; an empty one if the file is missing or cut short."""
    try:
        value = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    if isinstance(value, dict):
        return value
    return {}

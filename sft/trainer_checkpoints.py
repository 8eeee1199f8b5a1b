"""Trainer checkpoints of a running job: where they lie, which one is whole, and whose they are.

checkpoint/            the job's result, when it has one
.checkpoint.trainer/   job.json, checkpoint-100/: what a killed job goes on from; removed when the result is there

A trainer checkpoint is whole when it has its trainer_state.json, which is written last.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from winnow.rows import write_json


@contextmanager
def trainer_folder(output_dir: Path, job: str) -> Iterator[Path]:
    """The folder of a job's trainer checkpoints, empty if they were another job's; removed when all went well."""
    folder = output_dir.with_name(f".{output_dir.name}.trainer")
    if _job_of(folder) != job:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / "job.json", {"job": job})
    yield folder
    shutil.rmtree(folder)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole trainer checkpoint; folders that a kill cut short are removed."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if _read(path / "trainer_state.json"):
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def _job_of(folder: Path) -> object:
    job = _read(folder / "job.json")
    return job and job.get("job")


def _read(path: Path) -> dict[str, object] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None

"""What decides judgments besides the answers: the judge's settings, and the content of its files.

judgment_inputs(judge, questions, references)  ->  {"judge": settings, "questions": SHA-256, "prompts": SHA-256, ...}
"""

from pathlib import Path
from typing import Any

from winnow.rows import file_sha256
from winnow.run_config import JudgeConfig

# Keys of a judge that change no judgment; of its prompts the content counts, not the path.
NOT_OF_JUDGMENTS = {"max_unreadable", "base_url", "timeout_s", "num_parallel", "prompts"}


def judgment_settings(judge: JudgeConfig) -> dict[str, Any]:
    """Return the settings of a judge that may change a judgment."""
    return judge.model_dump(mode="json", exclude=NOT_OF_JUDGMENTS)


def judgment_inputs(judge: JudgeConfig, questions: str | Path, references: str | Path | None) -> dict[str, Any]:
    """Return the settings of a judge and the hashes of the files that it reads."""
    files = {"questions": questions, "references": references, "prompts": judge.prompts}
    hashes = {name: file_sha256(path) for name, path in files.items() if path is not None}
    return {"judge": judgment_settings(judge), **hashes}

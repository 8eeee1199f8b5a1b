"""A folder or hub id -> the folder that holds the model's files, whose hash is a part of the results' key.

fetch_model("models/merlinite-7b")       -> "models/merlinite-7b"
fetch_model("instructlab/merlinite-7b")  -> its copy in the hub's cache, downloaded if it is not there yet
"""

from pathlib import Path

from winnow.checkpoints import check_checkpoint
from winnow.errors import ModelError
from winnow.models import check_model_path, load_failure

SMALL_FILES = ("*.json", "*.model", "*.jinja", "*.txt", "tokenizer*")


def fetch_model(model: str) -> str:
    """Return the folder of a checkpoint. Raises UsageError for a missing folder, ModelError for an unusable one."""
    check_model_path(model)
    folder = model
    if not Path(model).is_dir():
        folder = _fetch(model, "*.safetensors")
        if not next(Path(folder).glob("*.safetensors"), None):
            folder = _fetch(model, "*.bin")
    check_checkpoint(folder)
    return folder


def _fetch(model: str, weights: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return snapshot_download(model, allow_patterns=[*SMALL_FILES, weights])
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ModelError(f"no model could be loaded from {model!r}: {load_failure(model, error)}") from error

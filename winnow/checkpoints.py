"""Checks of a checkpoint's files before its weights are loaded, which may take minutes.

check_checkpoint("models/mixtral")   raises ModelError unless weights and tokenizer are complete
max_positions("models/mixtral")      -> 32768
"""

import json
from pathlib import Path
from typing import Any

from winnow.errors import ModelError

WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
# Every tokenizer has some of these files: tokenizer.json, tokenizer_config.json, tokenizer.model, vocab.json, ...
TOKENIZER_PATTERNS = ("tokenizer*", "*.model", "vocab*", "tekken.json")


def check_checkpoint(model: str) -> None:
    """Raise ModelError for a folder with a missing or truncated checkpoint file; a hub id passes."""
    folder = Path(model)
    if not folder.is_dir():
        return
    failure = f"no model could be loaded from {model!r}:"
    if not _has_any(folder, WEIGHT_PATTERNS):
        raise ModelError(
            f"{failure} it holds no weight files ({' or '.join(WEIGHT_PATTERNS)}); copy the checkpoint whole"
        )
    for name in _weight_names(folder):
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{failure} its weight file {name} is missing; copy the checkpoint whole")
        if path.suffix == ".safetensors" and not _is_complete(path):
            raise ModelError(f"{failure} its {name} is cut short or damaged; copy or save it again")
    if not has_tokenizer(folder):
        raise ModelError(
            f"no tokenizer could be loaded from {model!r}: it holds none (tokenizer.json or tokenizer.model); copy its "
            "tokenizer's files next to the model"
        )


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder holds a tokenizer's file."""
    return _has_any(folder, TOKENIZER_PATTERNS)


def positions_of(model_config: Any) -> int | None:
    """Return the number of positions of a model from its transformers config; None if it is not named there."""
    limit: int | None = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    return limit


def max_positions(model: str) -> int | None:
    """Return the number of positions that a model was made for, from its config.json.

    None if the file does not name it, or is not on this machine yet.
    """
    path = _config_path(model)
    if path is None:
        return None
    try:
        config = json.loads(path.read_text())
        limit = config.get("text_config", config).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None  # loading reports what is wrong with it
    if isinstance(limit, int):
        return limit
    return None


def _has_any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def _config_path(model: str) -> Path | None:
    """Return a model's config.json: in its folder, or the local copy of a hub id's file if there is one."""
    if Path(model).is_dir():
        return Path(model) / "config.json"
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "config.json")
    if isinstance(cached, str):
        return Path(cached)
    return None


def _weight_names(folder: Path) -> list[str]:
    """Return the names of the weight files that make up the model, as its index lists them."""
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    for index in (folder / "model.safetensors.index.json", folder / "pytorch_model.bin.index.json"):
        try:
            return sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # it does not exist, or loading reports what is wrong with it
    return []


def _is_complete(path: Path) -> bool:
    """Tell whether a safetensors file has the size that its header implies: 8 bytes, the header, the tensors."""
    with path.open("rb") as file:
        num_bytes = path.stat().st_size
        header_length = int.from_bytes(file.read(8), "little")
        if header_length > num_bytes - 8:
            return False
        try:
            header = json.loads(file.read(header_length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return num_bytes == 8 + header_length + int(max(ends, default=0))
        except (ValueError, AttributeError, LookupError, TypeError):
            return False

"""What the files of a checkpoint say by themselves, before any weights are loaded, which may take minutes.

folder -> whether weights and tokenizer are there and whole; the positions that the model was made for
"""

import json
from pathlib import Path

from winnow.errors import ModelError

WEIGHTS = ("*.safetensors", "*.bin")
# Some of them lie beside every tokenizer: tokenizer.json, tokenizer_config.json, tokenizer.model, vocab.json, ...
TOKENIZER = ("tokenizer*", "*.model", "vocab*", "tekken.json")


def check_checkpoint(model: str) -> None:
    """Raise ModelError for a folder that lacks files of a checkpoint, or where one is cut short; a hub id passes."""
    folder = Path(model)
    if not folder.is_dir():
        return
    lost = f"no model could be loaded from {model!r}:"
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        raise ModelError(f"{lost} it holds no weight files ({' or '.join(WEIGHTS)}); copy the checkpoint whole")
    for path in (folder / name for name in _weight_names(folder)):
        if not path.is_file():
            raise ModelError(f"{lost} its weight file {path.name} is missing; copy the checkpoint whole")
        if path.suffix == ".safetensors" and not _is_whole(path):
            raise ModelError(f"{lost} its {path.name} is cut short or damaged; copy or save it anew")
    if not has_tokenizer(folder):
        raise ModelError(
            f"no tokenizer could be loaded from {model!r}: it holds none (tokenizer.json or tokenizer.model); copy its "
            "tokenizer's files beside the model"
        )


def has_tokenizer(folder: Path) -> bool:
    """Whether any file of a tokenizer lies in a folder."""
    return any(path for pattern in TOKENIZER for path in folder.glob(pattern))


def max_positions(model: str) -> int | None:
    """The positions that a model was made for, by its config.json; None where that does not say, or is not here yet."""
    path = Path(model) / "config.json" if Path(model).is_dir() else _downloaded(model, "config.json")
    try:
        config = json.loads(path.read_text()) if path else {}
        limit = config.get("text_config", config).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None  # loading says what is wrong with it
    return limit if isinstance(limit, int) else None


def _downloaded(model: str, name: str) -> Path | None:
    """The local copy of a hub id's file, if there is one."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, name)
    return Path(found) if isinstance(found, str) else None


def _weight_names(folder: Path) -> list[str]:
    """The weight files that make up the model, as far as names and index say."""
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    for index in (folder / "model.safetensors.index.json", folder / "pytorch_model.bin.index.json"):
        try:
            return sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # there is none, or loading says what is wrong with it
    return []


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says: 8 bytes of length, the header, the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size - 8:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return path.stat().st_size == 8 + length + int(max(ends, default=0))
        except (ValueError, AttributeError, LookupError, TypeError):
            return False

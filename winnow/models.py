"""Loading a causal language model, the same way in every room: a folder or hub id -> a model, or one clear error.

Importing this loads no torch; calling `load_causal_lm` does. What the files of a folder say by themselves is known
before (`check_checkpoint`, `max_positions`): loading large weights takes minutes.
"""

import json
from pathlib import Path
from typing import Any

from winnow.errors import ModelError, UsageError
from winnow.sections import Dtype

WEIGHTS = ("*.safetensors", "*.bin")
# Some of them lie beside every tokenizer: tokenizer.json, tokenizer_config.json, tokenizer.model, vocab.json, ...
TOKENIZER = ("tokenizer*", "*.model", "vocab*", "tekken.json")

# What an error of loading says -> the way out.
WAYS_OUT = {
    "no file named": "copy the checkpoint whole, weights included",
    "deserializing header": "a weight file is cut short or damaged; copy or save it anew",
    "not compiled with CUDA": "this PyTorch computes on CPUs only; set device_map to cpu or auto, or install one for "
    "this machine's GPUs",
    "NVIDIA driver": "PyTorch finds no GPU here; set device_map to cpu or auto",
    "invalid device ordinal": "this machine has no such GPU; set device_map to one that it has, or to auto",
    "out of memory": "free the GPU, take more of them (device_map: auto), or a smaller dtype",
}


def load_causal_lm(model: str, *, dtype: Dtype, device_map: str = "auto", **arguments: Any) -> Any:
    """The model of a folder or hub id; `auto` spreads it over the GPUs there are, else it lies on the CPU.

    Raises UsageError for a folder that is not there, ModelError for one that holds no whole causal language model.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    check_model_path(model)
    logging.disable_progress_bar()  # loading has no bar of its own; winnow.progress shows what takes long
    try:
        loaded, report = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, device_map=_placement(device_map), output_loading_info=True, **arguments
        )
    except (OSError, ValueError, RuntimeError, ImportError, AssertionError, SafetensorError) as error:
        raise ModelError(f"no model could be loaded from {model!r}: {load_failure(model, error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{model!r} lacks {len(missing)} weights of its model, like {missing[0]}; save it whole, or give a folder "
            "that holds a causal language model"
        )
    return loaded


def check_model_path(model: str) -> None:
    """Raise UsageError for a path that is not a folder; a hub id ("org/name") passes."""
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).parts[:1] == ("runs",)
    if Path(model).is_dir() or (not looks_local and model.count("/") == 1):
        return
    raise UsageError(
        f"model folder {model!r} does not exist; give a folder with config.json, or a hub id like org/name"
    )


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


def load_failure(model: str, error: BaseException) -> str:
    """Why nothing could be loaded from a model's folder or hub id, and the way out, without a full stop."""
    reason = first_line(error).rstrip(".")
    if reason.rstrip().endswith(":"):  # of a list, whose items are on lines of their own
        reason = " ".join(str(error).split()).rstrip(".")
    for sign, way_out in WAYS_OUT.items():
        if sign in reason:
            return f"{reason}; {way_out}"
    if Path(model).is_dir() or not isinstance(error, OSError):
        return reason
    return (
        f"there is no such folder here, and the Hugging Face hub did not give it either ({reason}); give a folder that "
        "holds a model and its tokenizer, or a hub id like org/name"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for messages of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
            return sorted(set(json.loads(index.read_text())["weight_map"].values()))
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
        except (ValueError, AttributeError, LookupError, TypeError):
            return False
    return path.stat().st_size == 8 + length + max(ends, default=0)


def _placement(device_map: str) -> str | None:
    """What from_pretrained is given; None keeps the weights on the CPU without needing accelerate."""
    import torch

    if device_map == "auto":
        return "auto" if torch.cuda.is_available() else None
    return None if device_map == "cpu" else device_map

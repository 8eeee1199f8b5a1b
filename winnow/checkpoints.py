"""Checks of a checkpoint's files before its weights are loaded, which may take minutes.

check_checkpoint("models/mixtral")   raises ModelError unless weights and tokenizer are complete
max_positions("models/mixtral")      -> 32768
generation_eos_ids("models/llama-3") -> [128001, 128008, 128009]
"""

import json
from pathlib import Path
from typing import Any

from winnow.errors import ModelError

WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
# Every tokenizer has some of these files: tokenizer.json, tokenizer_config.json, tokenizer.model, vocab.json, ...
TOKENIZER_PATTERNS = ("tokenizer*", "*.model", "vocab*", "tekken.json")
# Openings of the names of weights that turn a language model into a reward model or a classifier.
HEAD_PREFIXES = ("score.", "v_head.", "value_head.", "reward_head.", "classifier.", "regression_head.")
NO_HEAD = "give a folder that holds a causal language model, or take the head out and save the model without it"
# Names in a safetensors header -> names of dtypes, of weights that are computed with as they are.
FLOAT_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def check_checkpoint(model: str) -> None:
    """Raise ModelError for a folder with a missing or truncated checkpoint file, or with a reward or value head.

    A hub id passes.
    """
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
    heads = [name for name in _tensor_names(folder) if name.startswith(HEAD_PREFIXES)]
    if heads:
        raise ModelError(
            f"{failure} it holds {len(heads)} weights of a reward model or classifier, like {heads[0]}; {NO_HEAD}"
        )
    if not has_tokenizer(folder):
        raise ModelError(
            f"no tokenizer could be loaded from {model!r}: it holds none (tokenizer.json or tokenizer.model); copy its "
            "tokenizer's files next to the model"
        )


def is_on_this_machine(model: str) -> bool:
    """Tell whether a model's config.json can be read without a download: from its folder, or a copy of the hub's."""
    return _local_file(model, "config.json") is not None


def num_weight_bytes(model: str) -> int | None:
    """Return the size of a model's weight files; None for a hub id, or if a file is missing."""
    paths = [Path(model) / name for name in _weight_names(Path(model))]
    if not paths or not all(path.is_file() for path in paths):
        return None
    return sum(path.stat().st_size for path in paths)


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder holds a tokenizer's file."""
    return _has_any(folder, TOKENIZER_PATTERNS)


def stored_dtype(model: str, model_config: Any) -> str | None:
    """Return the dtype of a checkpoint, like "bfloat16", from its transformers config, else from its first weights.

    None if neither names it, as for a hub id without a dtype in its config.
    """
    named = model_config.dtype or model_config.get_text_config().dtype
    if named is not None:
        return str(named).removeprefix("torch.")
    for name in _weight_names(Path(model)):
        path = Path(model) / name
        if path.suffix == ".safetensors" and path.is_file():
            return _first_float(_header(path) or {})
    return None


def _first_float(header: dict[str, Any]) -> str | None:
    """Return the dtype of the first tensor in a safetensors header that is computed with as it is."""
    for entry in header.values():
        if isinstance(entry, dict) and entry.get("dtype") in FLOAT_NAMES:
            return FLOAT_NAMES[entry["dtype"]]
    return None


def positions_of(model_config: Any) -> int | None:
    """Return the number of positions of a model from its transformers config; None if it is not named there."""
    limit: int | None = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    return limit


def max_positions(model: str) -> int | None:
    """Return the number of positions that a model was made for, from its config.json.

    None if the file does not name it, or is not on this machine yet.
    """
    return _config_number(model, "max_position_embeddings")


def num_embeddings(model: str) -> int | None:
    """Return the number of token ids that a model has embeddings for, from its config.json; None as in `max_positions`.

    A tokenizer may have fewer tokens than that, or more after tokens were added.
    """
    return _config_number(model, "vocab_size")


def _config_number(model: str, key: str) -> int | None:
    path = _local_file(model, "config.json")
    if path is None:
        return None
    try:
        config = json.loads(path.read_text())
        number = config.get("text_config", config).get(key)
    except (OSError, ValueError, AttributeError):
        return None  # loading reports what is wrong with it
    if isinstance(number, int):
        return number
    return None


def generation_eos_ids(model: str) -> list[int]:
    """Return the ids at which a model's generation stops, from its generation_config.json, else its config.json.

    Empty if neither names any, or is on this machine.
    """
    for name in ("generation_config.json", "config.json"):
        path = _local_file(model, name)
        if path is None:
            continue
        try:
            eos_ids = json.loads(path.read_text()).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue  # loading reports what is wrong with it
        if isinstance(eos_ids, int):
            return [eos_ids]
        if isinstance(eos_ids, list):
            return [token_id for token_id in eos_ids if isinstance(token_id, int)]
    return []


def _has_any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def _local_file(model: str, name: str) -> Path | None:
    """Return a file of a model: in its folder, or the local copy of a hub id's file if there is one."""
    if Path(model).is_dir():
        return Path(model) / name
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(model, name)
    except ValueError:  # neither a folder nor a hub id; `check_model_path` reports it
        return None
    if isinstance(cached, str):
        return Path(cached)
    return None


def _weight_names(folder: Path) -> list[str]:
    """Return the names of the weight files that make up the model, as its index lists them."""
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    return sorted(set(_weight_map(folder).values()))


def _weight_map(folder: Path) -> dict[str, str]:
    """Return the file of each tensor from the index of a model in several files; empty if it has none."""
    for index in (folder / "model.safetensors.index.json", folder / "pytorch_model.bin.index.json"):
        try:
            return {name: str(file) for name, file in json.loads(index.read_text())["weight_map"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # it does not exist, or loading reports what is wrong with it
    return {}


def _tensor_names(folder: Path) -> list[str]:
    """Return the sorted names of the model's tensors, as its index or its only safetensors file lists them."""
    path = folder / "model.safetensors"
    if path.is_file():
        return sorted(_header(path) or {})
    return sorted(_weight_map(folder))


def _header(path: Path) -> dict[str, Any] | None:
    """Return the description of each tensor of a safetensors file; None for a damaged one."""
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        if header_length > path.stat().st_size - 8:
            return None
        try:
            header: dict[str, Any] = json.loads(file.read(header_length))
            header.pop("__metadata__", None)
        except (ValueError, AttributeError, TypeError):
            return None
    return header


def _is_complete(path: Path) -> bool:
    """Tell whether a safetensors file has the size that its header implies: 8 bytes, the header, the tensors."""
    header = _header(path)
    if header is None:
        return False
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
    try:
        num_tensor_bytes = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        return path.stat().st_size == 8 + header_length + int(num_tensor_bytes)
    except (ValueError, AttributeError, LookupError, TypeError):
        return False

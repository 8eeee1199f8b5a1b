"""Loading of causal language models for every package: a folder or hub id -> a model, or one clear error.

Importing this module imports no torch; calling `load_causal_lm` does.
"""

from pathlib import Path
from typing import Any

from winnow.checkpoints import NO_HEAD, stored_dtype
from winnow.config import Dtype
from winnow.errors import ModelError, UsageError, first_line
from winnow.precision import Use, choose_dtype, torch_machine

# Part of the message of a loading error -> the remedy.
REMEDIES = {
    "no file named": "copy the checkpoint whole, weights included",
    "deserializing header": "a weight file is cut short or damaged; copy or save it again",
    "not compiled with CUDA": "this PyTorch computes on CPUs only; set device_map to cpu or auto, or install one for "
    "this machine's GPUs",
    "NVIDIA driver": "PyTorch finds no GPU here; set device_map to cpu or auto",
    "invalid device ordinal": "this machine has no such GPU; set device_map to one that it has, or to auto",
    "out of memory": "free the GPU, take more of them (device_map: auto), or a smaller dtype",
}


def load_causal_lm(
    model: str, *, dtype: Dtype, device_map: str = "auto", use: Use = "scoring", **arguments: Any
) -> Any:
    """Load the model of a folder or hub id. Device map `auto` spreads it over this machine's GPUs, or uses the CPU.

    Dtype `auto` is the checkpoint's, or what winnow.precision chooses where the machine has no bfloat16 units.
    Raises UsageError for a missing folder, ModelError for one that does not hold exactly a causal language model.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    check_model_path(model)
    logging.disable_progress_bar()  # winnow.progress reports long work instead
    try:
        checkpoint_dtype = stored_dtype(model, AutoConfig.from_pretrained(model))
        chosen = choose_dtype(dtype, checkpoint_dtype, torch_machine(device_map), use)
        loaded, report = AutoModelForCausalLM.from_pretrained(
            model, dtype=chosen, device_map=_placement(device_map), output_loading_info=True, **arguments
        )
    except (OSError, ValueError, RuntimeError, ImportError, AssertionError, SafetensorError) as error:
        raise ModelError(f"no model could be loaded from {model!r}: {load_failure(model, error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{model!r} lacks {len(missing)} weights of its model, like {missing[0]}; save it whole, or give a folder "
            "that holds a causal language model"
        )
    unexpected = sorted(report["unexpected_keys"])
    if unexpected:
        raise ModelError(
            f"{model!r} holds {len(unexpected)} weights that its language model lacks, like {unexpected[0]}; {NO_HEAD}"
        )
    return loaded


def check_model_path(model: str) -> None:
    """Raise UsageError for a path that is not a folder; a hub id ("org/name") passes."""
    is_local_path = model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).parts[:1] == ("runs",)
    if Path(model).is_dir() or (not is_local_path and model.count("/") == 1):
        return
    raise UsageError(
        f"model folder {model!r} does not exist; give a folder with config.json, or a hub id like org/name"
    )


def load_failure(model: str, error: BaseException) -> str:
    """Return why nothing could be loaded from a folder or hub id, and the remedy, without a full stop."""
    reason = first_line(error).rstrip(".")
    if reason.rstrip().endswith(":"):  # a list follows, with its items on further lines
        reason = " ".join(str(error).split()).rstrip(".")
    for symptom, remedy in REMEDIES.items():
        if symptom in reason:
            return f"{reason}; {remedy}"
    if Path(model).is_dir() or not isinstance(error, OSError):
        return reason
    return (
        f"there is no such folder here, and the Hugging Face hub did not give it either ({reason}); give a folder that "
        "holds a model and its tokenizer, or a hub id like org/name"
    )


def _placement(device_map: str) -> str | None:
    """Return the `device_map` of from_pretrained; None keeps the weights on the CPU without needing accelerate."""
    import torch

    if device_map == "cpu" or (device_map == "auto" and not torch.cuda.is_available()):
        return None
    return device_map

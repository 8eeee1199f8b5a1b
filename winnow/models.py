"""Loading a causal language model, the same way in every room: a folder or hub id -> a model, or one clear error.

Importing this loads no torch; calling `load_causal_lm` does.
"""

from pathlib import Path
from typing import Any

from winnow.errors import ModelError, UsageError
from winnow.sections import Dtype


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
        raise ModelError(f"no model could be loaded from {model!r}: {first_line(error)}") from error
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


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for messages of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _placement(device_map: str) -> str | None:
    """What from_pretrained is given; None keeps the weights on the CPU without needing accelerate."""
    import torch

    if device_map == "auto":
        return "auto" if torch.cuda.is_available() else None
    return None if device_map == "cpu" else device_map

"""From the config to the engines of the pair, in this process: transformers, or vLLM with the processes it starts."""

import logging
import os
from collections.abc import Sequence

from reward_server.engines import MODEL_NAMES, ModelName, ScoringEngine
from winnow.errors import UsageError
from winnow.serve_config import ServeConfig

# Values of device_map with which accelerate chooses the GPUs of a model.
SPREADING = {"auto", "balanced", "balanced_low_0", "sequential"}

log = logging.getLogger(__name__)


def load_engines(config: ServeConfig, models: Sequence[ModelName] = MODEL_NAMES) -> list[ScoringEngine]:
    """Load the engines of the pair's models, or of some of them, in this process. Raises UsageError and ModelError.

    Imports only the library of the engine that the config names.
    """
    log.info("loading %s with %s", " and ".join(getattr(config, name) for name in models), config.engine)
    if config.engine == "vllm":
        # Stdout is for the one line that names the server's address; vLLM reads this variable on import.
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        from reward_server.engines.vllm import open_engine

        return [open_engine(config, name) for name in models]
    from reward_server.engines.transformers import TransformersEngine

    engines: list[ScoringEngine] = []
    for name in models:
        engine = TransformersEngine.load(
            getattr(config, name),
            dtype=config.dtype,
            device_map=device_map_of(config, name),
            token_budget=config.token_budget,
        )
        engines.append(engine)
    return engines


def device_map_of(config: ServeConfig, name: ModelName) -> str:
    """Return the device map of a model (transformers)."""
    if name == "base" and config.base_device_map:
        return config.base_device_map
    return config.device_map


def check_device_maps(config: ServeConfig) -> None:
    """Raise UsageError if a model is put on a device that this machine does not have (transformers)."""
    for name in MODEL_NAMES:
        device_map = device_map_of(config, name)
        if device_map not in {"cpu", *SPREADING}:
            _check_device(device_map)


def _check_device(device_map: str) -> None:
    import torch

    try:
        device = torch.device(device_map)
    except RuntimeError:
        raise UsageError(
            f"device_map {device_map!r} is not a device; set device_map to cpu, to a GPU like cuda:0, or to auto"
        ) from None
    num_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise UsageError(
            f"device_map {device_map!r} is a GPU that PyTorch does not find here (it finds {num_gpus}); set device_map "
            "to one that it finds, to cpu or to auto"
        )


def has_separate_devices(config: ServeConfig) -> bool:
    """Tell whether the config puts the models on devices that they do not share (transformers)."""
    device_maps = {device_map_of(config, name) for name in MODEL_NAMES}
    return len(device_maps) == len(MODEL_NAMES) and not device_maps & SPREADING

"""From the config to the engines of the pair, in this process: transformers, or vLLM with the processes it starts."""

import logging
import os
from collections.abc import Sequence

from reward_server.engines import MODELS, ModelName, ScoringEngine
from winnow.serve_config import ServeConfig

# Values of device_map with which accelerate chooses the GPUs of a model.
SPREADING = {"auto", "balanced", "balanced_low_0", "sequential"}

log = logging.getLogger(__name__)


def load_engines(config: ServeConfig, models: Sequence[ModelName] = MODELS) -> list[ScoringEngine]:
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
        folder = getattr(config, name)
        device_map = device_map_of(config, name)
        engines.append(
            TransformersEngine.load(folder, dtype=config.dtype, device_map=device_map, token_budget=config.token_budget)
        )
    return engines


def device_map_of(config: ServeConfig, name: ModelName) -> str:
    """Return the device map of a model (transformers)."""
    if name == "base" and config.base_device_map:
        return config.base_device_map
    return config.device_map


def have_separate_devices(config: ServeConfig) -> bool:
    """Tell whether the config puts each model on devices that the other one does not use (transformers)."""
    device_maps = {device_map_of(config, name) for name in MODELS}
    return len(device_maps) == len(MODELS) and not device_maps & SPREADING

"""From the config to the engines of the pair, in this process: transformers, or vLLM with the processes it starts."""

import logging
import os
from collections.abc import Sequence

from reward_server.engines import MODELS, ModelName, ScoringEngine
from winnow.serve_config import ServeConfig

# Values of device_map that leave it to accelerate which GPUs a model takes.
SPREADING = {"auto", "balanced", "balanced_low_0", "sequential"}

log = logging.getLogger(__name__)


def load_engines(config: ServeConfig, models: Sequence[ModelName] = MODELS) -> list[ScoringEngine]:
    """The engines of the pair's models, or of some of them, in this process. Raises UsageError and ModelError.

    A library is imported only when its engine is asked for.
    """
    log.info("loading %s with %s", " and ".join(getattr(config, name) for name in models), config.engine)
    if config.engine == "vllm":
        # Stdout is for the one line that says where the server listens; vLLM reads this as it is imported.
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        from reward_server.engines.vllm import open_engine

        return [open_engine(config, name) for name in models]
    from reward_server.engines.transformers import TransformersEngine

    return [
        TransformersEngine.load(
            getattr(config, name), dtype=config.dtype, device_map=place(config, name), token_budget=config.token_budget
        )
        for name in models
    ]


def place(config: ServeConfig, name: ModelName) -> str:
    """Where a model lies (transformers)."""
    return config.base_device_map or config.device_map if name == "base" else config.device_map


def have_own_devices(config: ServeConfig) -> bool:
    """Whether the config gives either model a device that the other one does not use (transformers)."""
    places = {place(config, name) for name in MODELS}
    return len(places) == len(MODELS) and not places & SPREADING

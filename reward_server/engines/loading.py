"""From the config to the engines of the pair, in this process: transformers, or vLLM with the processes it starts."""

import logging
import os

from reward_server.engines import ScoringEngine
from winnow.serve_config import ServeConfig

log = logging.getLogger(__name__)


def load_engines(config: ServeConfig) -> list[ScoringEngine]:
    """The engines of the instruct and the base model, in this process. Raises UsageError and ModelError.

    A library is imported only when its engine is asked for.
    """
    log.info("loading %s and %s with %s", config.instruct, config.base, config.engine)
    if config.engine == "vllm":
        # Stdout is for the one line that says where the server listens; vLLM reads this as it is imported.
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        from reward_server.engines.vllm import open_engines

        return list(open_engines(config))
    from reward_server.engines.transformers import TransformersEngine

    placed = [(config.instruct, config.device_map), (config.base, config.base_device_map or config.device_map)]
    return [
        TransformersEngine.load(model, dtype=config.dtype, device_map=device_map, token_budget=config.token_budget)
        for model, device_map in placed
    ]

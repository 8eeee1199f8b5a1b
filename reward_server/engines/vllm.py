"""Scoring through vLLM: each completion is a request of its own, with its prompt; one call computes all requests.

    request       prompt ids + completion ids, max_tokens 1; the token that vLLM generates is ignored
    V2 runner     prompt_logprob_token_ids from prompt_logprob_start on: scored tokens only, in single precision
    V1 runner     prompt_logprobs=0, flat: the log-probability of every token, those of the prompt included

The two models are two engines with separate processes, each on its own devices. By default vLLM does not read its
prefix cache for such requests, so that it computes a prompt again for each of its completions. This module keeps that
default: on the CPU build, values read through the cache belonged to other tokens (vLLM 0.32). A request that still
comes back without its log-probabilities is sent a second time, with the cache disabled explicitly.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from transformers import AutoConfig
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.platforms import current_platform

from reward_server.engines import Logprobs, ModelName, TokenGroup
from winnow.checkpoints import positions_of, stored_dtype
from winnow.config import Dtype
from winnow.errors import ModelError, first_line
from winnow.models import check_model_path
from winnow.precision import choose_dtype, vllm_machine
from winnow.serve_config import ServeConfig, VllmConfig

# The V1 runner makes float32 tensors [tokens of a step, vocabulary]: 0.5 GiB for a vocabulary of 32 000 at this size.
MAX_STEP_TOKENS = 4096
DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"

Request = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of one completion."""


class VllmEngine:
    """A causal language model held by vLLM. Not safe for threads: one call at a time.

    vLLM keeps its processes and their memory until `close`, or until this process ends.
    """

    def __init__(
        self,
        model: str,
        config: VllmConfig,
        *,
        dtype: Dtype = "auto",
        devices: str | None = None,
        token_budget: int = MAX_STEP_TOKENS,
        max_tokens: int | None = None,
    ) -> None:
        check_model_path(model)
        self._devices = devices
        arguments = engine_arguments(model, config, dtype, token_budget, max_tokens)
        try:
            with visible_devices(devices):
                self.llm = LLM(**arguments)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"vLLM could not load {model!r}: {first_line(error)}") from error
        self._can_choose_tokens = can_choose_tokens(self.llm)

    @property
    def dtype(self) -> str:
        """Precision of the weights, like "bfloat16"."""
        return str(self.llm.llm_engine.model_config.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """Devices of the weights, like "cpu" or "cuda:0, cuda:1"."""
        if current_platform.is_cpu():
            return "cpu"
        num_devices = self.llm.llm_engine.vllm_config.parallel_config.world_size
        names = [str(index) for index in range(num_devices)]
        if self._devices:
            names = self._devices.split(",")[:num_devices]
        return ", ".join(f"cuda:{name.strip()}" for name in names)

    @property
    def vocab_size(self) -> int:
        """Upper bound of the token ids, exclusive."""
        return int(self.llm.llm_engine.model_config.get_vocab_size())

    @property
    def max_tokens(self) -> int | None:
        """Number of positions that the model was made for, less the one token that vLLM always generates."""
        return int(self.llm.llm_engine.model_config.max_model_len) - 1

    def logprobs(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        """Compute the log-probabilities of each completion's tokens, as specified by `ScoringEngine`."""
        requests: list[Request] = []
        for group in groups:
            requests.extend((group.prompt_ids, completion) for completion in group.completions)
        values = iter(self._request_logprobs(requests))
        return [list(islice(values, len(group.completions))) for group in groups]

    def close(self) -> None:
        """End vLLM's processes."""
        self.llm.llm_engine.engine_core.shutdown()

    def _request_logprobs(self, requests: Sequence[Request]) -> list[Logprobs]:
        """Compute the log-probabilities of each request; those that vLLM dropped are requested a second time."""
        results = self._generate(requests, should_skip_cache=False)
        dropped = [index for index, values in enumerate(results) if values is None]
        if dropped:
            repeated = self._generate([requests[index] for index in dropped], should_skip_cache=True)
            for index, values in zip(dropped, repeated, strict=True):
                results[index] = values
        logprobs = [values for values in results if values is not None]
        if len(logprobs) < len(requests):
            raise RuntimeError("vLLM returned no log-probabilities for a request that asked for them, twice")
        return logprobs

    def _generate(self, requests: Sequence[Request], *, should_skip_cache: bool) -> list[Logprobs | None]:
        """Send the requests in one call. Returns their values in order; None where vLLM dropped them."""
        prompts = [TokensPrompt(prompt_token_ids=[*prompt, *completion]) for prompt, completion in requests]
        params = [self._params(len(prompt), completion, should_skip_cache) for prompt, completion in requests]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        read_logprobs = flat_logprobs
        if self._can_choose_tokens:
            read_logprobs = chosen_logprobs
        return [read_logprobs(output, completion) for output, (_, completion) in zip(outputs, requests, strict=True)]

    def _params(self, num_prompt_tokens: int, completion: Sequence[int], should_skip_cache: bool) -> SamplingParams:
        logprobs_settings: dict[str, Any] = {"prompt_logprobs": 0, "flat_logprobs": True}
        if self._can_choose_tokens:
            logprobs_settings = {
                "prompt_logprob_start": num_prompt_tokens - 1,
                "prompt_logprob_token_ids": [[token_id] for token_id in completion],
            }
        return SamplingParams(
            max_tokens=1,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            # None is vLLM's default, which does not read the cache for such requests.
            skip_reading_prefix_cache=should_skip_cache or None,
            **logprobs_settings,
        )


def open_engine(config: ServeConfig, name: ModelName) -> VllmEngine:
    """Load the engine of one model of the pair. Raises UsageError and ModelError."""
    devices = {"instruct": config.vllm.instruct_devices, "base": config.vllm.base_devices}
    return VllmEngine(
        getattr(config, name),
        config.vllm,
        dtype=config.dtype,
        devices=devices[name],
        token_budget=config.token_budget,
        max_tokens=config.max_tokens,
    )


def engine_arguments(
    model: str, config: VllmConfig, dtype: Dtype, token_budget: int, max_tokens: int | None
) -> dict[str, Any]:
    """Return vLLM's settings for a model.

    dtype "auto" is the checkpoint's, unless this machine has no bfloat16 units; vLLM's "auto" would lower float32.
    """
    model_config = AutoConfig.from_pretrained(model)
    model_dtype: Any = choose_dtype(dtype, stored_dtype(model, model_config), vllm_machine(), "scoring")
    if model_dtype == "auto":
        model_dtype = model_config.dtype or "float32"
    # One token more than is scored, for the one that vLLM generates.
    max_model_len = None
    if max_tokens is not None:
        limit = positions_of(model_config) or max_tokens + 1
        max_model_len = min(max_tokens + 1, limit)
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": model_dtype,
        "max_num_batched_tokens": min(token_budget, MAX_STEP_TOKENS),
        "enable_chunked_prefill": True,  # so that a conversation may be longer than a step
        "tensor_parallel_size": config.tensor_parallel_size,
        "quantization": config.quantization,
        "generation_config": "vllm",
        "enforce_eager": config.enforce_eager or current_platform.is_cpu(),
        "max_model_len": max_model_len,
    }
    if current_platform.is_cpu():
        return arguments
    return {**arguments, "gpu_memory_utilization": config.gpu_memory_utilization}


@contextmanager
def visible_devices(devices: str | None) -> Iterator[None]:
    """Make only these GPUs visible to processes that start in the block; with None, those that this process sees."""
    before = os.environ.get(DEVICES_VARIABLE)
    if devices is not None:
        os.environ[DEVICES_VARIABLE] = devices
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(DEVICES_VARIABLE, None)
        else:
            os.environ[DEVICES_VARIABLE] = before


def can_choose_tokens(llm: Any) -> bool:
    """Tell whether vLLM can score chosen tokens from a chosen position on: a new version with its V2 model runner."""
    is_new_enough = hasattr(SamplingParams, "prompt_logprob_token_ids")
    return is_new_enough and bool(getattr(llm.llm_engine.vllm_config, "use_v2_model_runner", False))


def chosen_logprobs(output: Any, completion: Sequence[int]) -> Logprobs | None:
    """Read the completion's values from `prompt_token_id_logprobs` [num_tokens, 1]; None where vLLM dropped them."""
    values = output.prompt_token_id_logprobs
    if values is None or len(values) != len(completion):
        return None
    return np.asarray(values, dtype=np.float32)[:, 0]


def flat_logprobs(output: Any, completion: Sequence[int]) -> Logprobs | None:
    """Read the completion's values from flat `prompt_logprobs`, one entry per token; None where entries are missing."""
    flat = output.prompt_logprobs
    num_tokens = len(output.prompt_token_ids)
    if flat is None or len(flat.start_indices) != num_tokens:
        return None
    start = flat.start_indices[num_tokens - len(completion)]
    if list(flat.token_ids[start:]) != list(completion):
        return None
    return np.array(flat.logprobs[start:], dtype=np.float32)

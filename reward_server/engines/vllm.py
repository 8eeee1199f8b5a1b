"""Scoring through vLLM: every completion of every group as a prompt of its own, all in one call.

    request       prompt ids + completion ids, max_tokens 1; what it generates is thrown away
    V2 runner     prompt_logprob_token_ids from prompt_logprob_start on: scored rows only, in single precision
    V1 runner     prompt_logprobs=0, flat: the log-probability of every token that is there, the prompt's included

The two models are two engines with processes of their own, each on its own devices. vLLM leaves its prefix cache alone
for such requests, so that a prompt is computed for each of its completions: on the CPU build, values read through the
cache belonged to other tokens (vLLM 0.32), so it is not asked for. A request that comes back without its scores all the
same is sent once more, with the cache forbidden by name.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from transformers import AutoConfig
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.platforms import current_platform

from reward_server.engines import Logprobs, ModelName, TokenGroup
from winnow.config import Dtype
from winnow.errors import ModelError, first_line
from winnow.models import check_model_path
from winnow.serve_config import ServeConfig, VllmConfig

# The V1 runner makes float32 tensors of [tokens of a step, vocabulary]: 0.5 GiB for 32 000 entries at this size.
MAX_STEP_TOKENS = 4096
DEVICES = "CUDA_VISIBLE_DEVICES"


class VllmEngine:
    """A causal language model held by vLLM. Not safe for threads: one call at a time.

    vLLM holds its processes and their memory until `close`, or until this process ends.
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
        self._scores_chosen_rows = has_chosen_rows(self.llm)

    @property
    def dtype(self) -> str:
        """Precision of the weights, like "bfloat16"."""
        return str(self.llm.llm_engine.model_config.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """Where the weights lie, like "cpu" or "cuda:0, cuda:1"."""
        if current_platform.is_cpu():
            return "cpu"
        size = self.llm.llm_engine.vllm_config.parallel_config.world_size
        names = self._devices.split(",") if self._devices else [str(index) for index in range(size)]
        return ", ".join(f"cuda:{name.strip()}" for name in names[:size])

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return int(self.llm.llm_engine.model_config.get_vocab_size())

    @property
    def max_tokens(self) -> int | None:
        """The positions that the model was made for, less the one token that vLLM always generates."""
        return int(self.llm.llm_engine.model_config.max_model_len) - 1

    def logprobs(self, groups: Sequence[TokenGroup]) -> list[list[Logprobs]]:
        """The log-probabilities of each completion's tokens, as `ScoringEngine` says."""
        requests = [(group.prompt_ids, completion) for group in groups for completion in group.completions]
        values = iter(self._values(requests))
        return [[next(values) for _ in group.completions] for group in groups]

    def close(self) -> None:
        """End vLLM's processes."""
        self.llm.llm_engine.engine_core.shutdown()

    def _values(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Logprobs]:
        """The log-probabilities of the completion of each (prompt ids, completion ids)."""
        first = self._ask(requests, must_skip_cache=False)
        dropped = [index for index, values in enumerate(first) if values is None]
        again = self._ask([requests[index] for index in dropped], must_skip_cache=True) if dropped else []
        found = {**dict(enumerate(first)), **dict(zip(dropped, again, strict=True))}
        values = [found[index] for index in range(len(requests))]
        if any(one is None for one in values):
            raise RuntimeError("vLLM answered without the log-probabilities it was asked for, twice")
        return [one for one in values if one is not None]

    def _ask(
        self, requests: Sequence[tuple[Sequence[int], Sequence[int]]], *, must_skip_cache: bool
    ) -> list[Logprobs | None]:
        """The answers of one call, in order; None for a request whose scores vLLM dropped."""
        prompts = [TokensPrompt(prompt_token_ids=[*prompt, *completion]) for prompt, completion in requests]
        params = [self._params(len(prompt), completion, must_skip_cache) for prompt, completion in requests]
        answers = self.llm.generate(prompts, params, use_tqdm=False)
        read = chosen_row_values if self._scores_chosen_rows else flat_values
        return [read(answer, completion) for answer, (_, completion) in zip(answers, requests, strict=True)]

    def _params(self, num_prompt: int, completion: Sequence[int], must_skip_cache: bool) -> SamplingParams:
        asked: dict[str, Any] = (
            {"prompt_logprob_start": num_prompt - 1, "prompt_logprob_token_ids": [[token] for token in completion]}
            if self._scores_chosen_rows
            else {"prompt_logprobs": 0, "flat_logprobs": True}
        )
        # None is vLLM's own choice, which is not to read the cache for such requests.
        skips = True if must_skip_cache else None
        return SamplingParams(
            max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False, skip_reading_prefix_cache=skips, **asked
        )


def open_engine(config: ServeConfig, name: ModelName) -> VllmEngine:
    """The engine of one model of the pair. Raises UsageError and ModelError."""
    return VllmEngine(
        getattr(config, name),
        config.vllm,
        dtype=config.dtype,
        devices=config.vllm.instruct_devices if name == "instruct" else config.vllm.base_devices,
        token_budget=config.token_budget,
        max_tokens=config.max_tokens,
    )


def engine_arguments(
    model: str, config: VllmConfig, dtype: Dtype, token_budget: int, max_tokens: int | None
) -> dict[str, Any]:
    """vLLM's settings for a model. Its own `auto` would lower float32 weights; ours keeps the checkpoint's dtype."""
    own = AutoConfig.from_pretrained(model)
    limit = getattr(own.get_text_config(), "max_position_embeddings", None)
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": (own.dtype or "float32") if dtype == "auto" else dtype,
        "max_num_batched_tokens": min(token_budget, MAX_STEP_TOKENS),
        "enable_chunked_prefill": True,  # so that a conversation may be longer than a step
        "tensor_parallel_size": config.tensor_parallel_size,
        "quantization": config.quantization,
        "generation_config": "vllm",
        "enforce_eager": config.enforce_eager or current_platform.is_cpu(),
        # One token more than is scored, for the one that vLLM generates.
        "max_model_len": max_tokens and min(max_tokens + 1, limit or max_tokens + 1),
    }
    if current_platform.is_cpu():
        return arguments
    return {**arguments, "gpu_memory_utilization": config.gpu_memory_utilization}


@contextmanager
def visible_devices(devices: str | None) -> Iterator[None]:
    """Let the processes that start in the meantime see these GPUs only; None: what this process sees."""
    before = os.environ.get(DEVICES)
    if devices is not None:
        os.environ[DEVICES] = devices
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(DEVICES, None)
        else:
            os.environ[DEVICES] = before


def has_chosen_rows(llm: Any) -> bool:
    """Whether vLLM scores given tokens from a given row on: a new enough version, with its V2 model runner."""
    is_new_enough = hasattr(SamplingParams, "prompt_logprob_token_ids")
    return is_new_enough and bool(getattr(llm.llm_engine.vllm_config, "use_v2_model_runner", False))


def chosen_row_values(answer: Any, completion: Sequence[int]) -> Logprobs | None:
    """The completion's log-probabilities from `prompt_token_id_logprobs` [rows, 1]; None where vLLM dropped them."""
    rows = answer.prompt_token_id_logprobs
    if rows is None or len(rows) != len(completion):
        return None
    return np.asarray(rows, dtype=np.float32)[:, 0]


def flat_values(answer: Any, completion: Sequence[int]) -> Logprobs | None:
    """The completion's log-probabilities from flat `prompt_logprobs`: one entry a token; None where it is not so."""
    flat = answer.prompt_logprobs
    num_tokens = len(answer.prompt_token_ids)
    if flat is None or len(flat.start_indices) != num_tokens:
        return None
    start = flat.start_indices[num_tokens - len(completion)]
    if list(flat.token_ids[start:]) != list(completion):
        return None
    return np.array(flat.logprobs[start:], dtype=np.float32)

"""Sampling through vLLM: one request holds all completions of a prompt, so that the prompt is computed once.

seed of prompt i = hash of (SamplingParams.seed, i); vLLM derives the seeds of its completions from it

Of a checkpoint's generation_config.json, only the list of end-of-sequence tokens has a part, through `Chat.stop_ids`:
vLLM stops at these alone (`ignore_eos` turns its own off). Equal seeds give equal completions on equal software and
hardware; across batch sizes vLLM's kernels may round differently.
"""

from collections.abc import Mapping
from typing import Any

import vllm
from transformers import AutoConfig
from vllm.platforms import current_platform

from sampler.engines import SamplingParams
from winnow.chat import Chat
from winnow.checkpoints import check_checkpoint, stored_dtype
from winnow.config import Dtype
from winnow.errors import ModelError, first_line
from winnow.models import check_model_path
from winnow.precision import choose_dtype, vllm_machine
from winnow.records import seed_from
from winnow.run_config import SamplingConfig


class VllmSampler:
    """A policy held by vLLM, on as many GPUs as the config states, or on the CPU with vLLM's CPU build.

    vLLM keeps its processes and their memory until this process ends; run stages as subprocesses to free them earlier.
    """

    def __init__(self, config: SamplingConfig, model: str, chat: Chat, dtype: Dtype) -> None:
        check_model_path(model)
        check_checkpoint(model)
        self.chat = chat
        try:
            self.llm = vllm.LLM(**engine_arguments(config, model, dtype))
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"vLLM could not load {model!r}: {first_line(error)}") from error
        # vLLM refuses an id that the model has no logit for, such as a token that its first SFT job will add.
        vocab_size = self.llm.llm_engine.model_config.get_vocab_size()
        self.stop_token_ids = [token_id for token_id in sorted(chat.stop_ids) if token_id < vocab_size]

    @property
    def max_tokens(self) -> int | None:
        """`max_model_len`, or the number of positions that the model was made for."""
        return int(self.llm.llm_engine.model_config.max_model_len)

    def sample(self, prompts: Mapping[str, list[int]], params: SamplingParams) -> dict[str, list[list[int]]]:
        """Return `num_generated` sequences of token ids for each prompt under its id, in the order of the prompts."""
        requests = [vllm.TokensPrompt(prompt_token_ids=token_ids) for token_ids in prompts.values()]
        request_params = [self._request_params(params, index) for index in range(len(prompts))]
        results = self.llm.generate(requests, request_params, use_tqdm=False)
        generated = {}
        for prompt_id, result in zip(prompts, results, strict=True):
            generated[prompt_id] = [list(output.token_ids) for output in result.outputs]
        return generated

    def _request_params(self, params: SamplingParams, index: int) -> vllm.SamplingParams:
        """Return vLLM's settings for the prompt at `index`."""
        return vllm.SamplingParams(
            n=params.num_generated,
            temperature=params.temperature,
            top_p=params.top_p,
            max_tokens=params.max_new_tokens,
            seed=seed_from(params.seed, index),
            stop_token_ids=self.stop_token_ids,
            ignore_eos=True,
            detokenize=False,
        )


def engine_arguments(config: SamplingConfig, model: str, dtype: Dtype) -> dict[str, Any]:
    """Return vLLM's settings for a policy.

    `auto` keeps the checkpoint's dtype, unless this machine has no bfloat16 units; vLLM's own `auto` would lower
    float32.
    """
    model_config = AutoConfig.from_pretrained(model)
    model_dtype: Any = choose_dtype(dtype, stored_dtype(model, model_config), vllm_machine(), "sampling")
    if model_dtype == "auto":
        model_dtype = model_config.dtype or "float32"
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": model_dtype,
        "max_model_len": config.max_model_len,
        "tensor_parallel_size": config.tensor_parallel_size,
        "generation_config": "vllm",
    }
    if current_platform.is_cpu():
        # vLLM 0.32 rewinds a seeded generator when a prompt spans two steps, which CPU generators cannot do.
        return {**arguments, "enforce_eager": True, "enable_chunked_prefill": False}
    return {**arguments, "gpu_memory_utilization": config.gpu_memory_utilization}

"""Sampling through vLLM: all completions of a prompt in one request, so that the prompt is computed once.

seed of prompt i = hash of (Sampling.seed, i); vLLM derives the seeds of its completions from it

Nothing of a checkpoint's generation_config.json takes part, and text is decoded as by the transformers engine. vLLM
repeats itself for equal seeds on equal software and hardware; across batch sizes its kernels may round differently.
"""

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.platforms import current_platform

from sampler.engines import Sampled, Sampling
from winnow.chat import Chat
from winnow.config import Dtype
from winnow.errors import ModelError, first_line
from winnow.models import check_model_path
from winnow.records import seed_from
from winnow.run_config import SamplingConfig


class VllmEngine:
    """A policy held by vLLM, on as many GPUs as the config says, or on the CPU with vLLM's CPU build.

    vLLM holds its processes and their memory until this process ends; run stages as subprocesses to have them back.
    """

    def __init__(self, config: SamplingConfig, model: str, chat: Chat, dtype: Dtype) -> None:
        check_model_path(model)
        self.chat = chat
        try:
            self.llm = LLM(**engine_arguments(config, model, dtype))
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"vLLM could not load {model!r}: {first_line(error)}") from error

    @property
    def max_tokens(self) -> int | None:
        """`max_model_len`, or what the model was made for."""
        return int(self.llm.llm_engine.model_config.max_model_len)

    def sample(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[Sampled]]:
        """`num_completions` completions of each prompt, in the order of the prompts."""
        params = [self._params(sampling, index) for index in range(len(prompts))]
        tokens = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        answers = self.llm.generate(tokens, params, use_tqdm=False)
        groups = [[self._sampled(list(one.token_ids)) for one in answer.outputs] for answer in answers]
        return [group * (sampling.num_completions // len(group)) for group in groups]

    def _params(self, sampling: Sampling, index: int) -> SamplingParams:
        """The request of one prompt; the likeliest token (temperature 0) gives one completion, which is repeated."""
        return SamplingParams(
            n=sampling.num_completions if sampling.temperature > 0 else 1,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            seed=seed_from(sampling.seed, index),
            stop_token_ids=[self.chat.eos_token_id],
            ignore_eos=True,
            detokenize=False,
        )

    def _sampled(self, token_ids: list[int]) -> Sampled:
        text = self.chat.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        is_finished = token_ids[-1:] == [self.chat.eos_token_id]
        return Sampled(text=text, num_tokens=len(token_ids), is_finished=is_finished)


def engine_arguments(config: SamplingConfig, model: str, dtype: Dtype) -> dict[str, Any]:
    """vLLM's settings for a policy. Its own `auto` would lower float32 weights; ours keeps the checkpoint's dtype."""
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": (AutoConfig.from_pretrained(model).dtype or "float32") if dtype == "auto" else dtype,
        "max_model_len": config.max_model_len,
        "tensor_parallel_size": config.tensor_parallel_size,
        "generation_config": "vllm",
    }
    if current_platform.is_cpu():
        # vLLM rewinds a seeded generator when a prompt is cut over two steps, which CPU generators cannot do (0.32).
        return {**arguments, "enforce_eager": True, "enable_chunked_prefill": False}
    return {**arguments, "gpu_memory_utilization": config.gpu_memory_utilization}

"""Sampling through Hugging Face transformers: left-padded batches of prompts of similar length. Runs on a CPU.

prompts of a batch = as many as fit into BATCH_TOKENS; each counts num_completions x (longest prompt + max_new_tokens)
A prompt is computed once; each of its completions continues from a copy of its keys and values.

The noise comes from `SamplingParams.seed` alone, and the random state of the process is left unchanged. Of a
checkpoint's generation_config.json, only the list of end-of-sequence tokens has a part, through `Chat.stop_ids`: no
top-k, no repetition penalty.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from sampler.engines import SamplingParams
from winnow.chat import Chat
from winnow.checkpoints import positions_of
from winnow.config import Dtype
from winnow.models import load_causal_lm

# Tokens of one batch, by device. On a CPU, sampling 12,000 tokens from a model of 1.5 million parameters takes 1.8 s of
# CPU time with 8192, 2.2 s with 2048 (more calls) and 2.8 s with 65536 (larger caches). On a GPU, a bfloat16 Mistral-7B
# has 16 GiB of keys and values for 131072 tokens.
BATCH_TOKENS = {"cpu": 8192, "cuda": 131072}


class TransformersSampler:
    """A policy held by transformers, spread over the GPUs of the machine, or on the CPU if it has none."""

    def __init__(self, model: str, chat: Chat, dtype: Dtype) -> None:
        self.chat = chat
        self.model = load_causal_lm(model, dtype=dtype, use="sampling").eval()
        self.model.generation_config = GenerationConfig()
        self.pad_token_id = chat.end_of_turn_id
        if chat.tokenizer.pad_token_id is not None:
            self.pad_token_id = int(chat.tokenizer.pad_token_id)

    @property
    def max_tokens(self) -> int | None:
        """Number of positions that the model was made for."""
        return positions_of(self.model.config)

    def sample(self, prompts: Mapping[str, list[int]], params: SamplingParams) -> dict[str, list[list[int]]]:
        """Return `num_generated` sequences of token ids for each prompt under its id, in the order of the prompts."""
        generated: dict[str, list[list[int]]] = {}
        with isolated_random_state(params.seed):
            for batch in batches(prompts, params, BATCH_TOKENS[self.model.device.type]):
                generated.update(self._sample_batch(batch, params))
        return {prompt_id: generated[prompt_id] for prompt_id in prompts}

    @torch.inference_mode()
    def _sample_batch(self, prompts: Mapping[str, list[int]], params: SamplingParams) -> dict[str, list[list[int]]]:
        num_copies = params.num_generated
        token_ids, mask = self._left_padded(list(prompts.values()))
        cache = self._prefill(token_ids[:, :-1], mask[:, :-1])
        cache.batch_repeat_interleave(num_copies)
        sequences = self.model.generate(
            input_ids=token_ids.repeat_interleave(num_copies, dim=0),
            attention_mask=mask.repeat_interleave(num_copies, dim=0),
            past_key_values=cache,
            generation_config=self._generation_config(params),
        )
        rows: list[list[int]] = sequences[:, token_ids.shape[1] :].tolist()
        generated = {}
        for index, prompt_id in enumerate(prompts):
            generated[prompt_id] = rows[index * num_copies : (index + 1) * num_copies]
        return generated

    def _prefill(self, token_ids: torch.Tensor, mask: torch.Tensor) -> Any:
        """Return keys and values of left-padded rows; padding takes no position, as in `generate`."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        output = self.model(
            input_ids=token_ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        return output.past_key_values

    def _left_padded(self, prompts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and attention mask [num_prompts, longest prompt]; each row ends at the last column."""
        width = max(map(len, prompts))
        rows = []
        mask = []
        for token_ids in prompts:
            num_padding = width - len(token_ids)
            rows.append([self.pad_token_id] * num_padding + token_ids)
            mask.append([0] * num_padding + [1] * len(token_ids))
        device = self.model.device
        return torch.tensor(rows, device=device), torch.tensor(mask, device=device)

    def _generation_config(self, params: SamplingParams) -> GenerationConfig:
        config = GenerationConfig(
            max_new_tokens=params.max_new_tokens,
            eos_token_id=sorted(self.chat.stop_ids),
            pad_token_id=self.pad_token_id,
            do_sample=params.temperature > 0,
        )
        if params.temperature > 0:
            config.update(temperature=params.temperature, top_p=params.top_p, top_k=0)
        return config


def batches(
    prompts: Mapping[str, list[int]], params: SamplingParams, token_budget: int
) -> Iterator[dict[str, list[int]]]:
    """Yield the prompts of each batch, longest first: as many as fit into `token_budget` tokens, but at least one."""
    by_length = sorted(prompts, key=lambda prompt_id: -len(prompts[prompt_id]))
    start = 0
    while start < len(by_length):
        tokens_per_prompt = params.num_completions * (len(prompts[by_length[start]]) + params.max_new_tokens)
        end = start + max(1, token_budget // tokens_per_prompt)
        yield {prompt_id: prompts[prompt_id] for prompt_id in by_length[start:end]}
        start = end


@contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """Seed torch's random state for the block, and restore the previous state after it."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield

"""Sampling through Hugging Face transformers: left-padded batches, prompts of like length together. Runs on a CPU.

rows of a batch = prompts x num_completions, as many as fit BATCH_TOKENS of rows x (prompt + max_new_tokens)
A prompt is read once; its completions go on from copies of its keys and values.

The noise comes from `Sampling.seed` alone, and the process's own random state is left as it was. Nothing of a
checkpoint's generation_config.json takes part: no top-k, no repetition penalty, no second end-of-sequence token.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from sampler.engines import Sampled, Sampling
from winnow.chat import Chat
from winnow.config import Dtype
from winnow.models import load_causal_lm

# Rows x tokens of one batch, by device. CPU: 12,000 tokens of a model of 1.5 million parameters take 1.8 s of CPU time,
# where 2048 takes 2.2 s (calls) and 65536 2.8 s (caches). GPU: 16 GiB of keys and values for a bfloat16 Mistral-7B.
BATCH_TOKENS = {"cpu": 8192, "cuda": 131072}


class TransformersEngine:
    """A policy held by transformers, spread over the GPUs there are, else on the CPU."""

    def __init__(self, model: str, chat: Chat, dtype: Dtype) -> None:
        self.chat = chat
        self.model = load_causal_lm(model, dtype=dtype).eval()
        self.model.generation_config = GenerationConfig()
        pad = chat.tokenizer.pad_token_id
        self.pad_token_id = int(pad) if pad is not None else chat.eos_token_id

    @property
    def max_tokens(self) -> int | None:
        """The positions that the model was made for."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None else int(limit)

    def sample(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[Sampled]]:
        """`num_completions` completions of each prompt, in the order of the prompts."""
        completions: dict[int, list[Sampled]] = {}
        with own_random_state(sampling.seed):
            budget = BATCH_TOKENS[self.model.device.type]
            for batch in batches([len(prompt) for prompt in prompts], sampling, budget):
                groups = self._sample_batch([prompts[index] for index in batch], sampling)
                completions.update(zip(batch, groups, strict=True))
        return [completions[index] for index in range(len(prompts))]

    @torch.inference_mode()
    def _sample_batch(self, prompts: list[list[int]], sampling: Sampling) -> list[list[Sampled]]:
        num_copies = sampling.num_completions if sampling.temperature > 0 else 1
        token_ids, mask = self._left_padded(prompts)
        cache = self._read(token_ids[:, :-1], mask[:, :-1])
        cache.batch_repeat_interleave(num_copies)
        generated = self.model.generate(
            input_ids=token_ids.repeat_interleave(num_copies, dim=0),
            attention_mask=mask.repeat_interleave(num_copies, dim=0),
            past_key_values=cache,
            generation_config=self._generation_config(sampling),
        )
        sampled = [self._sampled(row) for row in generated[:, token_ids.shape[1] :].tolist()]
        repeats = sampling.num_completions // num_copies
        return [sampled[start : start + num_copies] * repeats for start in range(0, len(sampled), num_copies)]

    def _read(self, token_ids: torch.Tensor, mask: torch.Tensor) -> Any:
        """Keys and values of left-padded rows; padding takes no position, as in `generate`."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        output = self.model(
            input_ids=token_ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        return output.past_key_values

    def _left_padded(self, prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, one row a prompt, each ending at the last column."""
        width = max(map(len, prompts))
        padding = [width - len(prompt) for prompt in prompts]
        rows = [[self.pad_token_id] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in padding]
        device = self.model.device
        return torch.tensor(rows, device=device), torch.tensor(mask, device=device)

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.chat.eos_token_id,
            pad_token_id=self.pad_token_id,
            do_sample=sampling.temperature > 0,
        )
        if sampling.temperature > 0:
            config.update(temperature=sampling.temperature, top_p=sampling.top_p, top_k=0)
        return config

    def _sampled(self, token_ids: list[int]) -> Sampled:
        """A generated row, cut at its first end-of-sequence token."""
        eos = self.chat.eos_token_id
        is_finished = eos in token_ids
        kept = token_ids[: token_ids.index(eos) + 1] if is_finished else token_ids
        text = self.chat.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Sampled(text=text, num_tokens=len(kept), is_finished=is_finished)


def batches(lengths: Sequence[int], sampling: Sampling, budget: int) -> Iterator[list[int]]:
    """Indices of the prompts of each batch, longest prompts first: one prompt, or as many as `budget` tokens hold."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        tokens_per_prompt = sampling.num_completions * (lengths[order[start]] + sampling.max_new_tokens)
        size = max(1, budget // tokens_per_prompt)
        yield order[start : start + size]
        start += size


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """Draw from a state of its own, and put the process's back afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield

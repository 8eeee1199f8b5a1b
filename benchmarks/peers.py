"""Scorers of the same groups with the same weights: groups -> the logp of each completion.

winnow   this project's transformers engine
padded   RewardBench (Lambert et al., arXiv 2403.13787): rows of prompt and completion, padded; all logits; log_softmax
trl      TRL's GRPOTrainer: the method that it scores with, on rows padded as its trainer pads them; its fused head
vllm     vLLM: prompt_logprobs of prompt and completion, one request each

The peers padded and trl compute batches of BATCH_ROWS rows.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from reward_server.engines import TokenGroup
from reward_server.engines.transformers import TransformersEngine

BATCH_ROWS = 8
PAD = 2

Scorer = Callable[[list[TokenGroup]], list[float]]
Pair = tuple[list[int], list[int]]


def engine_scorer(engine: TransformersEngine) -> Scorer:
    """Return winnow's scorer: the transformers engine in this process."""

    def score(groups: list[TokenGroup]) -> list[float]:
        logps: list[float] = []
        for logprobs_of_group in engine.logprobs(groups):
            logps += [float(logprobs.sum()) for logprobs in logprobs_of_group]
        return logps

    return score


def padded(model: Any, device: str = "cpu") -> Scorer:
    """Return RewardBench's scorer: full logits of right-padded rows."""

    @torch.inference_mode()
    def score(groups: list[TokenGroup]) -> list[float]:
        logps: list[float] = []
        for batch in _batches(groups):
            rows = _right_padded([[*prompt, *completion] for prompt, completion in batch])
            ids, mask = (tensor.to(device) for tensor in rows)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            logprobs = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0].float()
            for row, (prompt, completion) in zip(logprobs, batch, strict=True):
                logps.append(float(row[len(prompt) - 1 : len(prompt) + len(completion) - 1].sum()))
        return logps

    return score


def trl(model: Any) -> Scorer:
    """Return TRL's scorer: prompts padded on the left, completions on the right, logits of the completions only.

    It adds TRL's fused head to `model`, which patches the model's forward function.
    """
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))

    @torch.inference_mode()
    def score(groups: list[TokenGroup]) -> list[float]:
        logps: list[float] = []
        for batch in _batches(groups):
            completions, completion_mask = _right_padded([completion for _, completion in batch])
            prompts, prompt_mask = _right_padded([prompt[::-1] for prompt, _ in batch])
            ids = torch.cat([prompts.flip(1), completions], 1)
            mask = torch.cat([prompt_mask.flip(1), completion_mask], 1)
            logprobs, _, _ = GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__(  # without its profiling
                trainer, model, ids, mask, completions.shape[1], batch_size=BATCH_ROWS
            )
            logps.extend((logprobs.float() * completion_mask).sum(1).tolist())
        return logps

    return score


def vllm(folder: str, dtype: str) -> tuple[Scorer, Callable[[], None]]:
    """Return vLLM's scorer, and the function that ends its process."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; vLLM's default does not fit next to the other models
    from vllm import LLM, SamplingParams, TokensPrompt

    engine = LLM(folder, dtype=dtype, enforce_eager=True, max_model_len=2048, max_num_batched_tokens=8192)
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)

    def score(groups: list[TokenGroup]) -> list[float]:
        pairs = _pairs(groups)
        requests = [TokensPrompt(prompt_token_ids=[*prompt, *completion]) for prompt, completion in pairs]
        outputs = engine.generate(requests, params, use_tqdm=False)
        return [_completion_logp(output.prompt_logprobs, *pair) for output, pair in zip(outputs, pairs, strict=True)]

    return score, engine.llm_engine.engine_core.shutdown


def largest_difference(logps: dict[str, list[float]]) -> float:
    """Return the largest difference of two scorers in the logp of one completion."""
    columns = list(zip(*logps.values(), strict=True))
    return float(max(max(column) - min(column) for column in columns))


def _completion_logp(entries: Any, prompt: list[int], completion: list[int]) -> float:
    """Return a completion's logp; vLLM's entries are {token id: logprob} for each token of prompt and completion."""
    completion_entries = entries[len(prompt) : len(prompt) + len(completion)]
    return float(sum(entry[token_id].logprob for entry, token_id in zip(completion_entries, completion, strict=True)))


def _pairs(groups: list[TokenGroup]) -> list[Pair]:
    pairs: list[Pair] = []
    for group in groups:
        pairs += [(list(group.prompt_ids), list(completion)) for completion in group.completions]
    return pairs


def _batches(groups: list[TokenGroup]) -> Iterator[list[Pair]]:
    pairs = _pairs(groups)
    for start in range(0, len(pairs), BATCH_ROWS):
        yield pairs[start : start + BATCH_ROWS]


def _right_padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids padded with PAD, and their mask, both [num_rows, longest row]."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask

"""How others score the same groups with the same weights: groups -> the sum of log-probabilities of each completion.

padded   RewardBench (Lambert et al., arXiv 2403.13787): rows of prompt and completion, padded; all logits; log_softmax
trl      TRL's GRPOTrainer: its own method, on rows padded as its trainer pads them; its fused head
vllm     vLLM: prompt_logprobs of prompt and completion, one request each

All take batches of BATCH_ROWS rows.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from reward_server.engines import TokenGroup

BATCH_ROWS = 8
PAD = 2

Scorer = Callable[[list[TokenGroup]], list[float]]
Pair = tuple[list[int], list[int]]


def padded(model: Any, device: str = "cpu") -> Scorer:
    """RewardBench's way: full logits of right-padded rows."""

    @torch.inference_mode()
    def score(groups: list[TokenGroup]) -> list[float]:
        sums: list[float] = []
        for batch in _batches(groups):
            rows = _right_padded([[*prompt, *completion] for prompt, completion in batch])
            ids, mask = (one.to(device) for one in rows)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            logprobs = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0].float()
            for row, (prompt, completion) in zip(logprobs, batch, strict=True):
                sums.append(float(row[len(prompt) - 1 : len(prompt) + len(completion) - 1].sum()))
        return sums

    return score


def trl(model: Any) -> Scorer:
    """TRL's way: prompts padded on the left, completions on the right, completions' positions wanted."""
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))

    @torch.inference_mode()
    def score(groups: list[TokenGroup]) -> list[float]:
        sums: list[float] = []
        for batch in _batches(groups):
            completions, kept = _right_padded([completion for _, completion in batch])
            prompts, seen = _right_padded([prompt[::-1] for prompt, _ in batch])
            ids, mask = torch.cat([prompts.flip(1), completions], 1), torch.cat([seen.flip(1), kept], 1)
            logprobs, _, _ = GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__(  # without its profiling
                trainer, model, ids, mask, completions.shape[1], batch_size=BATCH_ROWS
            )
            sums.extend((logprobs.float() * kept).sum(1).tolist())
        return sums

    return score


def vllm(folder: str) -> tuple[Scorer, Callable[[], None]]:
    """vLLM's way, and how to end it."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; vLLM's own choice does not fit beside the others
    from vllm import LLM, SamplingParams, TokensPrompt

    engine = LLM(folder, dtype="bfloat16", enforce_eager=True, max_model_len=2048, max_num_batched_tokens=8192)
    wanted = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)

    def score(groups: list[TokenGroup]) -> list[float]:
        pairs = _pairs(groups)
        requests = [TokensPrompt(prompt_token_ids=[*prompt, *completion]) for prompt, completion in pairs]
        answers = engine.generate(requests, wanted, use_tqdm=False)
        return [_sum_of(answer.prompt_logprobs, *pair) for answer, pair in zip(answers, pairs, strict=True)]

    return score, engine.llm_engine.engine_core.shutdown


def _sum_of(entries: Any, prompt: list[int], completion: list[int]) -> float:
    own = entries[len(prompt) : len(prompt) + len(completion)]
    return float(sum(entry[token].logprob for entry, token in zip(own, completion, strict=True)))


def _pairs(groups: list[TokenGroup]) -> list[Pair]:
    return [(list(group.prompt_ids), list(one)) for group in groups for one in group.completions]


def _batches(groups: list[TokenGroup]) -> Iterator[list[Pair]]:
    pairs = _pairs(groups)
    for start in range(0, len(pairs), BATCH_ROWS):
        yield pairs[start : start + BATCH_ROWS]


def _right_padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and their masks, [rows, longest]."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask

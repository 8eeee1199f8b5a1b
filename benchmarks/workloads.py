"""The models and groups of the scoring benchmarks: a real shape with random weights, and random tokens.

mixtral   8 experts, 2 active, about 140 M parameters, vocabulary 32 000
mistral   dense, about 110 M parameters, the same vocabulary

name            prompts x N     prompt tokens   completion tokens
n8-p256-r128    4 x 8           256             128
n16-p512-r128   2 x 16          512             128
n64-p128-r256   1 x 64          128             256
n1              16 x 1          256             128
mixed           8 x 8           of real instructions and their answers (LENGTHS)
alike           4 x 8           256             128; each completion shares its first 64 with a neighbour; not if quick
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_server.engines import TokenGroup

VOCAB_SIZE = 32000
BOS = 0
FIRST_ID = 6  # the ids below are special tokens

# Numbers of tokens of instructions and their answers: 24 pairs from a public set of instructions, rounded.
LENGTHS = (
    (38, 12), (64, 110), (25, 180), (92, 24), (51, 66), (140, 9), (33, 240), (75, 48),
    (210, 31), (46, 95), (29, 14), (118, 160), (57, 72), (84, 19), (41, 205), (300, 54),
    (36, 88), (67, 6), (22, 130), (155, 42), (48, 27), (98, 115), (31, 310), (60, 58),
)  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """Groups that are scored in one call."""

    name: str
    groups: list[TokenGroup]

    @property
    def num_tokens(self) -> int:
        """The number of tokens in all pairs of prompt and completion; peers compute all of them."""
        total = 0
        for group in self.groups:
            total += len(group.prompt_ids) * len(group.completions) + sum(map(len, group.completions))
        return total

    @property
    def num_completions(self) -> int:
        """The number of pairs of prompt and completion."""
        return sum(len(group.completions) for group in self.groups)

    @property
    def bound(self) -> float:
        """The upper limit of the speed-up by sharing prompts: for one group N (P + R) / (P + N R)."""
        num_with_shared_prompts = sum(len(group.prompt_ids) + sum(map(len, group.completions)) for group in self.groups)
        return self.num_tokens / num_with_shared_prompts


def workloads(seed: int, *, is_quick: bool) -> list[Workload]:
    """Make the workloads, with different tokens for each seed; quick: half the prompts, and no `alike`."""
    rng = random.Random(seed)
    scale = 1 if is_quick else 2
    result = [
        Workload("n8-p256-r128", [_group(rng, 256, [128] * 8) for _ in range(scale)]),
        Workload("n16-p512-r128", [_group(rng, 512, [128] * 16)]),
        Workload("n64-p128-r256", [_group(rng, 128, [256] * 64)]),
        Workload("n1", [_group(rng, 256, [128]) for _ in range(4 * scale)]),
        Workload("mixed", [_mixed(rng) for _ in range(2 * scale)]),
    ]
    if not is_quick:
        result.append(Workload("alike", [_alike(rng) for _ in range(scale)]))
    return result


def memory_workload() -> Workload:
    """Make 64 completions of one prompt; all pairs have 32 k tokens."""
    rng = random.Random(1)
    return Workload("n64-p128-r384", [_group(rng, 128, [384] * 64)])


def make_model(kind: str, folder: Path, seed: int = 0, dtype: str = "bfloat16") -> Path:
    """Save a random model of a kind, with 8 layers, and a tokenizer in `folder`; return the folder."""
    import torch
    from transformers.models.auto import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(model_config(kind), dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    _make_tokenizer(folder)
    return folder


def model_config(kind: str, **changes: Any) -> Any:
    """Return the config of a kind, with changes."""
    from transformers import MistralConfig, MixtralConfig

    shape = {
        "vocab_size": VOCAB_SIZE,
        "num_hidden_layers": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "sliding_window": None,
        "bos_token_id": BOS,
        "eos_token_id": 1,
        "pad_token_id": 2,
        **changes,
    }
    if kind == "mixtral":
        return MixtralConfig(
            hidden_size=512, intermediate_size=1024, num_attention_heads=8, num_local_experts=8, **shape
        )
    return MistralConfig(hidden_size=768, intermediate_size=2688, num_attention_heads=12, **shape)


def _make_tokenizer(folder: Path) -> None:
    """Save a tokenizer of single bytes; the remaining ids have names only, because the groups are sent as token ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: index for index, token in enumerate([*special, *letters])}
    words |= {f"<{index}>": index for index in range(len(words), VOCAB_SIZE)}
    core = Tokenizer(models.BPE(vocab=words, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<|endoftext|>", pad_token="<|pad|>",
        additional_special_tokens=special[3:],
    ).save_pretrained(folder)  # fmt: skip


def _token_ids(rng: random.Random, num_tokens: int) -> list[int]:
    return [rng.randrange(FIRST_ID, VOCAB_SIZE) for _ in range(num_tokens)]


def _group(rng: random.Random, num_prompt_tokens: int, lengths: list[int]) -> TokenGroup:
    prompt_ids = [BOS, *_token_ids(rng, num_prompt_tokens - 1)]
    return TokenGroup(prompt_ids, [_token_ids(rng, length) for length in lengths])


def _mixed(rng: random.Random) -> TokenGroup:
    """Draw a group with the prompt length of a real instruction; completion lengths vary around its answer's length."""
    num_prompt_tokens, num_answer_tokens = rng.choice(LENGTHS)
    lengths = [max(1, round(num_answer_tokens * rng.uniform(0.5, 1.5))) for _ in range(8)]
    return _group(rng, num_prompt_tokens, lengths)


def _alike(rng: random.Random) -> TokenGroup:
    """Draw a group in which completions 2k and 2k + 1 have equal first halves."""
    group = _group(rng, 256, [128] * 8)
    completions = []
    for index, completion in enumerate(group.completions):
        shared_half = group.completions[index - index % 2][:64]
        completions.append([*shared_half, *completion[64:]])
    return TokenGroup(group.prompt_ids, completions)

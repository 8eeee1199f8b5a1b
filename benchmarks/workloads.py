"""What is scored in the benchmarks: models of a real shape with random weights, and groups of random tokens.

mixtral   8 experts, 2 active, about 140 M parameters, vocabulary 32 000
mistral   dense, about 110 M parameters, the same vocabulary

name            prompts x N     prompt tokens   completion tokens
n8-p256-r128    4 x 8           256             128
n16-p512-r128   2 x 16          512             128
n64-p128-r256   1 x 64          128             256
n1              16 x 1          256             128
mixed           8 x 8           of real instructions and their answers (LENGTHS)
alike           4 x 8           256             128, of which completions share 64 with a neighbour; not in quick runs
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_server.engines import TokenGroup

VOCAB_SIZE = 32000
BOS, FIRST_ID = 0, 6

# Tokens of instructions and of their answers: 24 pairs drawn from a public set of instructions, rounded.
LENGTHS = (
    (38, 12), (64, 110), (25, 180), (92, 24), (51, 66), (140, 9), (33, 240), (75, 48),
    (210, 31), (46, 95), (29, 14), (118, 160), (57, 72), (84, 19), (41, 205), (300, 54),
    (36, 88), (67, 6), (22, 130), (155, 42), (48, 27), (98, 115), (31, 310), (60, 58),
)  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """Groups that are scored together."""

    name: str
    groups: list[TokenGroup]

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and completion of every pair, as peers compute them."""
        return sum(len(group.prompt_ids) + len(one) for group in self.groups for one in group.completions)

    @property
    def num_completions(self) -> int:
        """Pairs."""
        return sum(len(group.completions) for group in self.groups)

    @property
    def bound(self) -> float:
        """How many times fewer tokens there are when each prompt counts once; for one group N (P + R) / (P + N R)."""
        once = sum(len(group.prompt_ids) + sum(map(len, group.completions)) for group in self.groups)
        return self.num_tokens / once


def workloads(seed: int, *, is_quick: bool) -> list[Workload]:
    """The workloads, with other tokens for each seed, as a server sees them; quick: fewer prompts, and no `alike`."""
    draw = random.Random(seed)
    many, few = (1, 1) if is_quick else (2, 1)
    works = [
        Workload("n8-p256-r128", [_group(draw, 256, [128] * 8) for _ in range(many)]),
        Workload("n16-p512-r128", [_group(draw, 512, [128] * 16) for _ in range(few)]),
        Workload("n64-p128-r256", [_group(draw, 128, [256] * 64)]),
        Workload("n1", [_group(draw, 256, [128]) for _ in range(4 * many)]),
        Workload("mixed", [_mixed(draw) for _ in range(2 * many)]),
    ]
    return works if is_quick else [*works, Workload("alike", [_alike(draw) for _ in range(many)])]


def memory_workload() -> Workload:
    """64 completions of one prompt, 32 k tokens of pairs."""
    draw = random.Random(1)
    return Workload("n64-p128-r384", [_group(draw, 128, [384] * 64)])


def make_model(kind: str, folder: Path, seed: int = 0) -> Path:
    """A random model of a kind in bf16, saved with a tokenizer; 8 layers."""
    import torch
    from transformers.models.auto import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(model_config(kind), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    _make_tokenizer(folder)
    return folder


def model_config(kind: str, **changes: Any) -> Any:
    """The config of a kind, with changes."""
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
    """Bytes as tokens, and names for the rest: the groups are sent as token ids."""
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


def _tokens(draw: random.Random, num: int) -> list[int]:
    return [draw.randrange(FIRST_ID, VOCAB_SIZE) for _ in range(num)]


def _group(draw: random.Random, num_prompt: int, lengths: list[int]) -> TokenGroup:
    return TokenGroup([BOS, *_tokens(draw, num_prompt - 1)], [_tokens(draw, length) for length in lengths])


def _mixed(draw: random.Random) -> TokenGroup:
    """A real instruction's length, with answers' lengths around one real answer's."""
    num_prompt, num_answer = draw.choice(LENGTHS)
    return _group(draw, num_prompt, [max(1, round(num_answer * draw.uniform(0.5, 1.5))) for _ in range(8)])


def _alike(draw: random.Random) -> TokenGroup:
    group = _group(draw, 256, [128] * 8)
    beginnings = [group.completions[n - n % 2][:64] for n in range(8)]
    rest = [completion[64:] for completion in group.completions]
    return TokenGroup(group.prompt_ids, [[*start, *end] for start, end in zip(beginnings, rest, strict=True)])

"""Tiny random models and a byte-level BPE tokenizer, created on demand and saved like any checkpoint.

mixtral   4 experts, 2 active, grouped-query attention
mistral   sliding window of 8 tokens, grouped-query attention
llama     grouped-query attention
granite   like llama, with scaled logits, residuals and attention
qwen2     one layer of full attention, one with a sliding window of 8 tokens
qwen2_moe, phimoe   4 experts, 2 active; a sliding window of 64 tokens, in transformers' masks only
gemma2    attention scores capped at 2, a sliding window of 8 tokens in one layer
gemma3    one layer of full attention, one with a sliding window of 8 tokens, with different rotary frequencies

The weights have a larger standard deviation (0.15) than for training, so that attention and routing change the scores.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PhimoeConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
)
from transformers.models.auto import AutoModelForCausalLM

BOS = "<s>"
EOS = "<|endoftext|>"
PAD = "<|pad|>"
HEADERS = ("<|system|>", "<|user|>", "<|assistant|>")
VOCAB_SIZE = 384

TEXTS = (
    "What is 2 + 3? It is 5.",
    "Name a colour of the rainbow, and say why you like it.",
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "Write three words about the sea: waves, salt, wind.\n\nThank you, that is all.",
    "You are a careful assistant. Answer in one sentence, please.",
)

CONFIGS: dict[str, type[Any]] = {
    "mixtral": MixtralConfig,
    "mistral": MistralConfig,
    "llama": LlamaConfig,
    "granite": GraniteConfig,
    "qwen2": Qwen2Config,
    "qwen2_moe": Qwen2MoeConfig,
    "phimoe": PhimoeConfig,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
}
KIND_SETTINGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "mistral": {"sliding_window": 8},
    "llama": {},
    "granite": {
        "logits_scaling": 4.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.1,
        "embedding_multiplier": 3.0,
    },
    "qwen2": {
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 8,
        "use_sliding_window": True,
    },
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "use_sliding_window": True,
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 64,
    },
    "phimoe": {"num_local_experts": 4, "sliding_window": 64},
    "gemma2": {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 1, "sliding_window": 8},
    "gemma3": {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8},
}


def make_tokenizer(folder: Path, texts: tuple[str, ...] = TEXTS) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on `texts` and save it in `folder`; every text round-trips."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD, *HEADERS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(HEADERS),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_model(kind: str, folder: Path, seed: int = 0, **config_overrides: Any) -> Path:
    """Save a random model of a kind and a tokenizer in `folder`; return it. Equal seeds give equal weights."""
    tokenizer = make_tokenizer(folder)
    settings = {**_shape(tokenizer), **KIND_SETTINGS[kind], **config_overrides}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[kind](**settings))
    model.save_pretrained(folder)
    return folder


def _shape(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }

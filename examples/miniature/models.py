"""The models of the miniature, trained on the world's rows and saved as Hugging Face checkpoints.

    <folder>/*.jsonl, prompts/, benchmarks/, mt_bench/     the world (world.py)
    <folder>/models/base        Mixtral architecture, 4 experts, 2 active; on raw text, good and sloppy, with full loss
    <folder>/models/instruct    the base, tuned further on good answers only
    <folder>/models/student     Mistral architecture, untrained: the recipe's LAB phases start from it

All three share one tokenizer: byte-level BPE on the raw text, with single digits. Training uses TRL, through sft/.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from examples.miniature.world import write_world
from sft.encoding import EncodedRows
from sft.train import TrainingJob, train
from sft.trainer import StepProgress, make_trainer, trainer_arguments
from winnow.chat import Chat, load_tokenizer
from winnow.progress import progress
from winnow.records import seed_from
from winnow.rows import read_jsonl
from winnow.run_config import TrainConfig
from winnow.rundir import atomic_folder

VOCAB_SIZE = 512
BOS = "<s>"
EOS = "<|endoftext|>"
PAD = "<|pad|>"
HEADERS = ("<|system|>", "<|user|>", "<|assistant|>")
SYSTEM_PROMPT = "You are careful."

# With a short rotary base and a wide initialisation, models of this size learn to copy several times faster.
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.06,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "max_position_embeddings": 512,
    "sliding_window": None,
}
PRETRAINING = TrainConfig(
    learning_rate=3e-3,
    max_steps=600,
    batch_size=32,
    micro_batch_size=16,
    warmup_steps=60,
    lr_schedule="linear",
    max_tokens=512,
    adam_betas=(0.9, 0.98),
    weight_decay=0.01,
)
INSTRUCTION = PRETRAINING.model_copy(update={"learning_rate": 2e-3, "max_steps": 450, "warmup_steps": 45})


def make_world(folder: Path, seed: int) -> None:
    """Make the parts of the world and of its models that `folder` lacks."""
    if not (folder / "mt_bench").is_dir():
        with atomic_folder(folder) as partial:
            write_world(partial, seed)
    models = folder / "models"
    for name, make in (("base", make_base), ("instruct", make_instruct), ("student", make_student)):
        if not (models / name).is_dir():
            make(folder, models / name, seed)


def make_base(folder: Path, target: Path, seed: int) -> None:
    """Pre-train the base model of the pair on the raw text, loss on every token."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM, set_seed

    texts = [row["text"] for _, row in read_jsonl(folder / "pretrain.jsonl")]
    tokenizer = make_tokenizer(texts)
    set_seed(seed_from(seed, "base"))
    config = MixtralConfig(
        **SHAPE, **special_token_ids(tokenizer), intermediate_size=128, num_local_experts=4, num_experts_per_tok=2
    )
    model = MixtralForCausalLM(config)
    with atomic_folder(target) as partial, progress("models: base", PRETRAINING.max_steps or 0, "steps") as advance:
        rows = encode_texts(tokenizer, texts)
        order_seed = seed_from(seed, "base", "order")
        arguments = trainer_arguments(PRETRAINING, partial, order_seed, torch.float32)
        make_trainer(model, tokenizer, rows, arguments, StepProgress(advance)).train()
        save(model, tokenizer, partial)


def make_instruct(folder: Path, target: Path, seed: int) -> None:
    """Tune the base model on the good answers, in the form that the reward server renders."""
    base = str(folder / "models" / "base")
    job = TrainingJob(
        config=INSTRUCTION,
        model=base,
        chat=Chat(load_tokenizer(base), "mixtral"),
        rows=[row for _, row in read_jsonl(folder / "instruct.jsonl")],
        output_dir=target,
        seed=seed_from(seed, "instruct"),
        dtype="float32",
        description="models: instruct",
    )
    train(job)


def make_student(folder: Path, target: Path, seed: int) -> None:
    """Make an untrained student with the pair's tokenizer."""
    from transformers import MistralConfig, MistralForCausalLM, set_seed

    tokenizer = load_tokenizer(str(folder / "models" / "base"))
    set_seed(seed_from(seed, "student"))
    model = MistralForCausalLM(MistralConfig(**SHAPE, **special_token_ids(tokenizer), intermediate_size=256))
    with atomic_folder(target) as partial:
        save(model, tokenizer, partial)


def special_token_ids(tokenizer: Any) -> dict[str, int]:
    """Return the ids of the special tokens under their names in a model's config."""
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a checkpoint in Hugging Face's layout."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer(texts: Iterable[str]) -> Any:
    """Train a byte-level BPE tokenizer on the texts, and on the system prompt, which thus takes few tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD, *HEADERS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([*texts, *[SYSTEM_PROMPT] * 500], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=list(HEADERS),
        clean_up_tokenization_spaces=False,
    )


def encode_texts(tokenizer: Any, texts: Iterable[str]) -> EncodedRows:
    """Encode raw texts as training rows: BOS, the text, EOS; the loss covers every token."""
    rows = tokenizer([BOS + text + EOS for text in texts], add_special_tokens=False)["input_ids"]
    input_ids = [np.array(row, dtype=np.int32) for row in rows]
    return EncodedRows(input_ids=input_ids, labels=input_ids)

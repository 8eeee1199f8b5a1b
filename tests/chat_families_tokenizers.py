"""Tiny tokenizers that split and join as those of the families of chat models do.

words, gpt2_words                                          byte-level BPE
pieces, pieces_with_first_space, pieces_without_space      SentencePiece-like BPE

What matters is where a token may cross the border between two parts of a text, and where a space is added.
"""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from benchmarks.tiny_models import TEXTS

_TRAINING_TEXTS = (*TEXTS, "And a colour of the sea?", "Blue.\n\nOr green, near the bank.")
_ASCII = [chr(code) for code in range(32, 127)]


def words() -> Tokenizer:
    """Return a byte-level BPE that splits off runs of line breaks, so that two of them are one token everywhere.

    Llama 3, Qwen, Phi-4, OLMo 2, DeepSeek, GLM-4 and gpt-oss split in this way.
    """
    split = pre_tokenizers.Split(Regex(r"\s*[\r\n]+| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _train_bytes(pre_tokenizers.Sequence([split, byte_level]))


def gpt2_words() -> Tokenizer:
    """Return a byte-level BPE with GPT-2's splitting: the last of several line breaks stands alone before a word.

    SmolLM2, Granite and Command-R split in this way.
    """
    return _train_bytes(pre_tokenizers.ByteLevel(add_prefix_space=False))


def pieces() -> Tokenizer:
    """Return a SentencePiece-like BPE that puts a space before each text between two special tokens.

    The early tokenizers of Llama 2 and Mistral, and those of Zephyr, AlphaMonarch and Phi-3.
    """
    core = _train_pieces()
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return core


def pieces_with_first_space() -> Tokenizer:
    """Return a SentencePiece-like BPE that puts a space before a text only; the later tokenizers of Mistral."""
    core = _train_pieces()
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return core


def pieces_without_space() -> Tokenizer:
    """Return a SentencePiece-like BPE that adds no space; Gemma and Yi."""
    core = _train_pieces()
    core.normalizer = normalizers.Replace(" ", "\u2581")
    return core


def _train_bytes(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizer
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=384, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator((*_TRAINING_TEXTS, *["\n\n"] * 100), trainer)
    return core


def _train_pieces() -> Tokenizer:
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=256,
        special_tokens=["<unk>"],
        initial_alphabet=[*_ASCII, "\n", "\u2581"],
        show_progress=False,
    )
    core.train_from_iterator(_TRAINING_TEXTS, trainer)
    core.pre_tokenizer = None
    return core

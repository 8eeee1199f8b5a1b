"""Hashes that say which weights and which tokenizer a score came from.

weights     sha256:...          every byte of the weight files, where they hold less than 1 GiB together
            sampled-sha256:...  of each file: name, size, first MiB (the safetensors header) and 16 blocks of 64 KiB
tokenizer   SHA-256 of the vocabulary, the special tokens and the ids of PROBE

Two tokenizers of one hash give one tokenization: the same merges may be written in several ways in a tokenizer.json, so
what it does is hashed, not how it is written.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from winnow.errors import ModelError

FULL_HASH_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
HEAD_BYTES = 1 << 20
NUM_SAMPLES = 16
SAMPLE_BYTES = 1 << 16

# Spaces, digits, cases, accents, scripts, emoji with joiners, code: where tokenizers of one vocabulary come apart.
PROBE = (
    " leading space, trailing space \n\n\ttabs\r\n  two  spaces ",
    "1234567890 3.14159 1,000,000 2024-01-01 0x1F",
    "It's 'quoted' \"text\" -- don't; CamelCase snake_case UPPER lower",
    "caf\u00e9 cafe\u0301 na\u00efve \u00df \u0130 \u01c5 \ufb01 \u00a0\u200b\ufeff",
    "\u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \uc548\ub155",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2581 \u0120",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # comment\n<b>&amp;</b> https://example.org/?q=1",
)


def weight_hash(model: str) -> str:
    """The hash of a model's weight files. Raises ModelError when there are none."""
    files = weight_files(model)
    sizes = [path.stat().st_size for path in files]
    is_full = sum(sizes) < FULL_HASH_BYTES
    digest = hashlib.sha256()
    for path, size in zip(files, sizes, strict=True):
        digest.update(json.dumps([path.name, size]).encode())
        for chunk in _chunks(path) if is_full else _samples(path, size):
            digest.update(chunk)
    return f"{'' if is_full else 'sampled-'}sha256:{digest.hexdigest()}"


def weight_files(model: str) -> list[Path]:
    """The weight files of a folder or of a hub id's local copy, by name; safetensors where there are any."""
    from transformers.utils import cached_file

    folder = Path(model) if Path(model).is_dir() else Path(str(cached_file(model, "config.json"))).parent
    for pattern in ("*.safetensors", "*.bin"):
        if files := sorted(folder.glob(pattern)):
            return files
    raise ModelError(f"{str(folder)!r} holds no weight files (*.safetensors or *.bin); give a whole checkpoint")


def tokenizer_hash(tokenizer: Any) -> str:
    """The hash of what a tokenizer does."""
    special = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items()}
    facts = [
        sorted(tokenizer.get_vocab().items()),
        sorted(special.items()),
        [tokenizer.bos_token_id, tokenizer.eos_token_id],
        [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in PROBE],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _samples(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield file.read(HEAD_BYTES)
        for index in range(NUM_SAMPLES):
            file.seek(size * index // NUM_SAMPLES)
            yield file.read(SAMPLE_BYTES)

"""Hashes that say which weights and which tokenizer a score came from.

weights     sha256:...          config.json, and every byte of the weight files where they hold less than 1 GiB together
            sampled-sha256:...  config.json, and of each file its name, its size and 256 blocks of 64 KiB; of
                                safetensors the header and 3 blocks of 16 KiB from each tensor
tokenizer   SHA-256 of the vocabulary, the special tokens and the ids of PROBE

Two tokenizers of one hash give one tokenization: the same merges may be written in several ways in a tokenizer.json, so
what it does is hashed, not how it is written.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from winnow.errors import ModelError

FULL_HASH_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
NUM_BLOCKS, BLOCK_BYTES = 256, 1 << 16
# Of a tensor, in its beginning, middle and end: what is trained changes everywhere, but for rows of rare tokens.
TENSOR_BYTES = 1 << 14
# What config.json says of how and by whom it was written, and not of the model.
WRITTEN_BY = ("_name_or_path", "transformers_version", "use_cache")

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
    """The hash of a model's weight files, and of its config. Raises ModelError when there are no such files."""
    files = weight_files(model)
    sizes = [path.stat().st_size for path in files]
    is_full = sum(sizes) < FULL_HASH_BYTES
    digest = hashlib.sha256(_config(files[0].parent))
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


def _config(folder: Path) -> bytes:
    """What config.json says of the model: of the same weights, another RoPE base makes another model."""
    path = folder / "config.json"
    facts = json.loads(path.read_text()) if path.exists() else {}
    return json.dumps({key: value for key, value in sorted(facts.items()) if key not in WRITTEN_BY}).encode()


def _samples(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            yield from _tensor_samples(file)
            return
        for index in range(NUM_BLOCKS):
            file.seek(size * index // NUM_BLOCKS)
            yield file.read(BLOCK_BYTES)


def _tensor_samples(file: BinaryIO) -> Iterator[bytes]:
    """The header, which begins with its own length in eight bytes, and blocks of each tensor."""
    length = int.from_bytes(file.read(8), "little")
    yield (header := file.read(length))
    for name, tensor in json.loads(header).items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in tensor["data_offsets"])
        for place in (start, (start + end) // 2, max(end - TENSOR_BYTES, start)):
            file.seek(place)
            yield file.read(min(TENSOR_BYTES, end - place))

"""The hash that identifies the weights of a model.

weights     sha256:...          config.json, and every byte of the weight files if they hold less than 1 GiB together
            sampled-sha256:...  config.json, and of each file its name, its size and 256 blocks of 64 KiB; of a
                                safetensors file its header and 3 blocks of 16 KiB of each tensor (a sampled checksum)
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from winnow.checkpoints import WEIGHT_PATTERNS
from winnow.errors import ModelError

FULL_HASH_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
NUM_BLOCKS = 256
BLOCK_BYTES = 1 << 16
# Bytes from the beginning, the middle and the end of each tensor: training changes all of a tensor, except rows of rare
# tokens.
TENSOR_BYTES = 1 << 14
# Keys of config.json that describe its writer and not the model.
WRITER_KEYS = ("_name_or_path", "transformers_version", "use_cache")


def weight_hash(model: str) -> str:
    """Return the hash of a model's weight files and config. Raises ModelError for a folder without weight files."""
    files = weight_files(model)
    sizes = [path.stat().st_size for path in files]
    prefix = "sha256"
    read_blocks = _all_blocks
    if sum(sizes) >= FULL_HASH_BYTES:
        prefix = "sampled-sha256"
        read_blocks = _sampled_blocks
    digest = hashlib.sha256(_model_facts(files[0].parent))
    for path, size in zip(files, sizes, strict=True):
        digest.update(json.dumps([path.name, size]).encode())
        for block in read_blocks(path):
            digest.update(block)
    return f"{prefix}:{digest.hexdigest()}"


def weight_files(model: str) -> list[Path]:
    """Return the weight files of a folder, or of a hub id's local copy, by name; safetensors files if there are any.

    Raises ModelError if there are none.
    """
    from transformers.utils import cached_file

    folder = Path(model)
    if not folder.is_dir():
        folder = Path(str(cached_file(model, "config.json"))).parent
    for pattern in WEIGHT_PATTERNS:
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise ModelError(f"{str(folder)!r} holds no weight files (*.safetensors or *.bin); give a whole checkpoint")


def _model_facts(folder: Path) -> bytes:
    """Return the part of config.json that describes the model: another RoPE base, for example, is another model."""
    path = folder / "config.json"
    config = {}
    if path.exists():
        config = json.loads(path.read_text())
    facts = {key: value for key, value in sorted(config.items()) if key not in WRITER_KEYS}
    return json.dumps(facts).encode()


def _all_blocks(path: Path) -> Iterator[bytes]:
    """Yield all bytes of a file."""
    with path.open("rb") as file:
        block = file.read(CHUNK_BYTES)
        while block:
            yield block
            block = file.read(CHUNK_BYTES)


def _sampled_blocks(path: Path) -> Iterator[bytes]:
    """Yield blocks of a large file: from each tensor, or at equal distances if the format is not safetensors."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            yield from _tensor_blocks(file)
            return
        size = path.stat().st_size
        for index in range(NUM_BLOCKS):
            file.seek(size * index // NUM_BLOCKS)
            yield file.read(BLOCK_BYTES)


def _tensor_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Yield the header of a safetensors file, and three blocks of each tensor.

    The file begins with the length of the header in eight bytes. Offsets in the header count from its end.
    """
    header_length = int.from_bytes(file.read(8), "little")
    header = file.read(header_length)
    yield header
    data_start = 8 + header_length
    for name, tensor in json.loads(header).items():
        if name == "__metadata__":
            continue
        start = data_start + tensor["data_offsets"][0]
        end = data_start + tensor["data_offsets"][1]
        for position in (start, (start + end) // 2, max(end - TENSOR_BYTES, start)):
            file.seek(position)
            yield file.read(min(TENSOR_BYTES, end - position))

"""weight_hash and tokenizer_hash: equal for equal models, different for every difference that changes a score."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.tiny_models import make_tokenizer
from reward_server.scoring import fingerprint
from reward_server.scoring.fingerprint import tokenizer_hash, weight_hash
from tests.tiny_models import FOREIGN_TEXTS, make_model
from winnow.chat import load_tokenizer
from winnow.errors import ModelError


def test_equal_weights_have_equal_hashes(tmp_path: Path) -> None:
    first = weight_hash(str(make_model("llama", tmp_path / "first", seed=1)))
    assert first.startswith("sha256:")
    assert first == weight_hash(str(make_model("llama", tmp_path / "copy", seed=1)))
    assert first != weight_hash(str(make_model("llama", tmp_path / "second", seed=2)))


def test_the_hash_of_large_weights_is_named_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "FULL_HASH_BYTES", 0)
    path = make_model("llama", tmp_path) / "model.safetensors"
    before = weight_hash(str(tmp_path))
    weights = load_file(path)
    weights["lm_head.weight"] += 1
    save_file(weights, path, metadata={"format": "pt"})
    assert before.startswith("sampled-sha256:")
    assert weight_hash(str(tmp_path)) != before


def test_a_sampled_hash_covers_every_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "FULL_HASH_BYTES", 0)
    monkeypatch.setattr(fingerprint, "TENSOR_BYTES", 64)
    path = make_model("llama", tmp_path) / "model.safetensors"
    weights = load_file(path)
    hashes = {weight_hash(str(tmp_path))}
    for name, tensor in weights.items():
        save_file({**weights, name: tensor * 1.001}, path, metadata={"format": "pt"})
        hashes.add(weight_hash(str(tmp_path)))
    assert len(hashes) == 1 + len(weights)


def test_a_sampled_hash_of_another_format_reads_blocks_at_equal_distances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "FULL_HASH_BYTES", 0)
    monkeypatch.setattr(fingerprint, "BLOCK_BYTES", 1)
    path = tmp_path / "model.bin"
    weights = bytearray(4 * fingerprint.NUM_BLOCKS)
    path.write_bytes(weights)
    before = weight_hash(str(tmp_path))
    weights[1] = 1  # between two blocks
    path.write_bytes(weights)
    assert weight_hash(str(tmp_path)) == before
    weights[4 * (fingerprint.NUM_BLOCKS - 1)] = 1  # the last block
    path.write_bytes(weights)
    assert weight_hash(str(tmp_path)) != before


def test_weight_hash_covers_the_config_and_not_its_writer(tmp_path: Path) -> None:
    path = make_model("llama", tmp_path) / "config.json"
    config = json.loads(path.read_text())
    hashes = []
    for change in ({}, {"transformers_version": "1.2.3"}, {"rope_theta": 123.0}):
        path.write_text(json.dumps({**config, **change}))
        hashes.append(weight_hash(str(tmp_path)))
    assert hashes[0] == hashes[1] != hashes[2]


def test_weight_hash_refuses_a_folder_without_weight_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weight files"):
        weight_hash(str(tmp_path))


def test_tokenizer_hash_covers_vocabulary_merges_and_special_tokens(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "first")
    make_tokenizer(tmp_path / "copy")
    make_tokenizer(tmp_path / "foreign", FOREIGN_TEXTS)
    first = tokenizer_hash(load_tokenizer(str(tmp_path / "first")))
    assert tokenizer_hash(load_tokenizer(str(tmp_path / "copy"))) == first
    assert tokenizer_hash(load_tokenizer(str(tmp_path / "foreign"))) != first
    with_another_eos = load_tokenizer(str(tmp_path / "copy"))
    with_another_eos.eos_token = "<|pad|>"
    assert tokenizer_hash(with_another_eos) != first

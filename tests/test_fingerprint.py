"""weight_hash and tokenizer_hash: equal for equal models, different for what changes a score."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from benchmarks.tiny_models import make_tokenizer
from tests.tiny_models import FOREIGN_TEXTS, make_model
from winnow import fingerprint
from winnow.chat import load_tokenizer
from winnow.chat.tokenizer_hash import tokenizer_difference, tokenizer_hash
from winnow.errors import ModelError
from winnow.fingerprint import weight_hash


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


def test_tokenizer_hash_covers_the_vocabulary(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "first")
    make_tokenizer(tmp_path / "copy")
    make_tokenizer(tmp_path / "foreign", FOREIGN_TEXTS)
    first = load_tokenizer(str(tmp_path / "first"))
    copy = load_tokenizer(str(tmp_path / "copy"))
    foreign = load_tokenizer(str(tmp_path / "foreign"))
    assert tokenizer_hash(copy) == tokenizer_hash(first)
    assert tokenizer_difference(first, copy) == ""
    assert tokenizer_hash(foreign) != tokenizer_hash(first)
    assert f"have {len(first)} (instruct) and {len(foreign)} (base) tokens" in tokenizer_difference(first, foreign)


def test_tokenizer_hash_ignores_settings(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    first = load_tokenizer(str(tmp_path))
    copy = load_tokenizer(str(tmp_path))
    copy.eos_token = "<|pad|>"
    copy.bos_token = "<|user|>"
    copy.pad_token = "<|endoftext|>"
    copy.padding_side = "left"
    copy.chat_template = "{{ messages }}"
    copy.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", None, [("<s>", 0)])
    assert copy("a")["input_ids"] != first("a")["input_ids"]
    assert tokenizer_hash(copy) == tokenizer_hash(first)
    assert tokenizer_difference(first, copy) == ""


def swap_last_merges(parts: dict[str, Any]) -> None:
    merges = parts["model"]["merges"]
    merges[-1], merges[-2] = merges[-2:]


def lower_case(parts: dict[str, Any]) -> None:
    parts["normalizer"] = {"type": "Lowercase"}


def add_a_leading_space(parts: dict[str, Any]) -> None:
    parts["pre_tokenizer"]["add_prefix_space"] = True


def set_flag(parts: dict[str, Any], flag: str) -> None:
    token = parts["added_tokens"][5]
    token[flag] = not token[flag]


def add_token(parts: dict[str, Any]) -> None:
    parts["added_tokens"].append({**parts["added_tokens"][5], "id": 384, "content": "<|tool|>"})


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (swap_last_merges, "the merges differ"),
        (lower_case, "the normalizers differ"),
        (add_a_leading_space, "the pre-tokenizers differ"),
        (partial(set_flag, flag="special"), "'<|assistant|>' is special in the instruct model's tokenizer only"),
        (partial(set_flag, flag="lstrip"), "'<|assistant|>' has the flags"),
        (add_token, "'<|tool|>' is an added token in the base model's tokenizer only"),
        (add_token, "'<|tool|>' has no id in the first, id 384 in the second"),
    ],
)
def test_tokenizer_difference_names_all_that_changes_token_ids(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], difference: str
) -> None:
    make_tokenizer(tmp_path)
    first = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    parts = json.loads((tmp_path / "tokenizer.json").read_text())
    change(parts)
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    changed = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert difference in tokenizer_difference(first, changed)
    assert tokenizer_hash(first) != tokenizer_hash(changed)

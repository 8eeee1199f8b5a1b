"""Checkpoints with a reward or value head: they are refused before and while their weights are loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, Qwen2Config, Qwen2ForSequenceClassification

from tests.tiny_models import make_model
from winnow.checkpoints import check_checkpoint
from winnow.errors import ModelError
from winnow.models import load_causal_lm

REMEDY = "give a folder that holds a causal language model, or take the head out and save the model without it"


def make_reward_model(folder: Path) -> Path:
    """Save a tiny Qwen2 classifier with tied embeddings, next to a tokenizer."""
    make_model("llama", folder)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        num_labels=1,
    )
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    return folder


def make_value_model(folder: Path) -> Path:
    """Save a tiny language model with the value head of TRL's AutoModelForCausalLMWithValueHead."""
    make_model("llama", folder)
    weights = load_file(folder / "model.safetensors")
    weights["v_head.summary.weight"] = torch.zeros(1, 32)
    weights["v_head.summary.bias"] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_reward_model_is_not_loaded_as_a_language_model(tmp_path: Path) -> None:
    folder = str(make_reward_model(tmp_path))
    with pytest.raises(ModelError) as error:
        load_causal_lm(folder, dtype="float32", device_map="cpu")
    assert str(error.value) == f"{folder!r} holds 1 weights that its language model lacks, like score.weight; {REMEDY}"
    assert AutoModelForSequenceClassification.from_pretrained(folder).score.weight.shape == (1, 32)


def test_a_value_head_is_not_ignored(tmp_path: Path) -> None:
    folder = str(make_value_model(tmp_path))
    with pytest.raises(ModelError, match=r"holds 2 weights that .* lacks, like v_head\.summary\.bias; .*the head out"):
        load_causal_lm(folder, dtype="float32", device_map="cpu")


def test_heads_are_refused_before_weights_are_loaded(tmp_path: Path) -> None:
    reward = str(make_reward_model(tmp_path / "reward"))
    with pytest.raises(ModelError) as error:
        check_checkpoint(reward)
    assert str(error.value) == (
        f"no model could be loaded from {reward!r}: it holds 1 weights of a reward model or classifier, like "
        f"score.weight; {REMEDY}"
    )
    with pytest.raises(ModelError, match=r"it holds 2 weights of .*, like v_head\.summary\.bias; "):
        check_checkpoint(str(make_value_model(tmp_path / "value")))


def test_a_head_in_one_of_several_files_is_refused(tmp_path: Path) -> None:
    folder = make_value_model(tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    head = {name: tensor for name, tensor in weights.items() if name.startswith("v_head.")}
    body = {name: tensor for name, tensor in weights.items() if name not in head}
    save_file(body, folder / "model-1.safetensors", metadata={"format": "pt"})
    save_file(head, folder / "model-2.safetensors", metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    weight_map = dict.fromkeys(body, "model-1.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    check_checkpoint(str(folder))  # the second file is not a part of the model
    weight_map.update(dict.fromkeys(head, "model-2.safetensors"))
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(ModelError, match=r"it holds 2 weights of .*, like v_head\.summary\.bias; "):
        check_checkpoint(str(folder))


@pytest.mark.parametrize("kind", ["llama", "mistral", "mixtral"])
def test_language_models_pass(kind: str, tmp_path: Path) -> None:
    folder = str(make_model(kind, tmp_path))
    check_checkpoint(folder)
    assert load_causal_lm(folder, dtype="auto", device_map="cpu").dtype == torch.float32

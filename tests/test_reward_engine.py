"""The transformers engine against the oracle: exact, and independent of order, neighbours and budget."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertGenerationConfig, Llama4TextConfig
from transformers.models.auto import AutoModelForCausalLM

from benchmarks.tiny_models import VOCAB_SIZE
from reward_server.engines import Logprobs, TokenGroup, head
from reward_server.engines import transformers as engine_module
from reward_server.engines.attention import FLEX, TREE, Layout, Window
from reward_server.engines.transformers import TransformersEngine
from tests.oracle import (
    LENGTHS,
    MAX_ERROR,
    EngineCase,
    assert_logprobs_equal,
    assert_scores_as_oracle,
    engine_case,
    logps,
    random_group,
)
from tests.tiny_models import make_model
from winnow.errors import ModelError, UsageError

KINDS = ("mixtral", "mistral", "llama", "granite", "qwen2")


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineCase:
    folder = make_model(request.param, tmp_path_factory.mktemp(request.param))
    return engine_case(folder, load_engine(folder))


def load_engine(folder: Path, **settings: Any) -> TransformersEngine:
    return TransformersEngine.load(str(folder), **{"dtype": "float32", "device_map": "cpu", **settings})


def score(engine: Any, group: TokenGroup) -> list[Logprobs]:
    logprobs: list[Logprobs] = engine.logprobs([group])[0]
    return logprobs


def test_each_token_has_the_log_probability_of_the_oracle(case: EngineCase) -> None:
    assert_logprobs_equal(score(case.engine, case.group), case.expected)


@pytest.mark.parametrize("token_budget", [1, 30, 60, 16384])
def test_each_token_budget_gives_the_same_scores(
    case: EngineCase, token_budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case.engine, "token_budget", token_budget)
    np.testing.assert_allclose(logps(score(case.engine, case.group)), case.expected_logps, atol=MAX_ERROR, rtol=0)


def test_each_order_and_all_neighbours_give_the_same_scores(case: EngineCase) -> None:
    for order in ([5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 3, 4], [4], [1, 4], [0, 0, 0]):
        group = TokenGroup(case.group.prompt_ids, [case.group.completions[index] for index in order])
        expected = [case.expected_logps[index] for index in order]
        np.testing.assert_allclose(logps(score(case.engine, group)), expected, atol=MAX_ERROR, rtol=0)


def test_a_prompt_of_one_token_is_enough(case: EngineCase) -> None:
    assert_scores_as_oracle(case.engine, case.folder, TokenGroup([0], [[7, 8, 9], [10]]))


def test_logprobs_are_arrays_of_one_value_per_token_in_single_precision(case: EngineCase) -> None:
    values = score(case.engine, case.group)
    assert [(logprobs.shape, logprobs.dtype) for logprobs in values] == [((n,), np.dtype("float32")) for n in LENGTHS]


def test_in_bfloat16_neighbours_stay_below_the_noise_of_the_arithmetic(case: EngineCase) -> None:
    """The noise floor: how far bfloat16 is from double precision when each completion is scored alone."""
    engine = load_engine(case.folder, dtype="bfloat16")
    groups = [TokenGroup(case.group.prompt_ids, [completion]) for completion in case.group.completions]
    alone = np.array([logps(score(engine, group))[0] for group in groups])
    together = logps(score(engine, case.group))
    noise_floor = float(np.abs(alone - case.expected_logps).max())
    moved = float(np.abs(together - alone).max())
    print(f"\nbfloat16, {case.folder.name}: noise floor of logp {noise_floor:.4f}, moved by neighbours {moved:.4f}")
    assert engine.dtype == "bfloat16"
    assert noise_floor < 0.5
    assert moved <= max(2 * noise_floor, 0.05)


def test_a_sliding_window_shorter_than_the_group_changes_the_scores(tmp_path: Path) -> None:
    group = random_group(17, (12,))
    windowed = score(load_engine(make_model("mistral", tmp_path / "windowed")), group)[0]
    full = score(load_engine(make_model("mistral", tmp_path / "full", sliding_window=None)), group)[0]
    assert np.abs(windowed - full).max() > 0.1


class LargestOutput(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the size of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        tensors = [output]
        if isinstance(output, tuple | list):
            tensors = list(output)
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return output


def test_no_tensor_of_tokens_by_vocabulary_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "TOKENS_PER_STEP", 16)
    monkeypatch.setattr(head, "CPU_SLICE_SIZE", 100)
    engine = load_engine(make_model("llama", tmp_path))
    group = random_group(17, (50, 50))
    with LargestOutput() as largest:  # type: ignore[no-untyped-call]
        engine.logprobs([group])
    assert largest.numel < 117 * 64  # the activations of a layer; all logits would be 100 * VOCAB_SIZE
    assert 100 * VOCAB_SIZE > 117 * 64


def record_passes(engine: TransformersEngine) -> list[int]:
    """Return a list that each forward pass from now on appends its number of tokens to."""
    num_tokens: list[int] = []
    first_layer = engine.model.model.layers[0]
    first_layer.register_forward_hook(lambda _module, inputs, _output: num_tokens.append(inputs[0].shape[1]))
    return num_tokens


def test_the_prompt_is_computed_once_for_each_chunk(tmp_path: Path) -> None:
    engine = load_engine(make_model("llama", tmp_path), token_budget=40)
    passes = record_passes(engine)
    engine.logprobs([random_group(17, (10, 10, 10, 40))])
    assert sorted(passes) == [17 + 9, 17 + 9 + 9, 17 + 39]


def test_groups_share_a_packed_sequence(tmp_path: Path) -> None:
    engine = load_engine(make_model("llama", tmp_path))
    passes = record_passes(engine)
    together = engine.logprobs([random_group(17, (10, 5), seed=1), random_group(9, (4,), seed=2)])
    assert passes == [17 + 9 + 4 + 9 + 3]
    np.testing.assert_allclose(together[1][0], score(engine, random_group(9, (4,), seed=2))[0], atol=1e-5)


def test_completions_with_a_common_prefix_score_as_each_alone(case: EngineCase) -> None:
    first = case.group.completions[2]
    second = case.group.completions[4]
    group = TokenGroup(case.group.prompt_ids, [first, [*first[:16], *second], first, first[:12]])
    assert_scores_as_oracle(case.engine, case.folder, group)


def test_equal_completions_cost_no_more_than_one(tmp_path: Path) -> None:
    engine = load_engine(make_model("llama", tmp_path))
    passes = record_passes(engine)
    group = random_group(17, (10,))
    values = score(engine, TokenGroup(group.prompt_ids, [group.completions[0]] * 5))
    assert passes == [17 + 9]
    assert all(np.array_equal(logprobs, values[0]) for logprobs in values)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_gives_the_same_scores(case: EngineCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU, without the compiler."""
    monkeypatch.setattr(engine_module, "attention_name", lambda _device: FLEX)
    group = TokenGroup(case.group.prompt_ids, [*case.group.completions, [*case.group.completions[2][:20], 9, 8]])
    assert_logprobs_equal(score(case.engine, group)[:-1], case.expected)


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("kind", "rope"),
    [("llama", DYNAMIC), ("gemma3", {"full_attention": DYNAMIC, "sliding_attention": DYNAMIC})],
    ids=["one for all layers", "for each type of layer"],
)
def test_a_length_dependent_position_encoding_scores_completions_one_by_one(
    kind: str, rope: dict[str, Any], tmp_path: Path
) -> None:
    """Frequencies that grow with a sequence are reset before the next one."""
    folder = make_model(kind, tmp_path, rope_parameters=rope, max_position_embeddings=24)
    engine = load_engine(folder)
    group = random_group(17, (5, 23, 80, 40, 7, 5))
    assert not engine.has_shared_path
    assert_scores_as_oracle(engine, folder, group)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("implementation", [TREE, FLEX])
@pytest.mark.parametrize("kind", ["qwen2_moe", "phimoe", "mistral", "qwen2", "gemma3"])
def test_a_window_longer_than_the_self_check_is_applied_wherever_the_model_names_it(
    kind: str, implementation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some models name their window only in the mask that they ask transformers for."""
    monkeypatch.setattr(engine_module, "attention_name", lambda _device: implementation)
    folder = make_model(kind, tmp_path, sliding_window=64)
    engine = load_engine(folder)
    group = random_group(50, (60, 30, 1))
    assert engine.has_shared_path
    group = TokenGroup(group.prompt_ids, [*group.completions, [*group.completions[0][:40], *group.completions[1]]])
    assert_scores_as_oracle(engine, folder, group)


def test_a_layer_whose_mask_transformers_did_not_build_is_not_shared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a mask may have any effect, which the short group of the self-check need not show."""
    from transformers.models.llama import modeling_llama

    monkeypatch.setattr(modeling_llama, "create_causal_mask", lambda **_arguments: None)
    assert not load_engine(make_model("llama", tmp_path / "none")).has_shared_path
    assert "NotImplementedError: attention with a mask of the model's own" in caplog.text


def test_capped_attention_scores_are_capped(tmp_path: Path) -> None:
    folder = make_model("gemma2", tmp_path)
    engine = load_engine(folder)
    group = random_group(17, LENGTHS)
    assert not engine.has_shared_path
    assert_scores_as_oracle(engine, folder, group)


@pytest.fixture
def poisoned(tmp_path: Path) -> TransformersEngine:
    engine = load_engine(make_model("llama", tmp_path))
    with torch.no_grad():
        engine.model.get_input_embeddings().weight[9] = torch.nan
    return engine


def test_values_that_are_not_finite_stay_with_their_completion(poisoned: TransformersEngine) -> None:
    prompt = [0, 20, 21]
    completions = [[30, 31], [30, 9, 31], [40, 41, 42]]
    alone = [score(poisoned, TokenGroup(prompt, [completion]))[0] for completion in completions]
    together = score(poisoned, TokenGroup(prompt, completions))
    assert not np.isfinite(together[1]).all()
    np.testing.assert_allclose(together[0], alone[0], atol=1e-5)
    np.testing.assert_allclose(together[2], alone[2], atol=1e-5)


def test_layers_that_cannot_share_a_prompt_are_scored_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "SHARED_LAYERS", frozenset({"sliding_attention"}))
    folder = make_model("qwen2", tmp_path)
    engine = load_engine(folder)
    group = random_group(17, (5, 23))
    assert not engine.has_shared_path
    assert "layers of type full_attention: COMPLETIONS ARE SCORED ONE BY ONE" in caplog.text
    assert_scores_as_oracle(engine, folder, group)


def test_a_shared_path_that_differs_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong layout: its positions continue from one completion to the next."""
    layout_of = Layout.of

    def wrong_layout_of(sequence: Any, device: Any) -> Any:
        sequence.positions = list(range(len(sequence.positions)))
        return layout_of(sequence, device)

    monkeypatch.setattr(Layout, "of", wrong_layout_of)
    folder = make_model("mistral", tmp_path)
    engine = load_engine(folder)
    group = random_group(17, (5, 23))
    assert not engine.has_shared_path
    assert "the shared path differs" in caplog.text
    assert_scores_as_oracle(engine, folder, group)


def test_attention_with_a_cap_on_its_scores_is_not_shared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaAttention

    forward = LlamaAttention.forward
    monkeypatch.setattr(LlamaAttention, "forward", lambda self, *args, **kw: forward(self, *args, softcap=30.0, **kw))
    assert not load_engine(make_model("llama", tmp_path)).has_shared_path
    assert "the shared path fails: NotImplementedError: attention with softcap" in caplog.text


def test_a_model_that_changes_its_logits_in_an_unknown_way_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model("llama", tmp_path)
    monkeypatch.setattr(head, "logit_scaling", lambda _config: lambda logits: logits * 2)
    with pytest.raises(ModelError, match="changes its logits"):
        load_engine(folder)


def test_a_layer_that_fails_on_the_window_placeholder_is_not_shared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaAttention

    forward = LlamaAttention.forward

    def forward_that_indexes_the_mask(
        self: Any, hidden_states: Any, position_embeddings: Any, attention_mask: Any, **kw: Any
    ) -> Any:
        if isinstance(attention_mask, Window):
            raise IndexError("too many indices")
        return forward(self, hidden_states, position_embeddings, attention_mask, **kw)

    monkeypatch.setattr(LlamaAttention, "forward", forward_that_indexes_the_mask)
    assert not load_engine(make_model("llama", tmp_path)).has_shared_path
    assert "the shared path fails: IndexError: too many indices" in caplog.text


def test_a_model_that_the_engine_cannot_call_is_refused(tmp_path: Path) -> None:
    """Its base model returns no hidden states."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "intermediate_size_mlp": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCAB_SIZE}
    config = Llama4TextConfig(**shape, **heads, num_local_experts=2, pad_token_id=2, eos_token_id=1, bos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot compute this architecture \(llama4_text\): AttributeError: .*vllm"):
        load_engine(tmp_path)


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    config = BertGenerationConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        initializer_range=0.15,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="it is not a causal language model"):
        load_engine(tmp_path)
    config.is_decoder = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    engine = load_engine(tmp_path)
    group = random_group(17, (5, 23))
    assert_scores_as_oracle(engine, tmp_path, group)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_engine(tmp_path / "none")
    with pytest.raises(ModelError, match="no model could be loaded"):
        load_engine(tmp_path)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = make_model("llama", tmp_path) / "model.safetensors"
    weights = load_file(path)
    del weights["lm_head.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights of its model, like lm_head\.weight"):
        load_engine(tmp_path)

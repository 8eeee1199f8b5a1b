"""The transformers engine against the oracle: exact, and independent of order, neighbours and budget."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertGenerationConfig, Llama4TextConfig
from transformers.models.auto import AutoModelForCausalLM

from reward_server.engines import Logprobs, TokenGroup, head
from reward_server.engines import transformers as engine_module
from reward_server.engines.attention import FLEX, SEGMENTS, Layout, Window
from reward_server.engines.transformers import TransformersEngine
from tests.oracle import Oracle
from tests.tiny_models import VOCAB_SIZE, make_model
from winnow.errors import ModelError, UsageError

KINDS = ("mixtral", "mistral", "llama", "granite", "qwen2")
LENGTHS = (5, 1, 23, 12, 40, 12)
MAX_ERROR = 1e-3  # of logp, in single precision


@dataclass(frozen=True)
class Case:
    """A model and a group, with what the oracle says of it."""

    folder: Path
    engine: TransformersEngine
    group: TokenGroup
    expected: list[npt.NDArray[np.float64]]


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = make_model(request.param, tmp_path_factory.mktemp(request.param))
    group = random_group(17, LENGTHS)
    oracle = Oracle(folder)
    return Case(
        folder,
        engine_of(folder),
        group,
        [oracle.logprobs(group.prompt_ids, completion) for completion in group.completions],
    )


def random_group(num_prompt: int, lengths: tuple[int, ...], seed: int = 0) -> TokenGroup:
    generator = np.random.default_rng(seed)
    prompt, *completions = (generator.integers(6, VOCAB_SIZE, size).tolist() for size in (num_prompt, *lengths))
    return TokenGroup(prompt, completions)


def engine_of(folder: Path, **settings: Any) -> TransformersEngine:
    return TransformersEngine.load(str(folder), **{"dtype": "float32", "device_map": "cpu", **settings})


def scored(engine: TransformersEngine, group: TokenGroup) -> list[Logprobs]:
    return engine.logprobs([group])[0]


def logps(logprobs: list[Logprobs]) -> npt.NDArray[np.float64]:
    return np.array([one.sum(dtype=np.float64) for one in logprobs])


def test_every_token_is_as_the_oracle_says(case: Case) -> None:
    actual = scored(case.engine, case.group)
    for ours, expected in zip(actual, case.expected, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
        assert abs(ours.sum(dtype=np.float64) - expected.sum()) <= MAX_ERROR


@pytest.mark.parametrize("token_budget", [1, 30, 60, 16384])
def test_any_budget_gives_the_same_scores(case: Case, token_budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case.engine, "token_budget", token_budget)
    actual = logps(scored(case.engine, case.group))
    np.testing.assert_allclose(actual, [one.sum() for one in case.expected], atol=MAX_ERROR, rtol=0)


def test_any_order_and_any_neighbours_give_the_same_scores(case: Case) -> None:
    expected = [one.sum() for one in case.expected]
    for order in ([5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 3, 4], [4], [1, 4], [0, 0, 0]):
        group = TokenGroup(case.group.prompt_ids, [case.group.completions[index] for index in order])
        np.testing.assert_allclose(
            logps(scored(case.engine, group)), [expected[index] for index in order], atol=MAX_ERROR, rtol=0
        )


def test_a_prompt_of_one_token_is_enough(case: Case) -> None:
    group = TokenGroup([0], [[7, 8, 9], [10]])
    oracle = Oracle(case.folder)
    for ours, completion in zip(scored(case.engine, group), group.completions, strict=True):
        np.testing.assert_allclose(ours, oracle.logprobs([0], completion), atol=1e-4, rtol=0)


def test_values_are_of_each_token_in_single_precision(case: Case) -> None:
    values = scored(case.engine, case.group)
    assert [(one.shape, one.dtype) for one in values] == [((length,), np.dtype("float32")) for length in LENGTHS]


def test_in_bfloat16_neighbours_stay_below_the_noise_of_the_arithmetic(case: Case) -> None:
    """The noise floor: how far bfloat16 is from double precision when each completion is scored alone."""
    engine = engine_of(case.folder, dtype="bfloat16")
    alone = np.array([logps(scored(engine, TokenGroup(case.group.prompt_ids, [c])))[0] for c in case.group.completions])
    together = logps(scored(engine, case.group))
    floor = float(np.abs(alone - [one.sum() for one in case.expected]).max())
    moved = float(np.abs(together - alone).max())
    print(f"\nbfloat16, {case.folder.name}: noise floor of logp {floor:.4f}, moved by neighbours {moved:.4f}")
    assert engine.dtype == "bfloat16"
    assert floor < 0.5
    assert moved <= max(2 * floor, 0.05)


def test_a_sliding_window_is_seen_and_shorter_than_the_group(tmp_path: Path) -> None:
    group = random_group(17, (12,))
    windowed = scored(engine_of(make_model("mistral", tmp_path / "windowed")), group)[0]
    full = scored(engine_of(make_model("mistral", tmp_path / "full", sliding_window=None)), group)[0]
    assert np.abs(windowed - full).max() > 0.1


class LargestOutput(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the most elements of any tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        tensors = output if isinstance(output, tuple | list) else [output]
        self.numel = max([self.numel, *(one.numel() for one in tensors if isinstance(one, torch.Tensor))])
        return output


def test_no_tensor_of_tokens_by_vocabulary_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "ROWS", 16)
    monkeypatch.setattr(head, "CPU_COLUMNS", 100)
    engine = engine_of(make_model("llama", tmp_path))
    group = random_group(17, (50, 50))
    with LargestOutput() as largest:  # type: ignore[no-untyped-call]
        engine.logprobs([group])
    assert largest.numel < 117 * 64  # what a layer makes of the row; all logits would be 100 * VOCAB_SIZE
    assert 100 * VOCAB_SIZE > 117 * 64


def rows_of(engine: TransformersEngine) -> list[int]:
    """Tokens of each forward pass from now on."""
    rows: list[int] = []
    engine.model.model.layers[0].register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[1]))
    return rows


def test_the_prompt_is_computed_once_for_each_piece(tmp_path: Path) -> None:
    engine = engine_of(make_model("llama", tmp_path), token_budget=40)
    rows = rows_of(engine)
    engine.logprobs([random_group(17, (10, 10, 10, 40))])
    assert sorted(rows) == [17 + 9, 17 + 9 + 9, 17 + 39]


def test_groups_share_a_row(tmp_path: Path) -> None:
    engine = engine_of(make_model("llama", tmp_path))
    rows = rows_of(engine)
    together = engine.logprobs([random_group(17, (10, 5), seed=1), random_group(9, (4,), seed=2)])
    assert rows == [17 + 9 + 4 + 9 + 3]
    np.testing.assert_allclose(together[1][0], scored(engine, random_group(9, (4,), seed=2))[0], atol=1e-5)


def test_what_completions_have_in_common_is_computed_once(case: Case) -> None:
    first, second = case.group.completions[2], case.group.completions[4]
    group = TokenGroup(case.group.prompt_ids, [first, [*first[:16], *second], first, first[:12]])
    oracle = Oracle(case.folder)
    for ours, completion in zip(scored(case.engine, group), group.completions, strict=True):
        np.testing.assert_allclose(ours, oracle.logprobs(group.prompt_ids, completion), atol=1e-4, rtol=0)


def test_equal_completions_cost_one(tmp_path: Path) -> None:
    engine = engine_of(make_model("llama", tmp_path))
    rows = rows_of(engine)
    group = random_group(17, (10,))
    values = scored(engine, TokenGroup(group.prompt_ids, [group.completions[0]] * 5))
    assert rows == [17 + 9]
    assert all(np.array_equal(one, values[0]) for one in values)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_gives_the_same_scores(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but for the compiler."""
    monkeypatch.setattr(engine_module, "implementation", lambda _device: FLEX)
    group = TokenGroup(case.group.prompt_ids, [*case.group.completions, [*case.group.completions[2][:20], 9, 8]])
    for ours, expected in zip(scored(case.engine, group), case.expected, strict=False):
        np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("kind", "rope"),
    [("llama", DYNAMIC), ("gemma3", {"full_attention": DYNAMIC, "sliding_attention": DYNAMIC})],
    ids=["one for all layers", "for each type of layer"],
)
def test_a_row_dependent_position_encoding_keeps_completions_apart(
    kind: str, rope: dict[str, Any], tmp_path: Path
) -> None:
    """Whatever was scored before: the frequencies grow with a sequence, and the next one gets its own."""
    folder = make_model(kind, tmp_path, rope_parameters=rope, max_position_embeddings=24)
    engine, oracle, group = engine_of(folder), Oracle(folder), random_group(17, (5, 23, 80, 40, 7, 5))
    assert not engine.is_shared
    for ours, completion in zip(scored(engine, group), group.completions, strict=True):
        np.testing.assert_allclose(ours, oracle.logprobs(group.prompt_ids, completion), atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("implementation", [SEGMENTS, FLEX])
@pytest.mark.parametrize("kind", ["qwen2_moe", "phimoe", "mistral", "qwen2", "gemma3"])
def test_a_window_beyond_the_self_check_is_seen_wherever_the_model_says_it(
    kind: str, implementation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some models put it into transformers' mask alone."""
    monkeypatch.setattr(engine_module, "implementation", lambda _device: implementation)
    folder = make_model(kind, tmp_path, sliding_window=64)
    engine, oracle, group = engine_of(folder), Oracle(folder), random_group(50, (60, 30, 1))
    assert engine.is_shared
    group = TokenGroup(group.prompt_ids, [*group.completions, [*group.completions[0][:40], *group.completions[1]]])
    for ours, completion in zip(scored(engine, group), group.completions, strict=True):
        np.testing.assert_allclose(ours, oracle.logprobs(group.prompt_ids, completion), atol=1e-4, rtol=0)


def test_a_layer_without_a_mask_of_transformers_is_not_shared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mask may hold anything, and a short group need not show it."""
    from transformers.models.llama import modeling_llama

    monkeypatch.setattr(modeling_llama, "create_causal_mask", lambda **_arguments: None)
    assert not engine_of(make_model("llama", tmp_path / "none")).is_shared
    assert "NotImplementedError: attention with a mask of the model's own" in caplog.text


def test_capped_attention_scores_are_capped(tmp_path: Path) -> None:
    folder = make_model("gemma2", tmp_path)
    engine, oracle, group = engine_of(folder), Oracle(folder), random_group(17, LENGTHS)
    assert not engine.is_shared
    for ours, completion in zip(scored(engine, group), group.completions, strict=True):
        np.testing.assert_allclose(ours, oracle.logprobs(group.prompt_ids, completion), atol=1e-4, rtol=0)


@pytest.fixture
def poisoned(tmp_path: Path) -> TransformersEngine:
    engine = engine_of(make_model("llama", tmp_path))
    with torch.no_grad():
        engine.model.get_input_embeddings().weight[9] = torch.nan
    return engine


def test_what_is_not_finite_stays_with_its_completion(poisoned: TransformersEngine) -> None:
    prompt = [0, 20, 21]
    completions = [[30, 31], [30, 9, 31], [40, 41, 42]]
    good = [scored(poisoned, TokenGroup(prompt, [completion]))[0] for completion in completions]
    together = scored(poisoned, TokenGroup(prompt, completions))
    assert not np.isfinite(together[1]).all()
    np.testing.assert_allclose(together[0], good[0], atol=1e-5)
    np.testing.assert_allclose(together[2], good[2], atol=1e-5)


def test_layers_that_cannot_share_a_prompt_are_scored_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "SHARED_LAYERS", frozenset({"sliding_attention"}))
    folder = make_model("qwen2", tmp_path)
    engine, oracle, group = engine_of(folder), Oracle(folder), random_group(17, (5, 23))
    assert not engine.is_shared
    assert "layers of type full_attention: COMPLETIONS ARE SCORED ONE BY ONE" in caplog.text
    for ours, completion in zip(scored(engine, group), group.completions, strict=True):
        np.testing.assert_allclose(ours, oracle.logprobs(group.prompt_ids, completion), atol=1e-4, rtol=0)


def test_a_shared_path_that_differs_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions that go on from one completion to the next, as a wrong layout would have them."""
    layout_of = Layout.of

    def wrong(row: Any, device: Any) -> Any:
        row.positions = list(range(len(row.positions)))
        return layout_of(row, device)

    monkeypatch.setattr(Layout, "of", wrong)
    folder = make_model("mistral", tmp_path)
    engine, oracle, group = engine_of(folder), Oracle(folder), random_group(17, (5, 23))
    assert not engine.is_shared
    assert "the shared path differs" in caplog.text
    for ours, completion in zip(scored(engine, group), group.completions, strict=True):
        np.testing.assert_allclose(ours, oracle.logprobs(group.prompt_ids, completion), atol=1e-4, rtol=0)


def test_attention_with_more_to_it_is_not_shared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaAttention

    forward = LlamaAttention.forward
    monkeypatch.setattr(LlamaAttention, "forward", lambda self, *args, **kw: forward(self, *args, softcap=30.0, **kw))
    assert not engine_of(make_model("llama", tmp_path)).is_shared
    assert "the shared path fails: NotImplementedError: attention with softcap" in caplog.text


def test_logits_that_are_more_than_the_head_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model("llama", tmp_path)
    monkeypatch.setattr(head, "logit_scaling", lambda _config: lambda logits: logits * 2)
    with pytest.raises(ModelError, match="more with its logits"):
        engine_of(folder)


def test_whatever_a_layer_raises_without_a_mask_it_knows_is_no_crash(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaAttention

    forward = LlamaAttention.forward

    def takes_apart(self: Any, hidden_states: Any, position_embeddings: Any, attention_mask: Any, **kw: Any) -> Any:
        if isinstance(attention_mask, Window):
            raise IndexError("too many indices")
        return forward(self, hidden_states, position_embeddings, attention_mask, **kw)

    monkeypatch.setattr(LlamaAttention, "forward", takes_apart)
    assert not engine_of(make_model("llama", tmp_path)).is_shared
    assert "the shared path fails: IndexError: too many indices" in caplog.text


def test_a_model_that_the_engine_cannot_call_is_refused(tmp_path: Path) -> None:
    """Its base model has no hidden states to give."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "intermediate_size_mlp": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCAB_SIZE}
    config = Llama4TextConfig(**shape, **heads, num_local_experts=2, pad_token_id=2, eos_token_id=1, bos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot compute this architecture \(llama4_text\): AttributeError: .*vllm"):
        engine_of(tmp_path)


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
    with pytest.raises(ModelError, match="it is no causal language model"):
        engine_of(tmp_path)
    config.is_decoder = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    engine, oracle, group = engine_of(tmp_path), Oracle(tmp_path), random_group(17, (5, 23))
    for ours, completion in zip(scored(engine, group), group.completions, strict=True):
        np.testing.assert_allclose(ours, oracle.logprobs(group.prompt_ids, completion), atol=1e-4, rtol=0)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        engine_of(tmp_path / "none")
    with pytest.raises(ModelError, match="no model could be loaded"):
        engine_of(tmp_path)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = make_model("llama", tmp_path) / "model.safetensors"
    weights = load_file(path)
    del weights["lm_head.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights of its model, like lm_head\.weight"):
        engine_of(tmp_path)

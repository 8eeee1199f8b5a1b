"""The transformers engine against the oracle: exact, and independent of order, neighbours and budget."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reward_server.engines import Logprobs, TokenGroup
from reward_server.engines import transformers as engine_module
from reward_server.engines.packing import pack, split
from reward_server.engines.transformers import TransformersEngine, block_mask, layer_windows
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
    return TransformersEngine(str(folder), **{"dtype": "float32", "device_map": "cpu", **settings})


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
    monkeypatch.setattr(engine_module, "HEAD_ROWS", 16)
    engine = engine_of(make_model("llama", tmp_path))
    rows: list[int] = []
    engine.model.lm_head.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    group = random_group(17, (50, 50))
    with LargestOutput() as largest:  # type: ignore[no-untyped-call]
        scored(engine, group)
    assert rows == [16] * 6 + [4]
    assert largest.numel < 100 * VOCAB_SIZE


def test_the_prompt_is_computed_once_for_each_piece(tmp_path: Path) -> None:
    engine = engine_of(make_model("llama", tmp_path), token_budget=40)
    rows: list[int] = []
    engine.model.model.layers[0].register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[1]))
    scored(engine, random_group(17, (10, 10, 10, 40)))
    assert rows == [17 + 9 + 9, 17 + 9, 17 + 39]


def test_a_row_dependent_position_encoding_keeps_completions_apart(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    folder = make_model("llama", tmp_path, rope_parameters=rope, max_position_embeddings=24)
    oracle, group = Oracle(folder), random_group(17, (5, 23))
    for ours, completion in zip(scored(engine_of(folder), group), group.completions, strict=True):
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


def test_mixed_layers_get_a_mask_each(tmp_path: Path) -> None:
    engine = engine_of(make_model("qwen2", tmp_path))
    assert layer_windows(engine.model.config) == {"full_attention": None, "sliding_attention": 8}
    row = pack([0] * 10, [[1, 2, 3], [4, 5, 6]])
    mask = block_mask(torch.tensor(row.positions), torch.tensor(row.blocks), 8)[0, 0]
    assert mask.shape == (14, 14)
    assert mask[11].nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert mask[13].nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 9, 12, 13]


def test_layers_that_cannot_share_a_prompt_are_refused() -> None:
    from transformers import Qwen2Config

    config = Qwen2Config(num_hidden_layers=1, layer_types=["chunked_attention"])
    with pytest.raises(ModelError, match="chunked_attention"):
        layer_windows(config)


def test_logits_that_are_more_than_the_head_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model("llama", tmp_path)
    monkeypatch.setattr(TransformersEngine, "_logits", lambda self, hidden: self._head(hidden).float() * 2)
    with pytest.raises(ModelError, match="more with its logits"):
        engine_of(folder)


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


def test_pieces_cover_the_group_in_order() -> None:
    group = random_group(8, (3, 30, 2, 2, 9))
    pieces = list(split(group, 20))
    assert [index for piece in pieces for index in piece] == list(range(5))
    for piece in pieces:
        assert len(piece) == 1 or len(pack(group.prompt_ids, [group.completions[i] for i in piece]).token_ids) <= 20

"""Pair: rendering and scoring for both models, with an oracle. open_pair, check_models: configs that are refused."""

import json
import logging
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.tiny_models import make_tokenizer
from reward_server.engines.caching import LogprobCache
from reward_server.groups import CompletionText, Group
from reward_server.scoring.load_pair import check_models
from reward_server.scoring.model_pair import Pair
from reward_server.scoring.reward import CompletionResult
from tests.completions import encode_completion
from tests.oracle import Oracle
from tests.pairs import open_pair
from tests.processes import wait_until
from tests.served import HeldEngine
from tests.tiny_models import FOREIGN_TEXTS, make_model
from winnow.chat import Chat, load_tokenizer
from winnow.errors import ModelError, UsageError
from winnow.records import Message
from winnow.reward_options import InstructionScope, RewardOptions
from winnow.serve_config import ServeConfig

EOS = 1  # ids of the tiny tokenizer
PAD = 2
QUESTION = (Message(role="user", content="What is 2 + 3?"),)
GROUP = Group(QUESTION, (CompletionText("It is 5."), CompletionText("It is", is_finished=False)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pair")
    models = {
        "instruct": make_model("mixtral", root / "instruct", seed=1),
        "base": make_model("mixtral", root / "base", seed=2),
        "foreign": make_model("llama", root / "foreign", seed=3),
    }
    make_tokenizer(models["foreign"], FOREIGN_TEXTS)
    return models


def config_of(folders: dict[str, Path], base: str = "base", **settings: Any) -> ServeConfig:
    fixed = {"chat_template": "lab", "device_map": "cpu", "dtype": "float32"}
    return ServeConfig(instruct=str(folders["instruct"]), base=str(folders[base]), **{**fixed, **settings})


def score(pair: Pair, group: Group, options: RewardOptions) -> list[CompletionResult]:
    results, _ = pair.score([pair.render(group, options)])
    return results[0]


def oracle_logp(folder: Path, template: str, text: str, *, with_eos: bool) -> float:
    chat = Chat(load_tokenizer(str(folder)), template)
    prompt_ids, scored_ids = encode_completion(chat, QUESTION, text)
    if not with_eos:
        scored_ids = scored_ids[:-1]
    return Oracle(folder).logp(prompt_ids, scored_ids)


@pytest.mark.parametrize(("base_prompt", "template"), [("same", "lab"), ("plain", "plain")])
def test_base_prompt_decides_the_form_that_the_base_model_reads(
    folders: dict[str, Path], base_prompt: str, template: str
) -> None:
    results = score(open_pair(config_of(folders, base_prompt=base_prompt)), GROUP, RewardOptions())
    for result, text, with_eos in zip(results, ["It is 5.", "It is"], [True, False], strict=True):
        instruct = oracle_logp(folders["instruct"], "lab", text, with_eos=with_eos)
        base = oracle_logp(folders["base"], template, text, with_eos=with_eos)
        assert result.instruct_logp == pytest.approx(instruct, abs=1e-3)
        assert result.base_logp == pytest.approx(base, abs=1e-3)
        assert result.reward == pytest.approx(instruct - base, abs=2e-3)


def test_a_reference_free_reward_does_not_call_the_base_model(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = open_pair(config_of(folders))
    monkeypatch.setattr(pair.base.engine, "logprobs", None)
    result = score(pair, GROUP, RewardOptions(is_reference_free=True))[0]
    assert result.status == "ok"
    assert result.reward == result.instruct_logp
    assert (result.base_logp, result.log_ratio, result.base_logprobs) == (None, None, None)


def oracle_logp_after(question: str, folder: Path) -> float:
    chat = Chat(load_tokenizer(str(folder)), "lab")
    prompt_ids, completion_ids = encode_completion(chat, [Message(role="user", content=question)], "It is 5.")
    return Oracle(folder).logp(prompt_ids, completion_ids)


@pytest.mark.parametrize("scope", ["both", "instruct_only"])
def test_instruction_scope_decides_which_models_read_the_instruction(
    folders: dict[str, Path], scope: InstructionScope
) -> None:
    options = RewardOptions(instruction="Be careful.", instruction_scope=scope)
    pair = open_pair(config_of(folders))
    group = pair.render(GROUP, options)
    assert group.instruct[0].scored_ids == group.base[0].scored_ids
    assert (group.instruct[0].prompt_ids == group.base[0].prompt_ids) == (scope == "both")
    results, _ = pair.score([group])
    instructed = "Be careful.\n\nWhat is 2 + 3?"
    base_question = {"both": instructed, "instruct_only": "What is 2 + 3?"}[scope]
    instruct_logp = oracle_logp_after(instructed, folders["instruct"])
    base_logp = oracle_logp_after(base_question, folders["base"])
    assert results[0][0].instruct_logp == pytest.approx(instruct_logp, abs=1e-3)
    assert results[0][0].base_logp == pytest.approx(base_logp, abs=1e-3)


def test_groups_of_a_batch_score_as_each_does_alone(folders: dict[str, Path]) -> None:
    pair = open_pair(config_of(folders))
    groups = [
        pair.render(GROUP, RewardOptions()),
        pair.render(Group(QUESTION, [CompletionText("")]), RewardOptions()),
        pair.render(GROUP, RewardOptions(is_reference_free=True)),
        pair.render(GROUP, RewardOptions(recipe="rewardbench")),
    ]
    together, num_cached = pair.score(groups)
    assert num_cached == [0, 0, 0, 0]
    statuses = []
    for group, results in zip(groups, together, strict=True):
        statuses.append([result.status for result in results])
        alone, _ = pair.score([group])
        assert [result.reward for result in results] == pytest.approx([r.reward for r in alone[0]], abs=1e-3)
    assert statuses == [["ok", "ok"], ["empty_completion"], ["ok", "ok"], ["ok", "ok"]]


def test_score_counts_the_completions_that_the_cache_held(folders: dict[str, Path]) -> None:
    plain_pair = open_pair(config_of(folders))
    engine = HeldEngine(plain_pair.instruct.engine)
    pair = replace(plain_pair, instruct=replace(plain_pair.instruct, engine=engine)).with_cache(LogprobCache(10**6))
    group = pair.render(GROUP, RewardOptions())
    larger = Group(QUESTION, [*GROUP.completions, CompletionText("Five.")])
    first, first_cached = pair.score([group])
    second, second_cached = pair.score([group, pair.render(larger, RewardOptions())])
    assert (first_cached, second_cached) == ([0], [2, 2])
    assert second[0] == second[1][:2] == first[0]
    assert [len(groups) for groups in engine.calls] == [1, 1]
    assert [len(groups[0].completions) for groups in engine.calls] == [2, 1]


def test_an_engine_that_returns_too_few_results_is_an_error(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = open_pair(config_of(folders))
    group = pair.render(GROUP, RewardOptions())
    monkeypatch.setattr(pair.base.engine, "logprobs", lambda groups: [[] for _ in groups])
    for with_or_without_cache in (pair, pair.with_cache(LogprobCache(10**6))):
        with pytest.raises(RuntimeError, match="results for other groups"):
            with_or_without_cache.score([group])


def test_a_reference_free_group_costs_the_tokens_of_the_instruct_model_only(folders: dict[str, Path]) -> None:
    pair = open_pair(config_of(folders, base_prompt="plain"))
    group = pair.render(GROUP, RewardOptions(is_reference_free=True))
    assert group.base_groups == []
    prompt_ids = group.instruct[0].prompt_ids
    scored_ids = [rendered.scored_ids for rendered in group.instruct.values()]
    assert group.num_tokens == len(prompt_ids) + sum(map(len, scored_ids))


def test_importing_model_pair_imports_no_engine_library() -> None:
    code = "import sys, reward_server.scoring.model_pair; print([m for m in ('torch', 'vllm') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_different_tokenizers_are_refused_with_both_remedies(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"tokenizers of .* differ; give a base model .* allow_different_tokenizers"):
        open_pair(config_of(folders, "foreign"))


def test_allow_different_tokenizers_warns_in_the_log(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pair = open_pair(config_of(folders, "foreign", allow_different_tokenizers=True))
    assert "EACH MODEL SCORES ITS OWN TOKENS" in caplog.text
    assert not pair.has_shared_tokenizer
    result = score(pair, GROUP, RewardOptions())[0]
    expected = oracle_logp(folders["foreign"], "lab", "It is 5.", with_eos=True)
    assert result.base_logp == pytest.approx(expected, abs=1e-3)
    assert "different tokenizers" in pair.refusal(Group(QUESTION, [(9, 9)]), RewardOptions())


def test_a_plain_base_prompt_refuses_a_prompt_of_token_ids(folders: dict[str, Path]) -> None:
    pair = open_pair(config_of(folders, base_prompt="plain"))
    assert "as messages" in pair.refusal(Group((0, 9), [(9, 9)]), RewardOptions())
    assert pair.refusal(Group(QUESTION, [(9, 9)]), RewardOptions()) == ""


def test_open_pair_names_a_missing_folder(folders: dict[str, Path]) -> None:
    config = config_of(folders).model_copy(update={"base": "./no/such/model"})
    with pytest.raises(UsageError, match=r"'\./no/such/model' does not exist"):
        open_pair(config)


def test_open_pair_refuses_a_max_tokens_above_the_models_limit(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="take at most 512"):
        open_pair(config_of(folders, max_tokens=1024))
    assert open_pair(config_of(folders)).instruct.renderer.limits.max_tokens == 512


def config_without(folders: dict[str, Path], tmp_path: Path, *names: str) -> ServeConfig:
    """Return a config whose base model lacks some files."""
    shutil.copytree(folders["base"], tmp_path / "base", ignore=shutil.ignore_patterns(*names))
    return config_of(folders).model_copy(update={"base": str(tmp_path / "base")})


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["*.safetensors"], r"it holds no weight files \(\*\.safetensors or \*\.bin\); copy the checkpoint whole"),
        (["tokenizer*"], "no tokenizer could be loaded from .*: it holds none"),
    ],
)
def test_check_models_names_missing_files(
    folders: dict[str, Path], tmp_path: Path, names: list[str], error: str
) -> None:
    with pytest.raises(ModelError, match=error):
        check_models(config_without(folders, tmp_path, *names))


def test_check_models_names_a_missing_or_truncated_weight_file(folders: dict[str, Path], tmp_path: Path) -> None:
    config = config_without(folders, tmp_path, "model.safetensors")
    shards = [tmp_path / "base" / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {"a": shards[0].name, "b": shards[1].name}}
    (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.zeros(8)}, shards[0])
    with pytest.raises(ModelError, match=f"its weight file {shards[1].name} is missing"):
        check_models(config)
    save_file({"b": torch.zeros(8)}, shards[1])
    check_models(config)
    for damaged in (
        shards[1].read_bytes()[:-1],
        b"version https://git-lfs.github.com/spec/v1",
        b"",
        bytes(9),
    ):
        shards[1].write_bytes(damaged)
        with pytest.raises(ModelError, match=f"its {shards[1].name} is cut short or damaged"):
            check_models(config)


def test_check_models_reads_the_position_limit_of_the_model_configs(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="take at most 512"):
        check_models(config_of(folders, max_tokens=513))
    config = config_without(folders, tmp_path, "config.json").model_copy(update={"max_tokens": 300})
    (tmp_path / "base" / "config.json").write_text('{"text_config": {"max_position_embeddings": 256}}')
    with pytest.raises(UsageError, match="take at most 256"):
        check_models(config)
    check_models(config.model_copy(update={"base": "org/never-downloaded"}))


def test_two_models_with_the_same_weights_are_a_warning_and_score_0(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        open_pair(config_of(folders))
        assert "same weights" not in caplog.text
        result = score(open_pair(config_of(folders, "instruct")), GROUP, RewardOptions())[0]
    assert "hold the same weights: A REWARD IS 0" in caplog.text
    assert result.reward == 0.0


def test_a_template_that_does_not_close_the_assistant_turn_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "open.jinja"
    path.write_text("{{ bos_token }}{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    with pytest.raises(ModelError, match="does not close an assistant turn"):
        open_pair(config_of(folders, chat_template=str(path)))


def test_a_template_that_repeats_bos_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "headless.jinja"
    turns = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    path.write_text(turns)
    open_pair(config_of(folders, chat_template=str(path)))
    path.write_text("{{ bos_token }}{{ bos_token }}" + turns)
    with pytest.raises(ModelError, match="BOS twice"):
        open_pair(config_of(folders, chat_template=str(path)))


def test_padded_token_ids_have_a_status_and_not_a_reward(folders: dict[str, Path]) -> None:
    answer = load_tokenizer(str(folders["instruct"]))("It is 5.", add_special_tokens=False)["input_ids"]
    group = Group(QUESTION, ([*answer, EOS], [*answer, EOS, PAD, PAD, PAD], CompletionText("It is 5.")))
    results = score(open_pair(config_of(folders)), group, RewardOptions())
    assert [result.status for result in results] == ["ok", "control_token", "ok"]
    assert results[1].reward is None
    assert results[0].reward == results[2].reward


@pytest.mark.parametrize("base_prompt", ["same", "plain"])
@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token": "<|pad|>"},
        {"bos_token": "<|user|>"},
        {"chat_template": "{{ 'another' }}"},
        {"pad_token": "<|endoftext|>"},
        {"padding_side": "left"},
    ],
)
def test_a_base_model_of_other_tokenizer_settings_reads_those_of_the_instruct_model(
    folders: dict[str, Path], tmp_path: Path, settings: dict[str, str], base_prompt: str
) -> None:
    shutil.copytree(folders["base"], tmp_path / "base")
    path = tmp_path / "base" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    saved = load_tokenizer(str(tmp_path / "base"))
    assert {key: getattr(saved, key) for key in settings} == settings
    changed = open_pair(config_of({**folders, "base": tmp_path / "base"}, base_prompt=base_prompt))
    assert changed.has_shared_tokenizer
    assert changed.base.renderer.chat.end_of_turn_id == EOS
    unchanged = open_pair(config_of(folders, base_prompt=base_prompt))
    assert score(changed, GROUP, RewardOptions()) == score(unchanged, GROUP, RewardOptions())


def test_tokenizers_whose_special_tokens_differ_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["base"], tmp_path / "base")
    tokenizer = load_tokenizer(str(tmp_path / "base"))
    tokenizer.add_tokens(["<|tool|>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(
        ModelError, match=r"differ: the vocabularies .* '<\|tool\|>' is an added token in the base model"
    ):
        open_pair(config_of({**folders, "base": tmp_path / "base"}))


def test_a_base_model_without_a_template_uses_that_of_the_instruct_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    )
    chatty = tmp_path / "chatty"
    shutil.copytree(folders["instruct"], chatty)
    (chatty / "chat_template.jinja").write_text(template + "{% else %} -> {% endif %}{% endfor %}")
    pair = open_pair(config_of({**folders, "instruct": chatty}, chat_template="tokenizer"))
    group = pair.render(GROUP, RewardOptions())
    assert group.instruct[0] == group.base[0]
    assert pair.instruct.facts.template_hash == pair.base.facts.template_hash


def held_on(pair: Pair, *devices: str) -> tuple[Pair, list[HeldEngine]]:
    """Return the pair with both engines held, which report these devices, and the engines."""
    engines = [
        HeldEngine(pair.instruct.engine, device=devices[0]),
        HeldEngine(pair.base.engine, device=devices[1]),
    ]
    for engine in engines:
        engine.may_compute.clear()
    instruct = replace(pair.instruct, engine=engines[0])
    base = replace(pair.base, engine=engines[1])
    return replace(pair, instruct=instruct, base=base), engines


@pytest.mark.parametrize(
    ("devices", "is_parallel"),
    [
        (("cuda:0", "cuda:1"), True),
        (("cuda:0, cuda:1", "cuda:2, cuda:3"), True),
        (("cuda:0, cuda:1", "cuda:1, cuda:2"), False),
        (("cpu", "cpu"), False),
    ],
)
def test_models_on_separate_devices_compute_in_parallel(
    folders: dict[str, Path], devices: tuple[str, str], is_parallel: bool
) -> None:
    pair = open_pair(config_of(folders))
    with_hold, (instruct, base) = held_on(pair, *devices)
    with ThreadPoolExecutor(1) as threads:
        pending = threads.submit(score, with_hold, GROUP, RewardOptions())
        wait_until(lambda: bool(instruct.calls), "the call of the instruct model")
        if is_parallel:
            wait_until(lambda: bool(base.calls), "the call of the base model")
        assert bool(base.calls) == is_parallel
        instruct.may_compute.set()
        base.may_compute.set()
        assert pending.result(30) == score(pair, GROUP, RewardOptions())


def test_score_raises_a_failure_of_the_base_model_that_computes_in_parallel(folders: dict[str, Path]) -> None:
    pair, engines = held_on(open_pair(config_of(folders)), "cuda:0", "cuda:1")
    group = pair.render(GROUP, RewardOptions())
    engines[1].poison = group.base_groups[0].prompt_ids[0]
    for engine in engines:
        engine.may_compute.set()
    with pytest.raises(RuntimeError, match="poison"):
        pair.score([group])

"""Opening the pair: what fits together, what is refused and with which way out; hashes."""

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
from safetensors.torch import load_file, save_file

from reward_server.scoring import fingerprint
from reward_server.scoring.fingerprint import tokenizer_hash, weight_hash
from reward_server.scoring.load_pair import check_models, open_pair
from reward_server.scoring.model_pair import CompletionResult, InstructionScope, Options, Pair
from reward_server.scoring.rendering import Conversation, Ids, PromptGroup, Text
from tests.oracle import Oracle
from tests.served import HeldEngine, wait_until
from tests.tiny_models import make_model, make_tokenizer
from winnow.chat import Chat, load_tokenizer
from winnow.errors import ModelError, UsageError
from winnow.records import Message
from winnow.serve_config import ServeConfig

QUESTION = Conversation((("user", "What is 2 + 3?"),))
GROUP = PromptGroup(QUESTION, (Text("It is 5.", True), Text("It is", False)))
OTHER_TEXTS = ("Quite another text trains quite another vocabulary.", "So do these words, we hope, zebra.")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pair")
    models = {
        "instruct": make_model("mixtral", root / "instruct", seed=1),
        "base": make_model("mixtral", root / "base", seed=2),
        "foreign": make_model("llama", root / "foreign", seed=3),
    }
    make_tokenizer(models["foreign"], OTHER_TEXTS)
    return models


def config_of(folders: dict[str, Path], base: str = "base", **settings: Any) -> ServeConfig:
    fixed = {"chat_template": "lab", "device_map": "cpu", "dtype": "float32"}
    return ServeConfig(instruct=str(folders["instruct"]), base=str(folders[base]), **{**fixed, **settings})


def scored(pair: Pair, group: PromptGroup, options: Options) -> list[CompletionResult]:
    return pair.score([pair.prepare(group, options)])[0]


def oracle_logp(folder: Path, template: str, text: str, *, with_eos: bool) -> float:
    chat = Chat(load_tokenizer(str(folder)), template)
    pair = chat.scored_pair([Message(role="user", content="What is 2 + 3?")], text)
    scored = pair.completion_ids if with_eos else pair.completion_ids[:-1]
    return Oracle(folder).logp(pair.prompt_ids, scored)


@pytest.mark.parametrize(("base_prompt", "template"), [("same", "lab"), ("plain", "plain")])
def test_the_base_model_reads_the_form_that_the_config_names(
    folders: dict[str, Path], base_prompt: str, template: str
) -> None:
    outcomes = scored(open_pair(config_of(folders, base_prompt=base_prompt)), GROUP, Options())
    for outcome, text, with_eos in zip(outcomes, ["It is 5.", "It is"], [True, False], strict=True):
        assert outcome.ratio is not None
        instruct = oracle_logp(folders["instruct"], "lab", text, with_eos=with_eos)
        base = oracle_logp(folders["base"], template, text, with_eos=with_eos)
        assert outcome.ratio.instruct_logp == pytest.approx(instruct, abs=1e-3)
        assert outcome.ratio.base_logp == pytest.approx(base, abs=1e-3)
        assert outcome.ratio.reward == pytest.approx(instruct - base, abs=2e-3)


def test_reference_free_leaves_the_base_model_alone(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = open_pair(config_of(folders))
    monkeypatch.setattr(pair.base.engine, "logprobs", None)
    outcome = scored(pair, GROUP, Options(is_reference_free=True))[0]
    assert outcome.ratio is not None
    assert outcome.ratio.reward == outcome.ratio.instruct_logp
    assert outcome.ratio.base_logp is None


def oracle_conditioned(folder: Path, question: str) -> float:
    chat = Chat(load_tokenizer(str(folder)), "lab")
    pair = chat.scored_pair([Message(role="user", content=question)], "It is 5.")
    return Oracle(folder).logp(pair.prompt_ids, pair.completion_ids)


@pytest.mark.parametrize("scope", ["both", "instruct_only"])
def test_an_instruction_conditions_both_models_or_the_instruct_model_alone(
    folders: dict[str, Path], scope: InstructionScope
) -> None:
    options = Options(instruction="Be careful.", instruction_scope=scope)
    pair = open_pair(config_of(folders))
    work = pair.prepare(GROUP, options)
    ours, theirs = work.tokens[0]
    assert ours.span == theirs.span
    assert (ours.prompt_ids == theirs.prompt_ids) == (scope == "both")
    ratio = pair.score([work])[0][0].ratio
    assert ratio is not None
    conditioned = "Be careful.\n\nWhat is 2 + 3?"
    base_question = conditioned if scope == "both" else "What is 2 + 3?"
    assert ratio.instruct_logp == pytest.approx(oracle_conditioned(folders["instruct"], conditioned), abs=1e-3)
    assert ratio.base_logp == pytest.approx(oracle_conditioned(folders["base"], base_question), abs=1e-3)


def test_works_are_scored_together_as_they_are_alone(folders: dict[str, Path]) -> None:
    pair = open_pair(config_of(folders))
    nothing = PromptGroup(QUESTION, (Text("", True),))
    works = [
        pair.prepare(GROUP, Options()),
        pair.prepare(nothing, Options()),
        pair.prepare(GROUP, Options(is_reference_free=True)),
        pair.prepare(GROUP, Options(recipe="rewardbench")),
    ]
    together = pair.score(works)
    assert [[one.status for one in outcomes] for outcomes in together] == [
        ["ok", "ok"],
        ["empty_completion"],
        ["ok", "ok"],
        ["ok", "ok"],
    ]
    for work, outcomes in zip(works, together, strict=True):
        for ours, alone in zip(outcomes, pair.score([work])[0], strict=True):
            assert (ours.ratio is None) == (alone.ratio is None)
            if ours.ratio and alone.ratio:
                assert ours.ratio.reward == pytest.approx(alone.ratio.reward, abs=1e-3)


def test_the_reference_free_reward_does_not_ask_the_base_model_s_form(folders: dict[str, Path]) -> None:
    pair = open_pair(config_of(folders, base_prompt="plain"))
    work = pair.prepare(GROUP, Options(is_reference_free=True))
    assert work.base_groups == []
    assert work.num_tokens == sum(len(g.prompt_ids) + sum(map(len, g.completions)) for g in work.instruct_groups)


def test_importing_the_pair_loads_no_engine_s_library() -> None:
    code = "import sys, reward_server.scoring.model_pair; print([m for m in ('torch', 'vllm') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_tokenizers_that_differ_are_refused_with_the_ways_out(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"tokenizers of .* differ; give a base model .* allow_different_tokenizers"):
        open_pair(config_of(folders, "foreign"))


def test_tokenizers_that_differ_can_be_asked_for_and_are_named_loudly(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pair = open_pair(config_of(folders, "foreign", allow_different_tokenizers=True))
    assert "EACH MODEL SCORES TOKENS OF ITS OWN" in caplog.text
    assert not pair.has_shared_tokenizer
    outcome = scored(pair, GROUP, Options())[0]
    assert outcome.ratio is not None
    assert outcome.ratio.base_logp == pytest.approx(
        oracle_logp(folders["foreign"], "lab", "It is 5.", with_eos=True), abs=1e-3
    )
    assert "different tokenizers" in pair.refusal(PromptGroup(QUESTION, (Ids((9, 9)),)), Options())


def test_a_base_form_of_its_own_refuses_a_prompt_of_ids(folders: dict[str, Path]) -> None:
    pair = open_pair(config_of(folders, base_prompt="plain"))
    assert "as messages" in pair.refusal(PromptGroup(Ids((0, 9)), (Ids((9, 9)),)), Options())
    assert pair.refusal(PromptGroup(QUESTION, (Ids((9, 9)),)), Options()) == ""


def test_a_missing_folder_is_named_before_anything_is_loaded(folders: dict[str, Path]) -> None:
    config = config_of(folders).model_copy(update={"base": "./no/such/model"})
    with pytest.raises(UsageError, match=r"'\./no/such/model' does not exist"):
        open_pair(config)


def test_more_tokens_than_the_models_were_made_for_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="take at most 512"):
        open_pair(config_of(folders, max_tokens=1024))
    assert open_pair(config_of(folders)).instruct.renderer.limits.max_tokens == 512


def spoilt(folders: dict[str, Path], tmp_path: Path, *names: str) -> ServeConfig:
    """A config whose base model lacks some files; its engine is never reached."""
    shutil.copytree(folders["base"], tmp_path / "base", ignore=shutil.ignore_patterns(*names))
    return config_of(folders).model_copy(update={"base": str(tmp_path / "base")})


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["*.safetensors"], r"it holds no weight files \(\*\.safetensors or \*\.bin\); copy the checkpoint whole"),
        (["tokenizer*"], "no tokenizer could be loaded from .*: it holds none"),
    ],
)
def test_files_that_are_missing_are_named_before_anything_is_loaded(
    folders: dict[str, Path], tmp_path: Path, names: list[str], error: str
) -> None:
    with pytest.raises(ModelError, match=error):
        check_models(spoilt(folders, tmp_path, *names))


def test_a_shard_that_is_missing_or_cut_short_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    config = spoilt(folders, tmp_path, "model.safetensors")
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


def test_a_limit_in_the_models_config_is_known_before_anything_is_loaded(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="take at most 512"):
        check_models(config_of(folders, max_tokens=513))
    config = spoilt(folders, tmp_path, "config.json").model_copy(update={"max_tokens": 300})
    (tmp_path / "base" / "config.json").write_text('{"text_config": {"max_position_embeddings": 256}}')
    with pytest.raises(UsageError, match="take at most 256"):
        check_models(config)
    check_models(config.model_copy(update={"base": "org/never-downloaded"}))


def test_one_model_twice_is_said_loudly(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        open_pair(config_of(folders))
        assert "same weights" not in caplog.text
        outcome = scored(open_pair(config_of(folders, "instruct")), GROUP, Options())[0]
    assert "hold the same weights: A REWARD IS 0" in caplog.text
    assert outcome.ratio is not None
    assert outcome.ratio.reward == 0.0


def test_a_template_that_does_not_close_its_turns_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "open.jinja"
    path.write_text("{{ bos_token }}{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    with pytest.raises(ModelError, match="does not close an assistant turn"):
        open_pair(config_of(folders, chat_template=str(path)))


def test_a_template_without_bos_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "headless.jinja"
    path.write_text("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}")
    with pytest.raises(ModelError, match="exactly one BOS"):
        open_pair(config_of(folders, chat_template=str(path)))


def test_weights_have_one_hash_and_other_weights_another(folders: dict[str, Path], tmp_path: Path) -> None:
    ours = weight_hash(str(folders["instruct"]))
    assert ours.startswith("sha256:")
    assert ours == weight_hash(str(make_model("mixtral", tmp_path, seed=1)))
    assert ours != weight_hash(str(folders["base"]))


def test_large_weights_are_sampled_and_the_hash_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "FULL_HASH_BYTES", 0)
    path = make_model("llama", tmp_path) / "model.safetensors"
    before = weight_hash(str(tmp_path))
    weights = load_file(path)
    weights["lm_head.weight"] += 1
    save_file(weights, path, metadata={"format": "pt"})
    assert before.startswith("sampled-sha256:")
    assert weight_hash(str(tmp_path)) != before


def test_every_tensor_of_large_weights_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "FULL_HASH_BYTES", 0)
    monkeypatch.setattr(fingerprint, "TENSOR_BYTES", 64)
    path = make_model("llama", tmp_path) / "model.safetensors"
    weights = load_file(path)
    hashes = {weight_hash(str(tmp_path))}
    for name, tensor in weights.items():
        save_file({**weights, name: tensor * 1.001}, path, metadata={"format": "pt"})
        hashes.add(weight_hash(str(tmp_path)))
    assert len(hashes) == 1 + len(weights)


def test_a_config_that_makes_another_model_of_the_same_weights_counts(tmp_path: Path) -> None:
    path = make_model("llama", tmp_path) / "config.json"
    config = json.loads(path.read_text())
    hashes = []
    for change in ({}, {"transformers_version": "1.2.3"}, {"rope_theta": 123.0}):
        path.write_text(json.dumps({**config, **change}))
        hashes.append(weight_hash(str(tmp_path)))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weight files"):
        weight_hash(str(tmp_path))


def test_tokenizers_are_equal_by_what_they_do(folders: dict[str, Path], tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    hashes = {name: tokenizer_hash(load_tokenizer(str(folder))) for name, folder in folders.items()}
    assert hashes["instruct"] == hashes["base"] == tokenizer_hash(load_tokenizer(str(tmp_path)))
    assert hashes["foreign"] != hashes["base"]
    other_end = load_tokenizer(str(tmp_path))
    other_end.eos_token = "<|pad|>"
    assert tokenizer_hash(other_end) != hashes["base"]


def test_a_base_model_without_a_template_reads_the_instruct_model_s(folders: dict[str, Path], tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    )
    chatty = tmp_path / "chatty"
    shutil.copytree(folders["instruct"], chatty)
    (chatty / "chat_template.jinja").write_text(template + "{% else %} -> {% endif %}{% endfor %}")
    pair = open_pair(config_of({**folders, "instruct": chatty}, chat_template="tokenizer"))
    ours, theirs = pair.prepare(GROUP, Options()).tokens[0]
    assert ours == theirs
    assert pair.instruct.facts.template_hash == pair.base.facts.template_hash


def held_on(pair: Pair, *devices: str) -> tuple[Pair, list[HeldEngine]]:
    """The pair with both engines held, on devices that they only claim."""
    sides = (pair.instruct, pair.base)
    engines = [HeldEngine(side.engine, device=device) for side, device in zip(sides, devices, strict=True)]
    for engine in engines:
        engine.may_compute.clear()
    instruct, base = (replace(side, engine=engine) for side, engine in zip(sides, engines, strict=True))
    return replace(pair, instruct=instruct, base=base), engines


@pytest.mark.parametrize(
    ("devices", "is_at_once"),
    [
        (("cuda:0", "cuda:1"), True),
        (("cuda:0, cuda:1", "cuda:2, cuda:3"), True),
        (("cuda:0, cuda:1", "cuda:1, cuda:2"), False),
        (("cpu", "cpu"), False),
    ],
)
def test_models_compute_at_the_same_time_where_each_has_devices_of_its_own(
    folders: dict[str, Path], devices: tuple[str, str], is_at_once: bool
) -> None:
    pair = open_pair(config_of(folders))
    with_hold, (instruct, base) = held_on(pair, *devices)
    with ThreadPoolExecutor(1) as threads:
        pending = threads.submit(scored, with_hold, GROUP, Options())
        wait_until(lambda: bool(instruct.asked), "the instruct model's turn")
        if is_at_once:
            wait_until(lambda: bool(base.asked), "the base model's turn")
        assert bool(base.asked) == is_at_once
        instruct.may_compute.set()
        base.may_compute.set()
        assert [one.ratio for one in pending.result(30)] == [one.ratio for one in scored(pair, GROUP, Options())]


def test_a_failure_of_the_base_model_beside_the_instruct_model_is_raised(folders: dict[str, Path]) -> None:
    pair, engines = held_on(open_pair(config_of(folders)), "cuda:0", "cuda:1")
    work = pair.prepare(GROUP, Options())
    engines[1].poison = work.base_groups[0].prompt_ids[0]
    for engine in engines:
        engine.may_compute.set()
    with pytest.raises(RuntimeError, match="poison"):
        pair.score([work])

"""Strict configs: unknown keys, overrides, defaults, and every recipe in the repository."""

import json
from pathlib import Path

import pytest

from tests.processes import ROOT
from winnow.config import differences, dump_config, load_config, parse_config
from winnow.errors import ConfigError
from winnow.run_config import RunConfig
from winnow.serve_config import ServeConfig

RECIPES = sorted(path for path in (ROOT / "configs").glob("*.yaml") if not path.name.startswith("serve-"))
MINIMAL = "name: x\npolicy: {model: some/model}\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", [*RECIPES, ROOT / "examples" / "miniature" / "config.yaml"], ids=lambda p: p.stem)
def test_every_recipe_parses(path: Path) -> None:
    config = load_config(path, RunConfig)
    assert config.policy.system_prompt


def test_the_serve_config_parses() -> None:
    assert "Instruct" in load_config(ROOT / "configs" / "serve-mixtral-8x7b.yaml", ServeConfig).instruct


def test_recipes_hold_the_facts_of_the_model_cards() -> None:
    merlinite = load_config(ROOT / "configs" / "merlinite-7b.yaml", RunConfig)
    assert merlinite.policy.model == "mistralai/Mistral-7B-v0.1"
    assert merlinite.policy.teacher == "mistralai/Mixtral-8x7B-Instruct-v0.1"
    phases = merlinite.lab.phases
    assert [phase.num_rows for phase in phases] == [630_000, 230_000, 550_000]
    assert [phase.train.num_epochs for phase in phases] == [4, 4, 7]
    assert {phase.train.learning_rate for phase in phases} == {1e-6}
    assert {phase.train.batch_size for phase in phases} == {3840}
    assert {phase.train.warmup_steps for phase in phases} == {800}
    labradorite = load_config(ROOT / "configs" / "labradorite-13b.yaml", RunConfig)
    assert [phase.train.num_epochs for phase in labradorite.lab.phases] == [5, 7, 7]
    assert {phase.train.warmup_steps for phase in labradorite.lab.phases} == {385}
    preference = load_config(ROOT / "configs" / "merlinite-7b-pt.yaml", RunConfig)
    assert preference.reward is not None
    assert preference.reward.server is not None
    assert preference.reward.server.instruct == "mistralai/Mixtral-8x7B-Instruct-v0.1"
    assert preference.rounds.num_rounds == 3
    fewshot = {benchmark.task: benchmark.num_fewshot for benchmark in preference.evaluation.benchmarks}
    assert fewshot == {"mmlu": 5, "arc_challenge": 25, "hellaswag": 10, "winogrande": 5, "gsm8k": 5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "seeed: 1\n", "unknown key seeed; did you mean seed?"),
        (
            MINIMAL + "sampling: {num_completion: 4}\n",
            "unknown key sampling.num_completion; did you mean num_completions?",
        ),
        (MINIMAL + "zzz: 1\n", "unknown key zzz; known keys: "),
        ("name: x\n", "policy is missing"),
        (MINIMAL + "rounds: {num_rounds: 2}\n", "rounds.train is missing"),
        (MINIMAL + "reward: {}\n", "give exactly one of address (a running server) and server"),
        (MINIMAL + "sampling: {num_completions: 0}\n", "sampling.num_completions: Input should be greater than 0"),
        ("name: ../x\npolicy: {model: m}\n", "name: '../x' should be the name of one folder, without /"),
        ("name: x\npolicy: {model: m, eos_token: ''}\n", "policy.eos_token: String should have at least 1 char"),
        ("- 1\n", "a config is a mapping"),
        ("name: [x\n", "not valid YAML"),
    ],
)
def test_a_wrong_config_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, text), RunConfig)
    assert message in str(error.value)
    assert "config.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_known_keys_are_listed_once(tmp_path: Path) -> None:
    text = MINIMAL + "zzz: 1\nqqq: 2\nsampling: {xxx: 1}\n"
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, text), RunConfig)
    message = str(error.value)
    assert message.count("known keys: ") == 1
    assert message.count("known keys of sampling: ") == 1
    assert all(f"unknown key {key}; " in message for key in ("zzz", "qqq", "sampling.xxx"))


def test_a_config_of_another_verb_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^.*yaml: this is a config of `winnow run`; call that, or give .*serve`$"):
        load_config(ROOT / "configs" / "merlinite-7b.yaml", ServeConfig)
    with pytest.raises(ConfigError, match=r"^.*yaml: this is a config of `winnow serve`; call that, or give .*run`$"):
        load_config(ROOT / "configs" / "serve-mixtral-8x7b.yaml", RunConfig)


def test_overrides_reach_nested_keys_lists_and_new_sections(tmp_path: Path) -> None:
    text = MINIMAL + "evaluation: {benchmarks: [{task: mmlu, metric: acc}]}\n"
    overrides = ["seed=3", "sampling.temperature=0.5", "evaluation.benchmarks.0.limit=10", "policy.system_prompt=null"]
    config = load_config(write(tmp_path, text), RunConfig, overrides)
    assert (config.seed, config.sampling.temperature, config.evaluation.benchmarks[0].limit) == (3, 0.5, 10)
    assert config.policy.system_prompt is None


@pytest.mark.parametrize("override", ["seed", "=3", "seed.x=1", "evaluation.benchmarks.7.limit=1", "sede=1"])
def test_a_wrong_override_is_an_error(tmp_path: Path, override: str) -> None:
    text = MINIMAL + "seed: 1\nevaluation: {benchmarks: [{task: mmlu, metric: acc}]}\n"
    with pytest.raises(ConfigError):
        load_config(write(tmp_path, text), RunConfig, [override])


def test_a_replay_of_a_later_phase_is_refused(tmp_path: Path) -> None:
    train = "train: {learning_rate: 1.0e-3}"
    phases = f"[{{name: a, files: [f], replay_from: [b], {train}}}, {{name: b, files: [f], {train}}}]"
    with pytest.raises(ConfigError, match="phase a replays b; phases before it: none"):
        load_config(write(tmp_path, MINIMAL + f"lab: {{phases: {phases}}}\n"), RunConfig)


def test_a_resolved_config_reads_back_the_same() -> None:
    config = load_config(ROOT / "configs" / "merlinite-7b-pt.yaml", RunConfig)
    assert parse_config(json.loads(dump_config(config)), RunConfig, "test") == config


def test_differences_name_the_keys(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    old, new = (load_config(path, RunConfig, overrides) for overrides in ([], ["sampling.top_p=0.9"]))
    assert differences(old, new) == ["sampling.top_p: 1.0 -> 0.9"]
    assert differences(old, old) == []

"""RewardOptions: one definition, from which client, wire, config, command line and docs derive."""

import json
import pickle
from typing import Any

import pytest
from typer.main import get_command

from reward_server.client import Group, RewardDefinition, RewardOptions
from reward_server.client.requests import requests_of
from reward_server.client.server_info import parse_server_info
from reward_server.pb import reward_pb2 as pb
from reward_server.serving.wire import parse_options
from sampler.prompt_sets import CONNECTION_FIELDS
from sampler.score import reward_options as options_of_config
from tests.processes import ROOT
from winnow import cli
from winnow.config import differences, dump_config, load_config, parse_config
from winnow.errors import ConfigError, UsageError
from winnow.reward_options import (
    DEFAULT_EOS_POLICIES,
    FIXED_OPTIONS,
    RewardSpec,
    choices_of,
    option_text,
    options_table,
    wire_name,
)
from winnow.run_config import RewardConfig, RunConfig

WIRE_FIELDS = pb.ScoreOptions.DESCRIPTOR.fields_by_name
# One value of each option that is not its default.
CHANGES: dict[str, Any] = {
    "normalization": "mean",
    "beta": 0.5,
    "eos_policy": "exclude",
    "is_reference_free": True,
    "instruction": "Be kind.",
    "instruction_scope": "instruct_only",
    "recipe": "rewardbench",
    "want_token_logprobs": True,
}


def sent(options: RewardOptions) -> pb.ScoreOptions:
    """Return the options as a client sends them."""
    group = Group([{"role": "user", "content": "Hi"}], ["Hello"])
    limits = parse_server_info(pb.GetServerInfoResponse(max_completions=8))
    (request,) = requests_of(group, options, limits).requests
    return request.options


def flags(verb: str) -> set[str]:
    """Return the flags of a verb that set reward options."""
    command = get_command(cli.app).commands[verb]  # type: ignore[attr-defined]
    return {parameter.opts[0] for parameter in command.params if parameter.name in RewardOptions.model_fields}


def test_help_explains_every_option() -> None:
    page = RewardOptions.__doc__ or ""
    for option in RewardOptions.model_fields:
        text = option_text(option)
        assert text.meaning
        assert f"{option}: {text.values}; default: {text.default}\n    {text.meaning}\n" in page
    assert "eos_policy: include, exclude or if_finished; default: the recipe's own: if_finished (winnow), " in page
    assert "beta: a finite number above 0; default: 1\n" in page


def test_the_table_in_the_docs_is_the_definition() -> None:
    page = (ROOT / "docs" / "rewards.md").read_text()
    assert options_table() in page, "run python proto/generate.py"


def test_options_are_immutable_hashable_and_comparable() -> None:
    options = RewardOptions(beta=0.5)
    with pytest.raises(ValueError, match="frozen"):
        options.beta = 2.0  # type: ignore[misc]
    assert options == RewardOptions().replace(beta=0.5) == pickle.loads(pickle.dumps(options))
    assert options != RewardOptions()
    assert len({options, RewardOptions(beta=0.5), RewardOptions()}) == 2


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"normalization": "avg"}, "normalization 'avg' should be sum or mean"),
        ({"eos_policy": "always"}, "eos_policy 'always' should be include, exclude or if_finished"),
        ({"beta": "1"}, "beta '1' should be a finite number above 0"),
        ({"beta": 0}, "beta 0 should be a finite number above 0"),
        ({"beta": float("inf")}, "beta inf should be a finite number above 0"),
        ({"is_reference_free": 1}, "is_reference_free 1 should be true or false"),
        ({"instruction": None}, "instruction None should be a text"),
        (
            {"instruction": "\udcff"},
            "instruction holds half of a surrogate pair, so it is not Unicode text; take it out",
        ),
        ({"normalisation": "sum"}, "unknown option normalisation; did you mean normalization?"),
        ({"gamma": 2}, f"unknown option gamma; known: {', '.join(RewardOptions.model_fields)}"),
    ],
)
def test_a_wrong_option_is_a_usage_error_of_one_line(keywords: dict[str, Any], message: str) -> None:
    for make_options in (RewardOptions, RewardOptions().replace):
        with pytest.raises(UsageError) as caught:
            make_options(**keywords)
        assert str(caught.value) == message


def test_beta_may_be_any_real_number() -> None:
    from fractions import Fraction

    import numpy as np

    for beta in (1, np.float32(1), Fraction(1)):
        assert RewardOptions(beta=beta) == RewardOptions()  # type: ignore[arg-type]


def test_every_option_has_a_change_to_test_it_with() -> None:
    assert CHANGES.keys() == RewardOptions.model_fields.keys()
    assert all(getattr(RewardOptions(), option) != value for option, value in CHANGES.items())


def test_every_option_is_a_field_of_the_wire_and_its_choices_are_the_enum() -> None:
    assert set(WIRE_FIELDS) == RewardOptions.model_fields.keys()
    for option, field in WIRE_FIELDS.items():
        names = [wire_name(option, choice) for choice in choices_of(option)]
        if field.enum_type is None:
            assert names == []
            assert field.has_presence or getattr(RewardOptions(), option) == field.default_value
        else:
            assert names == list(field.enum_type.values_by_name)[1:]


@pytest.mark.parametrize("option", sorted(set(CHANGES) - {"recipe"}))
def test_an_option_that_a_client_sets_reaches_the_server(option: str) -> None:
    options = RewardOptions().replace(**{option: CHANGES[option]})
    assert parse_options(sent(options)) == options


def test_the_eos_policy_that_is_not_set_is_the_recipe_s_own_on_the_server() -> None:
    assert set(DEFAULT_EOS_POLICIES) == set(choices_of("recipe"))
    for recipe, policy in DEFAULT_EOS_POLICIES.items():
        options = RewardOptions(recipe=recipe)
        assert sent(options).eos_policy == pb.EOS_POLICY_UNSPECIFIED
        assert parse_options(sent(options)) == options
        assert options.resolved_eos_policy == policy


def test_a_recipe_refuses_other_values_than_it_fixes() -> None:
    assert FIXED_OPTIONS["rewardbench"].keys() == {"normalization", "eos_policy", "beta", "instruction"}
    for option, value in FIXED_OPTIONS["rewardbench"].items():
        RewardOptions(recipe="rewardbench").replace(**{option: value}).check_recipe()
        with pytest.raises(UsageError, match=r"recipe rewardbench goes with .*; set it so or leave it unset"):
            RewardOptions(recipe="rewardbench").replace(**{option: CHANGES[option]}).check_recipe()
        RewardOptions().replace(**{option: CHANGES[option]}).check_recipe()


def test_every_option_that_decides_a_reward_is_in_its_definition() -> None:
    definition = set(pb.RewardDefinition.DESCRIPTOR.fields_by_name)
    assert set(RewardSpec.model_fields) <= definition
    assert definition == set(RewardDefinition.model_fields)


def test_a_run_s_config_takes_every_option_that_decides_a_reward() -> None:
    assert RewardSpec.model_fields.keys() == RewardOptions.model_fields.keys() - {"want_token_logprobs"}
    for option in RewardSpec.model_fields:
        config = parse_config({"address": "a:1", option: CHANGES[option]}, RewardConfig, "test")
        assert options_of_config(config) == RewardOptions().replace(**{option: CHANGES[option]})
    with pytest.raises(ConfigError, match="unknown key normalisation; did you mean normalization"):
        parse_config({"address": "a:1", "normalisation": "sum"}, RewardConfig, "test")


def test_the_flags_are_those_of_the_options() -> None:
    shared = {
        "--normalization",
        "--beta",
        "--eos-policy",
        "--reference-free",
        "--instruction",
        "--instruction-scope",
    }
    assert flags("score") >= {*shared, "--recipe", "--token-logprobs"}
    assert flags("score") - flags("gateway") == {"--recipe", "--token-logprobs"}


def test_a_config_from_before_mutual_tls_is_read_as_one_without_it() -> None:
    config = load_config(
        ROOT / "configs" / "merlinite-7b-pt.yaml", RunConfig, ["reward.server=null", "reward.address=a:1"]
    )
    tree = json.loads(dump_config(config))
    for key in ("tls_certificate", "tls_key"):
        assert tree["reward"].pop(key) is None
    assert differences(parse_config(tree, RunConfig, "test"), config) == []
    assert config.reward is not None
    scored_with = config.reward.model_dump(mode="json", exclude=CONNECTION_FIELDS)
    assert scored_with.keys() == {"server", "timeout_s", *RewardSpec.model_fields}


def test_a_client_certificate_goes_with_its_key() -> None:
    with pytest.raises(ConfigError, match="give tls_certificate and tls_key together"):
        parse_config({"address": "a:1", "tls_key": "client.key"}, RewardConfig, "test")

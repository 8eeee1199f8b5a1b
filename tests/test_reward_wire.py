"""Messages of the wire: the options that are refused, the groups of requests, and the definition in a response."""

from dataclasses import replace
from typing import Any

import pytest

from reward_server.groups import CompletionText, Group
from reward_server.pb import reward_pb2 as pb
from reward_server.scoring.model_pair import Pair
from reward_server.serving.wire import MalformedError, parse_group, parse_options, reward_definition
from tests.pairs import open_pair
from tests.served import tiny_serve_config
from winnow.records import Message
from winnow.reward_options import RewardOptions, RewardSpec

TEXT = pb.Completion(text=pb.CompletionText(text="It is 5.", is_finished=True))
TOKENS = pb.Completion(token_ids=pb.TokenIds(ids=[7, 8]))
MESSAGES = pb.Messages(messages=[pb.Message(role="user", content="What is 2 + 3?")])
PROMPT_IDS = pb.TokenIds(ids=[0, 9])
REWARDBENCH = pb.RECIPE_REWARDBENCH


def messages_of(group: Group) -> list[Message]:
    return [message for message in group.prompt if isinstance(message, Message)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    config = tiny_serve_config(tmp_path_factory.mktemp("pair"))
    return {form: open_pair(config.model_copy(update={"base_prompt": form})) for form in ("same", "plain")}


def test_unset_options_are_the_defaults() -> None:
    options = parse_options(pb.ScoreOptions())
    assert options == RewardOptions()
    assert options.resolved_eos_policy == "if_finished"


def test_options_arrive_as_they_were_sent() -> None:
    sent = pb.ScoreOptions(
        normalization=pb.NORMALIZATION_MEAN,
        beta=0.1,
        eos_policy=pb.EOS_POLICY_EXCLUDE,
        is_reference_free=True,
        want_token_logprobs=True,
        instruction="Be safe.",
        instruction_scope=pb.INSTRUCTION_SCOPE_INSTRUCT_ONLY,
        recipe=pb.RECIPE_WINNOW,
    )
    assert parse_options(sent) == RewardOptions(
        normalization="mean",
        beta=0.1,
        eos_policy="exclude",
        is_reference_free=True,
        want_token_logprobs=True,
        instruction="Be safe.",
        instruction_scope="instruct_only",
        recipe="winnow",
    )


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ("normalization", "Normalization"),
        ("eos_policy", "EosPolicy"),
        ("instruction_scope", "InstructionScope"),
        ("recipe", "Recipe"),
    ],
)
def test_an_unknown_value_is_malformed(option: str, kind: str) -> None:
    with pytest.raises(MalformedError, match=rf"options\.{option} 9 is not a value of {kind}"):
        parse_options(pb.ScoreOptions(**{option: 9}))  # type: ignore[arg-type]


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_a_beta_that_is_not_above_0_is_malformed(beta: float) -> None:
    with pytest.raises(MalformedError, match=r"options\.beta"):
        parse_options(pb.ScoreOptions(beta=beta))


def test_rewardbench_is_the_sum_with_every_eos() -> None:
    unset = parse_options(pb.ScoreOptions(recipe=REWARDBENCH))
    assert unset == RewardOptions(recipe="rewardbench")
    assert (unset.normalization, unset.beta, unset.resolved_eos_policy) == ("sum", 1.0, "include")
    named = pb.ScoreOptions(
        recipe=REWARDBENCH,
        normalization=pb.NORMALIZATION_SUM,
        eos_policy=pb.EOS_POLICY_INCLUDE,
        beta=1.0,
        is_reference_free=True,
    )
    assert parse_options(named) == unset.replace(eos_policy="include", is_reference_free=True)


@pytest.mark.parametrize(
    ("option", "value", "required"),
    [
        ("normalization", pb.NORMALIZATION_MEAN, "normalization sum"),
        ("eos_policy", pb.EOS_POLICY_EXCLUDE, "eos_policy include"),
        ("eos_policy", pb.EOS_POLICY_IF_FINISHED, "eos_policy include"),
        ("beta", 0.1, "beta 1"),
        ("instruction", "Be safe.", "no instruction"),
    ],
)
def test_rewardbench_with_options_of_another_reward_is_malformed(option: str, value: Any, required: str) -> None:
    with pytest.raises(MalformedError, match=f"recipe rewardbench goes with {required}; set it so or leave it unset"):
        parse_options(pb.ScoreOptions(recipe=REWARDBENCH, **{option: value}))


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (
            pb.ScoreRequest(prompt_token_ids=PROMPT_IDS, completions=[TOKENS], options={"instruction": "Be safe."}),
            "send the prompt as messages",
        ),
        (
            pb.ScoreRequest(prompt_token_ids=PROMPT_IDS, completions=[TOKENS], options={"recipe": REWARDBENCH}),
            "no token ids",
        ),
        (
            pb.ScoreRequest(messages=MESSAGES, completions=[TEXT, TOKENS], options={"recipe": REWARDBENCH}),
            "no token ids",
        ),
    ],
)
def test_token_ids_are_refused_with_options_that_render(request_: pb.ScoreRequest, problem: str) -> None:
    with pytest.raises(MalformedError, match=problem):
        parse_group(request_, 4)


def test_parse_group_returns_messages_texts_and_token_ids() -> None:
    messages = pb.Messages(
        messages=[pb.Message(role="user", content="What is 2 + 3?"), pb.Message(role="tool", content="5")]
    )
    group = parse_group(pb.ScoreRequest(messages=messages, completions=[TEXT, TOKENS]), 4)
    # The renderer refuses an unknown role: it is a status of each completion.
    assert [(message.role, message.content) for message in messages_of(group)] == [
        ("user", "What is 2 + 3?"),
        ("tool", "5"),
    ]
    assert group.completions == [CompletionText("It is 5."), (7, 8)]
    with_prompt_ids = parse_group(pb.ScoreRequest(prompt_token_ids=PROMPT_IDS, completions=[TOKENS]), 4)
    assert (with_prompt_ids.prompt, with_prompt_ids.completions) == ((0, 9), [(7, 8)])


def test_an_instruction_is_allowed_with_completions_of_token_ids() -> None:
    request = pb.ScoreRequest(messages=MESSAGES, completions=[TOKENS], options={"instruction": "Be safe."})
    assert len(parse_group(request, 4).completions) == 1


def test_rewardbench_needs_one_tokenizer(pairs: dict[str, Pair]) -> None:
    group = parse_group(pb.ScoreRequest(messages=MESSAGES, completions=[TEXT]), 4)
    pair = replace(pairs["same"], has_shared_tokenizer=False)
    assert "one tokenizer" in pair.refusal(group, RewardOptions(recipe="rewardbench"))
    assert pair.refusal(group, RewardOptions()) == ""


def test_reward_definition_names_everything_that_decides_a_reward(pairs: dict[str, Pair]) -> None:
    pair = pairs["plain"]
    options = RewardOptions(
        normalization="mean",
        beta=0.1,
        eos_policy="exclude",
        instruction="Be safe.",
        instruction_scope="instruct_only",
    )
    instruct = pair.instruct.facts
    base = pair.base.facts
    assert reward_definition(pair, options) == pb.RewardDefinition(
        **RewardSpec(**options.model_dump(exclude={"want_token_logprobs"})).model_dump(),
        base_prompt="plain",
        instruct_weight_hash=instruct.weight_hash,
        base_weight_hash=base.weight_hash,
        instruct_template_hash=instruct.template_hash,
        base_template_hash=base.template_hash,
    )
    assert instruct.template_hash != base.template_hash


def test_reward_definition_leaves_out_settings_that_make_no_difference(pairs: dict[str, Pair]) -> None:
    for options in (RewardOptions(is_reference_free=True), RewardOptions(recipe="rewardbench")):
        assert reward_definition(pairs["same"], options) == reward_definition(pairs["plain"], options)
    scoped = RewardOptions(instruction_scope="instruct_only")
    assert reward_definition(pairs["same"], scoped) == reward_definition(pairs["same"], RewardOptions())
    assert reward_definition(pairs["same"], RewardOptions()) != reward_definition(pairs["plain"], RewardOptions())

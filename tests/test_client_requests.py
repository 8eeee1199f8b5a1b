"""Requests and responses of both clients: groups split into parts, sizes within the limits, options, refusals."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest

from reward_server.client import (
    CompletionText,
    Group,
    ModelInfo,
    RewardDefinition,
    RewardOptions,
    ScoredGroup,
    ServerInfo,
)
from reward_server.pb import reward_pb2 as pb
from tests.both_clients import address_fixture, client_fixture, connect_fixture, service_fixture  # noqa: F401
from tests.scripted_server import MESSAGES, ScriptedService, groups, scripted_server
from winnow.errors import ServerError, UsageError
from winnow.records import Message


def statuses(scored: ScoredGroup) -> list[str]:
    return [completion.status for completion in scored]


def test_large_groups_are_sent_in_parts_and_put_together(client: Any, service: ScriptedService) -> None:
    service.max_completions = 4
    scored = client.score(MESSAGES, ["x" * (index + 1) for index in range(10)])
    assert [completion.reward for completion in scored] == list(range(1, 11))
    assert [len(request.completions) for request in service.requests] == [4, 4, 2]
    assert all(request.messages.messages[0].content == MESSAGES[0]["content"] for request in service.requests)


def test_a_prompt_of_message_objects_makes_the_request_of_the_same_dicts(client: Any, service: ScriptedService) -> None:
    client.score(MESSAGES, ["a"])
    client.score([Message(role="user", content=MESSAGES[0]["content"])], ["a"])
    first, second = service.requests
    assert first == second


@pytest.mark.parametrize("want_token_logprobs", [False, True])
def test_no_message_is_larger_than_the_server_takes(
    client: Any, service: ScriptedService, want_token_logprobs: bool
) -> None:
    service.max_message_bytes = 4000
    texts = ["\u00e9" * (index % 20 * 7 + 1) for index in range(60)]
    scored = client.score(MESSAGES, texts, want_token_logprobs=want_token_logprobs)
    assert [completion.reward for completion in scored] == [len(text) for text in texts]
    assert len(service.requests) > 1
    for request in service.requests:
        assert request.ByteSize() <= 4000
        num_tokens = sum(len(completion.text.text.encode()) for completion in request.completions)
        assert not want_token_logprobs or num_tokens * 13 <= 4000


def test_a_completion_that_fits_no_message_is_too_long_and_the_others_are_scored(
    client: Any, service: ScriptedService
) -> None:
    service.max_message_bytes = 1000
    scored = client.score(MESSAGES, ["b" * 2000, "a", "bb", "c" * 3000])
    assert statuses(scored) == ["too_long", "ok", "ok", "too_long"]
    assert [completion.reward for completion in scored] == [None, 1.0, 2.0, None]
    assert "raise the server's max_message_bytes" in scored[0].error
    assert scored.definition is not None


def test_a_prompt_that_fits_no_message_makes_all_its_completions_too_long(
    client: Any, service: ScriptedService
) -> None:
    service.max_message_bytes = 1000
    long = [{"role": "user", "content": "a" * 2000}]
    results = client.score_many([Group(long, ["a", "b"]), Group(MESSAGES, ["abc"])])
    assert [statuses(scored) for scored in results] == [["too_long", "too_long"], ["ok"]]
    assert service.num_seen == 1


def test_under_recipe_rewardbench_a_completion_that_fits_no_message_makes_its_group_too_long(
    client: Any, service: ScriptedService
) -> None:
    service.max_message_bytes = 1000
    scored = client.score(MESSAGES, ["a", "b" * 2000], recipe="rewardbench")
    assert statuses(scored) == ["too_long", "too_long"]
    assert service.num_seen == 0


def test_a_group_without_completions_has_no_rewards_and_needs_no_call(client: Any, service: ScriptedService) -> None:
    assert client.score(MESSAGES, []) == ScoredGroup()
    assert [len(scored) for scored in client.score_many([Group(MESSAGES, []), Group(MESSAGES, ["a"])])] == [0, 1]
    assert list(client.score_many(iter([]))) == []
    assert service.num_seen == 1


def test_a_malformed_group_is_refused_before_it_is_sent(client: Any, service: ScriptedService) -> None:
    with pytest.raises(UsageError, match="a list of completions, not one text"):
        client.score(MESSAGES, "abc")
    with pytest.raises(UsageError, match="needs role and content"):
        client.score([{"role": "user"}], ["abc"])
    with pytest.raises(UsageError, match="both texts; this one is role: str, content: int"):
        client.score([{"role": "user", "content": 3}], ["abc"])
    with pytest.raises(UsageError, match="should be a list of completions, not a int"):
        client.score(MESSAGES, 5)
    with pytest.raises(UsageError, match="a prompt should be a list of messages or of token ids, is one text"):
        client.score("hello", ["abc"])
    with pytest.raises(UsageError, match="a prompt should be a list"):
        client.score(None, ["abc"])
    with pytest.raises(UsageError, match="this one is a int"):
        client.score([*MESSAGES, 3], [[5]])
    with pytest.raises(UsageError, match="a group should be Group"):
        list(client.score_many([(MESSAGES, ["abc"])]))
    with pytest.raises(UsageError, match="concurrency 0"):
        list(client.score_many(groups(2), concurrency=0))
    assert service.num_seen == 0


@pytest.mark.parametrize(
    ("completion", "error"),
    [
        (None, "completion 1 should be a text, .* is a NoneType"),
        (7, "completion 1 should be a text, .* is a int"),
        (b"abc", "completion 1 should be a text, .* is a bytes"),
        ({"text": "a"}, "completion 1 should be a text"),
        (CompletionText(None), "completion 1 should be a text"),  # type: ignore[arg-type]
        ([5, -1], "completion 1 should be token ids, whole numbers from 0"),
        ([2**40], "completion 1 should be token ids"),
        ([1.5], "completion 1 should be token ids"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_a_malformed_completion_is_refused_before_it_is_sent(
    client: Any, service: ScriptedService, completion: Any, error: str
) -> None:
    with pytest.raises(UsageError, match=error):
        client.score(MESSAGES, ["abc", completion])
    assert service.num_seen == 0


def test_the_eos_policy_is_the_recipe_s_own_unless_named(client: Any, service: ScriptedService) -> None:
    client.score(MESSAGES, ["abc"], recipe="rewardbench")
    client.score(MESSAGES, ["abc"], eos_policy="exclude")
    sent = [request.options.eos_policy for request in service.requests]
    assert sent == [pb.EOS_POLICY_UNSPECIFIED, pb.EOS_POLICY_EXCLUDE]


def test_a_group_of_recipe_rewardbench_is_never_split(client: Any, service: ScriptedService) -> None:
    service.max_completions = 2
    assert len(client.score(MESSAGES, ["a", "b"], recipe="rewardbench")) == 2
    refused = client.score(MESSAGES, ["a", "b", "c"], recipe="rewardbench")
    assert statuses(refused) == ["too_long"] * 3
    assert "send its pairs as groups of two" in refused[0].error
    assert len(client.score(MESSAGES, ["a", "b", "c"])) == 3
    assert service.num_seen == 3


class OlderService(ScriptedService):
    """A server from before definitions, message limits and recipes, which it leaves out."""

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        return pb.ScoreResponse(completions=super().Score(request, context).completions)


def test_an_older_server_is_used_unless_it_ignores_an_option(connect: Any) -> None:
    service = OlderService()
    service.max_message_bytes = 0
    with scripted_server(service) as address, connect(address) as client:
        assert client.score(MESSAGES, ["abc"])[0].reward == 3
        with pytest.raises(ServerError, match="is older than the option recipe and ignored it"):
            client.score(MESSAGES, ["abc"], recipe="rewardbench")
        with pytest.raises(ServerError, match="is older than the option instruction and ignored it"):
            client.score(MESSAGES, ["abc"], instruction="Be kind.")


def test_an_unknown_option_is_named_with_the_known_ones(client: Any) -> None:
    with pytest.raises(UsageError, match="normalization 'avg' should be sum or mean"):
        client.score(MESSAGES, ["abc"], normalization="avg")
    with pytest.raises(UsageError, match="should be include, exclude or if_finished"):
        client.score(MESSAGES, ["abc"], eos_policy="always")
    with pytest.raises(UsageError, match="recipe 'mine' should be winnow or rewardbench"):
        RewardOptions(recipe="mine")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="beta nan"):
        RewardOptions(beta=float("nan"))
    for option, value in {"beta": "1", "instruction": None, "is_reference_free": "yes"}.items():
        with pytest.raises(UsageError, match=f"{option} {value!r} should be"):
            client.score(MESSAGES, ["abc"], **{option: value})
    with pytest.raises(UsageError, match="half of a surrogate pair"):
        RewardOptions(instruction="\udcff")
    with pytest.raises(UsageError, match="unknown option gamma; known: normalization"):
        client.score(MESSAGES, ["abc"], gamma=2)


def test_options_are_sent_and_keywords_change_them(client: Any, service: ScriptedService) -> None:
    options = RewardOptions(normalization="mean", beta=0.5, instruction="Be kind.", instruction_scope="instruct_only")
    client.score(MESSAGES, ["abc"], options, beta=2.0, recipe="rewardbench", eos_policy="include")
    sent = service.requests[0].options
    assert (sent.normalization, sent.beta, sent.eos_policy) == (pb.NORMALIZATION_MEAN, 2.0, pb.EOS_POLICY_INCLUDE)
    assert (sent.instruction, sent.instruction_scope) == ("Be kind.", pb.INSTRUCTION_SCOPE_INSTRUCT_ONLY)
    assert sent.recipe == pb.RECIPE_REWARDBENCH


def test_scored_group_holds_its_definition(client: Any) -> None:
    scored = client.score(MESSAGES, ["abc", ""])
    assert scored.definition.instruct_weight_hash == "sha256:one"
    assert statuses(scored) == ["ok", "empty_completion"]
    assert (scored[1].reward, scored[1].error) == (None, "nothing to score")


def test_scored_group_is_an_immutable_sequence_that_keeps_its_definition(client: Any) -> None:
    assert issubclass(ScoredGroup, Sequence)
    scored: ScoredGroup = client.score(MESSAGES, ["a", "bb", "ccc"])
    assert scored.definition is not None
    assert (len(scored), scored[-1].reward, scored[1] in scored) == (3, 3.0, True)
    assert scored[1:] == ScoredGroup((scored[1], scored[2]), scored.definition)
    assert list(reversed(scored)) == [scored[2], scored[1], scored[0]]
    assert {scored, client.score(MESSAGES, ["a", "bb", "ccc"])} == {scored}
    changed = scored.definition.model_copy(update={"beta": 2.0})
    assert isinstance(changed, RewardDefinition)
    assert replace(scored, definition=changed) != scored
    with pytest.raises(AttributeError):
        scored.definition = changed  # type: ignore[misc]


def test_server_info_is_typed(client: Any, service: ScriptedService) -> None:
    model = ModelInfo(
        name="",
        weight_hash="sha256:one",
        tokenizer_hash="",
        template_hash="",
        chat_template="",
        dtype="",
        device="",
        end_of_turn_id=None,
    )
    assert client.server_info() == ServerInfo(
        winnow_version="",
        instruct=model,
        base=replace(model, weight_hash=""),
        base_prompt="same",
        has_shared_tokenizer=False,
        max_tokens=0,
        max_completions=1024,
        token_budget=0,
        max_message_bytes=64 * 1024 * 1024,
        max_queued_tokens=0,
    )


def test_a_scored_group_made_of_a_list_is_immutable_too(client: Any) -> None:
    scored: ScoredGroup = client.score(MESSAGES, ["a", "bb"])
    copied = ScoredGroup(list(scored), scored.definition)  # type: ignore[arg-type]
    assert (copied, hash(copied)) == (scored, hash(scored))


def test_a_definition_that_the_client_does_not_know_is_a_server_error(client: Any, service: ScriptedService) -> None:
    def definition(options: pb.ScoreOptions) -> pb.RewardDefinition:
        return pb.RewardDefinition(recipe="of tomorrow")

    service.definition = definition  # type: ignore[method-assign]
    with pytest.raises(ServerError, match="of a version that this client does not know"):
        client.score(MESSAGES, ["a"])


def test_the_fields_of_server_info_are_those_of_the_proto() -> None:
    pairs: list[tuple[Any, Any]] = [(ServerInfo, pb.GetServerInfoResponse), (ModelInfo, pb.ModelInfo)]
    for kind, message in pairs:
        assert [field.name for field in fields(kind)] == [field.name for field in message.DESCRIPTOR.fields]

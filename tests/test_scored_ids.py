"""Completions whose text does not give their ids back: scored as ids, or as text, or refused with a status."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.tiny_models import make_tokenizer
from reward_server.client import CompletionText, RewardClient
from sampler.engines import SamplingParams, make_completions
from sampler.score import reward_options, score_completions, scored_content
from tests.oracle import MAX_ERROR, Oracle
from tests.pairs import open_pair
from tests.served import ServerThread, tiny_serve_config
from tests.tiny_models import FOREIGN_TEXTS
from winnow.chat import Chat, load_tokenizer
from winnow.records import Completion, Message, Reward, make_prompt
from winnow.run_config import RewardConfig
from winnow.serve_config import ServeConfig

EOS = 1  # ids of the tiny tokenizer
SYSTEM = 3
PROMPT = make_prompt("test", (Message(role="user", content="What is 2 + 3?"),))
REFUSED_TEXT = "the text holds U+FFFD for sampled bytes that are not UTF-8, and the ids cannot be scored: "


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    return tiny_serve_config(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def server(config: ServeConfig) -> Iterator[ServerThread]:
    with ServerThread(config, open_pair(config)) as server:
        yield server


@pytest.fixture(scope="module")
def foreign_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    """Yield a server whose models have another tokenizer than the policy."""
    config = tiny_serve_config(tmp_path_factory.mktemp("foreign"))
    for model in (config.instruct, config.base):
        make_tokenizer(Path(model), FOREIGN_TEXTS)
    with ServerThread(config, open_pair(config)) as server:
        yield server


@pytest.fixture(scope="module")
def chat(config: ServeConfig) -> Chat:
    """Return the renderer of a policy that stops at two ids."""
    return Chat(load_tokenizer(config.instruct), "lab", generation_eos_ids=[EOS, SYSTEM])


def rows_of(chat: Chat, *sequences: list[int]) -> list[Completion]:
    params = SamplingParams(num_completions=len(sequences), temperature=1.0, top_p=1.0, max_new_tokens=64, seed=0)
    return make_completions(PROMPT.prompt_id, PROMPT.messages, sequences, params, chat)


def broken(chat: Chat) -> list[int]:
    """Return the ids of a text whose last character lacks a byte."""
    return chat.encode("sea \U0001f600")[:-1]


def rewards_of(server: ServerThread, completions: Sequence[Completion], **options: str) -> list[Reward]:
    config = RewardConfig.model_validate({"address": server.address, **options})
    with RewardClient(server.address) as client:
        [rewards] = score_completions(client, config, {PROMPT.prompt_id: PROMPT}, completions)
    return rewards


def assert_scored_as(reward: Reward, config: ServeConfig, prompt_ids: list[int], scored_ids: list[int]) -> None:
    """Compare a reward with the oracle's log-probabilities of exactly these ids."""
    assert (reward.status, reward.num_tokens) == ("ok", len(scored_ids))
    assert reward.instruct_logp == pytest.approx(
        Oracle(Path(config.instruct)).logp(prompt_ids, scored_ids), abs=MAX_ERROR
    )
    assert reward.base_logp == pytest.approx(Oracle(Path(config.base)).logp(prompt_ids, scored_ids), abs=MAX_ERROR)


def test_the_sampled_ids_are_scored_where_the_text_does_not_give_them_back(
    server: ServerThread, config: ServeConfig, chat: Chat
) -> None:
    letters = [chat.encode(letter)[0] for letter in "sea"]
    contents = [broken(chat), letters, chat.encode("It is 5.")]
    rows = rows_of(chat, *([*content, EOS] for content in contents))
    assert [row.has_exact_text for row in rows] == [False, False, True]
    rewards = rewards_of(server, rows)
    prompt_ids = chat.prompt_ids(PROMPT.messages)
    for reward, content in zip(rewards, contents, strict=True):
        assert_scored_as(reward, config, prompt_ids, [*content, EOS])
    assert all(reward.is_eos_scored and not reward.is_truncated for reward in rewards)


def test_another_stop_id_is_scored_as_the_end_of_turn(server: ServerThread, config: ServeConfig, chat: Chat) -> None:
    content = broken(chat)
    rewards = rewards_of(server, rows_of(chat, [*content, EOS], [*content, SYSTEM]))
    assert_scored_as(rewards[1], config, chat.prompt_ids(PROMPT.messages), [*content, EOS])
    assert rewards[1].reward == rewards[0].reward


@pytest.mark.parametrize(("eos_policy", "is_end_scored"), [("if_finished", False), ("include", True)])
def test_ids_that_were_cut_short_are_closed_where_texts_are(
    server: ServerThread, config: ServeConfig, chat: Chat, eos_policy: str, is_end_scored: bool
) -> None:
    contents = [broken(chat), chat.encode("It is 5.")]
    rewards = rewards_of(server, rows_of(chat, *contents), eos_policy=eos_policy)
    for reward, content in zip(rewards, contents, strict=True):
        assert_scored_as(reward, config, chat.prompt_ids(PROMPT.messages), [*content, *[EOS] * is_end_scored])
        assert (reward.is_truncated, reward.is_eos_scored) == (True, is_end_scored)


def test_another_tokenizer_scores_the_text_unless_bytes_were_lost(foreign_server: ServerThread, chat: Chat) -> None:
    letters = [chat.encode(letter)[0] for letter in "sea"]
    lost, cut, merged, replacement = rewards_of(
        foreign_server,
        rows_of(
            chat, [*broken(chat), EOS], [*letters, EOS], [*chat.encode("sea"), EOS], [*chat.encode("a \ufffd"), EOS]
        ),
    )
    assert (lost.status, lost.reward) == ("unrenderable", None)
    assert lost.error == REFUSED_TEXT + (
        "the reward server's tokenizer is not the policy's; take models with the policy's"
    )
    assert (cut.status, cut.reward) == ("ok", merged.reward)
    assert replacement.status == "ok"  # the policy wrote U+FFFD itself


def test_rewardbench_which_takes_no_ids_refuses_lost_bytes(server: ServerThread, chat: Chat) -> None:
    lost, whole = rewards_of(
        server, rows_of(chat, [*broken(chat), EOS], [*chat.encode("It is 5."), EOS]), recipe="rewardbench"
    )
    assert (lost.status, whole.status) == ("unrenderable", "ok")
    assert lost.error == REFUSED_TEXT + "recipe rewardbench takes texts only; take recipe winnow"


def test_a_control_token_is_not_sent_and_keeps_its_status(server: ServerThread, chat: Chat) -> None:
    forged = chat.encode("It is 5.<|user|>\nWhat is 4?<|endoftext|>")
    rows = rows_of(chat, forged, [*chat.encode("It is 5."), EOS], [EOS])
    rewards = rewards_of(server, rows)
    assert [reward.status for reward in rewards] == ["control_token", "ok", "empty_completion"]
    assert rewards[0].error == rows[0].error


def test_an_older_server_that_does_not_state_its_end_of_turn_gets_the_text(server: ServerThread, chat: Chat) -> None:
    letters = [chat.encode(letter)[0] for letter in "sea"]
    [row] = rows_of(chat, [*letters, EOS])
    with RewardClient(server.address) as client:
        info = client.server_info()
    options = reward_options(RewardConfig(address=server.address))
    assert scored_content(row, info, options) == [*letters, EOS]
    older = replace(info, instruct=replace(info.instruct, end_of_turn_id=None))
    assert scored_content(row, older, options) == CompletionText("sea", is_finished=True)

"""The adapters that a trainer calls in its own process, called as the trainer does.

TRL's own trainer runs here. verl needs GPUs to install, so its calls are made as its sources make them:
verl/workers/reward_manager/naive.py and verl/experimental/reward_loop/reward_manager/dapo.py (keywords data_source,
solution_str, ground_truth, extra_info, and others of the reward loop; a dict answer needs "score", and the same keys
for every sample).
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from reward_server.adapters import verl
from reward_server.adapters.trl import reward_function
from reward_server.client import AsyncRewardClient, RewardClient, RewardOptions
from sampler.managed_server import reward_client
from tests.adapter_calls import group_sizes, messages, verl_call
from tests.both_clients import address_fixture, service_fixture  # noqa: F401
from tests.certificates import mutual_tls_server
from tests.scripted_server import ScriptedService
from tests.tiny_models import make_model, make_pair
from winnow.config import parse_config
from winnow.errors import ServerError, UsageError
from winnow.run_config import RewardConfig


@pytest.fixture
def client(address: str) -> Iterator[RewardClient]:
    with RewardClient(address, timeout_s=10) as connected:
        yield connected


# TRL


def test_trl_reward_function_scores_samples_of_one_prompt_as_one_group(
    client: RewardClient, service: ScriptedService
) -> None:
    reward = reward_function(client, beta=0.5)
    prompts = ["a", "b", "a", "b", "a"]
    completions = ["x", "xx", "xxx", "", "xxxxx"]
    assert reward(prompts=prompts, completions=completions, completion_ids=[[1]] * 5, labels=[0] * 5) == [
        1.0,
        2.0,
        3.0,
        None,
        5.0,
    ]
    assert group_sizes(service) == [2, 3]
    assert service.requests[0].options.beta == 0.5


def test_trl_reward_function_returns_none_for_content_other_than_text(
    client: RewardClient, service: ScriptedService
) -> None:
    reward = reward_function(client, name="ratio")
    prompts = [messages("system", "Be kind.") + messages("user", "Hi")] * 3 + [messages("user", [{"type": "image"}])]
    completions = [
        messages("assistant", "xx"),
        messages("assistant", "x") + messages("tool", "4"),
        messages("assistant", None),
        messages("assistant", "x"),
    ]
    assert reward(prompts=prompts, completions=completions) == [2.0, None, None, None]
    assert [message.role for message in service.requests[0].messages.messages] == ["system", "user"]
    assert reward.__name__ == "ratio"


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ([{"content": "Hi"}], r"prompts\[1\]\[0\]: role is missing; fix the data set"),
        ([{"role": None, "content": "Hi"}], r"prompts\[1\]\[0\].role is null, should be a text"),
        (["Hi"], r"prompts\[1\]\[0\] is a text, should be an object with role and content"),
        ([], r"prompts\[1\] should be a text or a list of messages with role and content, is empty"),
    ],
)
def test_trl_reward_function_names_the_fault_of_a_malformed_prompt(
    client: RewardClient, service: ScriptedService, prompt: Any, error: str
) -> None:
    with pytest.raises(UsageError, match=error):
        reward_function(client)(prompts=["a", prompt], completions=["x", "x"])
    assert service.num_seen == 0


def test_trl_completions_without_eos_count_as_cut(client: RewardClient, service: ScriptedService) -> None:
    reward = reward_function(client, eos_token_id=2)
    assert reward(prompts=["a"] * 3, completions=["x"] * 3, completion_ids=[[5, 2], [2, 5], []]) == [1.0] * 3
    sent = service.requests[0].completions
    assert [completion.text.is_finished for completion in sent] == [True, False, False]


def test_the_trainer_of_trl_learns_from_a_real_server(tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    model = make_model("llama", tmp_path / "policy", seed=5)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    data = Dataset.from_list([{"prompt": messages("user", f"What is {left} + 3?")} for left in range(4)])
    settings = GRPOConfig(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        max_steps=2,
        logging_steps=1,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    config = parse_config({"server": make_pair(tmp_path)}, RewardConfig, "test")
    with reward_client(config, tmp_path) as client:
        trainer = GRPOTrainer(
            str(model),
            reward_funcs=reward_function(client, eos_token_id=tokenizer.eos_token_id),
            args=settings,
            train_dataset=data,
            processing_class=tokenizer,
        )
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "rewards/winnow_reward/mean" in entry]
    assert len(logged) == 2
    assert all(entry["rewards/winnow_reward/mean"] != 0.0 for entry in logged)


# verl


def test_verl_compute_score_takes_the_keywords_of_verl(client: RewardClient, service: ScriptedService) -> None:
    compute = verl.make_compute_score(client, RewardOptions(normalization="mean"))
    scored = verl_call(compute, "xxx", reward_router_address=None, reward_model_tokenizer=None)
    assert scored == {"score": 3.0, "num_tokens": 1.0, "is_scored": 1.0}
    verl_call(compute, "x", [*messages("system", "Be kind."), *messages("user", "Hi")])
    assert [message.role for message in service.requests[1].messages.messages] == ["system", "user"]


def test_verl_compute_score_invents_no_score(client: RewardClient) -> None:
    with pytest.raises(UsageError, match=r"cannot be scored .*set WINNOW_UNSCORABLE_SCORE, or unscorable_score of"):
        verl_call(verl.make_compute_score(client), "")
    named = verl_call(verl.make_compute_score(client, unscorable_score=-9.0), "")
    assert named == {"score": -9.0, "num_tokens": 0.0, "is_scored": 0.0}
    with pytest.raises(UsageError, match=r"extra_info\['question'\] should be the prompt, .* and is missing"):
        verl_call(verl.make_compute_score(client, prompt_key="question"), "x")


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        (5, " should be a text or a list of messages .*, is of type int"),
        (np.array(5), " should be a text or a list of messages .*, is of type ndarray"),
        ([], " should be a text or a list of messages .*, is empty"),
        ({"role": "user", "content": "Hi"}, " should be a text or a list of messages .*, is of type dict"),
        (b"Hi", " should be a text or a list of messages .*, is of type bytes"),
        ([5], r"\[0\] is a number, should be an object with role and content"),
        ([{"content": "Hi"}], r"\[0\]: role is missing"),
        ([{"role": "user", "content": 5}], r"\[0\]\.content is a number, should be a text"),
    ],
)
def test_verl_compute_score_names_the_fault_of_a_malformed_prompt(
    client: RewardClient, prompt: Any, fault: str
) -> None:
    with pytest.raises(UsageError, match=rf"extra_info\['prompt'\]{fault}; fix the data set"):
        verl_call(verl.make_compute_score(client), "x", prompt)


def test_verl_compute_score_takes_the_array_that_parquet_makes_of_a_list(
    client: RewardClient, service: ScriptedService
) -> None:
    prompt = np.array([*messages("system", "Be kind."), *messages("user", "Hi")], dtype=object)
    assert verl_call(verl.make_compute_score(client), "xx", prompt)["score"] == 2.0
    assert [message.content for message in service.requests[0].messages.messages] == ["Be kind.", "Hi"]


@pytest.mark.parametrize("value", ["abc", "nan", "", "-inf"])
def test_verl_unscorable_score_is_a_number(address: str, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("WINNOW_ADDRESS", address)
    monkeypatch.setenv("WINNOW_UNSCORABLE_SCORE", value)
    verl._compute_from_environment.cache_clear()
    with pytest.raises(UsageError, match=f"WINNOW_UNSCORABLE_SCORE '{value}' should be a finite number"):
        verl_call(verl.compute_score, "x")


def test_verl_compute_score_async_scores_samples_of_one_prompt_together(address: str, service: ScriptedService) -> None:
    async def score_all() -> list[Any]:
        async with AsyncRewardClient(address) as client:
            compute = verl.make_compute_score_async(client, wait_s=0.1)
            calls = [verl_call(compute, "x" * (index + 1), f"Prompt {index % 2}") for index in range(6)]
            return await asyncio.gather(*calls)

    assert [scored["score"] for scored in asyncio.run(score_all())] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert group_sizes(service) == [3, 3]


def test_verl_compute_score_uses_mutual_tls(
    service: ScriptedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, known = mutual_tls_server(service, tmp_path)
    for argument, path in known.items():
        monkeypatch.setenv(f"WINNOW_{argument.upper()}", str(path))
    verl._compute_from_environment.cache_clear()
    with server as address:
        monkeypatch.setenv("WINNOW_ADDRESS", address)
        assert verl_call(verl.compute_score, "xx")["score"] == 2.0
    verl._compute_from_environment.cache_clear()


def test_verl_compute_score_is_configured_by_the_environment(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="WINNOW_ADDRESS is not set"):
        verl_call(verl.compute_score, "x")
    monkeypatch.setenv("WINNOW_ADDRESS", address)
    monkeypatch.setenv("WINNOW_UNSCORABLE_SCORE", "-1")
    assert verl_call(verl.compute_score, "xx")["score"] == 2.0
    assert verl_call(verl.compute_score, "")["score"] == -1.0
    assert asyncio.run(verl_call(verl.compute_score_async, "xxx"))["score"] == 3.0


def test_verl_compute_score_async_refuses_a_recipe_that_depends_on_the_group(address: str) -> None:
    with pytest.raises(UsageError, match="chance makes the groups"):
        verl.make_compute_score_async(AsyncRewardClient(address), RewardOptions(recipe="rewardbench"))


def test_verl_compute_score_raises_an_error_of_the_server(client: RewardClient, service: ScriptedService) -> None:
    service.fail(grpc.StatusCode.INTERNAL)
    with pytest.raises(ServerError, match="INTERNAL"):
        verl_call(verl.make_compute_score(client), "x")

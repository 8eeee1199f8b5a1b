"""The adapters that are called in the trainer's own process, as it calls them.

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
from tests.adapter_calls import sizes, turns, verl_call
from tests.both_clients import address_fixture, service_fixture  # noqa: F401
from tests.scripted_server import ScriptedService
from tests.tiny_models import make_model
from tests.tiny_run import make_pair
from winnow.config import parse_config
from winnow.errors import ServerError, UsageError
from winnow.run_config import RewardConfig


@pytest.fixture
def client(address: str) -> Iterator[RewardClient]:
    with RewardClient(address, timeout_s=10) as connected:
        yield connected


# TRL


def test_trl_samples_of_one_prompt_are_one_group(client: RewardClient, service: ScriptedService) -> None:
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
    assert sizes(service) == [2, 3]
    assert service.requests[0].options.beta == 0.5


def test_trl_conversations_and_what_is_more_than_text(client: RewardClient, service: ScriptedService) -> None:
    reward = reward_function(client, name="ratio")
    prompts = [turns("system", "Be kind.") + turns("user", "Hi")] * 3 + [turns("user", [{"type": "image"}])]
    answers = [turns("assistant", "xx"), turns("assistant", "x") + turns("tool", "4"), turns("assistant", None)]
    assert reward(prompts=prompts, completions=[*answers, turns("assistant", "x")]) == [2.0, None, None, None]
    assert [message.role for message in service.requests[0].messages.messages] == ["system", "user"]
    assert reward.__name__ == "ratio"


def test_trl_completions_without_eos_count_as_cut(client: RewardClient, service: ScriptedService) -> None:
    reward = reward_function(client, eos_token_id=2)
    assert reward(prompts=["a"] * 3, completions=["x"] * 3, completion_ids=[[5, 2], [2, 5], []]) == [1.0] * 3
    assert [one.text.is_finished for one in service.requests[0].completions] == [True, False, False]


def test_trl_s_own_trainer_learns_from_a_real_server(tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    model = make_model("llama", tmp_path / "policy", seed=5)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    data = Dataset.from_list([{"prompt": turns("user", f"What is {left} + 3?")} for left in range(4)])
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
    logged = [line for line in trainer.state.log_history if "rewards/winnow_reward/mean" in line]
    assert len(logged) == 2
    assert all(line["rewards/winnow_reward/mean"] != 0.0 for line in logged)


# verl


def test_verl_s_keywords_give_a_score(client: RewardClient, service: ScriptedService) -> None:
    compute = verl.make_compute_score(client, RewardOptions(normalization="mean"))
    scored = verl_call(compute, "xxx", reward_router_address=None, reward_model_tokenizer=None)
    assert scored == {"score": 3.0, "num_tokens": 1.0, "is_scored": 1.0}
    verl_call(compute, "x", [*turns("system", "Be kind."), *turns("user", "Hi")])
    assert [message.role for message in service.requests[1].messages.messages] == ["system", "user"]


def test_verl_gets_no_made_up_score(client: RewardClient) -> None:
    with pytest.raises(UsageError, match=r"cannot be scored .*set WINNOW_UNSCORABLE_SCORE, or unscorable_score of"):
        verl_call(verl.make_compute_score(client), "")
    named = verl_call(verl.make_compute_score(client, unscorable_score=-9.0), "")
    assert named == {"score": -9.0, "num_tokens": 0.0, "is_scored": 0.0}
    with pytest.raises(UsageError, match=r"extra_info\['question'\] should be the prompt, .* and is missing"):
        verl_call(verl.make_compute_score(client, prompt_key="question"), "x")


@pytest.mark.parametrize("prompt", [5, np.array(5), [], [5], {"role": "user", "content": "Hi"}, b"Hi"])
def test_verl_s_prompt_of_another_type_is_named(client: RewardClient, prompt: Any) -> None:
    with pytest.raises(UsageError, match=r"extra_info\['prompt'\] should be .* and is of type \w+; put"):
        verl_call(verl.make_compute_score(client), "x", prompt)


@pytest.mark.parametrize("value", ["abc", "nan", "", "-inf"])
def test_verl_s_made_up_score_is_a_number(address: str, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("WINNOW_ADDRESS", address)
    monkeypatch.setenv("WINNOW_UNSCORABLE_SCORE", value)
    verl._from_environment.cache_clear()
    with pytest.raises(UsageError, match=f"WINNOW_UNSCORABLE_SCORE '{value}' should be a finite number"):
        verl_call(verl.compute_score, "x")


def test_verl_s_reward_loop_scores_samples_of_one_prompt_together(address: str, service: ScriptedService) -> None:
    async def loop() -> list[Any]:
        async with AsyncRewardClient(address) as client:
            compute = verl.make_compute_score_async(client, wait_s=0.1)
            calls = [verl_call(compute, "x" * (index + 1), f"Prompt {index % 2}") for index in range(6)]
            return await asyncio.gather(*calls)

    assert [scored["score"] for scored in asyncio.run(loop())] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert sizes(service) == [3, 3]


def test_verl_s_function_file_is_configured_by_the_environment(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="WINNOW_ADDRESS is not set"):
        verl_call(verl.compute_score, "x")
    monkeypatch.setenv("WINNOW_ADDRESS", address)
    monkeypatch.setenv("WINNOW_UNSCORABLE_SCORE", "-1")
    assert verl_call(verl.compute_score, "xx")["score"] == 2.0
    assert verl_call(verl.compute_score, "")["score"] == -1.0
    assert asyncio.run(verl_call(verl.compute_score_async, "xxx"))["score"] == 3.0


def test_verl_s_reward_loop_takes_no_recipe_that_depends_on_the_group(address: str) -> None:
    with pytest.raises(UsageError, match="chance makes the groups"):
        verl.make_compute_score_async(AsyncRewardClient(address), RewardOptions(recipe="rewardbench"))


def test_an_error_of_the_server_reaches_verl(client: RewardClient, service: ScriptedService) -> None:
    service.fail(grpc.StatusCode.INTERNAL)
    with pytest.raises(ServerError, match="INTERNAL"):
        verl_call(verl.make_compute_score(client), "x")

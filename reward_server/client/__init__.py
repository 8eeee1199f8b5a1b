"""The clients of reward servers. They need the base install only: no torch, no transformers.

    with RewardClient("localhost:50051") as client:
        scores = client.score([{"role": "user", "content": "What is 2 + 3?"}], ["It is 5.", "It is 6."])
        scores[0].reward, scores[0].instruct_logp, scores[0].base_logp, scores[0].num_tokens

    async with AsyncRewardClient("gpu1:50051,gpu2:50051", token="...", tls_ca="ca.pem") as client:
        scores = await client.score(messages, completions)

Rewards compare within a prompt only (reward_server/scoring/reward.py says why). A completion that cannot be scored
comes back with a `status` other than "ok" and an `error`; the rest of its group is scored. `scores.definition` says
what the rewards were made with. This module is the one that other code imports; both clients have the same methods.
"""

from reward_server.client.aio import AsyncRewardClient
from reward_server.client.connection import ConnectionSettings, read_token
from reward_server.client.requests import RewardOptions
from reward_server.client.responses import RewardDefinition, ScoredCompletion, ScoredGroup
from reward_server.client.retries import RetryPolicy
from reward_server.client.sync import RewardClient
from reward_server.groups import CompletionInput, CompletionText, Group, Prompt

__all__ = [
    "RewardClient",
    "AsyncRewardClient",
    "RewardOptions",
    "Group",
    "CompletionText",
    "ScoredGroup",
    "ScoredCompletion",
    "RewardDefinition",
    "Prompt",
    "CompletionInput",
    "ConnectionSettings",
    "RetryPolicy",
    "read_token",
]

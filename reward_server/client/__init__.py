"""The clients of reward servers. They need the base install only: no torch, no transformers.

    with RewardClient("localhost:50051") as client:
        rewards = client.score([{"role": "user", "content": "What is 2 + 3?"}], ["It is 5.", "It is 6."])
        rewards[0].reward, rewards[0].instruct_logp, rewards[0].base_logp, rewards[0].num_tokens

    async with AsyncRewardClient("gpu1:50051,gpu2:50051", token="...", tls_ca="ca.pem") as client:
        rewards = await client.score(prompt, completions)

Rewards compare within a prompt only (reward_server/scoring/reward.py explains why). A completion that cannot be scored
has a `status` other than "ok" and an `error`; the rest of its group is scored. `rewards.definition` holds everything
that decided the rewards besides the prompt and the completions. Both clients have the same methods. Other code imports
from this module only.

Type aliases of the arguments:

    Prompt            messages, as {"role", "content"} dicts or Message objects, up to the assistant turn; or token ids
    CompletionInput   a text, which counts as finished; a CompletionText; or token ids as sampled
    Address           "HOST:PORT", several with commas, or a list of them
    Progress          a function that takes the number of groups that are done

Errors: ServerError, of which ServerBusyError, DeadlineError and AuthError are kinds, and UsageError are WinnowErrors.
"""

from reward_server.client.aio import AsyncRewardClient
from reward_server.client.base import Progress
from reward_server.client.connection import Address, ConnectionSettings, open_connection_settings, read_token
from reward_server.client.responses import RewardDefinition, ScoredCompletion, ScoredGroup
from reward_server.client.retries import RetryPolicy
from reward_server.client.server_info import ModelInfo, ServerInfo
from reward_server.client.sync import RewardClient
from reward_server.groups import CompletionInput, CompletionText, Group, Prompt
from winnow.errors import AuthError, DeadlineError, ServerBusyError, ServerError, UsageError, WinnowError
from winnow.reward_options import RewardOptions

__all__ = [
    "RewardClient",
    "AsyncRewardClient",
    "RewardOptions",
    "Group",
    "Prompt",
    "CompletionInput",
    "CompletionText",
    "ScoredGroup",
    "ScoredCompletion",
    "RewardDefinition",
    "ServerInfo",
    "ModelInfo",
    "Address",
    "ConnectionSettings",
    "open_connection_settings",
    "read_token",
    "RetryPolicy",
    "Progress",
    "WinnowError",
    "UsageError",
    "ServerError",
    "ServerBusyError",
    "DeadlineError",
    "AuthError",
]

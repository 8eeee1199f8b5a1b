"""A compute_score for verl: (data_source, solution_str, ground_truth, extra_info) -> {"score": ...}.

    custom_reward_function.path=<the path that `python -m reward_server.adapters.verl` prints>
    custom_reward_function.name=compute_score
    WINNOW_ADDRESS=gpu1:50051,gpu2:50051
    WINNOW_TOKEN_FILE=...  WINNOW_TLS_CA=...  WINNOW_TLS_CERTIFICATE=...  WINNOW_TLS_KEY=...

verl does not pass the prompt, so the data set has to put it into extra_info["prompt"], as messages or as a text. verl
calls the function for one completion at a time. `compute_score_async`, for its asynchronous reward loop, scores
completions of one prompt that come at the same time as one group. Its connections do not survive a fork: a process that
has used it must not fork workers that use it; spawn the workers, or make the first call in them.
"""

import asyncio
import functools
import math
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from reward_server.adapters.coalescing import WAIT_S, Coalescer
from reward_server.client import (
    AsyncRewardClient,
    CompletionText,
    ConnectionSettings,
    RewardClient,
    RewardOptions,
    ScoredCompletion,
    UsageError,
    open_connection_settings,
)
from winnow.conversations import trainer_messages

Score = dict[str, float]


def make_compute_score(
    client: RewardClient,
    options: RewardOptions | None = None,
    *,
    prompt_key: str = "prompt",
    unscorable_score: float | None = None,
) -> Callable[..., Score]:
    """Return a compute_score that scores through a client; the prompt is extra_info[prompt_key].

    It returns {"score", "num_tokens", "is_scored"}, all of them floats, and raises the errors of `RewardClient.score`.
    A completion that cannot be scored gets `unscorable_score`; None: it raises UsageError, because a made-up score
    could be the best of its group. A prompt that is missing or invalid always raises UsageError.
    """

    def compute(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: Any) -> Score:
        rewards = client.score(_prompt(extra_info, prompt_key), [solution_str], options)
        return _score(rewards[0], unscorable_score)

    return compute


def make_compute_score_async(
    client: AsyncRewardClient,
    options: RewardOptions | None = None,
    *,
    prompt_key: str = "prompt",
    unscorable_score: float | None = None,
    wait_s: float = WAIT_S,
) -> Callable[..., Awaitable[Score]]:
    """Return an asynchronous compute_score, for one event loop; see `make_compute_score`.

    Completions of one prompt that come within `wait_s` seconds are scored as one group. Raises UsageError for recipe
    rewardbench.
    """
    if options is not None and options.recipe == "rewardbench":
        raise UsageError(
            "recipe rewardbench cuts by the longest of a group, and here chance makes the groups; score pairs"
        )
    coalescer = Coalescer(lambda prompt, completions: client.score(prompt, completions, options), wait_s)

    async def compute(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: Any
    ) -> Score:
        scored = await coalescer.score(_prompt(extra_info, prompt_key), CompletionText(solution_str))
        return _score(scored, unscorable_score)

    return compute


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **keywords: Any
) -> Score:
    """Return the score of one completion from the server at WINNOW_ADDRESS; see `make_compute_score`.

    Further keywords of verl are ignored.
    """
    compute = _compute_from_environment(os.getpid())
    return compute(data_source, solution_str, ground_truth, extra_info)


async def compute_score_async(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **keywords: Any
) -> Score:
    """Return the score of one completion, as `compute_score` does, for verl's asynchronous reward loop."""
    compute = _async_compute_from_environment(os.getpid(), asyncio.get_running_loop())
    return await compute(data_source, solution_str, ground_truth, extra_info)


@functools.lru_cache(maxsize=1)
def _compute_from_environment(process_id: int) -> Callable[..., Score]:
    """Return the compute_score of a process: connections do not survive a fork."""
    client = RewardClient(_environment_settings())
    return make_compute_score(client, unscorable_score=_environment_unscorable_score())


@functools.lru_cache(maxsize=1)
def _async_compute_from_environment(
    process_id: int, loop: asyncio.AbstractEventLoop
) -> Callable[..., Awaitable[Score]]:
    client = AsyncRewardClient(_environment_settings())
    return make_compute_score_async(client, unscorable_score=_environment_unscorable_score())


def _environment_settings() -> ConnectionSettings:
    address = os.environ.get("WINNOW_ADDRESS")
    if not address:
        raise UsageError("WINNOW_ADDRESS is not set; set it to HOST:PORT of a reward server, for every worker")
    return open_connection_settings(
        address,
        token_file=os.environ.get("WINNOW_TOKEN_FILE"),
        tls_ca=os.environ.get("WINNOW_TLS_CA"),
        tls_certificate=os.environ.get("WINNOW_TLS_CERTIFICATE"),
        tls_key=os.environ.get("WINNOW_TLS_KEY"),
    )


def _environment_unscorable_score() -> float | None:
    value = os.environ.get("WINNOW_UNSCORABLE_SCORE")
    if value is None:
        return None
    try:
        score = float(value)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UsageError(f"WINNOW_UNSCORABLE_SCORE {value!r} should be a finite number, like -20, or unset")
    return score


def _prompt(extra_info: Any, key: str) -> list[dict[str, str]]:
    """Return the prompt in extra_info as messages. Raises UsageError."""
    name = f"extra_info[{key!r}]"
    prompt = None
    if isinstance(extra_info, Mapping):
        prompt = extra_info.get(key)
    if prompt is None:
        raise UsageError(
            f"{name} should be the prompt, a text or a list of messages with role and content, and is missing; put it "
            "into the data set"
        )
    return trainer_messages(prompt, name)


def _score(scored: ScoredCompletion, unscorable_score: float | None) -> Score:
    if scored.is_invalid_prompt:
        raise UsageError(f"the prompt is not a conversation: {scored.error}; fix extra_info in the data set")
    score = scored.reward
    if score is None:
        score = unscorable_score
    if score is None:
        raise UsageError(
            f"the completion cannot be scored ({scored.status}: {scored.error}); set WINNOW_UNSCORABLE_SCORE, or "
            "unscorable_score of make_compute_score, to the score that such completions get"
        )
    # The keys are the same for every completion: verl puts the values into arrays.
    return {"score": score, "num_tokens": float(scored.num_tokens), "is_scored": float(scored.reward is not None)}


if __name__ == "__main__":
    print(os.path.abspath(__file__))

"""A compute_score for verl: (data_source, solution_str, ground_truth, extra_info) -> {"score": ...}.

    custom_reward_function.path=<the path that `python -m reward_server.adapters.verl` prints>
    custom_reward_function.name=compute_score
    WINNOW_ADDRESS=gpu1:50051,gpu2:50051  WINNOW_TOKEN_FILE=...  WINNOW_TLS_CA=...

verl does not hand over the prompt: the data set puts it into extra_info["prompt"], as messages or as a text. verl asks
for one sample at a time; `compute_score_async`, for its asynchronous reward loop, scores samples of one prompt that are
asked for at once as one group. Its connections do not survive a fork: a process that has used it must not fork workers
that use it; let workers be spawned, or make the first call in them.
"""

import asyncio
import functools
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from reward_server.adapters.coalescing import WAIT_S, Coalescer
from reward_server.client import AsyncRewardClient, RewardClient
from reward_server.client.connection import ConnectionSettings, open_connection_settings
from reward_server.client.requests import RewardOptions
from reward_server.client.responses import ScoredCompletion
from reward_server.groups import CompletionText
from winnow.errors import UsageError

Score = dict[str, float]
Messages = Sequence[Mapping[str, str]]


def make_compute_score(
    client: RewardClient,
    options: RewardOptions | None = None,
    *,
    prompt_key: str = "prompt",
    unscorable_score: float | None = None,
) -> Callable[..., Score]:
    """A compute_score that asks a client; the prompt is extra_info[prompt_key].

    A completion that cannot be scored gets `unscorable_score`; without one it raises UsageError: a made-up score could
    be the best of its group. A prompt that is missing or is no conversation raises UsageError always.
    """

    def compute(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: Any) -> Score:
        scored = client.score(_prompt(extra_info, prompt_key), [solution_str], options)[0]
        return _score(scored, unscorable_score)

    return compute


def make_compute_score_async(
    client: AsyncRewardClient,
    options: RewardOptions | None = None,
    *,
    prompt_key: str = "prompt",
    unscorable_score: float | None = None,
    wait_s: float = WAIT_S,
) -> Callable[..., Awaitable[Score]]:
    """As make_compute_score, to be awaited, all in one event loop; samples of one prompt are scored together."""
    if options is not None and options.recipe == "rewardbench":
        raise UsageError(
            "recipe rewardbench cuts by the longest of a group, and here chance makes the groups; score pairs"
        )
    coalescer = Coalescer(lambda prompt, texts: client.score(prompt, texts, options), wait_s)

    async def compute(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: Any
    ) -> Score:
        scored = await coalescer.score(_prompt(extra_info, prompt_key), CompletionText(solution_str))
        return _score(scored, unscorable_score)

    return compute


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **keywords: Any
) -> Score:
    """verl's custom reward function; the server is named by WINNOW_ADDRESS. Keywords beside verl's are ignored."""
    return _from_environment(os.getpid())(data_source, solution_str, ground_truth, extra_info)


async def compute_score_async(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **keywords: Any
) -> Score:
    """As compute_score, for verl's asynchronous reward loop."""
    compute = _async_from_environment(os.getpid(), asyncio.get_running_loop())
    return await compute(data_source, solution_str, ground_truth, extra_info)


@functools.lru_cache(maxsize=1)
def _from_environment(process_id: int) -> Callable[..., Score]:
    """A compute_score of this process: connections do not survive a fork."""
    return make_compute_score(RewardClient(**asdict(_access())), unscorable_score=_unscorable())


@functools.lru_cache(maxsize=1)
def _async_from_environment(process_id: int, loop: asyncio.AbstractEventLoop) -> Callable[..., Awaitable[Score]]:
    return make_compute_score_async(AsyncRewardClient(**asdict(_access())), unscorable_score=_unscorable())


def _access() -> ConnectionSettings:
    address = os.environ.get("WINNOW_ADDRESS")
    if not address:
        raise UsageError("WINNOW_ADDRESS is not set; set it to HOST:PORT of a reward server, for every worker")
    return open_connection_settings(address, os.environ.get("WINNOW_TOKEN_FILE"), os.environ.get("WINNOW_TLS_CA"))


def _unscorable() -> float | None:
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


def _prompt(extra_info: Any, key: str) -> Messages:
    """The prompt in extra_info, as messages. Raises UsageError."""
    prompt = extra_info.get(key) if isinstance(extra_info, Mapping) else None
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    try:
        turns = [] if prompt is None else list(prompt)  # a list, or the array that Parquet made of it
    except TypeError:
        turns = []
    if turns and all(isinstance(turn, Mapping) and {"role", "content"} <= turn.keys() for turn in turns):
        return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    shape = "is missing" if prompt is None else f"is of type {type(prompt).__name__}"
    raise UsageError(
        f"extra_info[{key!r}] should be the prompt, a text or a list of messages with role and content, and {shape}; "
        "put it into the data set"
    )


def _score(scored: ScoredCompletion, unscorable: float | None) -> Score:
    if scored.is_invalid_prompt:
        raise UsageError(f"the prompt is no conversation: {scored.error}; mend extra_info in the data set")
    score = unscorable if scored.reward is None else scored.reward
    if score is None:
        raise UsageError(
            f"the completion cannot be scored ({scored.status}: {scored.error}); set WINNOW_UNSCORABLE_SCORE, or "
            "unscorable_score of make_compute_score, to the score that such completions get"
        )
    # The keys are the same for every sample: verl puts them into arrays.
    return {"score": score, "num_tokens": float(scored.num_tokens), "is_scored": float(scored.reward is not None)}


if __name__ == "__main__":
    print(os.path.abspath(__file__))

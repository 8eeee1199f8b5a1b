"""Request coalescing: completions of one prompt that arrive within a few milliseconds become one group.

So the server computes their prompt once, as it does for a group that a caller sends as a whole.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from reward_server.client import CompletionText, Prompt, ScoredCompletion

ScoreGroup = Callable[[Prompt, list[CompletionText]], Awaitable[Sequence[ScoredCompletion]]]

# Time for further completions of a prompt to arrive, after the first.
WAIT_S = 0.005


@dataclass
class _WaitingGroup:
    """The completions of a prompt that wait to be scored, and the future of each one's caller."""

    prompt: Sequence[Mapping[str, str]]
    completions: list[CompletionText] = field(default_factory=list)
    futures: list["asyncio.Future[ScoredCompletion]"] = field(default_factory=list)


class Coalescer:
    """A collector of one prompt's completions: for `wait_s` seconds, or up to `max_completions`. For one event loop."""

    def __init__(self, score_group: ScoreGroup, wait_s: float = WAIT_S, max_completions: int = 256) -> None:
        self._score_group = score_group
        self._wait_s = wait_s
        self._max_completions = max_completions
        self._waiting: dict[str, _WaitingGroup] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def score(self, prompt: Sequence[Mapping[str, str]], completion: CompletionText) -> ScoredCompletion:
        """Return the reward of one completion. Raises as scoring its group does."""
        key = json.dumps([[message["role"], message["content"]] for message in prompt])
        loop = asyncio.get_running_loop()
        group = self._waiting.get(key)
        if group is None:
            group = _WaitingGroup(prompt)
            self._waiting[key] = group
            loop.call_later(self._wait_s, self._start, key, group)
        future: asyncio.Future[ScoredCompletion] = loop.create_future()
        group.completions.append(completion)
        group.futures.append(future)
        if len(group.futures) == self._max_completions:
            self._start(key, group)
        return await future

    def _start(self, key: str, group: _WaitingGroup) -> None:
        """Start to score a group, unless it was started; later completions of its prompt form a new group."""
        if self._waiting.get(key) is not group:
            return
        del self._waiting[key]
        task = asyncio.ensure_future(self._score(group))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _score(self, group: _WaitingGroup) -> None:
        completions = []
        futures = []
        for completion, future in zip(group.completions, group.futures, strict=True):
            if not future.done():  # else its caller has left
                completions.append(completion)
                futures.append(future)
        try:
            rewards = await self._score_group(group.prompt, completions)
            for future, scored in zip(futures, rewards, strict=True):
                if not future.done():
                    future.set_result(scored)
        except Exception as error:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
        finally:
            # If this task is cancelled, its callers must not wait forever.
            for future in futures:
                future.cancel()

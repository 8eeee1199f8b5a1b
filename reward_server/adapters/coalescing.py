"""One-sample requests -> groups: completions of one prompt that arrive within a few milliseconds are scored together.

The prompt is then computed once for all of them, as in a group that was asked for whole.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from reward_server.client.responses import ScoredCompletion
from reward_server.groups import CompletionText, Prompt

Score = Callable[[Prompt, list[CompletionText]], Awaitable[Sequence[ScoredCompletion]]]

WAIT_S = 0.005


@dataclass
class _Gathering:
    """The completions of a prompt that wait to be scored, and where their scores go."""

    prompt: Sequence[Mapping[str, str]]
    completions: list[CompletionText] = field(default_factory=list)
    answers: list["asyncio.Future[ScoredCompletion]"] = field(default_factory=list)


class Coalescer:
    """Gathers completions by prompt for `wait_s` seconds, or until `max_completions` are there. For one event loop."""

    def __init__(self, score: Score, wait_s: float = WAIT_S, max_completions: int = 256) -> None:
        self._score = score
        self._wait_s = wait_s
        self._max_completions = max_completions
        self._gathering: dict[str, _Gathering] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def score(self, prompt: Sequence[Mapping[str, str]], completion: CompletionText) -> ScoredCompletion:
        """The score of one completion. Raises what scoring its group raises."""
        key = json.dumps([[message["role"], message["content"]] for message in prompt])
        loop = asyncio.get_running_loop()
        if key not in self._gathering:
            gathering = self._gathering[key] = _Gathering(prompt)
            loop.call_later(self._wait_s, self._start, key, gathering)
        gathering = self._gathering[key]
        answer: asyncio.Future[ScoredCompletion] = loop.create_future()
        gathering.completions.append(completion)
        gathering.answers.append(answer)
        if len(gathering.answers) == self._max_completions:
            self._start(key, gathering)
        return await answer

    def _start(self, key: str, gathering: _Gathering) -> None:
        """Score what was gathered, unless that has begun: later completions gather anew."""
        if self._gathering.get(key) is not gathering:
            return
        del self._gathering[key]
        task = asyncio.ensure_future(self._answer(gathering))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, gathering: _Gathering) -> None:
        wanted = [
            (completion, answer)
            for completion, answer in zip(gathering.completions, gathering.answers, strict=True)
            if not answer.done()  # its caller left
        ]
        try:
            scores = await self._score(gathering.prompt, [completion for completion, _ in wanted])
            for (_, answer), score in zip(wanted, scores, strict=True):
                if not answer.done():
                    answer.set_result(score)
        except Exception as error:
            for _, answer in wanted:
                if not answer.done():
                    answer.set_exception(error)
        finally:  # where this task is cancelled, nobody shall wait for ever
            for _, answer in wanted:
                answer.cancel()

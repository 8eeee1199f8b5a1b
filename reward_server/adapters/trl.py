"""A reward function for TRL: f(prompts, completions, completion_ids, **columns) -> list[float | None].

    with RewardClient("localhost:50051") as client:
        trainer = GRPOTrainer(model, reward_funcs=reward_function(client), ...)

TRL hands over every sample by itself; samples of one prompt are scored as one group. None, which TRL leaves out of its
means, stands where a completion cannot be scored. Where that is so because the prompt is no conversation (a mistake in
the data set), the log says it too.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

from reward_server.client import CompletionText, Group, RewardClient, RewardOptions
from reward_server.client.requests import OptionKeywords, options_of

RewardFunction = Callable[..., list[float | None]]
RoundRobinLock = Sequence[Mapping[str, Any]]

log = logging.getLogger(__name__)


def reward_function(
    client: RewardClient,
    options: RewardOptions | None = None,
    *,
    eos_token_id: int | None = None,
    name: str = "winnow_reward",
    **keywords: Unpack[OptionKeywords],
) -> RewardFunction:
    """A reward function for TRL's trainers, which log it under `name`.

    With the policy's `eos_token_id`, completions that do not end in it count as cut (EOS policy if_finished); without
    it, all count as finished. Raises UsageError; the function itself raises as `RewardClient.score_many`.
    """
    chosen = options_of(options, keywords)

    def score(
        prompts: Sequence[str | RoundRobinLock],
        completions: Sequence[str | RoundRobinLock],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        ids = completion_ids or [()] * len(completions)
        finished = [eos_token_id is None or eos_token_id in one[-1:] for one in ids]
        rewards: list[float | None] = [None] * len(prompts)
        places, groups = _groups(prompts, completions, finished)
        for where, scored in zip(places, client.score_many(groups, chosen), strict=True):
            if mistake := next((one for one in scored if one.is_invalid_prompt), None):
                log.warning("a prompt gets no rewards: %s; mend the data set", mistake.error)
            for index, one in zip(where, scored, strict=True):
                rewards[index] = one.reward
        return rewards

    score.__name__ = name
    return score


def _groups(
    prompts: Sequence[str | RoundRobinLock], completions: Sequence[str | RoundRobinLock], finished: Sequence[bool]
) -> tuple[list[list[int]], list[Group]]:
    """The samples that can be asked for by prompt: where each stands, and the group."""
    by_prompt: dict[str, tuple[list[int], list[dict[str, str]], list[CompletionText]]] = {}
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        messages, text = _messages(prompt), _text(completion)
        if messages is None or text is None:
            continue
        key = json.dumps(messages, sort_keys=True)
        where, _, texts = by_prompt.setdefault(key, ([], messages, []))
        where.append(index)
        texts.append(CompletionText(text, finished[index]))
    asked = list(by_prompt.values())
    return [where for where, _, _ in asked], [Group(messages, texts) for _, messages, texts in asked]


def _messages(prompt: str | RoundRobinLock) -> list[dict[str, str]] | None:
    """A prompt as messages; None where a turn is more than text."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not all(isinstance(turn.get("content"), str) for turn in prompt):
        return None
    return [{"role": turn["role"], "content": turn["content"]} for turn in prompt]


def _text(completion: str | RoundRobinLock) -> str | None:
    """The text of a completion; None where it is more than one assistant turn of text."""
    if isinstance(completion, str):
        return completion
    content = completion[0].get("content") if len(completion) == 1 else None
    return content if isinstance(content, str) else None

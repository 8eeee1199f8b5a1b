"""A reward function for TRL: f(prompts, completions, completion_ids, **columns) -> list[float | None].

    with RewardClient("localhost:50051") as client:
        trainer = GRPOTrainer(model, reward_funcs=reward_function(client), ...)

TRL passes a list of samples; those of one prompt are scored as one group. A completion that cannot be scored gets None,
which TRL leaves out of its means. If the prompt is invalid, which is a mistake in the data set, the log warns too.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reward_server.client import CompletionText, Group, RewardClient, RewardOptions, ScoredGroup
from winnow.conversations import trainer_messages

RewardFunction = Callable[..., list[float | None]]
Messages = Sequence[Mapping[str, Any]]

log = logging.getLogger(__name__)


@dataclass
class _Samples:
    """The samples of one prompt: their indices in TRL's lists, and their completions."""

    messages: list[dict[str, str]]
    indices: list[int] = field(default_factory=list)
    completions: list[CompletionText] = field(default_factory=list)


def reward_function(
    client: RewardClient,
    options: RewardOptions | None = None,
    *,
    eos_token_id: int | None = None,
    name: str = "winnow_reward",
    **keywords: Any,
) -> RewardFunction:
    """Return a reward function for TRL's trainers, which log it under `name`.

    `keywords` change the options. With the policy's `eos_token_id`, completions that do not end in it count as cut (EOS
    policy if_finished); without it, all count as finished. Raises UsageError; the function itself raises UsageError for
    a malformed prompt, and as `RewardClient.score_many` does.
    """
    chosen = (options or RewardOptions()).replace(**keywords)

    def score(
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        ids = completion_ids or [()] * len(completions)
        is_finished = [eos_token_id is None or eos_token_id in token_ids[-1:] for token_ids in ids]
        samples_by_prompt = _group_by_prompt(prompts, completions, is_finished)
        groups = [Group(samples.messages, samples.completions) for samples in samples_by_prompt]
        rewards: list[float | None] = [None] * len(prompts)
        for samples, scored_group in zip(samples_by_prompt, client.score_many(groups, chosen), strict=True):
            _warn_of_invalid_prompt(scored_group)
            for index, scored in zip(samples.indices, scored_group, strict=True):
                rewards[index] = scored.reward
        return rewards

    score.__name__ = name
    return score


def _group_by_prompt(
    prompts: Sequence[str | Messages], completions: Sequence[str | Messages], is_finished: Sequence[bool]
) -> list[_Samples]:
    """Group the samples that can be scored by prompt, in order of first appearance. Raises UsageError."""
    by_prompt: dict[str, _Samples] = {}
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        text = _text(completion)
        if text is None or _holds_more_than_text(prompt):
            continue
        messages = trainer_messages(prompt, f"prompts[{index}]")
        samples = by_prompt.setdefault(json.dumps(messages), _Samples(messages))
        samples.indices.append(index)
        samples.completions.append(CompletionText(text, is_finished[index]))
    return list(by_prompt.values())


def _holds_more_than_text(prompt: str | Messages) -> bool:
    """Return True if a turn of the prompt has another content than text, such as images or tool calls."""
    if isinstance(prompt, str):
        return False
    return any(isinstance(turn, Mapping) and not isinstance(turn.get("content"), str) for turn in prompt)


def _text(completion: str | Messages) -> str | None:
    """Return the text of a completion; None if it is more than one assistant turn of text."""
    if isinstance(completion, str):
        return completion
    if len(completion) != 1:
        return None
    content = completion[0].get("content")
    if not isinstance(content, str):
        return None
    return content


def _warn_of_invalid_prompt(scored_group: ScoredGroup) -> None:
    for scored in scored_group:
        if scored.is_invalid_prompt:
            log.warning("a prompt gets no rewards: %s; mend the data set", scored.error)
            return

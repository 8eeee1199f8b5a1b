"""A reward function for TRL: f(prompts, completions, completion_ids, **columns) -> list[float | None].

    with RewardClient("localhost:50051") as client:
        trainer = GRPOTrainer(model, reward_funcs=reward_function(client), ...)

TRL passes lists of prompts and completions; the completions of one prompt are scored as one group. A completion that
cannot be scored gets None, which TRL leaves out of its means. If a prompt is invalid, which is a mistake in the data
set, a warning is logged too.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reward_server.client import CompletionText, Group, RewardClient, RewardOptions, ScoredGroup
from reward_server.client.requests import merge_options
from winnow.conversations import trainer_messages

RewardFunction = Callable[..., list[float | None]]
Messages = Sequence[Mapping[str, Any]]

log = logging.getLogger(__name__)


@dataclass
class _PromptCompletions:
    """The completions of one prompt, and their indices in TRL's lists."""

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
    """Return a reward function for TRL's trainers, which log it under `name`. `keywords` change fields of `options`.

    With the policy's `eos_token_id`, a completion that does not end in it counts as cut short (EOS policy if_finished);
    without it, all completions count as finished. Raises UsageError for an invalid option. The function itself raises
    UsageError for a malformed prompt, and the errors of `RewardClient.score_many`.
    """
    chosen = merge_options(options, keywords)

    def score(
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        ids = completion_ids or [()] * len(completions)
        is_finished = [eos_token_id is None or eos_token_id in token_ids[-1:] for token_ids in ids]
        by_prompt = _group_by_prompt(prompts, completions, is_finished)
        groups = [Group(of_prompt.messages, of_prompt.completions) for of_prompt in by_prompt]
        rewards: list[float | None] = [None] * len(prompts)
        for of_prompt, scored_group in zip(by_prompt, client.score_many(groups, chosen), strict=True):
            _warn_of_invalid_prompt(scored_group)
            for index, scored in zip(of_prompt.indices, scored_group, strict=True):
                rewards[index] = scored.reward
        return rewards

    score.__name__ = name
    return score


def _group_by_prompt(
    prompts: Sequence[str | Messages], completions: Sequence[str | Messages], is_finished: Sequence[bool]
) -> list[_PromptCompletions]:
    """Group by prompt the completions that can be scored, in order of first appearance. Raises UsageError."""
    by_prompt: dict[str, _PromptCompletions] = {}
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        text = _text(completion)
        if text is None or _holds_more_than_text(prompt):
            continue
        messages = trainer_messages(prompt, f"prompts[{index}]")
        of_prompt = by_prompt.setdefault(json.dumps(messages), _PromptCompletions(messages))
        of_prompt.indices.append(index)
        of_prompt.completions.append(CompletionText(text, is_finished[index]))
    return list(by_prompt.values())


def _holds_more_than_text(prompt: str | Messages) -> bool:
    """Return True if a turn of the prompt has content other than text, such as images or tool calls."""
    if not isinstance(prompt, list | tuple):
        return False
    return any(isinstance(turn, Mapping) and not isinstance(turn.get("content"), str) for turn in prompt)


def _text(completion: str | Messages) -> str | None:
    """Return the text of a completion; None if it is not a single assistant turn of text."""
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
            log.warning("a prompt gets no rewards: %s; fix the data set", scored.error)
            return

"""Completions -> rewards through a reward server. A failed completion is a counted row and does not stop the round.

    Completion(prompt_id, completion_id, text, is_finished)  ->  Reward(prompt_id, completion_id, reward, ...)

Files of rows, for users who only score, are handled by reward_server/client/score_file.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from reward_server.client import CompletionText, Group, RewardClient, RewardOptions, ScoredCompletion
from winnow.records import OK, Completion, Prompt, Reward
from winnow.reward_options import RewardSpec
from winnow.run_config import RewardConfig


def score_completions(
    client: RewardClient, config: RewardConfig, prompts: Mapping[str, Prompt], completions: Sequence[Completion]
) -> Iterator[list[Reward]]:
    """Yield the rewards of each prompt's completions, in input order.

    The completions of one prompt must be consecutive. Raises ServerError if the server cannot be reached.
    """
    completions_by_prompt = [list(rows) for _, rows in groupby(completions, key=lambda row: row.prompt_id)]
    groups = (_group(prompts[rows[0].prompt_id], rows) for rows in completions_by_prompt)
    scored_groups = client.score_many(groups, reward_options(config))
    for rows, scored in zip(completions_by_prompt, scored_groups, strict=True):
        yield _reward_rows(rows, scored)


def reward_options(config: RewardConfig) -> RewardOptions:
    """Return the options of a score request that the config sets."""
    return RewardOptions(**{option: getattr(config, option) for option in RewardSpec.model_fields})


def _group(prompt: Prompt, completions: Sequence[Completion]) -> Group:
    """Return the prompt with the completions that can be scored."""
    texts = [CompletionText(row.text, row.is_finished) for row in completions if row.status == OK]
    return Group(prompt.messages, texts)


def _reward_rows(completions: Sequence[Completion], scored: Sequence[ScoredCompletion]) -> list[Reward]:
    """Return one row per completion; `scored` has one item per completion whose status is ok, in the same order."""
    remaining = iter(scored)
    rewards = []
    for row in completions:
        if row.status == OK:
            rewards.append(_reward(row, next(remaining)))
        else:
            failed = Reward(
                prompt_id=row.prompt_id, completion_id=row.completion_id, status=row.status, error=row.error
            )
            rewards.append(failed)
    return rewards


def _reward(row: Completion, scored: ScoredCompletion) -> Reward:
    return Reward(
        prompt_id=row.prompt_id,
        completion_id=row.completion_id,
        status=scored.status,
        error=scored.error,
        reward=scored.reward,
        instruct_logp=scored.instruct_logp,
        base_logp=scored.base_logp,
        num_tokens=scored.num_tokens,
        normalization=scored.normalization,
        is_truncated=not row.is_finished,
        is_eos_scored=scored.is_eos_scored,
    )

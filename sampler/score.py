"""Completions -> rewards through a reward server. A failure is a counted row, not a crash.

    Completion(prompt_id, completion_id, text, is_finished)  ->  Reward(prompt_id, completion_id, reward, ...)

Files of rows, for those who only score, are in reward_server/client/score_file.py.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from reward_server.client import CompletionText, Group, RewardClient, RewardOptions, ScoredCompletion
from winnow.records import OK, Completion, Message, Prompt, Reward
from winnow.run_config import RewardConfig


def score_completions(
    client: RewardClient, config: RewardConfig, prompts: Mapping[str, Prompt], completions: Sequence[Completion]
) -> Iterator[list[Reward]]:
    """The rewards of each prompt's completions, in input order; completions of one prompt stand together."""
    groups = [list(rows) for _, rows in groupby(completions, key=lambda row: row.prompt_id)]
    asked = (_ask(prompts[group[0].prompt_id].messages, group) for group in groups)
    for group, scored in zip(groups, client.score_many(asked, reward_options(config)), strict=True):
        yield _in_order(group, scored)


def reward_options(config: RewardConfig) -> RewardOptions:
    """The options of a score request that the config sets."""
    shared = RewardOptions.__dataclass_fields__.keys() & RewardConfig.model_fields.keys()
    return RewardOptions(**{name: getattr(config, name) for name in shared})


def _ask(messages: Sequence[Message], completions: Iterable[Completion]) -> Group:
    texts = [CompletionText(row.text, row.is_finished) for row in completions if row.status == OK]
    return Group([message.model_dump() for message in messages], texts)


def _in_order(completions: Sequence[Completion], scored: Sequence[ScoredCompletion]) -> list[Reward]:
    answers = iter(scored)
    return [_reward(row, next(answers)) if row.status == OK else _unscored(row) for row in completions]


def _unscored(row: Completion) -> Reward:
    return Reward(prompt_id=row.prompt_id, completion_id=row.completion_id, status=row.status, error=row.error)


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

"""Completions -> rewards through a reward server. A failure is a counted row, not a crash.

    Completion(prompt_id, completion_id, text, is_finished)  ->  Reward(prompt_id, completion_id, reward, ...)

Files of rows, for those who only score:

    in   {"messages": [...] or "prompt": "...", "completions": ["...", ...], ...anything else is kept}
    out  the same row with "rewards": [{"reward", "instruct_logp", "base_logp", "num_tokens", "status", ...}, ...]
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from reward_server.client import CompletionText, Group, RewardClient, ScoredCompletion
from sampler.prompts import parse_prompt
from winnow.config import RewardConfig
from winnow.errors import InputError
from winnow.progress import progress
from winnow.records import OK, Completion, Message, Prompt, Reward
from winnow.rows import read_jsonl, write_jsonl


def score_completions(
    client: RewardClient, config: RewardConfig, prompts: Mapping[str, Prompt], completions: Sequence[Completion]
) -> Iterator[list[Reward]]:
    """The rewards of each prompt's completions, in input order; completions of one prompt stand together."""
    groups = [list(rows) for _, rows in groupby(completions, key=lambda row: row.prompt_id)]
    asked = [_ask(prompts[group[0].prompt_id].messages, group) for group in groups]
    for group, scored in zip(groups, _score_groups(client, asked, config), strict=True):
        yield _in_order(group, scored)


def reward_options(config: RewardConfig) -> dict[str, Any]:
    """The options of a score request that the config sets."""
    return {
        "normalization": config.normalization,
        "beta": config.beta,
        "eos_policy": config.eos_policy,
        "is_reference_free": config.is_reference_free,
    }


def score_file(address: str, in_path: Path, out_path: Path, config: RewardConfig) -> dict[str, int]:
    """Score every row of a JSONL file; the counts of statuses. Raises InputError for a malformed row."""
    rows = [(row, _group_of(row, f"{in_path} line {number}")) for number, row in read_jsonl(in_path)]
    counts: dict[str, int] = {}
    scored_rows = []
    with (
        RewardClient(address, timeout_s=config.timeout_s) as client,
        progress("score", len(rows), "prompts") as advance,
    ):
        answers = _score_groups(client, [group for _, group in rows], config)
        for (row, _), scored in zip(rows, answers, strict=True):
            scored_rows.append({**row, "rewards": [asdict(one) for one in scored]})
            for one in scored:
                counts[one.status] = counts.get(one.status, 0) + 1
            advance()
    write_jsonl(out_path, scored_rows)
    return counts


def _score_groups(
    client: RewardClient, groups: Sequence[Group], config: RewardConfig
) -> Iterator[Sequence[ScoredCompletion]]:
    """The scores of every group; one with no completion to score is not sent, and has none."""
    answers = client.score_many((group for group in groups if group.completions), **reward_options(config))
    for group in groups:
        yield next(answers) if group.completions else []


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


def _group_of(row: dict[str, Any], where: str) -> Group:
    completions = row.get("completions")
    if not isinstance(completions, list) or not all(isinstance(text, str) for text in completions):
        raise InputError(f"{where}: 'completions' should be a list of texts")
    prompt = parse_prompt(row, "scored", where)
    return Group([message.model_dump() for message in prompt.messages], completions)

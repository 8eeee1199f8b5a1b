"""Completions with gold scores -> rewards and gold scores by prompt, for the best-of-N audit.

    {"prompt" or "messages": ..., "completions": ["...", ...], "gold_scores": [0.5, null, ...]}

A gold score is a number, the higher the better, or null if there is none. "rewards" may be present, as numbers or null,
or as `winnow score` writes them; then no server is needed. Either every row has them or none.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.reward_audit.best_of_n import GoldGroup
from winnow.conversations import parse_conversation
from winnow.errors import InputError
from winnow.records import OK
from winnow.rows import kind_of, read_jsonl

NO_GOLD_SCORE = "no gold score"
NO_REWARD = "no reward"


@dataclass(frozen=True)
class GoldRow:
    """The gold scores of a prompt's completions, and their rewards and statuses; None if the row has no rewards."""

    location: str
    golds: tuple[float | None, ...]
    rewards: tuple[float | None, ...] | None
    statuses: tuple[str, ...] | None


@dataclass(frozen=True)
class GoldGroups:
    """The prompts with a completion that counts, the completions left out by reason, and the prompts left out."""

    groups: tuple[GoldGroup, ...]
    left_out: dict[str, int]
    num_empty_prompts: int


def read_gold_rows(path: Path) -> list[GoldRow]:
    """Return the rows of a file. Raises InputError with file and line; UsageError for a file that cannot be read."""
    rows: list[GoldRow] = []
    for line_number, row in read_jsonl(path):
        rows.append(_gold_row(row, f"{path} line {line_number}"))
        if (rows[0].rewards is None) != (rows[-1].rewards is None):
            raise InputError(
                f"{rows[-1].location}: some rows have 'rewards' and others have none; take them out of all rows, so "
                "that the server computes them, or give them in all"
            )
    if not rows:
        raise InputError(f"{path} holds no completions; give rows with 'completions' and 'gold_scores'")
    return rows


def gold_groups(rows: Iterable[GoldRow]) -> GoldGroups:
    """Return the completions that have both a reward and a gold score, by prompt. Rows without rewards have none."""
    groups: list[GoldGroup] = []
    left_out: Counter[str] = Counter()
    num_empty_prompts = 0
    for row in rows:
        rewards: list[float] = []
        golds: list[float] = []
        for gold, reward, status in zip(row.golds, row.rewards or (), row.statuses or (), strict=True):
            if reward is None:
                left_out[status] += 1
            elif gold is None:
                left_out[NO_GOLD_SCORE] += 1
            else:
                rewards.append(reward)
                golds.append(gold)
        if rewards:
            groups.append(GoldGroup(tuple(rewards), tuple(golds)))
        else:
            num_empty_prompts += 1
    return GoldGroups(tuple(groups), dict(sorted(left_out.items())), num_empty_prompts)


def _gold_row(row: dict[str, Any], location: str) -> GoldRow:
    completions = row.get("completions")
    if not isinstance(completions, list):
        raise InputError(f"{location}: 'completions' is {_kind(row, 'completions')}, should be a list of texts")
    for index, completion in enumerate(completions):
        if not isinstance(completion, str):
            raise InputError(f"{location}: completions[{index}] is {kind_of(completion)}, should be a text")
    golds = _numbers(row, "gold_scores", len(completions), location)
    if "rewards" not in row:
        parse_conversation(row, location)  # raises for a prompt that the server would refuse later
        return GoldRow(location, golds, None, None)
    if isinstance(row["rewards"], list) and any(isinstance(reward, dict) for reward in row["rewards"]):
        return _row_of_winnow_score(row, golds, location)
    rewards = _numbers(row, "rewards", len(completions), location)
    return GoldRow(location, golds, rewards, tuple(NO_REWARD if reward is None else OK for reward in rewards))


def _row_of_winnow_score(row: dict[str, Any], golds: tuple[float | None, ...], location: str) -> GoldRow:
    """Return a row whose rewards are objects. Raises InputError."""
    statuses: list[str] = []
    values: list[Any] = []
    for index, reward in enumerate(row["rewards"]):
        if not isinstance(reward, dict) or "reward" not in reward:
            raise InputError(f"{location}: rewards[{index}] has no 'reward'; give the rewards as `winnow score` does")
        values.append(reward["reward"])
        statuses.append(str(reward.get("status", NO_REWARD)))
    rewards = _numbers({"rewards": values}, "rewards", len(golds), location)
    return GoldRow(location, golds, rewards, tuple(statuses))


def _numbers(row: dict[str, Any], key: str, num_completions: int, location: str) -> tuple[float | None, ...]:
    """Return a list of numbers or null, of which each completion has one. Raises InputError."""
    values = row.get(key)
    if not isinstance(values, list):
        raise InputError(
            f"{location}: {key!r} is {_kind(row, key)}, should be a list with a number for each completion"
        )
    if len(values) != num_completions:
        raise InputError(f"{location}: {len(values)} {key} for {num_completions} completions; give each of them one")
    for index, value in enumerate(values):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not is_number:
            raise InputError(f"{location}: {key}[{index}] is {kind_of(value)}, should be a number or null")
        if is_number and not math.isfinite(value):
            raise InputError(f"{location}: {key}[{index}] is {value}; write null if there is none")
    return tuple(values)


def _kind(row: dict[str, Any], key: str) -> str:
    return kind_of(row[key]) if key in row else "missing"

"""Scored pairs -> accuracy by subset, with intervals, and by length. Pure.

    right    reward(chosen) > reward(rejected)
    wrong    reward(chosen) < reward(rejected)
    tie      the rewards are equal
    failed   one of the two has no reward: its status is not "ok"

    accuracy = right / (right + wrong), with Wilson's interval

Ties and failed pairs are counted and in no accuracy. Length bias shows in the accuracy on the pairs whose chosen
completion is the shorter one: a reward that likes length is worse there than where it is the longer one.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from eval.statistics.intervals import Interval, wilson_interval
from winnow.records import OK

Outcome = Literal["right", "wrong", "tie", "failed"]
LENGTHS = ("chosen is shorter", "equal", "chosen is longer")


@dataclass(frozen=True)
class Side:
    """One completion of a pair: its reward, None unless `status` is "ok", and its length."""

    reward: float | None
    status: str
    num_chars: int
    num_tokens: int


@dataclass(frozen=True)
class ScoredPair:
    """A pair with the rewards of both completions."""

    subset: str
    chosen: Side
    rejected: Side

    @property
    def outcome(self) -> Outcome:
        """The outcome, as the module describes it."""
        if self.chosen.reward is None or self.rejected.reward is None:
            return "failed"
        if self.chosen.reward == self.rejected.reward:
            return "tie"
        return "right" if self.chosen.reward > self.rejected.reward else "wrong"


@dataclass(frozen=True)
class Accuracy:
    """The outcomes of some pairs."""

    num_right: int
    num_wrong: int
    num_ties: int
    num_failed: int

    @property
    def num_pairs(self) -> int:
        """The number of all pairs, failed ones included."""
        return self.num_right + self.num_wrong + self.num_ties + self.num_failed

    @property
    def accuracy(self) -> float | None:
        """Right among right and wrong; None without either."""
        num_decided = self.num_right + self.num_wrong
        return self.num_right / num_decided if num_decided else None

    @property
    def interval(self) -> Interval | None:
        """Wilson's 95 % interval of the accuracy; None without one."""
        num_decided = self.num_right + self.num_wrong
        return wilson_interval(self.num_right, num_decided) if num_decided else None

    @property
    def share_right(self) -> float:
        """Right among all pairs, as RewardBench counts: a tie is a loss, and so is a failed pair."""
        return self.num_right / self.num_pairs


def accuracy_of(pairs: Iterable[ScoredPair]) -> Accuracy:
    """Count the outcomes of pairs.

    >>> def side(reward): return Side(reward, "ok", 1, 1)
    >>> pairs = [ScoredPair("chat", side(2.0), side(1.0)), ScoredPair("chat", side(1.0), side(1.0))]
    >>> accuracy_of(pairs)
    Accuracy(num_right=1, num_wrong=0, num_ties=1, num_failed=0)
    """
    outcomes = Counter(pair.outcome for pair in pairs)
    return Accuracy(outcomes["right"], outcomes["wrong"], outcomes["tie"], outcomes["failed"])


def accuracy_by_subset(pairs: Iterable[ScoredPair]) -> dict[str, Accuracy]:
    """Return the accuracy on each subset, in the order of first occurrence."""
    return _by_key(pairs, lambda pair: pair.subset)


def accuracy_by_length(pairs: Iterable[ScoredPair], unit: Literal["characters", "tokens"]) -> dict[str, Accuracy]:
    """Return the accuracy where the chosen completion is shorter, as long, and longer. Failed pairs are left out.

    Tokens are the scored ones, in the instruct model's vocabulary.

    >>> short = Side(2.0, "ok", num_chars=2, num_tokens=1)
    >>> long = Side(1.0, "ok", num_chars=9, num_tokens=1)
    >>> pair = ScoredPair("chat", chosen=short, rejected=long)
    >>> accuracy_by_length([pair], "characters")["chosen is shorter"].num_right
    1
    """
    scored = [pair for pair in pairs if pair.outcome != "failed"]
    by_length = _by_key(scored, lambda pair: _length_name(pair, unit))
    nothing = Accuracy(0, 0, 0, 0)
    return {name: by_length.get(name, nothing) for name in LENGTHS}


def failed_statuses(pairs: Iterable[ScoredPair]) -> dict[str, int]:
    """Return the number of completions without a reward, by status."""
    statuses: Counter[str] = Counter()
    for pair in pairs:
        statuses.update(side.status for side in (pair.chosen, pair.rejected) if side.status != OK)
    return dict(sorted(statuses.items()))


def _by_key(pairs: Iterable[ScoredPair], key_of: Callable[[ScoredPair], str]) -> dict[str, Accuracy]:
    members: dict[str, list[ScoredPair]] = {}
    for pair in pairs:
        members.setdefault(key_of(pair), []).append(pair)
    return {key: accuracy_of(pairs_of_key) for key, pairs_of_key in members.items()}


def _length_name(pair: ScoredPair, unit: Literal["characters", "tokens"]) -> str:
    difference = pair.chosen.num_chars - pair.rejected.num_chars
    if unit == "tokens":
        difference = pair.chosen.num_tokens - pair.rejected.num_tokens
    if difference < 0:
        return LENGTHS[0]
    return LENGTHS[2] if difference else LENGTHS[1]

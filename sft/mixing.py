"""A phase's rows: its own, and a replay of earlier phases', shuffled. Pure: equal rows and seed give an equal order.

knowledge-1: a b c d    knowledge-2: e f    replay_fraction 0.5
rows of knowledge-2  =  e f (own)  +  2 of a b c d (replay, none twice)  =  f b e d

A replayed phase brings its own rows only, not those that it replayed itself, so that no row is drawn through two ways.
Where a row came from is written into its metadata: {"phase": "knowledge-1", "is_replay": true}.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from winnow.records import seed_from

Row = Mapping[str, Any]


def mix(
    phase: str, own: Sequence[Row], replayed: Mapping[str, Sequence[Row]], replay_fraction: float, seed: int
) -> list[Row]:
    """Rows of `phase`: all of `own` and `replay_fraction` of each replayed phase's rows, in an order set by `seed`."""
    rows = [labelled(row, phase, is_replay=False) for row in own]
    for name, buffer in replayed.items():
        drawn = draw(buffer, replay_fraction, seed_from(seed, phase, name))
        rows += [labelled(row, name, is_replay=True) for row in drawn]
    Random(seed_from(seed, phase)).shuffle(rows)
    return rows


def draw(rows: Sequence[Row], fraction: float, seed: int) -> list[Row]:
    """`fraction` of the rows, rounded to the nearest number, none twice."""
    return Random(seed).sample(list(rows), round(fraction * len(rows)))


def labelled(row: Row, phase: str, *, is_replay: bool) -> Row:
    """The row with the phase it belongs to in its metadata."""
    return {**row, "metadata": {**(row.get("metadata") or {}), "phase": phase, "is_replay": is_replay}}

"""The rows of a phase: its files' rows and a replay of earlier phases' rows, shuffled. Equal seeds give equal orders.

knowledge-1: a b c d    knowledge-2: e f    replay_fraction 0.5
rows of knowledge-2  =  e f (new)  +  2 of a b c d (replay, none twice)  =  f b e d

A replayed phase contributes only the rows of its files, not the rows that it replayed itself, so that no row can be
drawn in two ways. The metadata of a row names the phase it came from: {"phase": "knowledge-1", "is_replay": true}.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from winnow.records import seed_from

TrainingRow = Mapping[str, Any]


def mix(
    phase: str,
    new_rows: Sequence[TrainingRow],
    replayed: Mapping[str, Sequence[TrainingRow]],
    replay_fraction: float,
    seed: int,
) -> list[TrainingRow]:
    """Return all of `new_rows` and `replay_fraction` of each replayed phase's rows, in an order set by `seed`."""
    rows = [label_row(row, phase, is_replay=False) for row in new_rows]
    for name, earlier_rows in replayed.items():
        drawn = draw_rows(earlier_rows, replay_fraction, seed_from(seed, phase, name))
        rows += [label_row(row, name, is_replay=True) for row in drawn]
    Random(seed_from(seed, phase)).shuffle(rows)
    return rows


def draw_rows(rows: Sequence[TrainingRow], fraction: float, seed: int) -> list[TrainingRow]:
    """Draw `fraction` of the rows, rounded to the nearest number, none twice."""
    return Random(seed).sample(list(rows), round(fraction * len(rows)))


def label_row(row: TrainingRow, phase: str, *, is_replay: bool) -> TrainingRow:
    """Return a copy of the row whose metadata names the phase it came from."""
    metadata = {**(row.get("metadata") or {}), "phase": phase, "is_replay": is_replay}
    return {**row, "metadata": metadata}

"""Ledger: an entry is written when its piece is finished, and lines that were cut short are ignored."""

from pathlib import Path

import pytest

from winnow.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def finish(ledger: Ledger, piece: str, inputs: str, **facts: int) -> None:
    with ledger.record(piece, inputs) as noted:
        noted.update(facts)


def pieces(ledger: Ledger) -> list[str]:
    return [entry["piece"] for entry in ledger.entries()]


def test_a_piece_is_finished_only_for_the_same_inputs(ledger: Ledger) -> None:
    assert not ledger.is_finished("round-01/select", "abc")
    assert ledger.inputs_of("round-01/select") is None
    finish(ledger, "round-01/select", "abc", num_selected=7)
    assert ledger.is_finished("round-01/select", "abc")
    assert not ledger.is_finished("round-01/select", "different inputs")
    entry = ledger.entry("round-01/select")
    assert entry is not None
    assert entry["num_selected"] == 7
    assert entry["seconds"] >= 0


def test_the_newest_entry_of_a_piece_counts(ledger: Ledger) -> None:
    finish(ledger, "piece", "old")
    finish(ledger, "piece", "new")
    assert ledger.is_finished("piece", "new")
    assert not ledger.is_finished("piece", "old")


def test_failed_work_leaves_no_entry(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError), ledger.record("piece", "x"):
        raise RuntimeError
    assert ledger.entries() == []


def test_a_line_that_a_kill_cut_short_is_ignored(ledger: Ledger) -> None:
    finish(ledger, "first", "x")
    with ledger.path.open("a") as file:
        file.write('{"piece": "second", "inp')
    assert pieces(ledger) == ["first"]
    finish(ledger, "third", "x")
    assert pieces(ledger) == ["first", "third"]

"""The ledger: lines written last, torn lines ignored."""

from pathlib import Path

import pytest

from winnow.ledger import Ledger


def finish(ledger: Ledger, piece: str, inputs: str, **facts: int) -> None:
    with ledger.record(piece, inputs) as noted:
        noted.update(facts)


def test_a_finished_piece_is_known_by_its_inputs(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert not ledger.is_finished("round-01/select", "abc")
    finish(ledger, "round-01/select", "abc", num_selected=7)
    assert ledger.is_finished("round-01/select", "abc")
    assert not ledger.is_finished("round-01/select", "other inputs")
    line = ledger.line("round-01/select")
    assert line is not None
    assert line["num_selected"] == 7
    assert line["seconds"] >= 0


def test_the_newest_line_of_a_piece_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    finish(ledger, "piece", "old")
    finish(ledger, "piece", "new")
    assert ledger.is_finished("piece", "new")
    assert not ledger.is_finished("piece", "old")


def test_failed_work_leaves_no_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(RuntimeError), ledger.record("piece", "x"):
        raise RuntimeError
    assert ledger.lines() == []


def test_a_line_that_a_kill_cut_short_was_never_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    finish(ledger, "first", "x")
    with ledger.path.open("a") as file:
        file.write('{"piece": "second", "inp')
    assert [line["piece"] for line in ledger.lines()] == ["first"]
    finish(ledger, "third", "x")
    assert [line["piece"] for line in ledger.lines()] == ["first", "third"]

"""A phase's rows: all of its own, a share of earlier phases', none twice, in an order that the seed sets."""

from collections import Counter
from typing import Any

from sft.mixing import mix


def rows(prefix: str, count: int, **metadata: Any) -> list[dict[str, Any]]:
    texts = [f"{prefix}{number}" for number in range(count)]
    return [{"messages": [{"role": "user", "content": text}], "metadata": {"text": text, **metadata}} for text in texts]


def texts_of(mixed: list[Any]) -> list[str]:
    return [row["metadata"]["text"] for row in mixed]


def test_the_worked_example() -> None:
    mixed = mix("knowledge-2", rows("long", 2), {"knowledge-1": rows("short", 4)}, 0.5, seed=0)
    phases = Counter((row["metadata"]["phase"], row["metadata"]["is_replay"]) for row in mixed)
    assert phases == {("knowledge-2", False): 2, ("knowledge-1", True): 2}
    assert len(set(texts_of(mixed))) == 4


def test_a_full_replay_holds_every_row_of_every_replayed_phase_once() -> None:
    own, first, second = rows("own", 5), rows("first", 7), rows("second", 3)
    mixed = mix("skills", own, {"knowledge-1": first, "knowledge-2": second}, 1.0, seed=4)
    assert sorted(texts_of(mixed)) == sorted(texts_of([*own, *first, *second]))


def test_no_replay_and_an_empty_one_leave_the_phase_its_own_rows() -> None:
    own = rows("own", 5)
    assert sorted(texts_of(mix("skills", own, {}, 1.0, seed=4))) == texts_of(own)
    assert sorted(texts_of(mix("skills", own, {"knowledge-1": rows("first", 9)}, 0.0, seed=4))) == texts_of(own)


def test_equal_seeds_give_equal_orders_and_draws_and_others_differ() -> None:
    own, buffer = rows("own", 40), {"knowledge-1": rows("first", 40)}
    first = mix("skills", own, buffer, 0.25, seed=1)
    assert mix("skills", own, buffer, 0.25, seed=1) == first
    other = mix("skills", own, buffer, 0.25, seed=2)
    assert set(texts_of(other)) != set(texts_of(first))
    assert texts_of(first) != sorted(texts_of(first))


def test_rows_keep_their_own_metadata_and_are_not_changed_in_place() -> None:
    own = rows("own", 3, leaf="island/orrel")
    mixed = mix("skills", own, {}, 1.0, seed=0)
    assert all(row["metadata"]["leaf"] == "island/orrel" for row in mixed)
    assert all("phase" not in row["metadata"] for row in own)


def test_rows_without_metadata_get_some() -> None:
    assert mix("skills", [{"messages": []}], {}, 1.0, seed=0)[0]["metadata"] == {"phase": "skills", "is_replay": False}

"""`mix`: all rows of a phase and a share of earlier phases' rows, none twice, in an order that the seed sets."""

from collections import Counter
from typing import Any

from sft.mixing import mix


def rows(prefix: str, count: int, **metadata: Any) -> list[dict[str, Any]]:
    texts = [f"{prefix}{number}" for number in range(count)]
    return [{"messages": [{"role": "user", "content": text}], "metadata": {"text": text, **metadata}} for text in texts]


def texts_of(mixed: list[Any]) -> list[str]:
    return [row["metadata"]["text"] for row in mixed]


def test_mix_of_the_worked_example() -> None:
    mixed = mix("knowledge-2", rows("long", 2), {"knowledge-1": rows("short", 4)}, 0.5, seed=0)
    phases = Counter((row["metadata"]["phase"], row["metadata"]["is_replay"]) for row in mixed)
    assert phases == {("knowledge-2", False): 2, ("knowledge-1", True): 2}
    assert len(set(texts_of(mixed))) == 4


def test_a_full_replay_holds_every_row_of_every_replayed_phase_once() -> None:
    new = rows("new", 5)
    first = rows("first", 7)
    second = rows("second", 3)
    mixed = mix("skills", new, {"knowledge-1": first, "knowledge-2": second}, 1.0, seed=4)
    assert sorted(texts_of(mixed)) == sorted(texts_of([*new, *first, *second]))


def test_without_a_replay_or_with_an_empty_one_a_phase_has_only_its_new_rows() -> None:
    new = rows("new", 5)
    assert sorted(texts_of(mix("skills", new, {}, 1.0, seed=4))) == texts_of(new)
    assert sorted(texts_of(mix("skills", new, {"knowledge-1": rows("first", 9)}, 0.0, seed=4))) == texts_of(new)


def test_equal_seeds_give_equal_orders_and_draws_and_different_seeds_do_not() -> None:
    new = rows("new", 40)
    replayed = {"knowledge-1": rows("first", 40)}
    seed_1 = mix("skills", new, replayed, 0.25, seed=1)
    assert mix("skills", new, replayed, 0.25, seed=1) == seed_1
    seed_2 = mix("skills", new, replayed, 0.25, seed=2)
    assert set(texts_of(seed_2)) != set(texts_of(seed_1))
    assert texts_of(seed_1) != sorted(texts_of(seed_1))


def test_rows_keep_their_metadata_and_are_not_changed_in_place() -> None:
    new = rows("new", 3, leaf="island/orrel")
    mixed = mix("skills", new, {}, 1.0, seed=0)
    assert all(row["metadata"]["leaf"] == "island/orrel" for row in mixed)
    assert all("phase" not in row["metadata"] for row in new)


def test_rows_without_metadata_get_some() -> None:
    assert mix("skills", [{"messages": []}], {}, 1.0, seed=0)[0]["metadata"] == {"phase": "skills", "is_replay": False}

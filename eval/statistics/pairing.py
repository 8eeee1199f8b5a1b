"""Two results by item -> their differences by item.

    difference(item) = later(item) - earlier(item)

A paired comparison removes the spread between items, which both results share (Miller, arXiv 2411.00640). Equal keys
may be paired: a key names the item's content and prompt, or question and turn.
"""

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar

from winnow.errors import WinnowError

Key = TypeVar("Key", bound=Hashable)

NUM_SHOWN = 3


def paired_differences(
    earlier: Mapping[Key, float], later: Mapping[Key, float], names: tuple[str, str] = ("the first", "the second")
) -> dict[Key, float]:
    """Return later minus earlier for each item, in the order of `earlier`.

    Raises WinnowError if the keys differ, with the keys that are in one result alone, and for a value that is not
    finite.

    >>> paired_differences({"a": 1.0, "b": 0.0}, {"b": 1.0, "a": 1.0})
    {'a': 0.0, 'b': 1.0}
    """
    if earlier.keys() != later.keys():
        raise WinnowError(
            f"{names[0]} and {names[1]} have different items or prompts, so they cannot be paired: "
            f"{_excess(names[0], earlier, later)}; {_excess(names[1], later, earlier)}; evaluate both on the same data"
        )
    return shared_differences(earlier, later, names)


def shared_differences(
    earlier: Mapping[Key, float], later: Mapping[Key, float], names: tuple[str, str] = ("the first", "the second")
) -> dict[Key, float]:
    """Return later minus earlier for the items that both have; the caller reports how many are left out.

    Raises WinnowError for a value that is not finite.

    >>> shared_differences({"a": 1.0, "b": 0.0}, {"b": 1.0, "c": 1.0})
    {'b': 1.0}
    """
    differences: dict[Key, float] = {}
    for key in earlier:
        if key in later:
            for name, value in zip(names, (earlier[key], later[key]), strict=True):
                if not math.isfinite(value):
                    raise WinnowError(f"{name}: the value of {key!r} is {value}; evaluate that item again")
            differences[key] = later[key] - earlier[key]
    return differences


def _excess(name: str, keys: Iterable[Hashable], known: Mapping[Any, float]) -> str:
    """Describe the keys that only one result has."""
    excess = [key for key in keys if key not in known]
    if not excess:
        return f"{name} alone has none"
    shown = ", ".join(repr(key) for key in excess[:NUM_SHOWN])
    rest = f" and {len(excess) - NUM_SHOWN} more" if len(excess) > NUM_SHOWN else ""
    return f"{name} alone has {shown}{rest}"

"""Files of preference pairs -> pairs with subset and id. The rows are those of pair_rows.py.

    *.jsonl      an object in each line
    *.json       a list of objects, or an object in each line
    *.parquet    one row group after another

The subset of a pair is its row's "subset"; without one, the name of the file (LLMBar's natural.json: `natural`) or, if
that is `dataset.json`, of its folder. The test sets that RewardBench calls prior sets are files of their own, named
after the set: there the file's name counts, as in RewardBench.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.reward_audit.pair_rows import PairTexts, pair_of
from eval.reward_audit.rewardbench_sections import KNOWN_SUBSETS, PREF_SETS
from winnow.errors import InputError, UsageError
from winnow.rows import kind_of, parse_line, read_jsonl

# The ending of a Parquet file's name on the hub: shp-00000-of-00001.parquet.
SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class LocatedPair:
    """A pair with its subset, its id (None if the row has none) and its place for error messages."""

    location: str
    subset: str
    pair_id: str | None
    texts: PairTexts


def read_pairs(paths: Sequence[Path]) -> list[LocatedPair]:
    """Return the pairs of all files, in order.

    Raises InputError with file and line for the first malformed row, an id that a subset has twice, a subset that
    RewardBench does not have in a file of RewardBench's, and for an empty file; UsageError for a file that cannot be
    read.
    """
    pairs: list[LocatedPair] = []
    locations: dict[tuple[str, str], str] = {}
    for path in paths:
        pairs_of_file: list[LocatedPair] = []
        for location, row in read_rows(path):
            pair = LocatedPair(location, _subset(row, path, location), _pair_id(row, location), pair_of(row, location))
            _check_id(pair, locations)
            pairs_of_file.append(pair)
        if not pairs_of_file:
            raise InputError(f"{path} holds no pair; give a file of chosen and rejected completions")
        _check_subsets(pairs_of_file)
        pairs += pairs_of_file
    return pairs


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and object of each row. Raises UsageError, and InputError with file and line."""
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix == ".json" and _is_list(path):
        yield from _list_rows(path)
    else:
        for line_number, row in read_jsonl(path):
            yield f"{path} line {line_number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}; give the path of a Parquet file") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def _is_list(path: Path) -> bool:
    """Tell whether a JSON file begins with a list."""
    try:
        with path.open("rb") as file:
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give the path of a JSON file") from None


def _list_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (at byte {error.start}); save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} line {error.lineno}: not valid JSON ({error.msg} at column {error.colno})") from None
    for number, value in enumerate(values, start=1):
        location = f"{path} item {number}"
        # An item is checked as a line of JSONL is.
        yield location, parse_line(json.dumps(value), location)


def _subset(row: dict[str, Any], path: Path, location: str) -> str:
    """Return the subset of a row. Raises InputError for one that is not a text."""
    name = SHARD.sub("", path.stem)
    if name in PREF_SETS:
        return name
    subset = row.get("subset")
    if subset is None:
        return path.resolve().parent.name if name == "dataset" else name
    if not isinstance(subset, str) or not subset:
        raise InputError(f"{location}: subset is {subset!r}, should be a text")
    return subset


def _pair_id(row: dict[str, Any], location: str) -> str | None:
    """Return the id of a row as a text. Raises InputError for an id that is neither a text nor a whole number."""
    pair_id = row.get("id")
    if pair_id is None:
        return None
    if isinstance(pair_id, bool) or not isinstance(pair_id, str | int):
        raise InputError(f"{location}: id is {kind_of(pair_id)}, should be a text or a whole number")
    return str(pair_id)


def _check_id(pair: LocatedPair, locations: dict[tuple[str, str], str]) -> None:
    """Raise InputError if the pair's subset has had its id before; else remember it."""
    if pair.pair_id is None:
        return
    key = (pair.subset, pair.pair_id)
    if key in locations:
        raise InputError(
            f"{pair.location}: id {pair.pair_id!r} of subset {pair.subset!r} is in {locations[key]} already; a pair "
            "counts once: take one of them out, or give it another id"
        )
    locations[key] = pair.location


def _check_subsets(pairs: Sequence[LocatedPair]) -> None:
    """Raise InputError for a subset that RewardBench does not have, if the file has subsets of RewardBench's."""
    if not any(pair.subset in KNOWN_SUBSETS for pair in pairs):
        return
    for pair in pairs:
        if pair.subset in KNOWN_SUBSETS:
            continue
        similar = difflib.get_close_matches(pair.subset, KNOWN_SUBSETS, n=1)
        remedy = "put it into a file of its own, or correct it"
        if similar:
            remedy = f"did you mean {similar[0]!r}?"
        raise InputError(f"{pair.location}: RewardBench has no subset {pair.subset!r}; {remedy}")

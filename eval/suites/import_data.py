"""Benchmark data in the formats of its makers and of public copies -> a data folder laid out as the hub's.

    SOURCE/gsm8k/        test*.jsonl, train*.jsonl: question, answer
    SOURCE/mmlu/         test/SUBJECT_test.csv, dev/SUBJECT_dev.csv: question, four choices, answer 0-3 or A-D; with or
                         without a header
    SOURCE/arc/          test*.jsonl, train*.jsonl: id, question, choices {text, label}, answerKey
    SOURCE/hellaswag/    val*.jsonl, train*.jsonl: the original fields
    SOURCE/winogrande/   dev*.jsonl, train*.jsonl: sentence, option1, option2, answer; or the partial-scoring form
                         context_options, continuation, gold; dev-labels.lst, if present, must agree
    TARGET/org/name/     README.md, CONFIG/SPLIT.parquet, winnow-import.json: sources with hashes, and what was changed

Where the examples have no split, K rows of the items are set aside for them.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.suites.data_check import MARKER
from winnow.errors import InputError, UsageError
from winnow.rows import file_sha256, read_jsonl, write_json, write_text
from winnow.rundir import atomic_folder

Rows = list[dict[str, Any]]
MMLU_LETTERS = "ABCD"


@dataclass
class ImportedSet:
    """One data set: configuration -> split -> rows, the files that it was read from, and what was changed."""

    dataset: str
    splits: dict[str, dict[str, Rows]] = field(default_factory=dict)
    sources: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def read(self, folder: Path, pattern: str, parse: Callable[[Mapping[str, Any], str], dict[str, Any]]) -> Rows:
        """Read and parse the rows of the JSONL files that match a pattern."""
        rows: Rows = []
        for path in sorted(folder.glob(pattern)):
            self.sources.append(path)
            rows += [parse(row, f"{path}:{number}") for number, row in read_jsonl(path)]
        return rows


def import_data(source: Path, target: Path, shots_from_eval: int) -> list[ImportedSet]:
    """Bring the data sets of a folder into the hub's layout.

    Raises UsageError if the folder holds none of them, or the target exists; InputError names file and line.
    """
    importers = {"gsm8k": _gsm8k, "mmlu": _mmlu, "arc": _arc, "hellaswag": _hellaswag, "winogrande": _winogrande}
    if target.exists():
        raise UsageError(f"{target} exists; give another --output, or remove it")
    imported = [read(source / name) for name, read in importers.items() if (source / name).is_dir()]
    if not imported:
        raise UsageError(f"{source} holds none of the folders {', '.join(importers)}; give the folder that holds them")
    with atomic_folder(target) as folder:
        for data_set in imported:
            _set_shots_aside(data_set, shots_from_eval)
            _write(data_set, folder / data_set.dataset)
    return imported


def _gsm8k(folder: Path) -> ImportedSet:
    imported = ImportedSet("openai/gsm8k")

    def parse(row: Mapping[str, Any], location: str) -> dict[str, Any]:
        return _fields(row, ("question", "answer"), location)

    imported.splits["main"] = {split: imported.read(folder, f"{split}*.jsonl", parse) for split in ("train", "test")}
    return imported


def _arc(folder: Path) -> ImportedSet:
    imported = ImportedSet("allenai/ai2_arc")

    def parse(row: Mapping[str, Any], location: str) -> dict[str, Any]:
        return _fields(row, ("id", "question", "choices", "answerKey"), location)

    splits = {split: imported.read(folder, f"{split}*.jsonl", parse) for split in ("train", "test")}
    imported.splits["ARC-Challenge"] = splits
    return imported


def _hellaswag(folder: Path) -> ImportedSet:
    imported = ImportedSet("Rowan/hellaswag")

    def parse(row: Mapping[str, Any], location: str) -> dict[str, Any]:
        content = _fields(row, ("activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label"), location)
        return {**content, "label": str(content["label"])}

    train = imported.read(folder, "*train*.jsonl", parse)
    imported.splits["default"] = {"train": train, "validation": imported.read(folder, "*val*.jsonl", parse)}
    return imported


def _winogrande(folder: Path) -> ImportedSet:
    imported = ImportedSet("allenai/winogrande")
    train = imported.read(folder, "*train*.jsonl", _winogrande_row)
    items = imported.read(folder, "*dev*.jsonl", _winogrande_row)
    imported.splits["winogrande_xl"] = {"train": train, "validation": items}
    partial = [row for row in [*train, *items] if row.pop("is_converted")]
    if partial:
        imported.notes.append(f"{len(partial)} rows of winogrande were converted from the partial-scoring form")
    labels = folder / "dev-labels.lst"
    if labels.is_file():
        imported.sources.append(labels)
        _check_labels(items, labels)
    return imported


def _winogrande_row(row: Mapping[str, Any], location: str) -> dict[str, Any]:
    """Return a row in the original form; the longest beginning that both contexts share comes before the blank."""
    if "context_options" not in row:
        return {**_fields(row, ("sentence", "option1", "option2", "answer"), location), "is_converted": False}
    content = _fields(row, ("context_options", "continuation", "gold"), location)
    first, second = content["context_options"]
    beginning = _shared_words(first, second)
    return {
        "sentence": f"{beginning}_ {content['continuation']}",
        "option1": first.removeprefix(beginning),
        "option2": second.removeprefix(beginning),
        "answer": str(content["gold"] + 1),
        "is_converted": True,
    }


def _shared_words(first: str, second: str) -> str:
    """Return the words with which both texts begin, without the last word of either."""
    shared = ""
    for word, twin in zip(first.split(" ")[:-1], second.split(" ")[:-1], strict=False):
        if word != twin:
            break
        shared += f"{word} "
    return shared


def _check_labels(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Raise InputError unless the official labels are those of the rows, in their order."""
    labels = path.read_text().split()
    if len(labels) != len(rows):
        raise InputError(f"{path}: {len(labels)} labels for {len(rows)} rows; take both files from one source")
    for number, (label, row) in enumerate(zip(labels, rows, strict=True), start=1):
        if label != row["answer"]:
            raise InputError(f"{path}:{number}: the label is {label}, the row's answer {row['answer']}; correct one")


def _mmlu(folder: Path) -> ImportedSet:
    imported = ImportedSet("cais/mmlu")
    for split in ("dev", "test"):
        for path in sorted((folder / split).glob("*.csv")):
            subject = path.stem.removesuffix(f"_{split}")
            imported.sources.append(path)
            imported.splits.setdefault(subject, {})[split] = list(_mmlu_rows(path, subject))
    return imported


def _mmlu_rows(path: Path, subject: str) -> Iterator[dict[str, Any]]:
    with path.open(newline="") as file:
        for number, cells in enumerate(csv.reader(file), start=1):
            if number == 1 and cells[:1] == ["question"]:
                continue
            answer = cells[-1].strip() if cells else ""
            if len(cells) != 6 or answer not in (*"0123", *MMLU_LETTERS):
                raise InputError(
                    f"{path}:{number}: {len(cells)} cells that end in {answer!r}; a row has a question, four choices "
                    "and the answer, 0 to 3 or A to D"
                )
            index = MMLU_LETTERS.find(answer) if answer in MMLU_LETTERS else int(answer)
            yield {"question": cells[0], "subject": subject, "choices": cells[1:5], "answer": index}


def _fields(row: Mapping[str, Any], names: Sequence[str], location: str) -> dict[str, Any]:
    """Return the named fields of a row. Raises InputError if one is missing."""
    missing = [name for name in names if name not in row]
    if missing:
        raise InputError(f"{location}: the field {missing[0]!r} is missing; it has {', '.join(row)}")
    return {name: row[name] for name in names}


def _set_shots_aside(imported: ImportedSet, num_shots: int) -> None:
    """Move the first rows of the items to `train`, where there are no rows for examples."""
    for config, splits in imported.splits.items():
        items = next((split for split in ("test", "validation") if split in splits), None)
        if num_shots == 0 or items is None or splits.get("train", True) or "dev" in splits:
            continue
        rows = splits[items]
        if len(rows) <= num_shots:
            raise UsageError(
                f"{imported.dataset} {config}: {num_shots} rows cannot be set aside of {len(rows)}; lower "
                "--shots-from-eval"
            )
        splits["train"] = rows[:num_shots]
        splits[items] = rows[num_shots:]
        imported.notes.append(f"{num_shots} rows of {items} serve as {config}'s train")


def _write(imported: ImportedSet, folder: Path) -> None:
    """Write the rows of a data set, the README.md that names their files, and where they come from."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = ["---", "configs:"]
    for config, splits in sorted(imported.splits.items()):
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            if rows:
                (folder / config).mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.Table.from_pylist(rows), folder / config / f"{split}.parquet")
                lines += [f"  - split: {split}", f"    path: {config}/{split}.parquet"]
    write_text(folder / "README.md", "\n".join([*lines, "---", ""]))
    sources = [[path.name, file_sha256(path)] for path in imported.sources]
    write_json(folder / MARKER, {"sources": sources, "notes": imported.notes})


def describe(imported: ImportedSet) -> str:
    """Return one line that says what was imported."""
    counts: dict[str, int] = {}
    for splits in imported.splits.values():
        for split, rows in splits.items():
            counts[split] = counts.get(split, 0) + len(rows)
    shown = ", ".join(f"{split} {count}" for split, count in counts.items())
    return "; ".join([f"{imported.dataset}: {shown}", *imported.notes])

"""The files that decide a benchmark: what of a task folder, its includes and its data is hashed, and what is not."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from eval.task_files import benchmark_inputs, data_files
from winnow.errors import InputError
from winnow.run_config import BenchmarkConfig, EvaluationConfig

BENCHMARKS = (BenchmarkConfig(task="sums", metric="acc,none"),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with tasks/, and data beside it that the tasks may name."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "set" / "part").mkdir(parents=True)
    for name in ("data.jsonl", "more.jsonl", "set/train.parquet", "set/part/test.parquet", "set/.hidden"):
        (tmp_path / name).write_text(name)
    return tmp_path


def hashes(folder: Path) -> list[list[str]]:
    return benchmark_inputs(EvaluationConfig(task_dir=str(folder / "tasks"), benchmarks=BENCHMARKS))


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("dataset_path: json\ndataset_kwargs: {{data_files: {{test: {0}/data.jsonl}}}}\n", ["data.jsonl"]),
        ("dataset_path: json\ndataset_kwargs: {{data_files: '{0}/*.jsonl'}}\n", ["data.jsonl", "more.jsonl"]),
        ("dataset_kwargs: {{data_dir: {0}, data_files: [more.jsonl]}}\n", ["more.jsonl"]),
        ("dataset_kwargs: {{data_dir: {0}/set}}\n", ["set/part/test.parquet", "set/train.parquet"]),
        ("dataset_path: {0}/set\n", ["set/part/test.parquet", "set/train.parquet"]),
        ("group: all\ntask: [{{task: a, dataset_path: {0}/set/part}}]\n", ["set/part/test.parquet"]),
        ("dataset_path: org/name\n", []),
    ],
)
def test_the_data_that_a_task_names_is_hashed(folder: Path, task: str, names: list[str]) -> None:
    path = folder / "tasks" / "sums.yaml"
    path.write_text(task.format(folder))
    assert data_files(folder / "tasks") == sorted([path, *(folder / name for name in names)])
    before = hashes(folder)
    for name in names:
        (folder / name).write_text("changed")
        assert hashes(folder) != before
        before = hashes(folder)


def include_template(folder: Path) -> Path:
    """Name the data in a template without a suffix, as MMLU's tasks do."""
    (folder / "tasks" / "_template_yaml").write_text(f"dataset_kwargs: {{data_files: {folder}/data.jsonl}}\n")
    (folder / "tasks" / "sums.yaml").write_text("task: sums\ninclude: _template_yaml\n")
    return folder / "data.jsonl"


def include_from_elsewhere(folder: Path) -> Path:
    (folder / "base.yaml").write_text("process_docs: !function tools.clean\n")
    (folder / "tasks" / "sums.yaml").write_text("task: sums\ninclude: [../base.yaml]\n")
    return folder / "base.yaml"


def include_function(folder: Path) -> Path:
    include_from_elsewhere(folder)
    (folder / "tools.py").write_text("def clean(rows): return rows")
    return folder / "tools.py"


@pytest.mark.parametrize("include", [include_template, include_from_elsewhere, include_function])
def test_included_files_are_hashed_with_all_that_they_name(folder: Path, include: Callable[[Path], Path]) -> None:
    included = include(folder)
    before = hashes(folder)
    included.write_text(included.read_text() + "\n# changed")
    assert hashes(folder) != before


def test_compiled_code_is_not_hashed(folder: Path) -> None:
    (folder / "tasks" / "sums.yaml").write_text("task: sums\nprocess_docs: !function tools.clean\n")
    before = hashes(folder)
    (folder / "tasks" / "__pycache__").mkdir()
    (folder / "tasks" / "__pycache__" / "tools.cpython-311.pyc").write_bytes(b"compiled")
    assert hashes(folder) == before


def test_the_version_of_lm_eval_is_an_input() -> None:
    assert benchmark_inputs(EvaluationConfig(benchmarks=BENCHMARKS)) == [["lm_eval", version("lm_eval")]]
    assert benchmark_inputs(EvaluationConfig()) == []


def test_an_included_file_that_does_not_exist_is_an_error(folder: Path) -> None:
    (folder / "tasks" / "sums.yaml").write_text("task: sums\ninclude: lost.yaml\n")
    with pytest.raises(InputError, match=r"sums\.yaml: it includes lost\.yaml, which does not exist"):
        data_files(folder / "tasks")

"""The card suite against lm-eval's command line: the same numbers on real items of all five tasks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.compare.reading import ReadingOptions, read_result
from eval.compare.refusals import refusals
from eval.suites.definition import card_suite
from eval.suites.import_data import import_data
from eval.suites.run import SuiteRequest, read_results, run_suite
from tests.tiny_models import make_model

pytestmark = pytest.mark.usefixtures("_evaluation_resources")

NUM_ITEMS = 20
SUBJECTS = ("anatomy", "astronomy", "college_physics", "marketing", "virology")
TASKS = ("arc_challenge", "hellaswag", "winogrande", "gsm8k", *(f"mmlu_{subject}" for subject in SUBJECTS))


@pytest.fixture(scope="module")
def data(reference_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "hub"
    import_data(reference_data, folder, shots_from_eval=12)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model("llama", tmp_path_factory.mktemp("model"), max_position_embeddings=1536))


@pytest.fixture(scope="module")
def outputs(data: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Evaluate 20 items of four tasks, and of MMLU the first item of each subject."""
    folder = tmp_path_factory.mktemp("outputs")
    four = ("arc_challenge", "hellaswag", "winogrande", "gsm8k")
    return [
        run_suite(SuiteRequest(model, four, data, folder / "four", limit=NUM_ITEMS, dtype="float32")),
        run_suite(SuiteRequest(model, ("mmlu",), data, folder / "mmlu", limit=1, dtype="float32")),
    ]


@pytest.fixture(scope="module")
def of_command_line(data: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run lm-eval's command line on its own task files.

    In the data folder they read its data, because datasets prefers a folder of a data set's name to the hub.
    """
    folder = tmp_path_factory.mktemp("command_line")
    shots = {task.name: task.num_fewshot for task in card_suite().tasks}
    lines = [f"  - {{task: {task}, num_fewshot: {shots[suite_name(task)]}}}" for task in TASKS]
    (folder / "all.yaml").write_text("\n".join(["group: all_tasks", "task:", *lines, ""]))
    items = {task: list(range(1 if task.startswith("mmlu") else NUM_ITEMS)) for task in TASKS}
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", "all_tasks", "--include_path", folder),
        *("--model_args", f"pretrained={model},dtype=float32", "--device", "cpu", "--batch_size", "8"),
        *("--samples", json.dumps(items), "--output_path", folder / "results.json", "--log_samples"),
    ]
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["HF_DATASETS_CACHE"] = str(folder / "cache")
    subprocess.run(list(map(str, command)), cwd=data, env=environment, check=True, capture_output=True, timeout=280)
    return folder


def suite_name(task: str) -> str:
    return "mmlu" if task.startswith("mmlu") else task


def samples(folder: Path, pattern: str) -> list[dict[str, Any]]:
    [path] = folder.glob(pattern)
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_the_numbers_are_those_of_lm_evals_command_line(task: str, outputs: list[Path], of_command_line: Path) -> None:
    [results_path] = of_command_line.glob("results_*.json")
    expected_results = json.loads(results_path.read_text())
    output = outputs[task.startswith("mmlu")]
    results = read_results(output)
    for metric, value in expected_results["results"][task].items():
        if "," in metric:
            assert results["results"][task][metric] == pytest.approx(value, abs=1e-9), metric
    assert results["n-shot"][task] == expected_results["n-shot"][task]
    assert results["task_hashes"][task] == expected_results["task_hashes"][task]
    assert results["configs"][task].get("generation_kwargs") == expected_results["configs"][task].get(
        "generation_kwargs"
    )
    rows = samples(output, f"samples_{task}_card.jsonl")
    expected = samples(of_command_line, f"samples_{task}_*.jsonl")
    assert len(rows) == len(expected) >= 1
    for row, expected_row in zip(rows, expected, strict=True):
        assert row.keys() == expected_row.keys()
        assert row["arguments"] == expected_row["arguments"]
        for response, expected_response in zip(row["resps"], expected_row["resps"], strict=True):
            if task == "gsm8k":
                assert response == expected_response
            else:
                assert float(response[0][0]) == pytest.approx(float(expected_response[0][0]), abs=1e-4)


def test_results_of_lm_eval_and_winnow_compare(outputs: list[Path], of_command_line: Path) -> None:
    expected = read_result(str(of_command_line), ReadingOptions())
    result = read_result(str(outputs[0]), ReadingOptions())
    reasons = refusals(expected, result)
    # The command line named the items, and so has no limit.
    faults = [reason.rpartition(": ")[2] for reason in reasons]
    assert faults == ["different limit (none and 20)"] * len(faults) != []
    assert expected.tasks["gsm8k", "exact_match,strict-match"].items == (
        result.tasks["gsm8k", "exact_match,strict-match"].items
    )


def test_both_means_of_mmlu_are_recorded(outputs: list[Path]) -> None:
    results = read_results(outputs[1])
    values = [row["acc,none"] for name, row in results["results"].items() if name in card_suite().tasks[0].splits]
    assert len(values) == 57
    mean = results["winnow"]["tasks"]["mmlu"]["mean_by_subject"]["acc,none"]
    assert mean == pytest.approx(sum(values) / 57)
    assert results["results"]["mmlu"]["acc,none"] == pytest.approx(mean)  # each subject has one item here


def test_the_data_is_stamped_where_it_is_not_the_official(outputs: list[Path]) -> None:
    facts = {**read_results(outputs[0])["winnow"]["tasks"], **read_results(outputs[1])["winnow"]["tasks"]}
    problems = {name: fact["data_problems"] for name, fact in facts.items()}
    assert problems["mmlu"] == []
    assert problems["gsm8k"] == ["gsm8k: train has 500 of 7473 rows"]
    assert problems["hellaswag"] == [
        "hellaswag: train has 12 of 39905 rows",
        "hellaswag: validation has 988 of 10042 rows",
        "12 rows of validation serve as default's train",
    ]
    assert "1267 rows of winogrande were converted from the partial-scoring form" in problems["winogrande"]

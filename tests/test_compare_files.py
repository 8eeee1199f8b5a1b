"""`winnow compare` on files: real output of lm-eval, rounds, FastChat's judgments; and files at fault."""

import json
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from eval.benchmarks import run_benchmarks
from eval.compare.reading import ReadingOptions, read_result, read_results
from tests.processes import winnow_in_process
from tests.test_benchmarks import CHOICE_TASK, CHOICES, EXACT_TASK, SUMS
from tests.test_judge_summary import answer
from tests.test_judgment_files import rows
from tests.tiny_models import make_model
from tests.tiny_run import write_jsonl
from winnow.chat import Chat, load_tokenizer
from winnow.errors import InputError, UsageError
from winnow.run_config import BenchmarkConfig, EvaluationConfig

pytestmark = pytest.mark.usefixtures("_evaluation_resources")

OPTIONS = ReadingOptions()
GROUP = "group: both\ntask: [choices, first]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def task_dir(folder: Path) -> Path:
    tasks = folder / "tasks"
    tasks.mkdir()
    data = write_jsonl(folder / "choices.jsonl", CHOICES)
    for name, metric in (("choices", "acc"), ("first", "acc"), ("endings", "acc_norm")):
        (tasks / f"{name}.yaml").write_text(CHOICE_TASK.format(task=name, metric=metric, data=data))
    (tasks / "sums.yaml").write_text(EXACT_TASK.format(task="sums", data=write_jsonl(folder / "sums.jsonl", SUMS)))
    (tasks / "both.yaml").write_text(GROUP)
    return tasks


@pytest.fixture(scope="module")
def outputs(folder: Path, task_dir: Path) -> dict[str, Path]:
    """Evaluate two tiny models with lm-eval itself; "short" is the second model on four items of each task."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=str(task_dir))
    paths: dict[str, Path] = {}
    for name, seed, limit in (("start", 0, None), ("later", 5, None), ("short", 5, 4)):
        model = make_model("llama", folder / f"model-{seed}", seed=seed)
        tracker = EvaluationTracker(output_path=str(folder / name))
        output: Any = simple_evaluate(
            model="hf",
            model_args=f"pretrained={model},dtype=float32",
            tasks=["both", "endings", "sums"],
            task_manager=manager,
            batch_size=4,
            device="cpu",
            limit=limit,
            evaluation_tracker=tracker,
        )
        samples = output.pop("samples")
        tracker.save_results_aggregated(results=output, samples=samples)
        for task in output["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
        paths[name] = folder / name
    return paths


@pytest.fixture(scope="module")
def round_dir(folder: Path, task_dir: Path) -> Path:
    """Evaluate the second model as a round does."""
    run_dir = folder / "run"
    benchmarks = (
        BenchmarkConfig(task="both", metric="acc,none"),
        BenchmarkConfig(task="endings", metric="acc_norm,none"),
    )
    config = EvaluationConfig(task_dir=str(task_dir), benchmarks=benchmarks, batch_size=4)
    model = str(make_model("llama", folder / "model-5", seed=5))
    output = run_benchmarks(config, model, Chat(load_tokenizer(model), "lab"), "float32", "round 1")
    eval_dir = run_dir / "round-01" / "eval"
    eval_dir.mkdir(parents=True)
    results = {"round": 1, "checkpoint": model, "judge": None}
    results["benchmarks"] = [row.model_dump(mode="json") for row in output.results]
    (eval_dir / "results.json").write_text(json.dumps(results))
    write_jsonl(eval_dir / "benchmark_items.jsonl", [item.model_dump() for item in output.items])
    (run_dir / "config.json").write_text(json.dumps({"evaluation": config.model_dump(mode="json")}))
    (run_dir / "ledger.jsonl").write_text("")
    return eval_dir


def compared(*arguments: str) -> dict[str, Any]:
    """Call the verb with --json; return its object."""
    result = winnow_in_process("compare", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    output: dict[str, Any] = json.loads(result.stdout)
    return output


def refusal(*arguments: str, exit_code: int = 2) -> str:
    result = winnow_in_process("compare", *arguments)
    assert result.returncode == exit_code, result.stderr
    assert result.stdout == ""
    return result.stderr


def test_results_of_lm_eval_are_compared_item_by_item(outputs: dict[str, Path]) -> None:
    output = compared(str(outputs["start"]), str(outputs["later"]))
    rows_by_name = {row["name"]: row for row in output["results"][0]["rows"]}
    assert set(rows_by_name) == {"both acc,none", "endings acc_norm,none", "sums exact_match,none"}
    assert output["num_tests"] == 3
    for name, row in rows_by_name.items():
        before = read_result(str(outputs["start"]), OPTIONS).tasks[tuple(name.split())]
        after = read_result(str(outputs["later"]), OPTIONS).tasks[tuple(name.split())]
        assert row["is_paired"], name
        assert row["difference"] == pytest.approx(fmean(after.items.values()) - fmean(before.items.values()))
        assert sum(row["outcomes"].values()) == row["n"] == len(before.items)
    assert rows_by_name["endings acc_norm,none"]["outcomes"]["ties"] < 9


def test_a_group_has_the_items_of_its_members(outputs: dict[str, Path]) -> None:
    group = read_result(str(outputs["start"]), OPTIONS).tasks["both", "acc,none"]
    assert (len(group.items), group.num_items) == (18, 18)
    assert {item.split("/")[0] for item in group.items} == {"choices", "first"}


def test_a_group_of_groups_covers_its_members_and_has_their_shots(tmp_path: Path) -> None:
    leaves = {"law": 1.0, "art": 0.0, "algebra": 0.5}
    output: dict[str, Any] = {
        "results": {name: {"acc,none": value} for name, value in {**leaves, "humanities": 0.5, "mmlu": 0.5}.items()},
        "group_subtasks": {"mmlu": ["humanities", "algebra"], "humanities": ["law", "art"]},
        "n-shot": {**dict.fromkeys(leaves, 5), "mmlu": 0, "humanities": 0},
        "n-samples": {name: {"original": 2, "effective": 2} for name in leaves},
    }
    output["results"]["law"]["acc_norm,none"] = 1.0
    (tmp_path / "results_1.json").write_text(json.dumps(output))
    for name, value in leaves.items():
        samples = []
        for number, item_value in enumerate((value > 0, value > 0.5)):
            hashes = {"doc_hash": f"{name}{number}", "prompt_hash": "p"}
            samples.append({"doc_id": number, "filter": "none", "acc": float(item_value), **hashes})
            samples.append({"doc_id": number, "filter": "strict", "acc": 0.0, **hashes})
        write_jsonl(tmp_path / f"samples_{name}_1.jsonl", samples)
    tasks = read_result(str(tmp_path), OPTIONS).tasks
    assert set(tasks) == {("mmlu", "acc,none"), ("law", "acc_norm,none")}
    mmlu = tasks["mmlu", "acc,none"]
    assert (mmlu.num_items, mmlu.conditions["shots"]) == (6, 5)
    assert sorted(mmlu.items.values()) == [0, 0, 0, 1, 1, 1]


def test_a_round_compares_with_lm_eval_itself(outputs: dict[str, Path], round_dir: Path) -> None:
    output = compared(str(outputs["later"]), str(round_dir))
    result = output["results"][0]
    assert sorted(row["name"] for row in result["rows"]) == ["both acc,none", "endings acc_norm,none"]
    for row in result["rows"]:
        assert (row["is_paired"], row["difference"]) == (True, pytest.approx(0))
        assert row["outcomes"]["ties"] == row["n"]
    unknown = "few-shot seed, generation arguments, lm-eval version, task version"
    assert f"{round_dir} does not record: {unknown}" in result["notes"]
    endings = read_result(str(round_dir), OPTIONS).tasks["endings", "acc_norm,none"]
    assert endings.is_higher_better is True


def test_every_round_of_a_run_is_read_with_rounds(round_dir: Path) -> None:
    root = round_dir.parent.parent
    shutil.copytree(round_dir, root / "round-00" / "eval", dirs_exist_ok=True)
    names = [result.name for result in read_results([str(root)], ReadingOptions(has_rounds=True))]
    shutil.rmtree(root / "round-00")
    assert names == [str(root / "round-00" / "eval"), str(round_dir)]
    assert read_result(str(round_dir.parent), OPTIONS).tasks.keys() == read_result(str(round_dir), OPTIONS).tasks.keys()


def test_a_run_without_rounds_is_refused_with_the_remedy(round_dir: Path) -> None:
    root = str(round_dir.parent.parent)
    assert "is a whole run; give --rounds for all its rounds" in refusal(root, root)


def test_another_limit_is_refused(outputs: dict[str, Path]) -> None:
    assert "different limit (none and 4)" in refusal(str(outputs["start"]), str(outputs["short"]))


def test_results_without_samples_are_unpaired(outputs: dict[str, Path], tmp_path: Path) -> None:
    [path] = outputs["start"].rglob("results_*.json")
    shutil.copy(path, tmp_path)
    row = compared(str(tmp_path / path.name), str(outputs["later"]), "--only", "endings")["results"][0]["rows"][0]
    assert (row["is_paired"], row["method"]) == (False, "unpaired")
    assert row["difference"] == pytest.approx(row["later"] - row["baseline"])


def test_a_value_that_is_not_the_mean_of_its_items_is_unpaired(outputs: dict[str, Path], tmp_path: Path) -> None:
    [path] = outputs["start"].rglob("results_*.json")
    for file in path.parent.iterdir():
        shutil.copy(file, tmp_path)
    output = json.loads(path.read_text())
    output["results"]["endings"]["acc_norm,none"] += 0.01
    (tmp_path / path.name).write_text(json.dumps(output))
    assert read_result(str(tmp_path), OPTIONS).tasks["endings", "acc_norm,none"].items == {}


def test_files_at_fault_are_refused(outputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere does not exist; give a round's eval folder, a folder of lm-eval's"):
        read_result(str(tmp_path / "nowhere"), OPTIONS)
    with pytest.raises(UsageError, match=r"holds no result; give a round's eval folder"):
        read_result(str(tmp_path), OPTIONS)
    (tmp_path / "results_1.json").write_text("{")
    with pytest.raises(InputError, match=r"results_1\.json: not valid JSON"):
        read_result(str(tmp_path), OPTIONS)
    (tmp_path / "results_1.json").write_text("[]")
    with pytest.raises(InputError, match='no "results", so it is not a result file of lm-eval'):
        read_result(str(tmp_path), OPTIONS)
    nan = '{"results": {"sums": {"acc,none": NaN}}}'
    (tmp_path / "results_1.json").write_text(nan)
    with pytest.raises(InputError, match="sums acc,none is nan, which cannot be compared"):
        read_result(str(tmp_path), OPTIONS)
    (tmp_path / "results_2.json").write_text(nan)
    with pytest.raises(UsageError, match=r"holds 2 results of lm-eval, .*give one of them"):
        read_result(str(tmp_path), OPTIONS)
    (tmp_path / "results.json").write_text('{"benchmarks": [{"task": 1}]}')
    with pytest.raises(InputError, match=r"results\.json: 0\.task: Input should be a valid string"):
        read_result(str(tmp_path), OPTIONS)


def test_judgments_of_two_models_in_one_file_are_compared_with_their_lengths(tmp_path: Path) -> None:
    path = tmp_path / "model_judgment" / "gpt-4_single.jsonl"
    answers = tmp_path / "model_answer"
    path.parent.mkdir()
    answers.mkdir()
    write_jsonl(path, [*rows(), *rows(model="large", score=9)])
    write_jsonl(answers / "tiny.jsonl", [answer(81, ["a", "b"]), answer(82, ["a", "b"])])
    write_jsonl(answers / "large.jsonl", [answer(81, ["aaa", "bbb"], "large"), answer(82, ["a", "b"], "large")])
    [row] = compared(f"{path}#tiny", f"{path}#large")["results"][0]["rows"]
    assert (row["baseline"], row["later"], row["n"], row["verdict"]) == (8, 9, 2, "not told apart")
    large = read_result(f"{path}#large", OPTIONS).judged
    assert large is not None
    assert large.lengths == {81: 3.0, 82: 1.0}
    assert "a second model, 'large'" in refusal(str(path), f"{path}#tiny", exit_code=1)
    assert "holds no judgments of model huge" in refusal(f"{path}#tiny", f"{path}#huge", exit_code=1)


def test_judgments_of_a_folder_have_the_lengths_of_a_given_file(tmp_path: Path) -> None:
    judged = tmp_path / "judged"
    judged.mkdir()
    write_jsonl(judged / "judgments.jsonl", [*rows(), *rows(model="large", score=9)])
    path = tmp_path / "both.jsonl"
    write_jsonl(path, [answer(81, ["a", "b"]), answer(82, ["aaa", ""]), answer(81, ["aaaa", "b"], "large")])
    without = read_result(f"{judged}#tiny", OPTIONS).judged
    with_answers = read_result(f"{judged}#tiny", ReadingOptions(answers=(path,))).judged
    assert without is not None
    assert with_answers is not None
    assert (without.lengths, with_answers.lengths) == ({}, {81: 1.0, 82: 1.5})
    arguments = (f"{judged}#tiny", f"{judged}#large", "--answers", str(path))
    assert compared(*arguments)["results"][0]["rows"][0]["length_controlled"] is None  # large has one answer
    with pytest.raises(UsageError, match="cannot be read"):
        read_result(f"{judged}#tiny", ReadingOptions(answers=(tmp_path / "nowhere.jsonl",)))


def test_too_many_unreadable_verdicts_are_refused_unless_allowed(tmp_path: Path) -> None:
    path = tmp_path / "judgments.jsonl"
    write_jsonl(path, [*rows(), {**rows()[0], "model": "large", "score": -1}, *rows(model="large")[1:]])
    arguments = (f"{path}#tiny", f"{path}#large")
    assert "1 of 4 verdicts" in refusal(*arguments, exit_code=1)
    [row] = compared(*arguments, "--max-unreadable", "0.3")["results"][0]["rows"]
    assert row["num_left_out"] == 1


def test_real_judgments_are_compared(reference_data: Path) -> None:
    path = reference_data / "mt_bench" / "model_judgment" / "gpt-4_single.jsonl"
    output = compared(f"{path}#vicuna-7b-v1.3", f"{path}#vicuna-7b-v1.3-greedy")
    [row] = output["results"][0]["rows"]
    # The published means of both turns over all 80 questions.
    assert (row["baseline"], row["later"], row["n"]) == (6.103125, 5.878125, 80)
    assert row["outcomes"] == {"wins": 19, "ties": 25, "losses": 36}
    assert row["interval"][0] < row["difference"] < row["interval"][1]
    assert row["verdict"] == "not told apart"


def test_the_table_has_a_row_a_task_and_the_closing_line(outputs: dict[str, Path]) -> None:
    result = winnow_in_process("compare", str(outputs["start"]), str(outputs["later"]))
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines() if line]
    assert sorted(line[0] for line in lines if line[-1] == "items") == ["both", "endings", "sums"]
    assert "significant at 0.05 after Holm's correction over 3 tests" in " ".join(result.stdout.split())

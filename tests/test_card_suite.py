"""The card suite on data made here: facts, results that are kept, and the errors of data, settings and flags."""

import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from eval.compare.reading import ReadingOptions, read_result
from eval.compare.refusals import refusals
from eval.suites.command import SuiteFlags, request_of
from eval.suites.definition import card_suite, choose_tasks, published_rows
from eval.suites.import_data import import_data
from eval.suites.report import suite_lines
from eval.suites.run import SuiteRequest, read_results, run_suite
from tests.processes import winnow_in_process
from tests.tiny_models import make_model
from tests.tiny_run import write_jsonl
from winnow.errors import ModelError, UsageError
from winnow.run_config import PolicyConfig, RunConfig
from winnow.rundir import start_run

pytestmark = pytest.mark.usefixtures("_evaluation_resources")

SUMS = [{"question": f"What is {n} + 3?", "answer": f"It is so.\n#### {n + 3}"} for n in range(8)]
SENTENCES = [
    {"sentence": f"The cup {n} and the bag: the _ fell.", "option1": "cup", "option2": "bag", "answer": "1"}
    for n in range(9)
]
FLAGS = SuiteFlags("model", None, None, None, None, None, None, None, False, None, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder of gsm8k with a train split and winogrande with items set aside."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("gsm8k", "winogrande"):
        (folder / "source" / name).mkdir(parents=True)
    write_jsonl(folder / "source" / "gsm8k" / "train.jsonl", SUMS)
    write_jsonl(folder / "source" / "gsm8k" / "test.jsonl", SUMS)
    write_jsonl(folder / "source" / "winogrande" / "dev.jsonl", SENTENCES)
    import_data(folder / "source", folder / "hub", shots_from_eval=6)
    return folder / "hub"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model("llama", tmp_path_factory.mktemp("model"), max_position_embeddings=320))


@pytest.fixture(scope="module")
def output(model: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output") / "results"
    return run_suite(SuiteRequest(model, ("winogrande", "gsm8k"), data, folder, limit=2))


def test_the_suite_is_that_of_the_model_cards() -> None:
    suite = card_suite()
    assert {task.name: task.num_fewshot for task in suite.tasks} == {
        "mmlu": 5,
        "arc_challenge": 25,
        "hellaswag": 10,
        "winogrande": 5,
        "gsm8k": 5,
    }
    subjects = suite.tasks[0].splits
    assert (len(subjects), sum(splits["test"] for splits in subjects.values())) == (57, 14042)
    assert suite.tasks[-1].metrics == ("exact_match,strict-match", "exact_match,flexible-extract")


def test_the_hashes_are_those_of_the_official_task_files() -> None:
    suite = card_suite()
    if suite.lm_eval != version("lm_eval"):
        pytest.skip(f"the hashes are of lm-eval {suite.lm_eval}")
    assert [task.installed_hash() for task in suite.tasks] == [task.task_hash for task in suite.tasks]


def test_tasks_are_chosen_by_name() -> None:
    assert [task.name for task in choose_tasks(card_suite(), ["gsm8k", "mmlu"])] == ["mmlu", "gsm8k"]
    with pytest.raises(UsageError, match="the card suite has no task 'gsm8'; did you mean gsm8k"):
        choose_tasks(card_suite(), ["gsm8"])


def test_results_are_shown_with_their_stamps_and_the_published_rows(output: Path) -> None:
    lines = list(suite_lines(read_results(output)))
    text = "\n".join(lines)
    assert "limit: the first 2 items of each task" in text
    assert "unofficial data: gsm8k: gsm8k: train has 8 of 7473 rows; gsm8k: test has 8 of 1319 rows" in text
    assert "6 rows of validation serve as winogrande_xl's train" in text
    assert sum("exact_match" in line for line in lines) == 2
    merlinite = next(line for line in lines if "Merlinite-7b-pt" in line)
    assert merlinite.split() == ["Merlinite-7b-pt", "63.59", "64.50", "84.28", "79.72", "48.67"]
    assert published_rows().provenance in text


def test_cut_prompts_are_shown(output: Path) -> None:
    # 5 examples and 256 tokens to generate do not fit 320 positions.
    facts = read_results(output)["winnow"]["tasks"]
    assert (facts["gsm8k"]["num_truncated"], facts["gsm8k"]["num_requests"]) == (2, 2)
    assert any(line.startswith("cut prompts: gsm8k: 2 of 2 prompts") for line in suite_lines(read_results(output)))


def test_samples_are_lm_evals_rows(output: Path) -> None:
    rows = [json.loads(line) for line in (output / "samples_gsm8k_card.jsonl").read_text().splitlines()]
    assert len(rows) == 4  # two items, two filters
    assert {"doc_id", "doc_hash", "prompt_hash", "filtered_resps", "exact_match", "filter"} <= rows[0].keys()
    assert rows[0]["arguments"]["gen_args_0"]["arg_0"].count("Question:") == 6


def test_finished_tasks_are_kept_and_missing_ones_evaluated(
    model: str, data: Path, tmp_path: Path, output: Path
) -> None:
    folder = tmp_path / "results"
    run_suite(SuiteRequest(model, ("winogrande",), data, folder, limit=2))
    stored = (folder / "task_winogrande.json").stat().st_mtime_ns
    run_suite(SuiteRequest(model, ("winogrande", "gsm8k"), data, folder, limit=2))
    assert (folder / "task_winogrande.json").stat().st_mtime_ns == stored
    assert read_results(folder) == read_results(output)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"limit": 3}, "limit"), ({"add_bos_token": True}, "add_bos_token"), ({"dtype": "float32"}, "dtype")],
)
def test_results_of_other_settings_are_not_overwritten(
    model: str, data: Path, output: Path, settings: dict[str, Any], name: str
) -> None:
    request = SuiteRequest(
        **{"model": model, "tasks": ("gsm8k",), "data": data, "output": output, "limit": 2, **settings}
    )
    with pytest.raises(UsageError, match=rf"task_gsm8k.json holds results of other settings or data \({name}\)"):
        run_suite(request)


def test_a_model_of_the_hub_is_read_from_its_copy(
    model: str, data: Path, tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--org--tiny"
    shutil.copytree(model, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    folder = run_suite(SuiteRequest("org/tiny", ("gsm8k",), data, tmp_path / "out", limit=2))
    results = read_results(folder)
    assert results["model_name"] == "org/tiny"
    assert results["winnow"]["tasks"]["gsm8k"] == read_results(output)["winnow"]["tasks"]["gsm8k"]
    with pytest.raises(ModelError, match="no model could be loaded from 'org/none': there is no such folder here"):
        run_suite(SuiteRequest("org/none", ("gsm8k",), data, tmp_path / "none"))


def test_other_weights_have_another_folder(model: str, data: Path, tmp_path: Path, output: Path) -> None:
    second = str(make_model("llama", tmp_path / "model", seed=5, max_position_embeddings=320))
    with pytest.raises(UsageError, match=r"holds results of other settings or data \(weights\)"):
        run_suite(SuiteRequest(second, ("gsm8k",), data, output, limit=2))


def test_winnow_compare_reads_results_and_names_what_differs(
    output: Path, model: str, data: Path, tmp_path: Path
) -> None:
    baseline = read_result(str(output), ReadingOptions())
    assert refusals(baseline, baseline) == []
    assert len(baseline.tasks["gsm8k", "exact_match,strict-match"].items) == 2
    settings = SuiteRequest(model, ("gsm8k",), data, limit=2, add_bos_token=True, dtype="float32")
    other_settings = run_suite(replace(settings, output=tmp_path / "settings"))
    reasons = refusals(baseline, read_result(str(other_settings), ReadingOptions()))
    assert [reason.partition("gsm8k exact_match,strict-match: ")[2] for reason in reasons[:2]] == [
        "different BOS (none and True)",
        "different dtype (auto and float32)",
    ]


def test_results_on_other_data_do_not_compare(output: Path) -> None:
    baseline = read_result(str(output), ReadingOptions())
    task = baseline.tasks["gsm8k", "exact_match,strict-match"]
    official = replace(task, conditions={**task.conditions, "unofficial data": None})
    reasons = refusals(replace(baseline, tasks={("gsm8k", "exact_match,strict-match"): official}), baseline)
    assert len(reasons) == 1
    assert "different unofficial data (none and gsm8k: train has 8 of 7473 rows" in reasons[0]


def test_data_that_is_missing_is_named(model: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no data for mmlu: .*cais/mmlu/README.md is missing; run hf download"):
        run_suite(SuiteRequest(model, (), data, tmp_path / "out"))
    (tmp_path / "source" / "winogrande").mkdir(parents=True)
    write_jsonl(tmp_path / "source" / "winogrande" / "dev.jsonl", SENTENCES)
    import_data(tmp_path / "source", tmp_path / "hub", shots_from_eval=0)
    with pytest.raises(UsageError, match="lacks the split train of winogrande, which has 40398 rows"):
        run_suite(SuiteRequest(model, ("winogrande",), tmp_path / "hub", tmp_path / "out"))


@pytest.mark.parametrize(
    ("flag", "value", "fault"),
    [
        ("engine", "hf", "--engine 'hf' is unknown; give transformers or vllm"),
        ("dtype", "int8", "--dtype 'int8' is unknown"),
        ("batch_size", "0", "--batch-size '0' is neither a number above 0 nor auto"),
        ("generation_arguments", "max_gen_toks", "--generation-arguments 'max_gen_toks' is not a JSON object"),
    ],
)
def test_a_wrong_flag_is_an_error_with_the_right_values(flag: str, value: Any, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        request_of(replace(FLAGS, **{flag: value}))


def test_flags_become_a_request() -> None:
    flags = replace(FLAGS, tasks="gsm8k, mmlu", batch_size="auto")
    assert request_of(flags) == SuiteRequest("model", ("gsm8k", "mmlu"), batch_size="auto")


def test_the_command_prints_the_table(model: str, data: Path, output: Path) -> None:
    arguments = ["--tasks", "winogrande,gsm8k", "--data", str(data), "--limit", "2", "--output", str(output)]
    result = winnow_in_process("eval", model, "--suite", "card", *arguments)
    assert result.returncode == 0
    assert "winogrande" in result.stdout
    assert result.stdout.splitlines()[-1] == str(output)


def test_a_round_of_a_run_is_a_model(model: str, data: Path, tmp_path: Path, output: Path) -> None:
    config = RunConfig(name="tiny", runs_dir=str(tmp_path), policy=PolicyConfig(model=model))
    run = start_run(config, is_resumed=False)
    arguments = ["--suite", "card", "--tasks", "gsm8k", "--data", str(data), "--limit", "2", "--output", str(output)]
    result = winnow_in_process("eval", str(run.root), *arguments)
    assert result.returncode == 0
    assert result.stdout.startswith(f"{model}, lm-eval")
    missing = winnow_in_process("eval", str(run.root), "--round", "1", *arguments)
    assert "has rounds 0 to 0; --round 1 is not one of them" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--limit", "2"], "--limit belongs to --suite card; add --suite card, or set the run's evaluation keys"),
        (["--chat-template"], "--chat-template belongs to --suite card; add --suite card"),
        (["--output", "x"], "--output belongs to --suite card and mt-bench; add --suite card or mt-bench"),
        (["--suite", "cards"], "--suite 'cards' is unknown; give card or mt-bench"),
        (["--suite", "card", "--judge-model", "m"], "--judge-model belongs to --suite mt-bench; take it out"),
        (["--suite", "card", "--num-runs", "1"], "--num-runs belongs to --suite mt-bench; take it out"),
        (["--suite", "card", "--round", "1"], "is not a run's folder and has no round 1"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(model: str, arguments: list[str], fault: str) -> None:
    result = winnow_in_process("eval", model, *arguments)
    assert result.returncode == 2
    assert fault in result.stderr

"""run_benchmarks on a tiny model: local tasks of the model cards' three kinds, checked against hand-computed logps."""

import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from eval.benchmarks import BenchmarkItem, BenchmarkRun, check_guard, run_benchmarks
from eval.task_files import data_files
from tests.tiny_models import make_model
from tests.tiny_run import write_jsonl
from winnow.chat import Chat, load_tokenizer
from winnow.errors import UsageError, WinnowError
from winnow.models import load_causal_lm
from winnow.records import EvalResult
from winnow.run_config import BenchmarkConfig, EvaluationConfig

pytestmark = pytest.mark.usefixtures("_evaluation_resources")

PROMPT = "<s><|user|>\n{question}\n<|assistant|>\n"

HEAD = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "<s><|user|>\\n{{{{question}}}}\\n<|assistant|>\\n"
target_delimiter: ""
"""

CHOICE_TASK = (
    HEAD
    + """\
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""
)

EXACT_TASK = (
    HEAD
    + """\
output_type: generate_until
doc_to_target: answer
generation_kwargs:
  do_sample: false
  max_gen_toks: 8
  until: ["\\n"]
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: true
"""
)

CHOICES = [
    {"question": f"Name colour {n}.", "choices": ["red", "a green one", "tan"], "answer": n % 3} for n in range(9)
]
SUMS = [{"question": f"What is {n} + 3?", "answer": str(n + 3)} for n in range(6)]
CARD = (
    BenchmarkConfig(task="choices", metric="acc,none"),
    BenchmarkConfig(task="endings", metric="acc_norm,none"),
    BenchmarkConfig(task="sums", metric="exact_match,none"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model("llama", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def task_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    choices = write_jsonl(folder / "choices.jsonl", CHOICES)
    sums = write_jsonl(folder / "sums.jsonl", SUMS)
    (folder / "choices.yaml").write_text(CHOICE_TASK.format(task="choices", metric="acc", data=choices))
    (folder / "endings.yaml").write_text(CHOICE_TASK.format(task="endings", metric="acc_norm", data=choices))
    (folder / "sums.yaml").write_text(EXACT_TASK.format(task="sums", data=sums))
    return folder


@pytest.fixture(scope="module")
def card(model: str, task_dir: Path) -> BenchmarkRun:
    return run(model, task_dir, *CARD)


def run(model: str, task_dir: Path, *benchmarks: BenchmarkConfig) -> BenchmarkRun:
    config = EvaluationConfig(task_dir=str(task_dir), benchmarks=benchmarks, batch_size=4)
    return run_benchmarks(config, model, Chat(load_tokenizer(model), "lab"), "float32", "round 0")


def sum_logprobs(model: Any, tokenizer: Any, prompt: str, continuation: str) -> float:
    """Return the logp of a continuation; one sequence at a time, in float64."""
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    token_ids = tokenizer(prompt + continuation, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logprobs = model(torch.tensor([token_ids])).logits[0].double().log_softmax(-1)
    positions = range(len(prompt_ids), len(token_ids))
    return float(sum(logprobs[position - 1, token_ids[position]] for position in positions))


def test_run_benchmarks_returns_value_stderr_and_n_of_every_task(card: BenchmarkRun) -> None:
    assert [(row.task, row.metric, row.n) for row in card.results] == [
        ("choices", "acc,none", 9),
        ("endings", "acc_norm,none", 9),
        ("sums", "exact_match,none", 6),
    ]
    for result in card.results[:2]:
        assert result.stderr == pytest.approx((result.value * (1 - result.value) / (result.n - 1)) ** 0.5)


def test_the_value_of_a_benchmark_is_the_mean_of_its_items(card: BenchmarkRun) -> None:
    assert len(card.results) == 3
    for result in card.results:
        items = [item.value for item in card.items if item.task == result.task]
        assert len(items) == result.n
        assert fmean(items) == pytest.approx(result.value)
        assert set(items) <= {0.0, 1.0}


@pytest.mark.parametrize(("task", "is_normalized"), [("choices", False), ("endings", True)])
def test_choices_are_ranked_by_their_logprobs(card: BenchmarkRun, model: str, task: str, is_normalized: bool) -> None:
    policy = load_causal_lm(model, dtype="float32").eval()
    tokenizer = load_tokenizer(model)
    values = []
    for row in CHOICES:
        # lm-eval moves the prompt's trailing white space, here the header's newline, to the continuation.
        prompt = PROMPT.format(question=row["question"]).rstrip()
        scores = []
        for choice in row["choices"]:  # type: ignore[attr-defined]
            length = len(choice) if is_normalized else 1
            scores.append(sum_logprobs(policy, tokenizer, prompt, "\n" + choice) / length)
        values.append(float(scores.index(max(scores)) == row["answer"]))
    assert [item.value for item in card.items if item.task == task] == values


def test_the_same_checkpoint_has_the_same_results_and_item_ids(card: BenchmarkRun, model: str, task_dir: Path) -> None:
    assert run(model, task_dir, *CARD) == card


def test_another_checkpoint_has_the_same_item_ids_and_different_values(
    card: BenchmarkRun, task_dir: Path, tmp_path: Path
) -> None:
    expected = [item for item in card.items if item.task == "endings"]
    second = run(str(make_model("llama", tmp_path, seed=5)), task_dir, CARD[1])
    assert len(expected) == 9
    assert [item.item_id for item in second.items] == [item.item_id for item in expected]
    assert [item.value for item in second.items] != [item.value for item in expected]


def test_few_shot_examples_change_the_item_ids(card: BenchmarkRun, model: str, task_dir: Path) -> None:
    path = task_dir / "shots.yaml"
    shots = "fewshot_split: test\nfewshot_config:\n  sampler: first_n\n"
    path.write_text(CHOICE_TASK.format(task="shots", metric="acc", data=task_dir / "choices.jsonl") + shots)
    plain = run(model, task_dir, BenchmarkConfig(task="shots", metric="acc,none"))
    shown = run(model, task_dir, BenchmarkConfig(task="shots", metric="acc,none", num_fewshot=2))
    path.unlink()
    assert {item.item_id for item in plain.items}.isdisjoint({item.item_id for item in shown.items})
    assert shown.results[0].n == 9


def test_limit_takes_the_first_items(card: BenchmarkRun, model: str, task_dir: Path) -> None:
    limited = run(model, task_dir, BenchmarkConfig(task="choices", metric="acc,none", limit=4))
    assert limited.results[0].n == 4
    assert limited.items == [item for item in card.items if item.task == "choices"][:4]


def test_a_group_of_tasks_is_one_benchmark_with_all_items(card: BenchmarkRun, model: str, task_dir: Path) -> None:
    path = task_dir / "both.yaml"
    path.write_text(
        "group: both\ntask: [choices, first]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    first = task_dir / "first.yaml"
    first.write_text(CHOICE_TASK.format(task="first", metric="acc", data=task_dir / "choices.jsonl"))
    both = run(model, task_dir, BenchmarkConfig(task="both", metric="acc,none"))
    path.unlink()
    first.unlink()
    assert (both.results[0].n, len({item.item_id for item in both.items})) == (18, 18)
    assert both.results[0].value == pytest.approx(card.results[0].value)


@pytest.mark.parametrize(
    ("metric", "aggregation", "output_type", "complaint"),
    [
        ("brier_score", "brier_score", "multiple_choice", "aggregates it by brier_score, not by the mean"),
        ("perplexity", "perplexity", "loglikelihood", "aggregates it by perplexity, not by the mean"),
    ],
)
def test_a_guard_whose_metric_is_no_mean_over_items_is_refused(
    model: str, task_dir: Path, tmp_path: Path, metric: str, aggregation: str, output_type: str, complaint: str
) -> None:
    text = CHOICE_TASK.format(task="odd", metric=metric, data=task_dir / "choices.jsonl")
    text = text.replace("aggregation: mean", f"aggregation: {aggregation}")
    text = text.replace("output_type: multiple_choice", f"output_type: {output_type}")
    if output_type == "loglikelihood":
        text = text.replace("doc_to_choice: choices\n", "").replace("doc_to_target: answer", 'doc_to_target: "red"')
    (tmp_path / "odd.yaml").write_text(text)
    guard = BenchmarkConfig(task="odd", metric=f"{metric},none")
    with pytest.raises(UsageError, match=rf"odd {metric},none is a guard, but .*{complaint}.*is_guard: false"):
        run(model, tmp_path, guard)
    report = run(model, tmp_path, guard.model_copy(update={"is_guard": False}))
    assert report.results[0].n == 9


def test_the_direction_of_a_metric_is_the_tasks(card: BenchmarkRun, model: str, task_dir: Path, tmp_path: Path) -> None:
    assert [result.higher_is_better for result in card.results] == [True, True, True]
    text = EXACT_TASK.format(task="errors", data=task_dir / "sums.jsonl").replace("better: true", "better: false")
    (tmp_path / "errors.yaml").write_text(text)
    [result] = run(model, tmp_path, BenchmarkConfig(task="errors", metric="exact_match,none")).results
    assert result.higher_is_better is False


def test_a_guard_without_a_direction_is_refused() -> None:
    result = EvalResult(task="a", metric="b,none", value=0.5, stderr=None, n=2, higher_is_better=None)
    items = [BenchmarkItem(task="a", metric="b,none", item_id=str(n), value=float(n)) for n in range(2)]
    with pytest.raises(UsageError, match="a b,none is a guard, but its task does not say whether higher is better"):
        check_guard(result, items)
    check_guard(result.model_copy(update={"higher_is_better": False}), items)


def test_only_winnows_progress_bar_is_shown(model: str, task_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(model, task_dir, CARD[0])
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "round 0: choices: 27/27 requests" in shown.err
    lines = re.split(r"[\r\n]", shown.err)
    assert [line for line in lines if "it/s" in line and "Loading weights" not in line] == []


def test_an_unknown_task_is_an_error_with_the_closest_names(model: str, task_dir: Path) -> None:
    with pytest.raises(UsageError, match=r"no task 'choises' in .*; did you mean choices"):
        run(model, task_dir, BenchmarkConfig(task="choises", metric="acc,none"))


def test_an_unknown_metric_is_an_error_with_the_closest_names(model: str, task_dir: Path) -> None:
    with pytest.raises(UsageError, match=r"task choices has no metric 'acc'; did you mean acc,none\?"):
        run(model, task_dir, BenchmarkConfig(task="choices", metric="acc", limit=1))


def test_a_missing_task_folder_or_data_file_is_an_error_with_its_path(
    model: str, task_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"task_dir .* is not a folder"):
        run(model, tmp_path / "none", CARD[0])
    (tmp_path / "lost.yaml").write_text(CHOICE_TASK.format(task="lost", metric="acc", data="/nowhere/lost.jsonl"))
    with pytest.raises(UsageError, match=r"task lost: its data is missing: .*/nowhere/lost\.jsonl"):
        run(model, tmp_path, BenchmarkConfig(task="lost", metric="acc,none"))


def test_an_invalid_task_file_is_an_error_with_its_name(model: str, tmp_path: Path) -> None:
    text = CHOICE_TASK.format(task="odd", metric="acc", data=write_jsonl(tmp_path / "choices.jsonl", CHOICES))
    (tmp_path / "odd.yaml").write_text(text.replace("multiple_choice", "many_choices"))
    with pytest.raises(WinnowError, match="task odd cannot be loaded: Got invalid output_type 'many_choices'"):
        run(model, tmp_path, BenchmarkConfig(task="odd", metric="acc,none"))


def test_data_files_lists_task_files_and_their_data(task_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "elsewhere.jsonl"
    write_jsonl(data, CHOICES)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "a.yaml").write_text(CHOICE_TASK.format(task="a", metric="acc", data=data))
    (folder / "b.yaml").write_text("task: b\nprocess_docs: !function code.process\n")
    assert data_files(folder) == [data, folder / "a.yaml", folder / "b.yaml"]


def test_run_benchmarks_without_benchmarks_is_empty(model: str, tmp_path: Path) -> None:
    assert run(model, tmp_path) == BenchmarkRun([], [])


def test_benchmark_item_survives_json(card: BenchmarkRun) -> None:
    assert BenchmarkItem.model_validate_json(card.items[0].model_dump_json()) == card.items[0]
    assert card.items[0].item_id.startswith("choices/0/")

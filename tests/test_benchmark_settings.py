"""The settings of benchmarks: shots, chat format, BOS, generation arguments, batch size; what is checked, counted."""

import logging
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks import BenchmarkRun, load_tasks, run_benchmarks, settings_key, settings_of, task_manager
from eval.harness import TaskRun, evaluate, open_lm
from tests.tiny_models import make_model
from tests.tiny_run import write_jsonl
from winnow.chat import Chat, load_tokenizer
from winnow.errors import UsageError
from winnow.models import load_causal_lm
from winnow.run_config import BenchmarkConfig, EvaluationConfig

pytestmark = pytest.mark.usefixtures("_evaluation_resources")

TASK = """\
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {data}, test: {data}}}}}
training_split: train
test_split: test
output_type: {output_type}
doc_to_text: "{{{{question}}}}"
"""
CHOICE = """\
doc_to_target: answer
doc_to_choice: [" red it is", " a green one"]
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
SUMS = """\
doc_to_target: sum
generation_kwargs: {max_gen_toks: 8, until: ["?"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "(5)"}, {function: take_first}]}
  - {name: flexible, filter: [{function: regex, regex_pattern: "([0-9])"}, {function: take_first}]}
"""
ROWS = [{"question": f"What is {n} + 3?", "answer": n % 2, "sum": str(n + 3)} for n in range(6)]
CHOICES = BenchmarkConfig(task="choices", metric="acc,none")
STRICT = BenchmarkConfig(task="sums", metric="exact_match,strict")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model("llama", tmp_path_factory.mktemp("model"), max_position_embeddings=48))


@pytest.fixture(scope="module")
def task_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    data = write_jsonl(folder / "rows.jsonl", ROWS)
    head = TASK.format(task="choices", data=data, output_type="multiple_choice") + CHOICE
    (folder / "choices.yaml").write_text(head)
    (folder / "two.yaml").write_text(head.replace("task: choices", "task: two") + "num_fewshot: 2\n")
    (folder / "none.yaml").write_text(head.replace("task: choices", "task: none") + "num_fewshot: 0\n")
    (folder / "sums.yaml").write_text(TASK.format(task="sums", data=data, output_type="generate_until") + SUMS)
    return folder


def run(model: str, task_dir: Path, *benchmarks: BenchmarkConfig, **settings: Any) -> BenchmarkRun:
    config = EvaluationConfig(task_dir=str(task_dir), benchmarks=benchmarks, **{"batch_size": 4, **settings})
    return run_benchmarks(config, model, Chat(load_tokenizer(model), "lab"), "float32", "round 0")


def task_run(model: str, task_dir: Path, benchmark: BenchmarkConfig) -> TaskRun:
    config = EvaluationConfig(task_dir=str(task_dir), benchmarks=(benchmark,))
    chat = Chat(load_tokenizer(model), "lab")
    lm = open_lm(load_causal_lm(model, dtype="float32").eval(), chat.tokenizer, 4)
    [loaded] = load_tasks(config).values()
    return evaluate(lm, loaded, settings_of(benchmark), "sums")


@pytest.mark.parametrize(
    ("task", "num_fewshot", "expected"),
    [("two", None, 2), ("two", 1, 1), ("none", None, 0), ("none", 3, 0), ("choices", None, 0), ("choices", 3, 3)],
)
def test_unset_shots_are_the_tasks_and_a_task_that_sets_0_keeps_0(
    task_dir: Path, task: str, num_fewshot: int | None, expected: int
) -> None:
    benchmark = BenchmarkConfig(task=task, metric="acc,none", num_fewshot=num_fewshot)
    [loaded] = load_tasks(EvaluationConfig(task_dir=str(task_dir), benchmarks=(benchmark,))).values()
    assert loaded["tasks"][task].get_config("num_fewshot") == expected


def test_the_shots_of_a_result_are_recorded(model: str, task_dir: Path) -> None:
    two = run(model, task_dir, BenchmarkConfig(task="two", metric="acc,none", limit=1)).results[0]
    assert two.num_fewshot == 2


def test_two_metrics_of_a_task_are_read_from_one_evaluation(
    model: str, task_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flexible = STRICT.model_copy(update={"metric": "exact_match,flexible", "is_guard": False})
    both = run(model, task_dir, STRICT, flexible)
    assert capfd.readouterr().err.count("round 0: sums: 6/6 requests") == 1
    assert [result.metric for result in both.results] == ["exact_match,strict", "exact_match,flexible"]
    assert {item.metric: item.item_id for item in both.items[::6]}.keys() == {STRICT.metric, flexible.metric}
    assert settings_key(STRICT) == settings_key(flexible) != settings_key(STRICT.model_copy(update={"limit": 2}))


@pytest.mark.parametrize(
    ("benchmark", "fault"),
    [
        (CHOICES.model_copy(update={"metric": "acc"}), r"task choices has no metric 'acc'; did you mean acc,none"),
        (CHOICES.model_copy(update={"num_fewshot": 7}), "task choices: 7 shots need 7 examples, and train has 6"),
        (
            CHOICES.model_copy(update={"generation_arguments": {"max_gen_toks": 9}}),
            "task choices generates nothing; take its generation_arguments out",
        ),
    ],
)
def test_faulty_settings_are_found_before_the_model_is_loaded(
    model: str, task_dir: Path, benchmark: BenchmarkConfig, fault: str
) -> None:
    config = EvaluationConfig(task_dir=str(task_dir), benchmarks=(benchmark,))
    with pytest.raises(UsageError, match=fault):
        run_benchmarks(config, "/nowhere/model", Chat(load_tokenizer(model), "lab"), "float32", "round 0")


def test_an_item_is_no_example_of_itself(task_dir: Path, tmp_path: Path) -> None:
    text = (task_dir / "choices.yaml").read_text().replace("training_split: train", "fewshot_split: test")
    (tmp_path / "choices.yaml").write_text(text)
    benchmark = CHOICES.model_copy(update={"num_fewshot": 6})
    with pytest.raises(UsageError, match="6 shots need 7 examples, and test has 6"):
        load_tasks(EvaluationConfig(task_dir=str(tmp_path), benchmarks=(benchmark,)))


@pytest.mark.parametrize("benchmark", [CHOICES, STRICT], ids=["choices", "sums"])
def test_cut_prompts_are_counted_and_shown(
    model: str, task_dir: Path, benchmark: BenchmarkConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    long = benchmark.model_copy(update={"num_fewshot": 5})
    num_requests = 6 if benchmark is STRICT else 12
    [result] = run(model, task_dir, long).results
    assert result.num_truncated == num_requests
    shown = capfd.readouterr().err
    assert f"warning: round 0: {benchmark.task}: {num_requests} of {num_requests} prompts do not fit" in shown
    assert run(model, task_dir, benchmark).results[0].num_truncated == 0
    assert "warning" not in capfd.readouterr().err


def test_the_count_is_that_of_lm_evals_warnings(model: str, task_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Of the answers, the longer does not fit with three shots, and the shorter does.
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        counts = [
            task_run(model, task_dir, CHOICES.model_copy(update={"num_fewshot": num_fewshot})).requests.num_truncated
            for num_fewshot in (0, 2, 3, 4)
        ]
    warnings = [record for record in caplog.records if "Truncating" in record.getMessage()]
    assert sum(counts) == len(warnings) > 0
    assert counts[0] == 0


def test_generation_without_space_for_a_prompt_is_an_error(model: str, task_dir: Path) -> None:
    benchmark = STRICT.model_copy(update={"generation_arguments": {"max_gen_toks": 48}})
    with pytest.raises(UsageError, match="48 tokens to generate leave no space for a prompt in the model's 48 positio"):
        run(model, task_dir, benchmark)


def test_generation_arguments_are_added_to_those_of_the_task(model: str, task_dir: Path) -> None:
    benchmark = STRICT.model_copy(update={"generation_arguments": {"max_gen_toks": 1}})
    [loaded] = load_tasks(EvaluationConfig(task_dir=str(task_dir), benchmarks=(benchmark,))).values()
    arguments = loaded["tasks"]["sums"].config.generation_kwargs
    assert (arguments["max_gen_toks"], arguments["until"]) == (1, ["?"])


def test_the_chat_format_is_the_policys(model: str, task_dir: Path) -> None:
    chat = Chat(load_tokenizer(model), "lab", "Be brief.")
    benchmark = CHOICES.model_copy(update={"chat_template": True, "limit": 1, "num_fewshot": 1})
    config = EvaluationConfig(task_dir=str(task_dir), benchmarks=(benchmark,))
    plain = run(model, task_dir, benchmark.model_copy(update={"chat_template": False}))
    asked_in_chat = run_benchmarks(config, model, chat, "float32", "round 0")
    assert plain.items[0].item_id != asked_in_chat.items[0].item_id
    without_system = run(model, task_dir, benchmark)
    assert without_system.items[0].item_id not in (plain.items[0].item_id, asked_in_chat.items[0].item_id)


def test_bos_before_the_prompts_changes_the_scores(model: str, task_dir: Path) -> None:
    lm = open_lm(load_causal_lm(model, dtype="float32").eval(), load_tokenizer(model), 4, add_bos_token=True)
    with_bos = lm.tok_encode("What is 2 + 3?")
    assert lm.add_bos_token is True
    assert with_bos == load_tokenizer(model)("What is 2 + 3?", add_special_tokens=True)["input_ids"]


def test_an_automatic_batch_size_has_the_same_results(model: str, task_dir: Path) -> None:
    benchmark = CHOICES.model_copy(update={"num_fewshot": 1})
    assert run(model, task_dir, benchmark, batch_size="auto") == run(model, task_dir, benchmark)


def test_task_files_come_before_lm_evals_tasks_and_do_not_shut_them_out(task_dir: Path) -> None:
    local = EvaluationConfig(task_dir=str(task_dir), benchmarks=(CHOICES,))
    assert "gsm8k" not in task_manager(local).all_tasks  # an index of lm-eval's tasks takes seconds
    gsm8k = BenchmarkConfig(task="gsm8k", metric="exact_match,strict-match")
    both = task_manager(EvaluationConfig(task_dir=str(task_dir), benchmarks=(CHOICES, gsm8k)))
    assert {"gsm8k", "choices"} <= set(both.all_tasks)

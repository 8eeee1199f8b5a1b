"""The checks of a run before anything is computed: one list of all faults, from `winnow run` and from --dry-run."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.preflight import check_evaluation
from sampler.preflight import check_disk, check_libraries, check_policy, check_prompts
from sft.preflight import check_phases
from tests.processes import winnow_in_process
from tests.tiny_run import ledger_pieces, tiny_config, write_config, write_jsonl
from winnow.errors import PreflightError
from winnow.inspection import DRAWN_ROWS, Inspection
from winnow.row_checks import LONG_FILE, check_rows
from winnow.rows import draw_lines
from winnow.run_config import RunConfig
from winnow.rundir import Run, start_run

pytestmark = pytest.mark.usefixtures("_evaluation_resources")

WITHOUT_EOS = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
QUESTIONS = [{"question_id": 1, "category": "math", "turns": ["2 + 3?", "Double it."]}]
REFERENCES = [{"question_id": 1, "choices": [{"turns": ["5", "10"]}]}]
JUDGE_PROMPTS = [
    {"name": name, "system_prompt": "You judge.", "prompt_template": "{question}{answer}"}
    for name in ("single-v1", "single-math-v1")
] + [
    {"name": name, "system_prompt": "You judge.", "prompt_template": "{question_1}{answer_2}"}
    for name in ("single-v1-multi-turn", "single-math-v1-multi-turn")
]
Tree = dict[str, Any]


def sft_row(answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": answer}]}


def whole_config(folder: Path) -> Tree:
    """Return a recipe that names a file of every kind; all of them are in `folder` and without faults."""
    config = tiny_config(folder)
    (folder / "tasks").mkdir()
    data = write_jsonl(folder / "data.jsonl", [{"question": "2 + 3?", "answer": "5"}])
    (folder / "tasks" / "sums.yaml").write_text(TASK.format(data=data))
    rows = write_jsonl(folder / "rows.jsonl", [sft_row("5"), sft_row("It is 5.")])
    config["lab"] = {"phases": [{"name": "skills", "files": [rows], "train": config["rounds"]["train"]}]}
    config["evaluation"] = {
        "task_dir": str(folder / "tasks"),
        "benchmarks": [{"task": "sums", "metric": "exact_match,none"}],
        "questions": {
            "questions": write_jsonl(folder / "question.jsonl", QUESTIONS),
            "references": write_jsonl(folder / "reference.jsonl", REFERENCES),
            "max_new_tokens": 12,
        },
    }
    return config


@pytest.fixture
def config(tmp_path: Path) -> Tree:
    return whole_config(tmp_path)


def inspect(config: Tree, *finished: str, is_dry: bool = True) -> Inspection:
    run_config = RunConfig.model_validate(config)
    run = Run(Path(run_config.runs_dir) / run_config.name, run_config)
    return Inspection(run, is_dry=is_dry, finished_pieces=frozenset(finished))


def error_of(result: "subprocess.CompletedProcess[str]") -> str:
    """Return the error of a call that found faults, without the lines before it."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr[result.stderr.index("winnow: ") :]


def with_six_faults(config: Tree, folder: Path) -> Tree:
    config["prompts"]["files"].append({"path": str(folder / "nowhere.jsonl")})
    config["lab"]["phases"][0]["files"] = [write_jsonl(folder / "rows.jsonl", [{"messages": "5"}])]
    config["reward"]["server"]["base"] = str(folder / "nowhere")
    config["evaluation"]["benchmarks"][0]["task"] = "sum"
    config["evaluation"]["questions"]["questions"] = str(folder / "no-questions.jsonl")
    config["policy"]["num_parameters"] = 10**15
    return config


def test_run_and_dry_run_list_the_same_six_faults_and_nothing_is_computed(config: Tree, tmp_path: Path) -> None:
    path = write_config(tmp_path, with_six_faults(config, tmp_path))
    planned = winnow_in_process("run", path, "--dry-run")
    error = error_of(planned)
    assert "sample (N = 3)" in planned.stdout  # the plan comes first
    heading, *lines = error.splitlines()
    assert heading == "winnow: 6 faults were found, and nothing was computed:"
    expected = [
        r"rows.jsonl: 1 of 1 rows will be left out of phase skills: 1 x the row has no list of messages",
        r"nowhere.jsonl cannot be read: No such file or directory",
        r"model folder '.*/nowhere' does not exist",
        r"no task 'sum' in .*; did you mean .*sums",
        r"no-questions.jsonl cannot be read",
        r"runs/tiny needs about 6000.0 TB, and its disk has",
    ]
    assert len(lines) == len(expected)
    for number, (line, pattern) in enumerate(zip(lines, expected, strict=True), start=1):
        assert line.startswith(f"  {number}. ")
        assert re.search(pattern, line), line
    without_sizes = re.compile(r"has [\d.]+ .B free")  # the disk is in use by others
    started = error_of(winnow_in_process("run", path))
    assert without_sizes.sub("", started) == without_sizes.sub("", error)
    assert ledger_pieces(tmp_path / "runs" / "tiny") == []
    assert list((tmp_path / "runs" / "tiny").glob("round-*")) == []


def test_a_config_without_faults_is_said_to_be_checked(config: Tree, tmp_path: Path) -> None:
    result = winnow_in_process("run", write_config(tmp_path, config), "--dry-run")
    assert result.returncode == 0, result.stderr
    checked = [line for line in result.stdout.splitlines() if line.startswith("checked: ")]
    patterns = [
        r"policy .*/student, its files, tokenizer and template lab",
        r"1 file of SFT rows, 2 of 2 rows, the longest has \d+ tokens",
        r"the probe has 2 prompts, a tenth of each source \(evaluation.probe.num_prompts: 256\)",
        r"2 files of prompts, 32 of 32 rows, the longest has \d+ tokens \(at most 500 fit\)",
        r"reward server of .*/instruct and .*/base",
        r"1 benchmark: name and metric",
        r"1 question with references and judge, the longest first turn has \d+ tokens \(at most 500 fit\)",
        r"disk: .* needed, .* free",
    ]
    assert len(checked) == len(patterns)
    for line, pattern in zip(checked, patterns, strict=True):
        assert re.search(pattern, line), line
    assert "warning" not in result.stdout
    assert not (tmp_path / "runs").exists()


def set_key(path: str, value: Any) -> Callable[[Tree, Path], None]:
    """Return a change that sets one key of a config; {folder} in a text is the test's folder."""

    def change(tree: Any, folder: Path) -> None:
        *parents, last = path.split(".")
        for name in parents:
            tree = tree[int(name)] if isinstance(tree, list) else tree[name]
        tree[last] = value.format(folder=folder) if isinstance(value, str) else value

    return change


def write(name: str, text: str) -> Callable[[Tree, Path], None]:
    """Return a change that overwrites a file of a config."""

    def change(tree: Tree, folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def with_address(tree: Tree, folder: Path, **reward: str) -> None:
    tree["reward"] = {"address": "localhost:50051", **reward}


def with_llm_judge(tree: Tree, folder: Path, prompts: list[dict[str, Any]] | None = None) -> None:
    path = write_jsonl(folder / "judge_prompts.jsonl", JUDGE_PROMPTS if prompts is None else prompts)
    judge = {"kind": "llm", "model": "judge", "prompts": path, "base_url": "http://localhost:1/v1"}
    tree["evaluation"]["questions"]["judge"] = judge


def without_endpoint(tree: Tree, folder: Path) -> None:
    with_llm_judge(tree, folder)
    del tree["evaluation"]["questions"]["judge"]["base_url"]


def with_unknown_field(tree: Tree, folder: Path) -> None:
    with_llm_judge(tree, folder, [{**prompt, "prompt_template": "{nothing}"} for prompt in JUDGE_PROMPTS])


def without_end_of_turn(tree: Tree, folder: Path) -> None:
    (folder / "open.jinja").write_text(WITHOUT_EOS)
    tree["policy"]["chat_template"] = str(folder / "open.jinja")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_key("policy.model", "{folder}/nowhere"), "model folder '.*/nowhere' does not exist"),
        (lambda _, folder: (folder / "student/model.safetensors").unlink(), "student': it holds no weight files"),
        (lambda _, folder: (folder / "student/tokenizer.json").write_text("{"), "no tokenizer could be loaded from"),
        (set_key("policy.chat_template", "./no.jinja"), "neither a file nor one of"),
        (without_end_of_turn, "set eos_token|does not close an assistant turn"),
        (write("sums.jsonl", '{"prompt": 3}\n{"prompt": 4}\n'), r"sums.jsonl line 1: .* \(and 1 more lines"),
        (write("sums.jsonl", "{\n"), "sums.jsonl line 1: not valid JSON"),
        (lambda _, folder: [(folder / f"{name}.jsonl").write_text("") for name in ("sums", "facts")], "no prompts in"),
        (set_key("sampling.max_new_tokens", 512), r"sums.jsonl: 16 of 16 rows will be refused in sampling: 16 x more"),
        (set_key("rounds.train.max_tokens", 4), r"16 of 16 rows will be left out of training: 16 x 4 tokens"),
        (set_key("lab.phases.0.files", ["nowhere.jsonl"]), "nowhere.jsonl cannot be read"),
        (write("rows.jsonl", "[]\n"), "rows.jsonl line 1: should be a JSON object, is a list"),
        (write("rows.jsonl", ""), "phase skills has no rows"),
        (set_key("lab.phases.0.train.max_tokens", 4), "2 of 2 rows will be left out of phase skills: 2 x more than 4"),
        (set_key("evaluation.task_dir", "{folder}/nowhere"), "nowhere' is not a folder"),
        (
            set_key("evaluation.benchmarks.0.metric", "exact_match,strict"),
            "no metric 'exact_match,strict'; did you mean",
        ),
        (set_key("evaluation.benchmarks.0.num_fewshot", 3), "task sums: 3 shots need 3 examples, and test has 1"),
        (write("tasks/sums.yaml", "task: [\n"), "sums.yaml: not valid YAML"),
        (lambda _, folder: (folder / "data.jsonl").unlink(), "task sums: its data is missing: .*data.jsonl"),
        (write("question.jsonl", '{"question_id": 1}\n'), "question.jsonl line 1: category"),
        (write("reference.jsonl", ""), "question 1 has no reference answer to turn 1"),
        (set_key("evaluation.questions.references", "nowhere.jsonl"), "nowhere.jsonl cannot be read"),
        (set_key("evaluation.questions.max_new_tokens", 512), "1 of 1 questions have more than 0 tokens"),
        (write("question.jsonl", json.dumps({**QUESTIONS[0], "turns": ["<s>", "b"]})), "cannot be rendered at turn 1"),
        (
            write("question.jsonl", json.dumps({**QUESTIONS[0], "turns": ["a", "9 " * 600]})),
            "1 of 1 questions have more than 500 tokens",
        ),
        (set_key("runs_dir", "{folder}/sums.jsonl"), "no folder can be made in '.*sums.jsonl', which is a file"),
        (without_endpoint, "needs evaluation.questions.judge.base_url, or OPENAI_API_KEY"),
        (with_unknown_field, "the prompt single-math-v1 cannot be filled in .KeyError: 'nothing'"),
        (lambda tree, folder: with_llm_judge(tree, folder, JUDGE_PROMPTS[1:]), "holds no prompt named single-v1"),
        (lambda tree, folder: with_address(tree, folder, address="localhost"), "'localhost' should be HOST:PORT"),
        (lambda tree, folder: with_address(tree, folder, token_file="nowhere"), "token file 'nowhere' cannot be read"),
        (lambda tree, folder: with_address(tree, folder, tls_ca="nowhere"), "tls_ca 'nowhere' cannot be read"),
        (set_key("reward.server.token_file", "nowhere"), "token_file 'nowhere' cannot be read"),
        (set_key("reward.server.chat_template", "./no.jinja"), "neither a file nor one of"),
        (set_key("policy.num_parameters", 10**15), "needs about 6000.0 TB"),
    ],
)
def test_a_dry_run_finds_each_kind_of_fault_alone(
    config: Tree,
    tmp_path: Path,
    change: Callable[[Tree, Path], None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    change(config, tmp_path)
    error = error_of(winnow_in_process("run", write_config(tmp_path, config), "--dry-run"))
    assert re.search(message, error), error


def test_a_fault_of_each_model_of_the_server_is_listed(config: Tree, tmp_path: Path) -> None:
    config["reward"]["server"].update(instruct=str(tmp_path / "a"), base=str(tmp_path / "b"), token_file="nowhere")
    error = error_of(winnow_in_process("run", write_config(tmp_path, config), "--dry-run"))
    assert error.startswith("winnow: 3 faults were found")


def test_prompts_that_are_too_long_or_invalid_are_counted_and_do_not_stop_a_run(config: Tree, tmp_path: Path) -> None:
    rows = [{"prompt": "Sum " + "9 " * 600}, {"prompt": "fine"}, {"prompt": "<s>"}, {"prompt": "<s>"}]
    config["prompts"]["files"] = [{"path": write_jsonl(tmp_path / "mixed.jsonl", rows)}]
    inspection = inspect(config)
    check_prompts(inspection, check_policy(inspection))
    assert inspection.faults == []
    refused, untrainable, without_probe, few = inspection.warnings
    assert without_probe.startswith("the probe has no prompts, since no source of the pool has ten")
    assert "mixed.jsonl: 3 of 4 rows will be refused in sampling: 2 x the user message holds the control" in refused
    assert "(first: line 3); 1 x more than 500 tokens (the policy's 512 positions less" in refused
    assert "1 of 4 rows will be left out of training: 1 x 128 tokens" in untrainable
    assert few == "prompts.num_prompts is 12, but there are 4 prompts; no round has more"


def test_a_new_run_renders_every_row_and_a_dry_or_resumed_run_some(config: Tree, tmp_path: Path) -> None:
    rows = [{"prompt": f"Number {number}"} for number in range(DRAWN_ROWS + 7)]
    rows[3] = {"prompt": "<s>"}
    config["prompts"]["files"] = [{"path": write_jsonl(tmp_path / "long.jsonl", rows)}]
    inspections = [inspect(config), inspect(config, "round-00/start", is_dry=False), inspect(config, is_dry=False)]
    for inspection, num_rendered in zip(inspections, (DRAWN_ROWS, DRAWN_ROWS, DRAWN_ROWS + 7), strict=True):
        check_prompts(inspection, check_policy(inspection))
        assert f"1 file of prompts, {num_rendered} of {DRAWN_ROWS + 7} rows" in inspection.checked[-1]
    assert f"1 of {DRAWN_ROWS + 7} rows will be refused" in inspections[-1].warnings[0]


def test_a_long_file_shows_how_far_its_check_is(
    config: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "a"}] * (LONG_FILE + 1))
    report = check_rows(path, lambda row, location: len(row["prompt"]), inspect(config, is_dry=False))
    assert (report.num_checked, report.longest) == (LONG_FILE + 1, 1)
    assert f"check {path}: {LONG_FILE + 1}/{LONG_FILE + 1} rows" in capsys.readouterr().err


def test_lines_are_drawn_by_seed_from_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("".join(f"line {number}\n\n" for number in range(1, 101)))
    drawn = draw_lines(path, 10, seed=0)
    assert len(set(drawn)) == 10
    assert drawn == sorted(drawn) == draw_lines(path, 10, seed=0)
    assert all(text == f"line {(number + 1) // 2}" for number, text in drawn)
    counts = dict.fromkeys(range(1, 200, 2), 0)
    for seed in range(400):
        for number, _ in draw_lines(path, 10, seed):
            counts[number] += 1
    assert min(counts.values()) > 15  # 40 of each are expected, with a standard deviation of 6
    assert max(counts.values()) < 70
    assert len(draw_lines(path, 1000, seed=0)) == 100


@pytest.mark.parametrize(("num_free", "num_faults"), [(100, 1), (10**12, 0)])
def test_the_plan_should_fit_on_the_disk(config: Tree, tmp_path: Path, num_free: int, num_faults: int) -> None:
    folders: list[Path] = []

    def free_bytes(folder: Path) -> int:
        folders.append(folder)
        return num_free

    inspection = inspect(config)
    check_disk(inspection, free_bytes)
    assert folders == [tmp_path]  # the nearest folder that exists
    assert len(inspection.faults) == num_faults
    assert all("KB, and its disk has 100 B free; make space" in fault for fault in inspection.faults)


def test_finished_stages_need_no_space(config: Tree) -> None:
    sizes = []
    for finished in ((), ("round-00/start", "round-01/select", "round-01/train"), ("round-00/start",)):
        inspection = inspect(config, *finished)
        check_disk(inspection, lambda folder: 0)
        sizes.append(float(re.findall(r"about ([\d.]+) KB", inspection.faults[0])[0]))
    assert sizes[1] < sizes[2] < sizes[0]


def test_a_folder_that_cannot_be_written_is_a_fault(
    config: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # for root, every folder is writable
    inspection = inspect(config)
    check_disk(inspection)
    assert f"{tmp_path} is not writable; set another runs_dir=" in inspection.faults[0]


def test_libraries_that_are_not_installed_are_found_before_the_stage_that_imports_them(
    config: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["sampling"]["engine"] = "vllm"
    monkeypatch.setattr("winnow.inspection.find_spec", lambda name: None)
    inspection = inspect(config)
    check_libraries(inspection)
    missing = [re.findall(r"No module named '(\w+)'; this needs an extra", fault)[0] for fault in inspection.faults]
    assert missing == ["torch", "matplotlib", "trl", "pyarrow", "vllm"]


def test_a_finished_run_needs_no_checks(config: Tree, tmp_path: Path) -> None:
    path = write_config(tmp_path, config)
    run = start_run(inspect(config).config, is_resumed=False)
    with run.ledger.record("peak", "inputs"):
        pass
    shutil.rmtree(tmp_path / "student")
    result = winnow_in_process("run", path, "--resume", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "not checked: anything: the run is finished" in result.stdout


def test_tokens_without_embeddings_are_found_unless_an_sft_start_adds_them(config: Tree) -> None:
    """Otherwise the first prompt that holds one ends sampling with an IndexError."""
    config["policy"]["eos_token"] = "<|end|>"
    inspection = inspect(config)
    check_policy(inspection)
    assert inspection.faults == []
    config["lab"] = {"phases": []}
    inspection = inspect(config)
    check_policy(inspection)
    assert re.search(
        r"writes '<\|end\|>' \(id 384\), and .* embeddings for 384 ids; .* set lab.phases", inspection.faults[0]
    )


def test_a_dry_run_finds_the_folder_of_another_run(config: Tree, tmp_path: Path) -> None:
    path = write_config(tmp_path, config)
    assert "nothing to resume" in error_of(winnow_in_process("run", path, "--resume", "--dry-run"))
    run = start_run(inspect(config).config, is_resumed=False)
    with run.ledger.record("round-01/prompts", "inputs"):
        pass
    assert "exists; continue with --resume" in error_of(winnow_in_process("run", path, "--dry-run"))
    changed = error_of(winnow_in_process("run", path, "seed=1", "--resume", "--dry-run"))
    assert "was made by another config (seed" in changed


def test_a_hub_model_that_is_not_on_this_machine_is_not_checked(config: Tree, tmp_path: Path) -> None:
    config["policy"]["model"] = "someone/policy-that-is-not-here"
    config["reward"]["server"].update(instruct="someone/instruct-that-is-not-here")
    result = winnow_in_process("run", write_config(tmp_path, config), "--dry-run")
    assert result.returncode == 0, result.stderr
    unchecked = [line for line in result.stdout.splitlines() if line.startswith("not checked: ")]
    assert len(unchecked) == 2
    assert "someone/policy-that-is-not-here is not on this machine" in unchecked[0]
    assert "someone/instruct-that-is-not-here" in unchecked[1]


def test_a_resumed_run_needs_no_files_of_finished_pieces(config: Tree, tmp_path: Path) -> None:
    for name in ("sums.jsonl", "question.jsonl"):
        (tmp_path / name).unlink()
    (tmp_path / "rows.jsonl").write_text("{")
    checks = (check_prompts, check_phases, check_evaluation)
    num_faults = []
    finished = ["round-00/start", "round-01/prompts", "round-02/prompts", "round-02/evaluate"]
    for num_finished in (0, 1, 3, 4):
        inspection = inspect(config, *finished[:num_finished], is_dry=False)
        for check in checks:
            check(inspection, None)
        num_faults.append(len(inspection.faults))
    assert num_faults == [3, 2, 1, 0]
    (tmp_path / "rows.jsonl").unlink()
    inspection = inspect(config, *finished)
    check_phases(inspection, None)  # every resumed run compares the hashes of these files
    assert "rows.jsonl cannot be read" in inspection.faults[0]


def test_a_resumed_run_needs_the_last_rounds_policy_only(config: Tree, tmp_path: Path) -> None:
    inspection = inspect(config, "round-00/start", "round-01/train")
    checkpoint = inspection.run.checkpoint_dir(1)
    shutil.move(tmp_path / "student", checkpoint)
    assert check_policy(inspection) is not None
    assert inspection.context_tokens == 512
    assert f"policy {checkpoint}, its files" in inspection.checked[0]
    unfinished = inspect(config)
    assert check_policy(unfinished) is None
    assert "student' does not exist" in unfinished.faults[0]


def test_a_single_fault_is_one_line() -> None:
    assert str(PreflightError(["a is wrong; do b"])) == "a is wrong; do b"
    assert str(PreflightError(["a", "b"])).splitlines()[1:] == ["  1. a", "  2. b"]


def test_rows_with_sampled_ids_are_checked_as_they_are_trained(config: Tree, tmp_path: Path) -> None:
    row = {**sft_row("5"), "metadata": {"completion_ids": [5], "tokenizer_hash": "another"}}
    config["lab"]["phases"][0]["files"] = [write_jsonl(tmp_path / "selected.jsonl", [row, sft_row("5")])]
    inspection = inspect(config)
    check_phases(inspection, check_policy(inspection))
    [warning] = inspection.warnings
    assert "1 of 2 rows will be left out of phase skills: 1 x metadata.completion_ids are of another" in warning


def test_a_finished_phase_is_rendered_again_only_if_it_is_replayed(config: Tree, tmp_path: Path) -> None:
    [first] = config["lab"]["phases"]
    second = {**first, "name": "second", "files": [write_jsonl(tmp_path / "second.jsonl", [sft_row("5")] * 3)]}
    for replay_from, num_files in (([], 1), (["skills"], 2)):
        config["lab"]["phases"] = [first, {**second, "replay_from": replay_from}]
        inspection = inspect(config, "round-00/phase/skills")
        check_phases(inspection, None)
        assert inspection.checked[0].startswith(f"{num_files} file")


GROUP = """\
group: all
task: [sums]
aggregate_metric_list: [{metric: exact_match, weight_by_size: true, filter_list: [none, strict]}]
"""
FILTERED = "tag: [tagged]\nfilter_list: [{name: strict, filter: [{function: take_first}]}]\n"
OWN_METRIC = "process_results: !function sums.score\n"


@pytest.mark.parametrize(
    ("task_file", "task", "metric", "fault"),
    [
        ("", "sums", "exact_match,none", None),
        ("", "sums", "exact_matches,none", "did you mean exact_match,none"),
        (FILTERED, "sums", "exact_match,strict", None),
        (FILTERED, "sums", "exact_match,none", "did you mean exact_match,strict"),
        (FILTERED, "tagged", "exact_match,strict", "tagged is a tag of several tasks, and has no metrics; .*: sums"),
        (OWN_METRIC, "sums", "anything,none", None),
        ("", "all", "exact_match,strict", None),
        ("", "all", "acc,none", "task all has no metric 'acc,none'"),
    ],
)
def test_metrics_are_those_that_the_task_file_defines(
    config: Tree, tmp_path: Path, task_file: str, task: str, metric: str, fault: str | None
) -> None:
    with (tmp_path / "tasks" / "sums.yaml").open("a") as file:
        file.write(task_file)
    (tmp_path / "tasks" / "all.yaml").write_text(GROUP)
    config["evaluation"]["benchmarks"] = [{"task": task, "metric": metric}]
    inspection = inspect(config)
    check_evaluation(inspection, None)
    if fault is None:
        assert inspection.faults == []
    else:
        assert re.search(fault, inspection.faults[0])
    assert any("only its evaluation knows it" in line for line in inspection.unchecked) == (task_file == OWN_METRIC)


@pytest.mark.parametrize("is_guard", [True, False])
def test_a_guard_whose_metric_is_no_mean_over_items_is_a_fault(config: Tree, tmp_path: Path, is_guard: bool) -> None:
    path = tmp_path / "tasks" / "sums.yaml"
    path.write_text(path.read_text().replace("aggregation: mean", "aggregation: median"))
    config["evaluation"]["benchmarks"] = [{"task": "sums", "metric": "exact_match,none", "is_guard": is_guard}]
    inspection = inspect(config)
    check_evaluation(inspection, None)
    assert len(inspection.faults) == is_guard
    assert all("aggregates it by median" in fault and "is_guard: false" in fault for fault in inspection.faults)


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        ("data_files: {{test: {folder}/data.jsonl}}", None),
        ("data_files: {{test: '{folder}/*.jsonl'}}", None),
        ("data_files: {{test: '{folder}/*.csv'}}", "*.csv"),
        ("data_dir: {folder}, data_files: [data.jsonl, data.csv]", "data.csv"),
        ("data_files: ['https://example.org/data.jsonl']", None),
    ],
)
def test_local_data_files_of_a_task_should_exist(
    config: Tree, tmp_path: Path, arguments: str, missing: str | None
) -> None:
    head = TASK[: TASK.index("dataset_kwargs")]
    tail = TASK[TASK.index("test_split") :]
    task = f"{head}dataset_kwargs: {{{{{arguments}}}}}\n{tail}"
    (tmp_path / "tasks" / "sums.yaml").write_text(task.format(folder=tmp_path))
    inspection = inspect(config)
    check_evaluation(inspection, None)
    if missing is None:
        assert inspection.faults == []
    else:
        assert f"task sums: its data is missing: {tmp_path / missing} does not exist" in inspection.faults[0]


def test_replayed_rows_that_are_longer_than_a_phase_allows_are_counted(config: Tree, tmp_path: Path) -> None:
    skills = config["lab"]["phases"][0]
    skills["files"] = [write_jsonl(tmp_path / "rows.jsonl", [sft_row("5"), sft_row("5, " * 300)])]
    skills["train"] = {**skills["train"], "max_tokens": 1000}
    last = {"name": "last", "files": [write_jsonl(tmp_path / "short.jsonl", [sft_row("5")])], "replay_from": ["skills"]}
    config["lab"]["phases"].append({**last, "train": {**skills["train"], "max_tokens": 100}})
    inspection = inspect(config)
    check_phases(inspection, check_policy(inspection))
    assert inspection.faults == []
    replayed, context = inspection.warnings
    assert "rows.jsonl: 1 of 2 rows are longer than max_tokens 100 of phase last, which replays them" in replayed
    assert "1 of 2 rows are longer than the policy's 512 positions" in context

"""The stages evaluate and pick_peak on a run of tiny models: files, skipped work, errors."""

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.tiny_models import make_tokenizer
from eval.judging.llm_judge import CHECK_PROMPT
from eval.stages import Results, evaluate, pick_peak, read_results
from tests.chat_server import Reply, chat_server, openai_error, prompts_fixture  # noqa: F401
from tests.processes import END_TIMEOUT_S, ROOT, wait_until
from tests.tiny_models import make_model
from tests.tiny_run import write_jsonl
from winnow.config import parse_config
from winnow.errors import InputError, RunFolderError, ServerError, WinnowError
from winnow.records import EvalResult, digest
from winnow.rows import read_jsonl_files
from winnow.run_config import JudgeConfig, RunConfig
from winnow.rundir import Run, open_run, start_run

pytestmark = pytest.mark.usefixtures("_evaluation_resources")

TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "<s><|user|>\\n{{{{question}}}}\\n<|assistant|>\\n"
doc_to_target: answer
generation_kwargs: {{do_sample: false, max_gen_toks: 4, until: ["\\n"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""

QUESTIONS = [
    {"question_id": 1, "category": "math", "turns": ["2 + 3?", "Double it."], "form_pattern": r"\d+"},
    {"question_id": 2, "category": "writing", "turns": ["A colour?", "Another one."]},
]
REFERENCES = [{"question_id": n, "choices": [{"index": 0, "turns": ["5", "10"]}]} for n in (1, 2)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Make a run whose round 0 is a tiny model, with one benchmark and two questions."""
    for name in ("data", "tasks"):
        (tmp_path / name).mkdir()
    sums = write_jsonl(
        tmp_path / "data" / "sums.jsonl", [{"question": f"{n} + 1?", "answer": str(n)} for n in range(4)]
    )
    (tmp_path / "tasks" / "sums.yaml").write_text(TASK.format(data=sums))
    tree = {
        "name": "tiny",
        "policy": {"model": str(make_model("llama", tmp_path / "start")), "dtype": "float32"},
        "evaluation": {
            "task_dir": str(tmp_path / "tasks"),
            "benchmarks": [{"task": "sums", "metric": "exact_match,none"}],
            "questions": {
                "questions": write_jsonl(tmp_path / "data" / "question.jsonl", QUESTIONS),
                "references": write_jsonl(tmp_path / "data" / "reference.jsonl", REFERENCES),
                "num_runs": 2,
                "max_new_tokens": 6,
            },
        },
    }
    return Run(tmp_path / "run", parse_config(tree, RunConfig, "test"))


def stored(run: Run, round_number: int) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.eval_dir(round_number).iterdir()}


def pieces(run: Run) -> list[str]:
    """Return the finished pieces of round 0, oldest first."""
    return [entry["piece"].removeprefix("round-00/") for entry in run.ledger.entries()]


def test_evaluate_writes_its_files(run: Run) -> None:
    evaluate(run, 0)
    results = json.loads((run.eval_dir(0) / "results.json").read_text())
    assert (results["round"], results["checkpoint"]) == (0, run.config.policy.model)
    assert [(row["task"], row["n"]) for row in results["benchmarks"]] == [("sums", 4)]
    judge = results["judge"]
    assert (judge["judge"], judge["num_judgments"], judge["num_unparsable"]) == ("reference-judge", 8, 0)
    assert judge["min"] <= judge["mean"] <= judge["max"]
    assert len(judge["runs"]) == 2
    assert set(judge["by_category"]) == {"math", "writing"}
    assert set(judge["by_turn"]) == {"1", "2"}
    answers = read_jsonl_files([run.eval_dir(0) / "answers.jsonl"])
    judgments = read_jsonl_files([run.eval_dir(0) / "judgments.jsonl"])
    assert [(row["question_id"], row["run_id"], row["model_id"]) for row in answers] == [
        (1, 0, "tiny/round-00"),
        (2, 0, "tiny/round-00"),
        (1, 1, "tiny/round-00"),
        (2, 1, "tiny/round-00"),
    ]
    assert len(judgments) == 8
    assert len(read_jsonl_files([run.eval_dir(0) / "benchmark_items.jsonl"])) == 4
    entry = run.ledger.entry("round-00/evaluate")
    assert entry is not None
    assert (entry["judge_score"], entry["benchmarks"]) == (judge["mean"], {"sums": results["benchmarks"][0]["value"]})


def test_evaluate_skips_finished_rounds_and_repeats_unfinished_ones_with_equal_files(run: Run) -> None:
    evaluate(run, 0)
    first = stored(run, 0)
    (run.eval_dir(0) / "answers.jsonl").unlink()
    evaluate(run, 0)
    assert "answers.jsonl" not in stored(run, 0)
    run.ledger.path.unlink()
    evaluate(run, 0)
    assert stored(run, 0) == first


def test_evaluate_runs_again_after_a_change_of_questions_or_data(run: Run, tmp_path: Path) -> None:
    evaluate(run, 0)
    write_jsonl(tmp_path / "data" / "question.jsonl", QUESTIONS[:1])
    evaluate(run, 0)
    assert len(read_jsonl_files([run.eval_dir(0) / "answers.jsonl"])) == 2
    write_jsonl(tmp_path / "data" / "sums.jsonl", [{"question": "1 + 1?", "answer": "2"}])
    evaluate(run, 0)
    assert len(read_jsonl_files([run.eval_dir(0) / "benchmark_items.jsonl"])) == 1


def test_a_malformed_question_stops_evaluate_before_it_writes_anything(run: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "question.jsonl", [QUESTIONS[0], {"question_id": 2}])
    with pytest.raises(InputError, match=r"question\.jsonl line 2"):
        evaluate(run, 0)
    assert not run.eval_dir(0).exists()
    assert run.ledger.entries() == []


@pytest.mark.parametrize(
    ("condition", "complaint"),
    [
        ("messages[0]['role'] == 'system'", "not supported"),
        (
            "messages|length > 3",
            r"question_id 1 .* turn 2: .*not supported.*\(2 of 2 .*chat_template.*unset policy\.system_prompt",
        ),
    ],
)
def test_a_template_that_refuses_a_question_stops_evaluate_before_a_model_is_loaded(
    run: Run, tmp_path: Path, condition: str, complaint: str
) -> None:
    model = tmp_path / "tokenizer_only"
    make_tokenizer(model)
    template = tmp_path / "refusing.jinja"
    refusal = f"{{% if {condition} %}}{{{{ raise_exception('not supported') }}}}{{% endif %}}"
    template.write_text(refusal + (ROOT / "winnow" / "templates" / "lab.jinja").read_text())
    changes = {"model": str(model), "chat_template": str(template), "system_prompt": "Be brief."}
    policy = run.config.policy.model_copy(update=changes)
    refused = Run(run.root, run.config.model_copy(update={"policy": policy}))
    with pytest.raises(WinnowError, match=complaint):
        evaluate(refused, 0)
    assert not refused.eval_dir(0).exists()
    assert refused.ledger.entries() == []


def test_turns_without_an_answer_are_counted_shown_and_not_judged(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"question_id": 2, "category": "writing", "turns": ["A colour?", "Why? " * 4000]}
    write_jsonl(tmp_path / "data" / "question.jsonl", [QUESTIONS[0], long])
    evaluate(run, 0)
    assert "warning: round 0: 2 of 8 turns have no answer" in capsys.readouterr().err
    score = read_results(run, 0).judge
    assert score is not None
    assert (score.num_judgments, score.num_unanswered) == (6, 2)
    answers = read_jsonl_files([run.eval_dir(0) / "answers.jsonl"])
    assert [row["question_id"] for row in answers if "errors" in row] == [2, 2]
    texts = [answer["choices"][0]["turns"] for answer in answers]
    made = [*texts[0], texts[1][0], *texts[2], texts[3][0]]
    assert score.mean_answer_chars == pytest.approx(sum(map(len, made)) / 6)
    judgments = read_jsonl_files([run.eval_dir(0) / "judgments.jsonl"])
    assert (2, 2) not in [(row["question_id"], row["turn"]) for row in judgments]
    pick_peak(run, 0)
    assert "Unanswered: round 0: 2 turns" in capsys.readouterr().out


def with_max_unreadable(run: Run, share: float) -> Run:
    evaluation = run.config.evaluation
    assert evaluation.questions is not None
    judge = evaluation.questions.judge.model_copy(update={"max_unreadable": share})
    questions = evaluation.questions.model_copy(update={"judge": judge})
    changed = evaluation.model_copy(update={"questions": questions})
    return Run(run.root, run.config.model_copy(update={"evaluation": changed}))


def test_a_round_with_too_many_unreadable_verdicts_is_refused_and_kept(run: Run) -> None:
    evaluate(run, 0)
    path = run.eval_dir(0) / "results.json"
    results = json.loads(path.read_text())
    results["judge"]["num_unparsable"] = 2
    path.write_text(json.dumps(results))
    with pytest.raises(WinnowError, match=r"round 0 .*judgments\.jsonl\): 2 of 8 .*judge\.max_unreadable"):
        evaluate(run, 0)
    tolerant = with_max_unreadable(run, 0.25)
    evaluate(tolerant, 0)
    assert pieces(run) == ["benchmarks", "answers", "judgments", "evaluate"]


def test_evaluate_warns_of_unreadable_verdicts(
    run: Run, tmp_path: Path, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = run.config.evaluation.questions
    assert questions is not None
    write_jsonl(tmp_path / "data" / "question.jsonl", QUESTIONS[1:])

    def reply(request: dict[str, Any]) -> str:
        return "eight" if "Another one." in request["messages"][1]["content"] else "Rating: [[8]]"

    with chat_server(reply) as (address, _):
        judge = JudgeConfig(kind="llm", model="judge-1", base_url=address, prompts=prompts, max_unreadable=0.5)
        judged = questions.model_copy(update={"judge": judge})
        evaluation = run.config.evaluation.model_copy(update={"questions": judged})
        evaluate(Run(run.root, run.config.model_copy(update={"evaluation": evaluation})), 0)
    warning = "warning: round 0: 2 of 4 verdicts of the judge judge-1 are unreadable"
    assert warning in capsys.readouterr().err


def test_a_resumed_run_may_change_the_judge_and_the_number_of_runs(run: Run, tmp_path: Path) -> None:
    started = start_run(run.config.model_copy(update={"runs_dir": str(tmp_path)}), is_resumed=False)
    with started.ledger.record("round-00/evaluate", "inputs"):
        pass
    tolerant = with_max_unreadable(started, 0.25).config
    start_run(tolerant, is_resumed=True)
    assert open_run(started.root).config == tolerant
    tolerant = with_judge(started, "http://127.0.0.1:1/v1", "prompts.jsonl", num_runs=5).config
    start_run(tolerant, is_resumed=True)
    assert open_run(started.root).config == tolerant
    with pytest.raises(RunFolderError, match="seed: 0 -> 5"):
        start_run(tolerant.model_copy(update={"seed": 5}), is_resumed=True)


def test_evaluate_stops_if_no_question_has_an_answer(run: Run, tmp_path: Path) -> None:
    long = {"question_id": 2, "category": "writing", "turns": ["Why? " * 4000, "Really?"]}
    write_jsonl(tmp_path / "data" / "question.jsonl", [long])
    with pytest.raises(WinnowError, match=r"run 0 .* no answer to judge; question_id 2: the prompt has .* tokens"):
        evaluate(run, 0)
    assert pieces(run) == ["benchmarks"]


def test_a_run_without_evaluation_has_results_and_a_peak(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    bare = Run(run.root, run.config.model_copy(update={"evaluation": type(run.config.evaluation)()}))
    evaluate(bare, 0)
    assert read_results(bare, 0) == Results(round=0, checkpoint=run.config.policy.model, benchmarks=(), judge=None)
    pick_peak(bare, 0)
    assert "Peak: round 0" in capsys.readouterr().out


# --- pieces ---------------------------------------------------------------------------------------------------------


def rating(request: dict[str, Any]) -> str:
    """Reply with a rating that depends on the prompt alone."""
    prompt = json.dumps(request["messages"])
    return f"Rating: [[{int(digest(prompt), 16) % 10 + 1}]]"


def with_judge(run: Run, address: str, prompts: str, num_runs: int = 2, **settings: Any) -> Run:
    """Return the run with a judging model; run 0 and 1 have two questions of two turns each."""
    judge = JudgeConfig(kind="llm", model="judge-1", base_url=address, prompts=prompts, num_parallel=1)
    evaluation = run.config.evaluation
    assert evaluation.questions is not None
    changes = {"judge": judge.model_copy(update=settings), "num_runs": num_runs}
    questions = evaluation.questions.model_copy(update=changes)
    return Run(
        run.root,
        run.config.model_copy(update={"evaluation": evaluation.model_copy(update={"questions": questions})}),
    )


def test_a_failing_judge_call_costs_no_benchmark_no_answer_and_no_other_judgment(run: Run, prompts: str) -> None:
    num_calls = [0]

    def reply(request: dict[str, Any]) -> Reply:
        num_calls[0] += 1
        return openai_error(401, "Expired.", None, None) if num_calls[0] == 7 else "[[8]]"

    with chat_server(reply) as (address, _), pytest.raises(ServerError, match="Expired"):
        evaluate(with_judge(run, address, prompts), 0)
    assert pieces(run) == ["benchmarks", "answers"]
    before = run.ledger.entries()
    num_kept = len(stored(run, 0)["judge_requests.jsonl"].splitlines())
    assert num_kept >= 5
    with chat_server(rating) as (address, requests):
        evaluate(with_judge(run, address, prompts), 0)
        assert len(requests) == 1 + 8 - num_kept
    assert run.ledger.entries()[:2] == before
    assert pieces(run) == ["benchmarks", "answers", "judgments", "evaluate"]
    score = read_results(run, 0).judge
    assert score is not None
    assert score.num_judgments == 8


def test_a_changed_judge_or_number_of_runs_repeats_nothing_else(run: Run, prompts: str) -> None:
    with chat_server(rating) as (address, requests):
        evaluate(with_judge(run, address, prompts), 0)
        answers = stored(run, 0)["answers.jsonl"]
        evaluate(with_judge(run, address, prompts, model="judge-2"), 0)
        assert pieces(run)[4:] == ["judgments", "evaluate"]
        assert len(requests) == 2 * (1 + 8)
        evaluate(with_judge(run, address, prompts, num_runs=3), 0)
        assert pieces(run)[6:] == ["answers", "judgments", "evaluate"]
        # The check, and the judgments of run 2; those of runs 0 and 1 by judge-1 are there.
        assert len(requests) == 2 * (1 + 8) + 1 + 4
    assert stored(run, 0)["answers.jsonl"].startswith(answers)
    parts = stored(run, 0)["finished_answers.jsonl"].splitlines()
    assert len(parts) == 1 + 3  # greedy answers once, sampled ones in each run


def test_settings_that_change_no_judgment_judge_nothing_again(run: Run, prompts: str) -> None:
    with chat_server(rating) as (address, requests):
        evaluate(with_judge(run, address, prompts), 0)
        evaluate(with_judge(run, f"{address}/", prompts, timeout_s=7.0, num_parallel=2, max_unreadable=0.5), 0)
        assert len(requests) == 1 + 8
    assert len(pieces(run)) == 4


def test_an_evaluation_killed_at_random_calls_has_the_results_of_an_undisturbed_one(
    run: Run, tmp_path: Path, prompts: str
) -> None:
    # The numbers of the calls in which the evaluation is killed, over all starts; the first call of a start is a check.
    kill_at = sorted(Random(0).sample(range(1, 12), 3))
    is_reached = threading.Event()
    is_killed = threading.Event()
    calls: list[str] = []

    def reply(request: dict[str, Any]) -> str:
        calls.append(request["messages"][1]["content"])
        if len(calls) in kill_at:
            is_reached.set()
            is_killed.wait()
        return rating(request)

    with chat_server(rating) as (address, _):
        undisturbed = Run(tmp_path / "undisturbed", with_judge(run, address, prompts).config)
        evaluate(undisturbed, 0)
    with chat_server(reply) as (address, _):
        judged = with_judge(run, address, prompts)
        killed = start_run(judged.config.model_copy(update={"runs_dir": str(tmp_path)}), is_resumed=False)
        command = [sys.executable, "-m", "winnow.stages", "evaluate", str(killed.root), "0"]
        for _ in kill_at:
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
            wait_until(is_reached.is_set, "the call in which the evaluation is killed", END_TIMEOUT_S)
            process.kill()
            process.wait()
            is_reached.clear()
            is_killed.set()
            is_killed.clear()
        evaluate(killed, 0)
    files = stored(killed, 0)
    for name, content in stored(undisturbed, 0).items():
        assert files[name] == content, name
    judge_calls = [call for call in calls if call != CHECK_PROMPT]
    assert len(judge_calls) <= 8 + len(kill_at)  # a kill loses the call in flight
    assert pieces(killed).count("benchmarks") == 1


# --- the peak -------------------------------------------------------------------------------------------------------


def record_round(
    run: Run,
    round_number: int,
    judged: float,
    num_right: int,
    reward: float,
    num_unparsable: int = 0,
    verdicts: Sequence[float] = (),
) -> None:
    """Write a round's files as evaluate and select do: right items of 20, a mean judged score, a batch reward.

    `verdicts` are of turn 1 of the questions 1, 2 and so on.
    """
    items = []
    for index in range(20):
        value = float(index < num_right)
        items.append({"task": "sums", "metric": "exact_match,none", "item_id": f"sums/{index}/x", "value": value})
    run.eval_dir(round_number).mkdir(parents=True)
    write_jsonl(run.eval_dir(round_number) / "benchmark_items.jsonl", items)
    judgments = []
    for question, score in enumerate(verdicts, start=1):
        judgment = {"question_id": question, "model": "tiny", "judge": ["reference-judge", "single"], "turn": 1}
        judgments.append({**judgment, "user_prompt": "", "judgment": "", "score": score})
    if judgments:
        write_jsonl(run.eval_dir(round_number) / "judgments.jsonl", judgments)
    judge = {
        "judge": "reference-judge",
        "mean": judged,
        "min": judged - 0.1,
        "max": judged + 0.1,
        "sd": 0.1,
        "runs": [judged - 0.1, judged + 0.1],
        "by_category": {},
        "by_turn": {},
        "num_judgments": 4,
        "num_unparsable": num_unparsable,
        "mean_answer_chars": 3.0,
    }
    result = EvalResult(task="sums", metric="exact_match,none", value=num_right / 20, stderr=0.1, n=20)
    results = {
        "round": round_number,
        "checkpoint": run.policy_path(round_number),
        "benchmarks": [result.model_dump()],
        "judge": judge,
    }
    (run.eval_dir(round_number) / "results.json").write_text(json.dumps(results))
    if round_number > 0:
        metrics = {"batch_reward": reward, "random_control_reward": reward - 1, "gap": 1.0}
        run.metrics_path(round_number).write_text(json.dumps(metrics))


@pytest.fixture
def finished(run: Run) -> Run:
    """Record four rounds: 2 is judged best but forgot its sums; 1 and 3 are nearly equal, 3 has the higher reward."""
    record_round(run, 0, judged=5.0, num_right=15, reward=0.0, verdicts=(4, 5, 6, 5))
    record_round(run, 1, judged=7.0, num_right=16, reward=1.0, verdicts=(6, 7, 8, 7))
    record_round(run, 2, judged=9.0, num_right=3, reward=1.5, verdicts=(9, 9, 9, 9))
    record_round(run, 3, judged=7.1, num_right=14, reward=2.0, verdicts=(7, 7, 8, 6.4))
    return run


def test_pick_peak_chooses_writes_and_shows_the_peak(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    pick_peak(finished, 3)
    peak = json.loads(finished.peak_path.read_text())
    assert (peak["round"], peak["best"], peak["ties"]) == (1, 3, [1, 3])
    assert peak["checkpoint"] == finished.policy_path(1)
    assert (peak["batch_reward"], peak["judge_score"]["mean"]) == (1.0, 7.0)
    assert [dropped["round"] for dropped in peak["dropped"]] == [2]
    assert [(test["round"], test["loss"]) for test in peak["guards"]] == [(1, -0.05), (2, 0.6), (3, 0.05)]
    assert [(row["round"], row["num_questions"]) for row in peak["comparisons"]] == [(0, 4), (1, 4)]
    assert [row["batch_reward"] for row in peak["rounds"]] == [None, 1.0, 1.5, 2.0]
    assert [row["random_control_reward"] for row in peak["rounds"]] == [None, 0.0, 0.5, 1.0]
    assert peak["rounds"][2]["benchmarks"]["sums"] == {
        "value": 0.15,
        "stderr": 0.1,
        "n": 20,
        "metric": "exact_match,none",
    }
    assert finished.chart_path("png").exists()
    assert finished.chart_path("svg").exists()
    shown = capsys.readouterr().out
    assert "<- peak" in shown
    words = " ".join(shown.split())
    assert "rounds 1 and 3 cannot be told apart" in words
    assert "Dropped: round 2: sums exact_match,none lost 60.0 points" in words


def test_pick_peak_without_judgments_says_that_ties_are_not_tested(
    finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished.eval_dir(3) / "judgments.jsonl").unlink()
    pick_peak(finished, 3)
    peak = json.loads(finished.peak_path.read_text())
    assert (peak["round"], peak["ties"]) == (3, None)
    assert "Ties: not tested, since that takes verdicts by question" in " ".join(capsys.readouterr().out.split())


def test_unreadable_verdicts_are_left_out_of_the_comparison(finished: Run) -> None:
    path = finished.eval_dir(3) / "judgments.jsonl"
    rows = read_jsonl_files([path])
    rows[0]["score"] = -1
    write_jsonl(path, rows)
    pick_peak(finished, 3)
    peak = json.loads(finished.peak_path.read_text())
    # Without question 1 round 1 is better than round 3, and the best itself.
    assert (peak["round"], peak["best"]) == (1, 1)
    assert [(row["round"], row["num_verdicts"]) for row in peak["comparisons"]] == [(0, 4), (3, 3)]


def test_a_guard_that_is_better_when_lower_drops_the_rounds_with_more_errors(finished: Run) -> None:
    for round_number in range(4):
        path = finished.eval_dir(round_number) / "results.json"
        results = json.loads(path.read_text())
        results["benchmarks"][0]["higher_is_better"] = False
        path.write_text(json.dumps(results))
    pick_peak(finished, 3)
    peak = json.loads(finished.peak_path.read_text())
    assert (peak["round"], peak["dropped"]) == (2, [])
    assert peak["guards"][1]["loss"] == -0.6


def test_pick_peak_shows_a_recorded_peak_again_and_records_it_once(finished: Run) -> None:
    pick_peak(finished, 3)
    before = finished.peak_path.read_bytes()
    pick_peak(finished, 3)
    assert finished.peak_path.read_bytes() == before
    assert [entry["piece"] for entry in finished.ledger.entries()] == ["peak"]


def test_only_guard_benchmarks_drop_rounds(finished: Run) -> None:
    evaluation = finished.config.evaluation
    benchmarks = tuple(benchmark.model_copy(update={"is_guard": False}) for benchmark in evaluation.benchmarks)
    assert benchmarks
    lenient = evaluation.model_copy(update={"benchmarks": benchmarks})
    run = Run(finished.root, finished.config.model_copy(update={"evaluation": lenient}))
    pick_peak(run, 3)
    assert json.loads(run.peak_path.read_text())["round"] == 2


def test_pick_peak_refuses_a_round_with_too_many_unreadable_verdicts(run: Run) -> None:
    record_round(run, 0, judged=5.0, num_right=15, reward=0.0)
    record_round(run, 1, judged=9.0, num_right=15, reward=1.0, num_unparsable=1)
    with pytest.raises(WinnowError, match=r"round 1 .*1 of 4 verdicts .*unreadable"):
        pick_peak(run, 1)
    pick_peak(with_max_unreadable(run, 0.25), 1)
    peak = json.loads(run.peak_path.read_text())
    assert peak["judge_score"]["num_unparsable"] == 1


def test_pick_peak_names_a_round_without_results_or_metrics(finished: Run) -> None:
    with pytest.raises(WinnowError, match=r"round-04/eval/results\.json is missing; evaluate round 4 first"):
        pick_peak(finished, 4)
    finished.metrics_path(3).unlink()
    with pytest.raises(WinnowError, match=r"round-03/metrics\.json is missing; select round 3 first"):
        pick_peak(finished, 3)


def test_importing_eval_stages_loads_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "lm_eval", "matplotlib", "openai", "datasets")
    program = f"import sys, eval.stages; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"

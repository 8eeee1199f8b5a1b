"""The stages of evaluation: evaluate a round, pick the peak. Each takes a run and a round, and skips finished work.

evaluate    round-NN/checkpoint -> round-NN/eval/  results.json           EvalResults and the judged score
                                                   benchmark_items.jsonl  BenchmarkItem rows, for paired tests
                                                   answers.jsonl          FastChat's answer rows
                                                   judgments.jsonl        FastChat's judgment rows
pick_peak   each round's results.json, metrics.json and probe -> peak.json, rounds.png, rounds.svg, the closing table
"""

import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks import data_files, run_benchmarks
from eval.candidates import read_candidate
from eval.chart import draw_chart
from eval.judging.judged_scores import JudgedScore, check_readable, summarize, unreadable_warning
from eval.judging.mt_bench import Answer, answer_questions, check_answered, check_questions, judge_answers
from eval.judging.opening import open_judge
from eval.judging.questions import Question, References, read_questions, read_references
from eval.peak import Candidate, Rule, choose_peak
from eval.probe import read_probe_rewards
from eval.report import RoundReport, peak_report, round_report
from eval.table import print_closing
from winnow.chat import Chat, load_chat
from winnow.errors import WinnowError
from winnow.records import EvalResult, Row, digest, seed_from
from winnow.rows import file_sha256, write_json, write_jsonl
from winnow.run_config import QuestionsConfig
from winnow.rundir import Run, atomic_folder

QuestionSet = tuple[list[Question], References]
MAX_UNREADABLE = "evaluation.questions.judge.max_unreadable"
# Keys that decide about results, or that do not change them.
DECIDING_KEYS: dict[str, Any] = {
    "guard_alpha": True,
    "guard_tolerance": True,
    "probe": True,
    "questions": {"judge": {"max_unreadable": True}},
}


class Results(Row):
    """The content of results.json."""

    round: int
    checkpoint: str
    benchmarks: tuple[EvalResult, ...]
    judge: JudgedScore | None


def evaluate(run: Run, round_number: int) -> None:
    """Evaluate the policy of a round on the benchmarks and the question set.

    Raises WinnowError if too many verdicts are unreadable, after the results were written.
    """
    piece = f"{run.round_name(round_number)}/evaluate"
    inputs = evaluation_inputs(run, round_number)
    if not run.ledger.is_finished(piece, inputs):
        _evaluate(run, round_number, piece, inputs)
    _check_readable(run, read_results(run, round_number))


def _evaluate(run: Run, round_number: int, piece: str, inputs: str) -> None:
    """Evaluate a round and record the piece."""
    config = run.config.evaluation
    model = run.policy_path(round_number)
    # The questions are read and rendered, and the judge is called, before any model is loaded: a line, a template or an
    # endpoint at fault is reported at once.
    question_set = _read_question_set(config.questions)
    chat = load_chat(run.config.policy, model)
    if question_set is not None and config.questions is not None:
        check_questions(chat, question_set[0])
        with open_judge(config.questions.judge) as judge:
            judge.check()
    with run.ledger.record(piece, inputs) as facts, atomic_folder(run.eval_dir(round_number)) as folder:
        benchmarks = run_benchmarks(config, model, chat, run.config.policy.dtype, f"round {round_number}")
        _free_memory()
        write_jsonl(folder / "benchmark_items.jsonl", benchmarks.items)
        judged = None
        if question_set is not None:
            judged = _judged_score(run, round_number, chat, question_set, folder)
        results = Results(round=round_number, checkpoint=model, benchmarks=tuple(benchmarks.results), judge=judged)
        write_json(folder / "results.json", results.model_dump(mode="json"))
        facts.update(
            judge_score=None if judged is None else judged.mean,
            benchmarks={result.task: result.value for result in benchmarks.results},
        )


def pick_peak(run: Run, last_round: int) -> None:
    """Choose the peak of rounds 0 to `last_round`; write peak.json and the chart, and print the closing table."""
    rounds = range(last_round + 1)
    results_by_round = [read_results(run, round_number) for round_number in rounds]
    metrics_by_round = [_read_metrics(run, round_number) for round_number in rounds]
    probes = [read_probe_rewards(run.probe_rewards_path(round_number)) for round_number in rounds]
    for results in results_by_round:
        _check_readable(run, results)
    config = run.config.evaluation
    candidates: list[Candidate] = []
    reports: list[RoundReport] = []
    for results, metrics, probe in zip(results_by_round, metrics_by_round, probes, strict=True):
        judge_score = None if results.judge is None else results.judge.mean
        folder = run.eval_dir(results.round)
        candidates.append(read_candidate(folder, results.round, judge_score, results.benchmarks, config.benchmarks))
        reports.append(round_report(results.round, results.benchmarks, results.judge, metrics, probe))
    peak = choose_peak(candidates, Rule(config.guard_alpha, config.guard_tolerance))
    report = peak_report(peak, reports, results_by_round[peak.round].checkpoint, probes)
    inputs = digest([report.model_dump(mode="json"), run.config.name])
    if not run.ledger.is_finished("peak", inputs):
        with run.ledger.record("peak", inputs) as facts:
            title = f"{run.config.name}: reward and judged score by round"
            draw_chart(report, title, [run.chart_path("png"), run.chart_path("svg")])
            write_json(run.peak_path, report.model_dump(mode="json"))
            facts.update(round=peak.round, ties=peak.ties)
    print_closing(report)


def evaluation_inputs(run: Run, round_number: int) -> str:
    """Return a digest of all inputs of a round's results: checkpoint, config, files; not the deciding keys."""
    config = run.config.evaluation
    files: list[Path] = []
    if config.task_dir:
        files += data_files(config.task_dir)
    if config.questions is not None:
        names = [config.questions.questions, config.questions.references, config.questions.judge.prompts]
        files += [Path(name) for name in names if name and Path(name).is_file()]
    return digest(
        [
            config.model_dump(mode="json", exclude=DECIDING_KEYS),
            run.config.policy.model_dump(mode="json"),
            [run.config.sampling.engine, run.config.seed],
            run.ledger.inputs_of(run.policy_piece(round_number)),
            [[str(path), file_sha256(path)] for path in files],
        ]
    )


def read_results(run: Run, round_number: int) -> Results:
    """Read a round's results. Raises WinnowError for a round that was not evaluated."""
    path = run.eval_dir(round_number) / "results.json"
    return Results.model_validate(_read_json(path, f"evaluate round {round_number} first"))


def _judged_score(run: Run, round_number: int, chat: Chat, question_set: QuestionSet, folder: Path) -> JudgedScore:
    """Answer the question set and judge the answers, write both to `folder`, and return the score."""
    from sampler.engines import open_engine

    config = run.config.evaluation.questions
    assert config is not None  # the caller has read its files
    questions, references = question_set
    model = f"{run.config.name}/{run.round_name(round_number)}"
    label = f"round {round_number}"
    engine = open_engine(run.config.sampling, run.policy_path(round_number), chat, run.config.policy.dtype)
    answers = answer_questions(engine, chat, questions, config, seed_from(run.config.seed, "evaluate"), label)
    write_jsonl(folder / "answers.jsonl", [answer.row(model) for answer in answers])
    check_answered(answers)
    with open_judge(config.judge) as judge:
        judgments = judge_answers(judge, questions, references, answers, model, label)
    write_jsonl(folder / "judgments.jsonl", [judgment.model_dump(mode="json") for judgment in judgments])
    categories = {question.question_id: question.category for question in questions}
    answer_chars: list[int] = []
    for answer in answers:
        answer_chars += [len(text) for text in answer.texts]
    score = summarize(judgments, categories, answer_chars, _report_unanswered(answers, label))
    warning = unreadable_warning(score, label)
    if warning is not None:
        print(f"{warning}; see the rows with score -1 in judgments.jsonl", file=sys.stderr)
    return score


def _check_readable(run: Run, results: Results) -> None:
    """Raise WinnowError if more verdicts of a round are unreadable than the config allows."""
    questions = run.config.evaluation.questions
    if results.judge is not None and questions is not None:
        label = f"round {results.round} ({run.eval_dir(results.round) / 'judgments.jsonl'})"
        check_readable(results.judge, questions.judge.max_unreadable, label, MAX_UNREADABLE)


def _report_unanswered(answers: Sequence[Answer], label: str) -> int:
    """Count the turns without an answer; warn on stderr if there are any."""
    num_unanswered = sum(answer.num_unanswered for answer in answers)
    if num_unanswered:
        num_turns = sum(len(answer.turns) for answer in answers)
        print(
            f"warning: {label}: {num_unanswered} of {num_turns} turns have no answer and no judged score; "
            'see "errors" in answers.jsonl',
            file=sys.stderr,
        )
    return num_unanswered


def _read_question_set(config: QuestionsConfig | None) -> QuestionSet | None:
    """Read the questions and the references; return None if no questions are configured."""
    if config is None:
        return None
    return read_questions(config.questions), read_references(config.references)


def _read_metrics(run: Run, round_number: int) -> dict[str, Any]:
    """Read a round's reward metrics; round 0 selects nothing and has none."""
    if round_number == 0:
        return {}
    return _read_json(run.metrics_path(round_number), f"select round {round_number} first")


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    if not path.is_file():
        raise WinnowError(f"{path} is missing; {remedy}")
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def _free_memory() -> None:
    """Free the memory of the benchmarks' model before the sampling engine is opened."""
    gc.collect()
    if "torch" in sys.modules:
        import torch

        torch.cuda.empty_cache()

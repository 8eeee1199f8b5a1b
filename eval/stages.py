"""The stages of evaluation: evaluate a round, pick the peak. Each takes a run and a round, and skips finished work.

evaluate    round-NN/checkpoint -> round-NN/eval/  results.json           EvalResults and the judged score
                                                   benchmark_items.jsonl  BenchmarkItem rows, for paired tests
                                                   answers.jsonl          FastChat's answer rows
                                                   judgments.jsonl        FastChat's judgment rows
pick_peak   each round's results.json, metrics.json and probe -> peak.json, rounds.png, rounds.svg, the closing table
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.candidates import read_candidate
from eval.chart import draw_chart
from eval.judging.judged_scores import JudgedScore, check_readable, summarize, unreadable_warning
from eval.judging.mt_bench import Answer
from eval.judging.questions import read_questions
from eval.peak import Candidate, Rule, choose_peak
from eval.probe import read_probe_rewards
from eval.report import RoundReport, peak_report, round_report
from eval.round_evaluation import RoundEvaluation
from eval.table import print_closing
from winnow.errors import WinnowError
from winnow.records import EvalResult, Row, digest
from winnow.rows import write_json
from winnow.rundir import Run

MAX_UNREADABLE = "evaluation.questions.judge.max_unreadable"


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
    evaluation = RoundEvaluation(run, round_number)
    piece = f"{run.round_name(round_number)}/evaluate"
    if not run.ledger.is_finished(piece, evaluation.inputs):
        evaluation.compute()
        with run.ledger.record(piece, evaluation.inputs) as facts:
            results = _collect_results(evaluation)
            write_json(run.eval_dir(round_number) / "results.json", results.model_dump(mode="json"))
            facts.update(
                judge_score=None if results.judge is None else results.judge.mean,
                benchmarks={result.task: result.value for result in results.benchmarks},
            )
    _check_readable(run, read_results(run, round_number))


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


def read_results(run: Run, round_number: int) -> Results:
    """Read a round's results. Raises WinnowError for a round that was not evaluated."""
    path = run.eval_dir(round_number) / "results.json"
    return Results.model_validate(_read_json(path, f"evaluate round {round_number} first"))


def _collect_results(evaluation: RoundEvaluation) -> Results:
    """Read the files of a round's finished pieces; warn on stderr of turns without an answer or a verdict."""
    questions = evaluation.run.config.evaluation.questions
    judged = None
    if questions is not None:
        categories = {question.question_id: question.category for question in read_questions(questions.questions)}
        answers = evaluation.read_answers()
        answer_chars: list[int] = []
        for answer in answers:
            answer_chars += [len(text) for text in answer.texts]
        num_unanswered = _report_unanswered(answers, evaluation.label)
        judged = summarize(evaluation.read_judgments(), categories, answer_chars, num_unanswered)
        warning = unreadable_warning(judged, evaluation.label)
        if warning is not None:
            print(f"{warning}; see the rows with score -1 in judgments.jsonl", file=sys.stderr)
    return Results(
        round=evaluation.round_number,
        checkpoint=evaluation.policy_path,
        benchmarks=tuple(evaluation.read_benchmarks()),
        judge=judged,
    )


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

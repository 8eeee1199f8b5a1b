"""Evaluation's stages: evaluate a round, pick the peak. Each takes a run and a round, and skips what is finished.

evaluate    round-NN/checkpoint -> round-NN/eval/  results.json           EvalResults and the judged score
                                                   benchmark_items.jsonl  BenchmarkItem rows, for paired tests
                                                   answers.jsonl          FastChat's answer rows
                                                   judgments.jsonl        FastChat's judgment rows
pick_peak   each round's results.json and metrics.json -> peak.json, rounds.png, rounds.svg, the closing table
"""

import gc
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eval.benchmarks import BenchmarkItem, data_files, run_benchmarks
from eval.chart import draw_chart
from eval.judging.judged_scores import JudgedScore, summarize
from eval.judging.judges import Judge
from eval.judging.llm_judge import open_llm_judge
from eval.judging.mt_bench import answer_questions, judge_answers
from eval.judging.questions import Question, References, read_questions, read_references
from eval.judging.reference_judge import ReferenceJudge
from eval.peak import Candidate, Rule, choose_peak
from eval.report import peak_report, round_report
from eval.table import print_closing
from winnow.chat import Chat, load_chat
from winnow.errors import WinnowError
from winnow.records import EvalResult, Row, digest, seed_from
from winnow.rows import read_jsonl, write_json, write_jsonl
from winnow.run_config import JudgeConfig, QuestionsConfig
from winnow.rundir import Run, whole_folder

QuestionSet = tuple[list[Question], References]
PEAK_RULE_KEYS = {"guard_alpha", "guard_tolerance", "judge_tolerance"}


class Results(Row):
    """The content of results.json."""

    round: int
    checkpoint: str
    benchmarks: tuple[EvalResult, ...]
    judge: JudgedScore | None


def evaluate(run: Run, number: int) -> None:
    """Run the round's policy through the benchmarks and the question set."""
    piece, inputs = f"{run.round_name(number)}/evaluate", evaluation_inputs(run, number)
    if run.ledger.is_finished(piece, inputs):
        return
    config, model = run.config.evaluation, run.policy_path(number)
    questions = _read_question_set(config.questions)
    with run.ledger.record(piece, inputs) as facts, whole_folder(run.eval_dir(number)) as folder:
        chat = load_chat(run.config.policy, model)
        benchmarks = run_benchmarks(config, model, chat, run.config.policy.dtype, f"round {number}")
        _free_memory()
        write_jsonl(folder / "benchmark_items.jsonl", benchmarks.items)
        score = _judged_score(run, number, chat, questions, folder) if questions else None
        results = Results(round=number, checkpoint=model, benchmarks=tuple(benchmarks.results), judge=score)
        write_json(folder / "results.json", results.model_dump(mode="json"))
        facts.update(
            judge_score=score.mean if score else None, benchmarks={one.task: one.value for one in benchmarks.results}
        )


def pick_peak(run: Run, number: int) -> None:
    """Choose the peak of rounds 0 to `number`; write peak.json and the chart, and print the closing table."""
    rounds = range(number + 1)
    results = [read_results(run, one) for one in rounds]
    metrics = [_read_metrics(run, one) for one in rounds]
    config = run.config.evaluation
    rule = Rule(config.guard_alpha, config.guard_tolerance, config.judge_tolerance)
    peak = choose_peak([_candidate(run, *one) for one in zip(results, metrics, strict=True)], rule)
    reports = [round_report(one.round, one.benchmarks, one.judge, m) for one, m in zip(results, metrics, strict=True)]
    report = peak_report(peak, reports, results[peak.round].checkpoint)
    inputs = digest([report.model_dump(mode="json"), run.config.name])
    if not run.ledger.is_finished("peak", inputs):
        with run.ledger.record("peak", inputs) as facts:
            title = f"{run.config.name}: batch reward and judged score by round"
            draw_chart(report, title, [run.chart_path("png"), run.chart_path("svg")])
            write_json(run.peak_path, report.model_dump(mode="json"))
            facts.update(round=peak.round, ties=peak.ties)
    print_closing(report)


def evaluation_inputs(run: Run, number: int) -> str:
    """What decides a round's results: the checkpoint, the configuration and the files it names. Not the peak rule."""
    config = run.config.evaluation
    trained = run.ledger.line(f"{run.round_name(number)}/{'train' if number else 'start'}")
    files = data_files(config.task_dir) if config.task_dir else []
    if questions := config.questions:
        named = [questions.questions, questions.references, questions.judge.prompts]
        files += [Path(name) for name in named if name and Path(name).is_file()]
    return digest(
        [
            config.model_dump(mode="json", exclude=PEAK_RULE_KEYS),
            run.config.policy.model_dump(mode="json"),
            [run.config.sampling.engine, run.config.seed],
            trained and trained["inputs"],
            [[str(path), hashlib.sha256(path.read_bytes()).hexdigest()] for path in files],
        ]
    )


def read_results(run: Run, number: int) -> Results:
    """A round's results. Raises WinnowError for a round that was not evaluated."""
    return Results.model_validate(_read_json(run.eval_dir(number) / "results.json", f"evaluate round {number} first"))


@contextmanager
def open_judge(config: JudgeConfig) -> Iterator[Judge]:
    """The judge that the config names."""
    if config.kind == "llm":
        with open_llm_judge(config) as judge:
            yield judge
    else:
        yield ReferenceJudge()


def _judged_score(run: Run, number: int, chat: Chat, question_set: QuestionSet, folder: Path) -> JudgedScore:
    """Answers and judgments of the question set, written to `folder`, and their score."""
    from sampler.engines import open_engine

    config, (questions, references) = run.config.evaluation.questions, question_set
    assert config is not None  # the caller has read its files
    model, label = f"{run.config.name}/{run.round_name(number)}", f"round {number}"
    engine = open_engine(run.config.sampling, run.policy_path(number), chat, run.config.policy.dtype)
    answers = answer_questions(engine, chat, questions, config, seed_from(run.config.seed, "evaluate"), label)
    write_jsonl(folder / "answers.jsonl", [answer.row(model) for answer in answers])
    with open_judge(config.judge) as judge:
        judgments = judge_answers(judge, questions, references, answers, model, label)
    write_jsonl(folder / "judgments.jsonl", [judgment.model_dump(mode="json") for judgment in judgments])
    categories = {question.question_id: question.category for question in questions}
    return summarize(judgments, categories, [len(text) for answer in answers for text in answer.turns])


def _read_question_set(config: QuestionsConfig | None) -> QuestionSet | None:
    """Questions and references; read before any model is loaded, so that a malformed line costs nothing."""
    return (read_questions(config.questions), read_references(config.references)) if config else None


def _candidate(run: Run, results: Results, metrics: Mapping[str, Any]) -> Candidate:
    """What the peak rule reads of a round."""
    wanted = {(one.task, one.metric) for one in run.config.evaluation.benchmarks if one.is_guard}
    guards: dict[str, dict[str, float]] = defaultdict(dict)
    for _, row in read_jsonl(run.eval_dir(results.round) / "benchmark_items.jsonl"):
        item = BenchmarkItem.model_validate(row)
        if (item.task, item.metric) in wanted:
            guards[f"{item.task} {item.metric}"][item.item_id] = item.value
    score = results.judge.mean if results.judge else None
    return Candidate(results.round, score, metrics.get("batch_reward"), guards)


def _read_metrics(run: Run, number: int) -> dict[str, Any]:
    """A round's reward metrics; round 0, which selects nothing, has none."""
    return _read_json(run.metrics_path(number), f"select round {number} first") if number else {}


def _read_json(path: Path, way_out: str) -> dict[str, Any]:
    if not path.is_file():
        raise WinnowError(f"{path} is missing; {way_out}")
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def _free_memory() -> None:
    """Give back the benchmarks' model before the answers' is loaded."""
    gc.collect()
    if "torch" in sys.modules:
        import torch

        torch.cuda.empty_cache()

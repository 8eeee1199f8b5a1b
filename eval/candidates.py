"""The files of a round's evaluation -> the round as the peak rule sees it.

    results.json, benchmark_items.jsonl   -> guards: item id -> value, with the direction of the metric
    judgments.jsonl                       -> verdicts: (question, turn) -> mean of the readable verdicts of all runs

A guard is a benchmark whose value is the mean of one number for each item. Perplexity, F1 or BLEU are not: a loss on
them has no paired test.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from eval.benchmarks import BenchmarkItem
from eval.judging.judged_scores import UNREADABLE, Judgment
from eval.peak import Candidate, Guard, Verdicts
from winnow.records import EvalResult
from winnow.rows import read_jsonl
from winnow.run_config import BenchmarkConfig


def read_candidate(
    eval_dir: Path,
    round_number: int,
    judge_score: float | None,
    results: Sequence[EvalResult],
    benchmarks: Sequence[BenchmarkConfig],
) -> Candidate:
    """Build the candidate of a round from its results and the files in `eval_dir`."""
    values: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for _, row in read_jsonl(eval_dir / "benchmark_items.jsonl"):
        item = BenchmarkItem.model_validate(row)
        values[item.task, item.metric][item.item_id] = item.value
    direction = {(result.task, result.metric): result.higher_is_better for result in results}
    guards: dict[str, Guard] = {}
    for benchmark in benchmarks:
        key = (benchmark.task, benchmark.metric)
        if benchmark.is_guard:
            guards[f"{benchmark.task} {benchmark.metric}"] = Guard(values[key], direction.get(key) is not False)
    return Candidate(round_number, judge_score, read_verdicts(eval_dir / "judgments.jsonl"), guards)


def read_verdicts(path: Path) -> Verdicts:
    """Return the mean readable verdict of each (question, turn); empty if there is no such file."""
    scores: dict[tuple[int | str, int], list[float]] = defaultdict(list)
    if path.is_file():
        for _, row in read_jsonl(path):
            judgment = Judgment.model_validate(row)
            if judgment.score != UNREADABLE:
                scores[judgment.question_id, judgment.turn].append(judgment.score)
    return {key: fmean(verdicts) for key, verdicts in scores.items()}

"""A folder of judgments, made outside a run from answers.

DIR/judging.json           the inputs: judge, prompts, hashes of the files; a folder takes no other
DIR/judgments.jsonl        FastChat's rows of single-answer judgments, all models
DIR/judgments-2.jsonl      the same answers judged a second time (--rejudge 1), and so on
DIR/pairs.jsonl            FastChat's rows of pairwise judgments (--pairwise)
DIR/judge_requests.jsonl   finished requests: the same command again repeats none of them
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.judging.judged_scores import Judgment, group_scores
from eval.judging.judges import Judge
from eval.judging.mt_bench import Answer, judge_answers
from eval.judging.noise import Noise, noise
from eval.judging.questions import Question, References
from winnow.errors import UsageError, WinnowError
from winnow.rows import write_json, write_jsonl

# The inputs of MT-Bench outside a run: results.json in such a folder is not that of a round.
SUITE_INPUTS_NAME = "inputs.json"


def claim_folder(folder: Path, inputs: Mapping[str, Any], name: str = "judging.json") -> None:
    """Write the inputs of a folder's results to the file `name`. Raises UsageError if the folder has others."""
    path = folder / name
    if not path.exists():
        write_json(path, inputs)
        return
    earlier = json.loads(path.read_text())
    changed = [key for key in {**earlier, **inputs} if earlier.get(key) != inputs.get(key)]
    if changed:
        raise UsageError(
            f"{folder} holds results of other inputs ({', '.join(changed)} differ, see {path}); give another --output"
        )


def judgments_path(folder: Path, judging: int) -> Path:
    """Return the file of a judging: 0 is the first."""
    return folder / (f"judgments-{judging + 1}.jsonl" if judging else "judgments.jsonl")


def judge_into(
    folder: Path,
    judge: Judge,
    questions: Sequence[Question],
    references: References,
    answers: Mapping[str, Sequence[Answer]],
    num_rejudged: int = 0,
) -> list[list[Judgment]]:
    """Judge the answers of each model once and `num_rejudged` times more; return the judgments of each judging.

    Raises ServerError if the endpoint fails; what is finished by then is not repeated.
    """
    judgings: list[list[Judgment]] = []
    for judging in range(num_rejudged + 1):
        judgments: list[Judgment] = []
        for model, answers_of_model in answers.items():
            judgments += judge_answers(judge, questions, references, answers_of_model, model, model, judging)
        rows = [judgment.model_dump(mode="json") for judgment in judgments]
        write_jsonl(judgments_path(folder, judging), rows)
        judgings.append(judgments)
    return judgings


def judging_noise(judgings: Sequence[Sequence[Judgment]], model: str) -> Noise:
    """Return the noise of a model's mean. Raises WinnowError if a run has no readable verdict in a judging."""
    means_by_run: dict[str, list[float]] = {}
    for judgments in judgings:
        rows = [judgment for judgment in judgments if judgment.model == model]
        for run_id, score in group_scores(rows, [str(row.run_id) for row in rows]).items():
            if score.mean is None:
                raise WinnowError(f"model {model}: no readable verdict in run {run_id}; read the judgments")
            means_by_run.setdefault(run_id, []).append(score.mean)
    return noise(list(means_by_run.values()))

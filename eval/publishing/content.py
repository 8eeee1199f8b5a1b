"""A run, or results that exist -> the content of a card.

A run gives the results of its peak, the rounds, the settings and the prompt. Other results, like lm-eval's for the
benchmarks and a judgment file for MT-Bench, are joined into one content; they are taken to be of one model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eval.compare.reading import ReadingOptions, read_result
from eval.compare.results import TaskResult
from eval.compare.round_files import read_round
from eval.judging.judged_scores import JudgedScore, summarize
from eval.judging.judgment_files import only_set, read_judgment_sets
from eval.judging.questions import first_problem, read_questions
from eval.report import PeakReport
from eval.stages import read_results
from winnow.chat import load_chat
from winnow.chat.templates import template_source
from winnow.errors import ModelError, UsageError, WinnowError
from winnow.rows import file_sha256
from winnow.rundir import Run, open_run

# In the names of transformers; consolidated.safetensors holds the same weights for other software.
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class CardPrompt:
    """How a model is prompted: the jinja text of its chat template, and its system prompt."""

    template: str
    template_name: str
    system_prompt: str | None


@dataclass(frozen=True)
class CardContent:
    """Everything that a card says; `settings` and `hashes` are shown as they are.

    With `has_own_tasks`, the task files are the run's, and a task of lm-eval's name need not be lm-eval's.
    """

    name: str
    tasks: tuple[TaskResult, ...]
    judged: JudgedScore | None = None
    start_model: str | None = None
    peak: PeakReport | None = None
    prompt: CardPrompt | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    has_own_tasks: bool = False


def read_content(
    arguments: Sequence[str], name: str | None = None, questions: Path | None = None, max_unreadable: float = 0.1
) -> CardContent:
    """Read a run, or results of one model. Raises UsageError for a run among other results, or a result twice."""
    is_run = [(Path(argument) / "ledger.jsonl").is_file() for argument in arguments]
    if any(is_run) and len(arguments) > 1:
        raise UsageError(f"{arguments[is_run.index(True)]} is a run, whose card has its own results; give it alone")
    if any(is_run):
        return run_content(open_run(Path(arguments[0]), is_read_only=True), name)
    return _joined_content(arguments, name, questions, ReadingOptions(max_unreadable=max_unreadable))


def run_content(run: Run, name: str | None = None) -> CardContent:
    """Return the content of a finished run's card. Raises WinnowError for a run without a peak."""
    peak = read_peak(run)
    policy = run.config.policy
    folder = peak_folder(run, peak)
    chat = load_chat(policy, str(folder))
    return CardContent(
        name=name or run.config.name,
        tasks=tuple(read_round(run.eval_dir(peak.round)).values()),
        judged=read_results(run, peak.round).judge,
        start_model=policy.model,
        peak=peak,
        prompt=CardPrompt(
            template_source(policy.chat_template, chat.tokenizer), policy.chat_template, policy.system_prompt
        ),
        settings=_run_settings(run),
        hashes={
            "chat template and settings": chat.template_hash,
            "tokenizer": chat.tokenizer_hash,
            **_file_hashes([run.config_path, run.eval_dir(peak.round) / "results.json"]),
            **_file_hashes(weight_files(folder)),
        },
        has_own_tasks=run.config.evaluation.task_dir is not None,
    )


def read_peak(run: Run) -> PeakReport:
    """Return the peak of a finished run. Raises WinnowError for a run without one that this version can read."""
    if not run.peak_path.is_file():
        raise WinnowError(f"{run.root} has no peak.json; finish the run, or run `winnow peak {run.root}`")
    try:
        return PeakReport.model_validate_json(run.peak_path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise WinnowError(
            f"{run.peak_path} is not of this version ({first_problem(error)}); run `winnow peak {run.root}` once more"
        ) from None


def peak_folder(run: Run, peak: PeakReport) -> Path:
    """Return the folder of the peak's checkpoint; of a model of the hub, the copy on this machine.

    Raises ModelError if there is none.
    """
    model = run.policy_path(peak.round)
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "config.json")
    if not isinstance(cached, str):
        raise ModelError(
            f"the peak of {run.root} is {model!r}, which is not on this machine; copy it back, or run `hf download` "
            "if it is a model of the hub"
        )
    return Path(cached).parent


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a checkpoint; a folder with safetensors may hold the same weights once more."""
    for pattern in WEIGHTS:
        paths = sorted(folder.glob(pattern))
        if paths:
            return paths
    return []


def _joined_content(
    arguments: Sequence[str], name: str | None, questions: Path | None, options: ReadingOptions
) -> CardContent:
    tasks: dict[tuple[str, str], TaskResult] = {}
    judged: JudgedScore | None = None
    hashes: dict[str, str] = {}
    for argument in arguments:
        result = read_result(argument, options)
        repeated = tasks.keys() & result.tasks.keys()
        if repeated:
            raise UsageError(f"{argument}: a second result of {' '.join(sorted(repeated)[0])}; give each task once")
        tasks |= result.tasks
        if result.judged is not None:
            if judged is not None:
                raise UsageError(f"{argument}: a second judged score; give one")
            judged = _judged_score(argument, questions)
        path = Path(argument.partition("#")[0])
        files = [path]
        if path.is_dir():
            files = sorted([*path.rglob("results*.json"), *path.glob("judgments.jsonl")])
        for file in files:
            hashes[f"{file.parent.name}/{file.name}"] = file_sha256(file)
    return CardContent(name or Path(arguments[0].partition("#")[0]).stem, tuple(tasks.values()), judged, hashes=hashes)


def _judged_score(argument: str, questions: Path | None) -> JudgedScore:
    """Summarize the judgments of an argument, by category with a question file."""
    name, _, model = argument.partition("#")
    path = Path(name)
    for folder in (path, path / "eval"):
        if (folder / "judgments.jsonl").is_file():
            path = folder / "judgments.jsonl"
    judged = only_set(read_judgment_sets(path, is_missing_allowed=True), model or None)
    categories = None
    if questions is not None:
        categories = {question.question_id: question.category for question in read_questions(questions)}
    return summarize(judged.judgments, categories, ())


def _run_settings(run: Run) -> dict[str, str]:
    """Return the settings that decide what a run's numbers mean."""
    config = run.config
    settings: dict[str, Any] = {
        "made by": f"winnow {json.loads(run.config_path.read_text()).get('winnow_version', '0.1.0 or older')}",
        "start": config.policy.model,
        "rounds": config.rounds.num_rounds,
        "completions of a prompt": config.sampling.num_completions,
        "temperature, top_p": f"{config.sampling.temperature:g}, {config.sampling.top_p:g}",
        "seed": config.seed,
    }
    if config.prompts is not None:
        settings["prompts of a round"] = config.prompts.num_prompts
    questions = config.evaluation.questions
    if questions is not None:
        settings["judge"] = questions.judge.model or questions.judge.kind
        settings["judged runs"] = questions.num_runs
    return {key: str(value) for key, value in settings.items()}


def _file_hashes(paths: Sequence[Path]) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in paths if path.is_file()}

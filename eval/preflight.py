"""The evaluation of a run, checked before anything is computed: tasks, metrics, data files, questions, the judge.

    benchmarks   names -> lm-eval's index of tasks, which needs no torch -> metrics, filters and local data files
    questions    questions, references and judge prompts -> both turns rendered, every judge prompt filled in

The data of lm-eval's own tasks is not looked at: lm-eval downloads it when it loads a task.
"""

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks import check_task, data_files, strings_of, task_manager, unknown_metric_error
from eval.judging.llm_judge import JudgePrompt, prompt_fields, prompt_name, read_judge_prompts
from eval.judging.mt_bench import check_questions
from eval.judging.opening import endpoint_settings
from eval.judging.questions import NUM_TURNS, Question, References, read_questions, read_references
from eval.judging.reference_judge import ReferenceJudge
from sampler.engines.chat_endpoint import open_chat_endpoint
from winnow.chat import Chat
from winnow.errors import ChatError, InputError, UsageError
from winnow.inspection import Inspection
from winnow.records import Message
from winnow.row_checks import counted, describe_limit
from winnow.run_config import BenchmarkConfig, JudgeConfig, QuestionsConfig

LOCAL_FORMATS = frozenset({"json", "csv", "parquet", "text", "arrow"})


def check_evaluation(inspection: Inspection, chat: Chat | None) -> None:
    """Check the benchmarks and the questions, unless a resumed run has evaluated its last round."""
    config = inspection.config.evaluation
    last_round = inspection.config.rounds.num_rounds
    if inspection.is_finished(f"{inspection.run.round_name(last_round)}/evaluate"):
        return
    if config.benchmarks:
        _check_benchmarks(inspection)
    if config.questions is not None:
        _check_question_set(inspection, config.questions, chat)


def _check_benchmarks(inspection: Inspection) -> None:
    config = inspection.config.evaluation
    num_faults = len(inspection.faults)
    inspection.require_module("lm_eval")
    if config.task_dir is not None:
        with inspection.collect():
            data_files(config.task_dir)
    if len(inspection.faults) > num_faults:
        return
    with inspection.collect():
        manager = task_manager(config)
        remote: list[str] = []
        for benchmark in config.benchmarks:
            with inspection.collect():
                check_task(config, benchmark.task, manager)
                entry = manager.task_index[benchmark.task]
                if not _has_local_data(entry):
                    remote.append(benchmark.task)
                with inspection.collect():
                    _check_data(benchmark.task, entry)
                _check_metric(inspection, benchmark, entry)
        if remote:
            inspection.unchecked.append(f"data of {', '.join(remote)}: lm-eval fetches it")
    inspection.add_checked(f"{counted(len(config.benchmarks), 'benchmark')}: name and metric", num_faults)


def _check_metric(inspection: Inspection, benchmark: BenchmarkConfig, entry: Any) -> None:
    """Raise UsageError for a metric or filter that a task's file does not define."""
    if entry.kind.name == "TAG":
        raise UsageError(
            f"{benchmark.task} is a tag of several tasks, and has no metrics; name its tasks: "
            f"{', '.join(sorted(entry.tags))}"
        )
    task = entry.cfg or {}
    if not _has_plain_metrics(entry.kind.name, task):
        inspection.unchecked.append(f"metric {benchmark.metric} of task {benchmark.task}: only its evaluation knows it")
        return
    known = list(_metrics(entry.kind.name, task))
    if benchmark.metric not in known:
        raise unknown_metric_error(benchmark, known)
    if benchmark.is_guard:
        _check_guard_metric(benchmark, task)


def _check_guard_metric(benchmark: BenchmarkConfig, task: Mapping[str, Any]) -> None:
    """Raise UsageError for a guard whose task aggregates the metric otherwise than by the mean; see `check_guard`."""
    name = benchmark.metric.partition(",")[0]
    for entry in task.get("metric_list") or []:
        aggregation = entry.get("aggregation", "mean")
        if entry["metric"] == name and aggregation != "mean":
            raise UsageError(
                f"{benchmark.task} {benchmark.metric} is a guard, but the task aggregates it by {aggregation}, not by "
                "the mean, so that a loss cannot be tested item by item; choose another metric, or set is_guard: false"
            )


def _has_plain_metrics(kind: str, task: Mapping[str, Any]) -> bool:
    """Tell whether a task's file alone decides the names of its metrics; a function of it may make further ones."""
    if kind == "GROUP":
        return bool(task.get("aggregate_metric_list"))
    names = [entry.get("metric") for entry in task.get("metric_list") or []]
    has_functions = any(not isinstance(name, str) or "." in name for name in names)
    return kind == "TASK" and not has_functions and task.get("process_results") is None


def _metrics(kind: str, task: Mapping[str, Any]) -> Iterator[str]:
    """Yield the metrics of a task or group as lm-eval names them: "acc,none"."""
    if kind == "GROUP":
        for entry in task["aggregate_metric_list"]:
            filters = entry.get("filter_list", "none")
            if isinstance(filters, str):
                filters = [filters]
            yield from (f"{entry['metric']},{name}" for name in filters)
        return
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    metrics = DEFAULT_METRIC_REGISTRY.get(task.get("output_type", "generate_until"), [])
    if task.get("metric_list"):
        metrics = [entry["metric"] for entry in task["metric_list"]]
    filters = ["none"]
    if task.get("filter_list"):
        filters = [entry["name"] for entry in task["filter_list"]]
    for metric in metrics:
        yield from (f"{metric},{name}" for name in filters)


def _has_local_data(entry: Any) -> bool:
    """Tell whether a task reads files that its own file names."""
    return (entry.cfg or {}).get("dataset_path") in LOCAL_FORMATS


def _check_data(task: str, entry: Any) -> None:
    """Raise UsageError for a local data file of a task that does not exist."""
    if not _has_local_data(entry):
        return
    arguments = entry.cfg.get("dataset_kwargs") or {}
    folder = Path(arguments.get("data_dir") or "")
    for name in strings_of(arguments.get("data_files")):
        if "://" not in name and not (folder / name).exists() and not glob.glob(str(folder / name)):
            raise UsageError(
                f"task {task}: its data is missing: {folder / name} does not exist; make it, or change data_files in "
                f"{entry.yaml_path}"
            )


def _check_question_set(inspection: Inspection, config: QuestionsConfig, chat: Chat | None) -> None:
    """Check the three files, that the chat template renders every question, and that every question can be judged."""
    num_faults = len(inspection.faults)
    questions: list[Question] = []
    references: References | None = None
    with inspection.collect():
        questions = read_questions(config.questions)
    with inspection.collect():
        references = read_references(config.references)
    prompts = _check_judge(inspection, config.judge)
    if questions and references is not None:
        with inspection.collect():
            _check_can_be_judged(config.judge, prompts, questions, references)
    if questions and chat is not None:
        with inspection.collect():
            check_questions(chat, questions)
        longest = _check_lengths(inspection, config, chat, questions)
        inspection.add_checked(
            f"{counted(len(questions), 'question')} with references and judge, the longest first turn has {longest} "
            f"tokens{describe_limit(_max_question_tokens(inspection, config))}",
            num_faults,
        )


def _check_judge(inspection: Inspection, config: JudgeConfig) -> dict[str, JudgePrompt] | None:
    """Open the endpoint of a judging model without a call, and return its prompts; None if there are none."""
    prompts = None
    if config.kind == "llm" and config.prompts is not None:
        with inspection.collect(), open_chat_endpoint(endpoint_settings(config)) as endpoint:
            inspection.unchecked.append(f"judge {config.model} at {endpoint.url}: it is called before each evaluation")
        with inspection.collect():
            prompts = read_judge_prompts(config.prompts)
    return prompts


def _check_can_be_judged(
    config: JudgeConfig,
    prompts: Mapping[str, JudgePrompt] | None,
    questions: Sequence[Question],
    references: References,
) -> None:
    """Judge empty answers by rule, or fill in the prompts for them. Raises InputError for the first question."""
    rule = ReferenceJudge()
    for question in questions:
        for turn in range(1, NUM_TURNS + 1):
            answers = ("",) * turn
            reference = references.get(question.question_id)
            if config.kind == "reference-judge":
                rule.judge(question, answers, reference)
                continue
            fields = prompt_fields(question, answers, reference)
            if prompts is not None:
                _fill_in(prompts[prompt_name(question, turn)], fields, str(config.prompts))


def _fill_in(prompt: JudgePrompt, fields: Mapping[str, str], path: str) -> None:
    try:
        prompt.prompt_template.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{path}: the prompt {prompt.name} cannot be filled in ({type(error).__name__}: {error}); its fields are "
            f"{', '.join(sorted(fields))}, and other braces are doubled"
        ) from None


def _check_lengths(inspection: Inspection, config: QuestionsConfig, chat: Chat, questions: Sequence[Question]) -> int:
    """Count the questions whose first turn leaves no space for an answer; return the tokens of the longest one."""
    lengths: list[int] = []
    for question in questions:
        try:
            lengths.append(len(chat.prompt_ids([Message(role="user", content=question.turns[0])])))
        except ChatError:
            continue  # `check_questions` has reported it
    limit = _max_question_tokens(inspection, config)
    if limit is not None:
        num_long = sum(1 for length in lengths if length > limit)
        text = (
            f"{config.questions}: {num_long} of {len(questions)} questions have more than {limit} tokens (the policy's "
            f"{inspection.context_tokens} positions less evaluation.questions.max_new_tokens {config.max_new_tokens})"
        )
        if num_long == len(lengths) and num_long:
            inspection.add_fault(f"{text}; lower evaluation.questions.max_new_tokens")
        elif num_long:
            inspection.warnings.append(f"{text} and will have no answer")
    return max(lengths, default=0)


def _max_question_tokens(inspection: Inspection, config: QuestionsConfig) -> int | None:
    """Return the longest first turn that can be answered, in tokens; None if the policy's positions are unknown."""
    if inspection.context_tokens is None:
        return None
    return inspection.context_tokens - config.max_new_tokens

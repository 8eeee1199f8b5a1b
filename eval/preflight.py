"""The evaluation of a run, checked before anything is computed: tasks, metrics, data files, questions, the judge.

    benchmarks   names -> lm-eval's index of tasks, which needs no torch -> metrics, filters and local data files
    questions    questions, references and judge prompts -> both turns rendered, every judge prompt filled in

The data of lm-eval's own tasks is not looked at: lm-eval downloads it when it loads a task.
"""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks import check_task, load_task, settings_of, task_manager
from eval.judging.llm_judge import JudgePrompt, prompt_fields, prompt_name, read_judge_prompts
from eval.judging.mt_bench import check_questions, turn_lengths
from eval.judging.opening import endpoint_settings
from eval.judging.questions import NUM_TURNS, Question, References, read_questions, read_references
from eval.judging.reference_judge import ReferenceJudge
from eval.quiet import quiet
from eval.task_files import data_files, data_folder, strings_of
from eval.task_metrics import check_metric
from eval.task_settings import apply_settings
from sampler.engines import max_prompt_tokens
from sampler.engines.chat_endpoint import open_chat_endpoint
from winnow.chat import Chat
from winnow.errors import ChatError, InputError, UsageError
from winnow.inspection import Inspection
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
                with inspection.collect():
                    if not check_metric(benchmark, entry):
                        text = f"metric {benchmark.metric} of task {benchmark.task}: only its evaluation knows it"
                        inspection.unchecked.append(text)
                if _has_local_data(entry):
                    _check_data(benchmark, entry, manager)
                else:
                    remote.append(benchmark.task)
        if remote:
            inspection.unchecked.append(f"data of {', '.join(remote)}: lm-eval fetches it")
    inspection.add_checked(f"{counted(len(config.benchmarks), 'benchmark')}: name and metric", num_faults)


def _has_local_data(entry: Any) -> bool:
    """Tell whether a task reads files that its own file names."""
    dataset_path = str((entry.cfg or {}).get("dataset_path"))
    return dataset_path in LOCAL_FORMATS or Path(dataset_path).exists()


def _check_data(benchmark: BenchmarkConfig, entry: Any, manager: Any) -> None:
    """Raise UsageError for a local data file of a task that does not exist, and for more shots than examples."""
    task = benchmark.task
    folder = data_folder(entry.cfg)
    for name in strings_of((entry.cfg.get("dataset_kwargs") or {}).get("data_files")):
        if "://" in name:
            return
        if not (folder / name).exists() and not glob.glob(str(folder / name)):
            raise UsageError(
                f"task {task}: its data is missing: {folder / name} does not exist; make it, or change data_files in "
                f"{entry.yaml_path}"
            )
    settings = settings_of(benchmark)
    if settings.num_fewshot or entry.cfg.get("num_fewshot") or settings.generation_arguments:
        with quiet():
            apply_settings(task, load_task(manager, task), settings)


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
            f"tokens{describe_limit(max_prompt_tokens(inspection.context_tokens, config.max_new_tokens))}",
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
    """Count the questions with a turn that leaves no space for an answer; return the tokens of the longest first turn.

    The answer before a second turn is a placeholder of a few tokens: the real one is longer.
    """
    lengths: list[tuple[int, ...]] = []
    for question in questions:
        try:
            lengths.append(turn_lengths(chat, question))
        except ChatError:
            continue  # `check_questions` has reported it
    limit = max_prompt_tokens(inspection.context_tokens, config.max_new_tokens)
    if limit is not None:
        num_long = sum(1 for turns in lengths if max(turns) > limit)
        text = (
            f"{config.questions}: {num_long} of {len(questions)} questions have more than {limit} tokens (the policy's "
            f"{inspection.context_tokens} positions less evaluation.questions.max_new_tokens {config.max_new_tokens}), "
            "the first turn included in the second"
        )
        if num_long == len(lengths) and num_long:
            inspection.add_fault(f"{text}; lower evaluation.questions.max_new_tokens")
        elif num_long:
            inspection.warnings.append(f"{text}, and a turn without an answer")
    return max((turns[0] for turns in lengths), default=0)

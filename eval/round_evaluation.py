"""The evaluation of one round: three pieces of work, each with inputs and files of its own.

    piece                  inputs besides the checkpoint                    files in round-NN/eval/
    round-NN/benchmarks    benchmarks, task files                           benchmarks.jsonl, benchmark_items.jsonl
    round-NN/answers       questions, number of runs, seed, engine          answers.jsonl
    round-NN/judgments     answers, judge, references, judge prompts        judgments.jsonl

A judge that fails or changes costs no benchmark and no answer. Below the pieces, finished_answers.jsonl holds the
answers of finished parts (judging/answering.py) and judge_requests.jsonl the judge's finished replies: a killed piece
repeats neither, nor does one whose settings changed.
"""

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.benchmarks import run_benchmarks
from eval.judging.answer_files import read_answers
from eval.judging.answering import EngineAnswerer, answer_questions
from eval.judging.judged_scores import Judgment
from eval.judging.judgment_inputs import judgment_settings
from eval.judging.mt_bench import Answer, check_answered, check_questions, judge_answers
from eval.judging.opening import open_judge
from eval.judging.questions import read_questions, read_references
from eval.task_files import benchmark_inputs
from sampler.engines.finished_requests import FinishedRequests
from winnow.chat import Chat, load_chat
from winnow.records import EvalResult, digest, seed_from
from winnow.rows import file_sha256, read_jsonl_files, write_jsonl
from winnow.run_config import QuestionsConfig
from winnow.rundir import Run

# Keys of `evaluation` that change no benchmark, and of `questions` that change no answer.
NOT_OF_BENCHMARKS: dict[str, Any] = {
    "guard_alpha": True,
    "guard_tolerance": True,
    "probe": True,
    "questions": True,
    "benchmarks": {"__all__": {"is_guard": True}},
}
NOT_OF_ANSWERS = {"judge", "references"}


@dataclass(frozen=True)
class RoundEvaluation:
    """The work on one round of a run."""

    run: Run
    round_number: int

    @property
    def label(self) -> str:
        """The beginning of the titles of the progress bars."""
        return f"round {self.round_number}"

    @property
    def folder(self) -> Path:
        """The folder of the round's results."""
        return self.run.eval_dir(self.round_number)

    @property
    def policy_path(self) -> str:
        """The checkpoint that is evaluated."""
        return self.run.policy_path(self.round_number)

    @cached_property
    def chat(self) -> Chat:
        """The tokenizer and template of the checkpoint."""
        return load_chat(self.run.config.policy, self.policy_path)

    @cached_property
    def inputs(self) -> str:
        """The digest of everything that decides the results."""
        judgments = None if self.run.config.evaluation.questions is None else self._judgment_inputs
        return digest([self._benchmark_inputs, judgments])

    def compute(self) -> None:
        """Do the pieces that are not finished.

        Raises UsageError, InputError and ServerError for a question, a file or an endpoint at fault, before any model
        is loaded.
        """
        questions = self.run.config.evaluation.questions
        if questions is not None:
            self._check_questions(questions)
        self._finish("benchmarks", self._benchmark_inputs, self._run_benchmarks)
        if questions is not None:
            self._finish("answers", self._answer_inputs, lambda: self._answer(questions))
            self._finish("judgments", self._judgment_inputs, lambda: self._judge(questions))

    def read_benchmarks(self) -> list[EvalResult]:
        """Return the results of the benchmarks."""
        return [EvalResult.model_validate(row) for row in read_jsonl_files([self.folder / "benchmarks.jsonl"])]

    def read_answers(self) -> list[Answer]:
        """Return the answers of every run."""
        [answers] = read_answers(self.folder / "answers.jsonl").values()
        return answers

    def read_judgments(self) -> list[Judgment]:
        """Return the judgments of every run."""
        return [Judgment.model_validate(row) for row in read_jsonl_files([self.folder / "judgments.jsonl"])]

    def _finish(self, name: str, inputs: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do the work of a piece unless it is finished, and record it with the facts that the work returns."""
        piece = f"{self.run.round_name(self.round_number)}/{name}"
        if not self.run.ledger.is_finished(piece, inputs):
            with self.run.ledger.record(piece, inputs) as facts:
                facts.update(work())

    def _check_questions(self, config: QuestionsConfig) -> None:
        """Read and render the questions, and call the judge if there is work for it."""
        check_questions(self.chat, read_questions(config.questions))
        read_references(config.references)
        piece = f"{self.run.round_name(self.round_number)}/judgments"
        if not self.run.ledger.is_finished(piece, self._judgment_inputs):
            with open_judge(config.judge) as judge:
                judge.check()

    def _run_benchmarks(self) -> dict[str, Any]:
        """Write benchmarks.jsonl and benchmark_items.jsonl; return the value of each task."""
        config = self.run.config
        benchmarks = run_benchmarks(config.evaluation, self.policy_path, self.chat, config.policy.dtype, self.label)
        _free_memory()
        write_jsonl(self.folder / "benchmark_items.jsonl", benchmarks.items)
        write_jsonl(self.folder / "benchmarks.jsonl", benchmarks.results)
        return {"benchmarks": {result.task: result.value for result in benchmarks.results}}

    def _answer(self, config: QuestionsConfig) -> dict[str, Any]:
        """Write answers.jsonl; return the number of answers. Raises WinnowError if a whole run has no answer."""
        from sampler.engines import open_engine

        settings = self.run.config

        def open_answerer() -> EngineAnswerer:
            engine = open_engine(settings.sampling, self.policy_path, self.chat, settings.policy.dtype)
            return EngineAnswerer(engine, self.chat)

        answers = answer_questions(
            open_answerer,
            read_questions(config.questions),
            config,
            seed_from(settings.seed, "evaluate"),
            self.label,
            self._part_inputs,
            FinishedRequests(self.folder / "finished_answers.jsonl"),
        )
        check_answered(answers)
        write_jsonl(self.folder / "answers.jsonl", [answer.row(self._model) for answer in answers])
        return {"answers": len(answers)}

    def _judge(self, config: QuestionsConfig) -> dict[str, Any]:
        """Write judgments.jsonl; return the number of judgments. Raises ServerError if the endpoint fails."""
        questions = read_questions(config.questions)
        references = read_references(config.references)
        answers = self.read_answers()
        with open_judge(config.judge, self.folder / "judge_requests.jsonl") as judge:
            judgments = judge_answers(judge, questions, references, answers, self._model, self.label)
        write_jsonl(self.folder / "judgments.jsonl", [judgment.model_dump(mode="json") for judgment in judgments])
        return {"judgments": len(judgments)}

    @property
    def _model(self) -> str:
        """The name of the checkpoint in FastChat's files."""
        return f"{self.run.config.name}/{self.run.round_name(self.round_number)}"

    @cached_property
    def _checkpoint_inputs(self) -> str:
        policy = self.run.config.policy.model_dump(mode="json")
        return digest([policy, self.run.ledger.inputs_of(self.run.policy_piece(self.round_number))])

    @cached_property
    def _benchmark_inputs(self) -> str:
        config = self.run.config.evaluation
        settings = config.model_dump(mode="json", exclude=NOT_OF_BENCHMARKS)
        return digest([self._checkpoint_inputs, settings, benchmark_inputs(config)])

    @cached_property
    def _part_inputs(self) -> str:
        """The digest of the model that answers; the questions of a part and their settings are in the part's key."""
        return digest([self._checkpoint_inputs, self.run.config.sampling.engine])

    @cached_property
    def _answer_inputs(self) -> str:
        config = self.run.config.evaluation.questions
        assert config is not None  # the caller has questions
        settings = config.model_dump(mode="json", exclude=NOT_OF_ANSWERS)
        return digest([self._part_inputs, self.run.config.seed, settings, _hashes(config.questions)])

    @cached_property
    def _judgment_inputs(self) -> str:
        config = self.run.config.evaluation.questions
        assert config is not None  # the caller has questions
        settings = judgment_settings(config.judge)
        return digest([self._answer_inputs, settings, _hashes(config.references, config.judge.prompts)])


def _hashes(*paths: str | Path | None) -> list[list[str]]:
    """Return path and hash of each file that exists."""
    return [[str(path), file_sha256(path)] for path in paths if path is not None and Path(path).is_file()]


def _free_memory() -> None:
    """Free the memory of the benchmarks' model before the sampling engine is opened."""
    gc.collect()
    if "torch" in sys.modules:
        import torch

        torch.cuda.empty_cache()

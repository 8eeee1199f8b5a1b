"""MT-Bench on any model, outside a run: a checkpoint or a server -> answers -> judgments -> scores in a folder.

DIR/answers.jsonl            FastChat's answer rows, of every run
DIR/judgments.jsonl, ...     FastChat's judgment rows; judgments-2.jsonl and so on: the same answers judged again
DIR/results.json             MtBenchResults: model, settings, score with spread over runs, noise
DIR/inputs.json              all that decides the results; a folder takes no other
DIR/finished_answers.jsonl, answer_requests.jsonl, judge_requests.jsonl    finished work, never done twice

run_mt_bench(MtBenchRequest(...))  ->  MtBenchResults
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.judging.answering import Answerer, EndpointAnswerer, EngineAnswerer, answer_questions
from eval.judging.judge_folder import SUITE_INPUTS_NAME, claim_folder, judge_into, judging_noise
from eval.judging.judged_scores import JudgedScore, check_readable, summarize, unreadable_warning
from eval.judging.judgment_inputs import judgment_inputs
from eval.judging.mt_bench import Answer, check_answered, check_questions
from eval.judging.opening import open_judge
from eval.judging.questions import Question, read_questions, read_references
from sampler.engines.chat_endpoint import open_chat_endpoint
from sampler.engines.endpoint_settings import EndpointSettings
from sampler.engines.finished_requests import FinishedRequests
from winnow.chat import Chat, load_chat
from winnow.records import Row, seed_from
from winnow.rows import write_json, write_jsonl
from winnow.run_config import PolicyConfig, QuestionsConfig, SamplingConfig


@dataclass(frozen=True)
class LocalModel:
    """A checkpoint that a sampling engine loads; `identity` tells its weights apart, like a hash of them."""

    policy: PolicyConfig
    sampling: SamplingConfig
    identity: str


@dataclass(frozen=True)
class MtBenchRequest:
    """A model, its name in the files, the question set with its judge, and the folder of the results.

    `config.num_runs` is the number of times that answers are sampled, 5 for a final number. `num_rejudged` is how many
    times more each answer is judged.
    """

    model: LocalModel | EndpointSettings
    name: str
    config: QuestionsConfig
    output: Path
    seed: int = 0
    num_rejudged: int = 0


class MtBenchResults(Row):
    """The content of results.json; the two standard deviations are those of noise.py."""

    model: str
    num_questions: int
    score: JudgedScore
    judge_sd: float | None
    answer_sd: float | None
    num_judgings: int


def run_mt_bench(request: MtBenchRequest) -> MtBenchResults:
    """Answer, judge and summarize; finished work of an earlier call with the same folder is kept.

    Raises UsageError and InputError for settings and files at fault, and ServerError for a judge at fault, before a
    model is loaded; WinnowError for too many unreadable verdicts, after results.json was written.
    """
    config = request.config
    questions = read_questions(config.questions)
    references = read_references(config.references)
    request.output.mkdir(parents=True, exist_ok=True)
    claim_folder(request.output, inputs_of(request), SUITE_INPUTS_NAME)
    chat: Chat | None = None
    if isinstance(request.model, LocalModel):
        chat = load_chat(request.model.policy, request.model.policy.model)
        check_questions(chat, questions)
    with open_judge(config.judge, request.output / "judge_requests.jsonl", section=None) as judge:
        judge.check()
        answers = _answer(request, chat, questions)
        judgings = judge_into(
            request.output, judge, questions, references, {request.name: answers}, request.num_rejudged
        )
    answer_chars: list[int] = []
    for answer in answers:
        answer_chars += [len(text) for text in answer.texts]
    num_unanswered = sum(answer.num_unanswered for answer in answers)
    categories = {question.question_id: question.category for question in questions}
    measured = judging_noise(judgings, request.name)
    results = MtBenchResults(
        model=request.name,
        num_questions=len(questions),
        score=summarize(judgings[0], categories, answer_chars, num_unanswered),
        judge_sd=measured.judge_sd,
        answer_sd=measured.answer_sd,
        num_judgings=measured.num_judgings,
    )
    write_json(request.output / "results.json", results.model_dump(mode="json"))
    _report(results)
    check_readable(results.score, config.judge.max_unreadable, request.name, "--max-unreadable")
    return results


def inputs_of(request: MtBenchRequest) -> dict[str, Any]:
    """Return all that decides the results, but for the numbers of runs and judgings: more of them add to a folder."""
    config = request.config
    return {
        "name": request.name,
        "model": _model_inputs(request),
        "seed": request.seed,
        "settings": config.model_dump(mode="json", include={"max_new_tokens", "temperature"}),
        **judgment_inputs(config.judge, config.questions, config.references),
    }


def result_lines(results: MtBenchResults) -> Iterator[str]:
    """Yield the lines that show the results.

    MT-Bench of tiny, judged by gpt-4, 80 questions: 6.10 +- 0.36 (standard error over questions)
    5 runs: mean 6.10, lowest 6.02, highest 6.19, sd 0.06
    """
    score = results.score
    stderr = "" if score.stderr is None else f" +- {score.stderr:.2f} (standard error over questions)"
    yield (
        f"MT-Bench of {results.model}, judged by {score.judge}, {results.num_questions} questions: "
        f"{score.mean:.2f}{stderr}"
    )
    if score.sd is not None:
        yield (
            f"{len(score.runs)} runs: mean {score.mean:.2f}, lowest {score.min:.2f}, highest {score.max:.2f}, sd "
            f"{score.sd:.2f}"
        )
    for name, mean in {**score.by_turn, **score.by_category}.items():
        spread = score.by_turn_stderr.get(name, score.by_category_stderr.get(name))
        label = f"turn {name}" if name in score.by_turn else name
        yield f"  {label}: {mean:.2f}" + ("" if spread is None else f" +- {spread:.2f}")
    if results.judge_sd is not None:
        yield f"noise of the judge: sd {results.judge_sd:.3f} of a mean ({results.num_judgings} judgings)"
    if results.answer_sd is not None:
        yield f"noise of the answers: sd {results.answer_sd:.3f} of a run's mean, without that of the judge"


def _report(results: MtBenchResults) -> None:
    """Warn on stderr of turns without an answer, and of unreadable verdicts."""
    score = results.score
    if score.num_unanswered:
        print(f"warning: {results.model}: {score.num_unanswered} turns have no answer and no score", file=sys.stderr)
    warning = unreadable_warning(score, results.model)
    if warning is not None:
        print(warning, file=sys.stderr)


def _answer(request: MtBenchRequest, chat: Chat | None, questions: Sequence[Question]) -> list[Answer]:
    """Write answers.jsonl and return its content. Raises WinnowError if a whole run has no answer."""
    # A server's replies are kept one by one. Its refusals are not: they may pass when it is started otherwise.
    finished = None if chat is None else FinishedRequests(request.output / "finished_answers.jsonl")
    seed = seed_from(request.seed, "evaluate")
    with _answerer(request, chat) as open_answerer:
        answers = answer_questions(
            open_answerer, questions, request.config, seed, request.name, str(_model_inputs(request)), finished
        )
    check_answered(answers)
    write_jsonl(request.output / "answers.jsonl", [answer.row(request.name) for answer in answers])
    return answers


@contextmanager
def _answerer(request: MtBenchRequest, chat: Chat | None) -> Iterator[Callable[[], Answerer]]:
    """Yield a function that opens the model."""
    model = request.model
    if isinstance(model, EndpointSettings):
        finished = FinishedRequests(request.output / "answer_requests.jsonl")
        settings = replace(model, max_tokens=request.config.max_new_tokens)
        with open_chat_endpoint(settings, finished) as endpoint:
            try:
                yield lambda: EndpointAnswerer(endpoint)
            finally:
                print(endpoint.usage.cost_line(f"answers of {model.model}"), file=sys.stderr, flush=True)
        return
    assert chat is not None  # the caller loads it for a checkpoint
    local = model
    rendering = chat

    def open_local() -> Answerer:
        from sampler.engines import open_engine

        engine = open_engine(local.sampling, local.policy.model, rendering, local.policy.dtype)
        return EngineAnswerer(engine, rendering)

    yield open_local


def _model_inputs(request: MtBenchRequest) -> dict[str, Any]:
    model = request.model
    if isinstance(model, EndpointSettings):
        return {"model": model.model}
    policy = model.policy.model_dump(mode="json", exclude={"model"})
    return {"identity": model.identity, "policy": policy, "engine": model.sampling.engine}

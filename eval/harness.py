"""lm-eval's models and its evaluator, with winnow's progress bar instead of lm-eval's own output.

    with quiet():
        lm = open_lm(model, tokenizer, batch_size=8)
        apply_settings("arc_challenge", loaded, settings)
        task_run = evaluate(lm, loaded, settings, label="round 1: arc_challenge")

Importing this module loads torch and lm-eval. lm-eval alone decides the requests to the model and their scores. Its
response cache is never used, because it ignores the model.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from eval.task_settings import TaskSettings
from winnow.errors import UsageError
from winnow.progress import progress

# Batches per step of the bar.
BATCHES_PER_STEP = 16


@dataclass
class RequestCount:
    """The requests to a model, and those whose prompt was cut on the left because it did not fit."""

    num_requests: int = 0
    num_truncated: int = 0


@dataclass(frozen=True)
class TaskRun:
    """lm-eval's output for a task: "results" holds the metrics, "samples" a row per item and filter."""

    output: dict[str, Any]
    requests: RequestCount


def open_lm(model: Any, tokenizer: Any, batch_size: int | Literal["auto"], *, add_bos_token: bool | None = None) -> Any:
    """Wrap a loaded model as lm-eval's model; without `add_bos_token`, the tokenizer decides about BOS."""
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=add_bos_token)


def open_vllm_lm(model: str, dtype: str, *, add_bos_token: bool | None = None) -> Any:
    """Open a checkpoint as lm-eval's vLLM model, which chooses its batches by itself."""
    from lm_eval.models.vllm_causallms import VLLM

    return VLLM(pretrained=model, dtype=dtype, batch_size="auto", add_bos_token=add_bos_token)


def evaluate(lm: Any, loaded: Mapping[str, Any], settings: TaskSettings, label: str) -> TaskRun:
    """Evaluate tasks that lm-eval's TaskManager loaded and `apply_settings` prepared."""
    requests = RequestCount()
    with watched(lm, label, requests):
        output = evaluator.evaluate(
            lm=lm,
            task_dict=loaded,
            limit=settings.limit,
            apply_chat_template=settings.is_chat,
            fewshot_as_multiturn=settings.is_chat,
        )
    return TaskRun(dict(output), requests)


@contextmanager
def watched(lm: Any, label: str, requests: RequestCount) -> Iterator[None]:
    """Show a progress bar while lm-eval's evaluator sends requests to the model, and count the truncated ones."""
    step_size = None
    if isinstance(lm.batch_size, int):
        step_size = BATCHES_PER_STEP * lm.batch_size
    compute_tokens = lm._loglikelihood_tokens
    methods = {
        "loglikelihood": functools.partial(_stepwise, lm.loglikelihood, step_size, label),
        "generate_until": functools.partial(_generate, lm, step_size, label, requests),
        "_loglikelihood_tokens": functools.partial(_score_tokens, compute_tokens, _max_tokens(lm), requests),
    }
    for name, method in methods.items():
        setattr(lm, name, method)
    try:
        yield
    finally:
        for name in methods:
            delattr(lm, name)


def _stepwise(
    compute: Callable[..., list[Any]], step_size: int | None, label: str, requests: Sequence[Any]
) -> list[Any]:
    """Compute the requests `step_size` at a time, with a progress bar; the results are in the requests' order.

    The longest prompts come first, as in lm-eval, so that a batch holds prompts of about one length and memory runs out
    at the beginning if it does. Requests with one prompt stay together: lm-eval computes it once. Without a step size
    all are one step: lm-eval then finds the batch size from the longest of them.
    """
    order = sorted(range(len(requests)), key=lambda index: (-len(requests[index].args[0]), requests[index].args[0]))
    results: list[Any] = [None] * len(requests)
    with progress(label, len(requests), "requests") as advance:
        for start in range(0, len(order), step_size or len(order)):
            step = order[start : start + (step_size or len(order))]
            for index, result in zip(
                step, compute([requests[index] for index in step], disable_tqdm=True), strict=True
            ):
                results[index] = result
            advance(len(step))
    return results


def _score_tokens(
    compute: Callable[..., list[Any]], max_tokens: int, count: RequestCount, requests: Sequence[Any], **arguments: Any
) -> list[Any]:
    """Compute the log-probabilities of continuations, and count the requests that lm-eval cuts on the left."""
    count.num_requests += len(requests)
    for _, context_ids, continuation_ids in requests:
        count.num_truncated += len(context_ids) + len(continuation_ids) > max_tokens
    return compute(requests, **arguments)


def _generate(lm: Any, step_size: int | None, label: str, count: RequestCount, requests: Sequence[Any]) -> list[Any]:
    """Generate a text for each request, and count the prompts that lm-eval cuts on the left.

    Raises UsageError if the tokens to generate leave no space for a prompt.
    """
    count.num_requests += len(requests)
    for request in requests:
        context, arguments = request.args
        max_new_tokens = normalize_gen_kwargs(dict(arguments), lm.max_gen_toks)["max_gen_toks"]
        if max_new_tokens >= lm.max_length:
            raise UsageError(
                f"{label}: {max_new_tokens} tokens to generate leave no space for a prompt in the model's "
                f"{lm.max_length} positions; lower max_gen_toks in generation_arguments"
            )
        count.num_truncated += len(lm.tok_encode(context)) > lm.max_length - max_new_tokens
    return _stepwise(type(lm).generate_until.__get__(lm), step_size, label, requests)


def _max_tokens(lm: Any) -> int:
    """Return the longest prompt and continuation that lm-eval gives a model whole."""
    if isinstance(lm, HFLM):
        return int(lm.max_length) + 1  # nothing is computed from the last token
    return int(lm.max_length) - 1  # vLLM generates a token after it

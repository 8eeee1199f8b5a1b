"""A judge config -> an open judge, which can be called.

with open_judge(config) as judge:
    judge.check()
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eval.judging.judges import Judge
from eval.judging.llm_judge import LlmJudge, read_judge_prompts
from eval.judging.reference_judge import ReferenceJudge
from sampler.engines.chat_endpoint import open_chat_endpoint
from sampler.engines.endpoint_settings import EndpointSettings
from sampler.engines.finished_requests import FinishedRequests
from winnow.run_config import JudgeConfig

SECTION = "evaluation.questions.judge"


@contextmanager
def open_judge(config: JudgeConfig, requests: Path | None = None, section: str | None = SECTION) -> Iterator[Judge]:
    """Yield the judge that the config names; its finished requests are kept in the file `requests`.

    Errors name the keys of a section, or without a section flags. A line on stderr tells the tokens of the calls.
    Raises UsageError if the judge cannot be called as configured.
    """
    if config.kind == "reference-judge":
        yield ReferenceJudge()
        return
    assert config.prompts is not None  # JudgeConfig: llm needs it
    prompts = read_judge_prompts(config.prompts)
    finished = None if requests is None else FinishedRequests(requests)
    with open_chat_endpoint(endpoint_settings(config, section), finished) as endpoint:
        try:
            yield LlmJudge(endpoint, prompts)
        finally:
            if requests is not None:
                print(endpoint.usage.cost_line(f"judge {config.model}"), file=sys.stderr, flush=True)


def endpoint_settings(config: JudgeConfig, section: str | None = SECTION) -> EndpointSettings:
    """Return the endpoint of a judge of kind llm."""
    assert config.model is not None  # JudgeConfig: llm needs it
    return EndpointSettings(
        role="judge",
        section=section,
        model=config.model,
        base_url=config.base_url,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        max_tokens_name=config.max_tokens_name,
        timeout_s=config.timeout_s,
        num_parallel=config.num_parallel,
    )

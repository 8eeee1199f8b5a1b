"""Sampling engines: prompts as token ids -> completions. One Protocol; rounds and evaluation know no library.

    {prompt_id: token_ids}  ->  SamplingEngine.sample  ->  {prompt_id: [Completion 0, ..., Completion N - 1]}

`sample_conversations` also renders the prompts; a prompt that cannot be completed gets rows with a status.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from winnow.chat import Chat
from winnow.config import Dtype
from winnow.errors import ChatError
from winnow.records import Completion, Message
from winnow.run_config import SamplingConfig


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one call; equal settings and prompts give equal completions. Temperature 0 is greedy decoding."""

    num_completions: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int

    @property
    def num_generated(self) -> int:
        """Completions to generate for each prompt; at temperature 0 they are all equal, so one is generated."""
        if self.temperature > 0:
            return self.num_completions
        return 1


class SamplingEngine(Protocol):
    """A policy that completes prompts."""

    @property
    def max_tokens(self) -> int | None:
        """Largest number of tokens in a prompt and its completion together; None if the model states no limit."""
        ...

    def sample(self, prompts: Mapping[str, list[int]], params: SamplingParams) -> dict[str, list[Completion]]:
        """Return `num_completions` completions of each prompt under its id, in the order of the prompts.

        A prompt is the token ids of a conversation up to the assistant turn.
        """
        ...


def open_engine(config: SamplingConfig, model: str, chat: Chat, dtype: Dtype) -> SamplingEngine:
    """Load a policy into the engine that the config names. Raises ModelError for an unusable model."""
    if config.engine == "vllm":
        from sampler.engines.vllm import VllmSampler

        return VllmSampler(config, model, chat, dtype)
    from sampler.engines.transformers import TransformersSampler

    return TransformersSampler(model, chat, dtype)


def sample_conversations(
    engine: SamplingEngine, chat: Chat, conversations: Mapping[str, Sequence[Message]], params: SamplingParams
) -> dict[str, list[Completion]]:
    """Render conversations and complete them; return `num_completions` rows for each prompt id, in the same order.

    A conversation that cannot be rendered, or that is too long to be completed, gets rows with a status and an error.
    """
    max_prompt_tokens: float = math.inf
    if engine.max_tokens is not None:
        max_prompt_tokens = engine.max_tokens - params.max_new_tokens
    prompts: dict[str, list[int]] = {}
    completions: dict[str, list[Completion]] = {}
    for prompt_id, messages in conversations.items():
        try:
            token_ids = chat.prompt_ids(messages)
        except ChatError as error:
            completions[prompt_id] = _failed_completions(prompt_id, params, error.status, str(error))
            continue
        if len(token_ids) <= max_prompt_tokens:
            prompts[prompt_id] = token_ids
        else:
            problem = f"the prompt has {len(token_ids)} tokens; with max_new_tokens at most {max_prompt_tokens} fit"
            completions[prompt_id] = _failed_completions(prompt_id, params, "too_long", problem)
    if prompts:
        completions.update(engine.sample(prompts, params))
    return {prompt_id: completions[prompt_id] for prompt_id in conversations}


def make_completions(
    prompt_id: str, generated: Sequence[list[int]], params: SamplingParams, chat: Chat
) -> list[Completion]:
    """Decode the generated token ids of one prompt into its `num_completions` completions.

    Each sequence is cut after its first stop id; `text` leaves that token out. If fewer sequences were
    generated (see `num_generated`), they are repeated.
    """
    completions = []
    for completion_id in range(params.num_completions):
        token_ids = generated[completion_id % len(generated)]
        stop = next((index for index, token_id in enumerate(token_ids) if token_id in chat.stop_ids), None)
        if stop is not None:
            token_ids = token_ids[: stop + 1]
        completion = Completion(
            prompt_id=prompt_id,
            completion_id=completion_id,
            text=chat.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            num_tokens=len(token_ids),
            is_finished=stop is not None,
        )
        completions.append(completion)
    return completions


def _failed_completions(prompt_id: str, params: SamplingParams, status: str, problem: str) -> list[Completion]:
    """Return the rows of a prompt that cannot be completed; `status` is a name of `winnow.v1.Status` in lower case."""
    return [
        Completion(
            prompt_id=prompt_id,
            completion_id=completion_id,
            text="",
            num_tokens=0,
            is_finished=False,
            status=status,
            error=problem,
        )
        for completion_id in range(params.num_completions)
    ]

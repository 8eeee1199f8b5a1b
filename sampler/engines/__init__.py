"""Sampling engines: prompts as token ids -> sampled token ids. One Protocol; rounds and evaluation know no library.

    {prompt_id: messages}  ->  {prompt_id: token_ids}                   `sample_conversations` renders the prompts
                           ->  {prompt_id: [token_ids, ...]}            `SamplingEngine.sample`
                           ->  {prompt_id: [Completion 0, ..., Completion N - 1]}

What is stored is what was sampled: a completion keeps its token ids, and its text shows every token. A prompt that
cannot be completed gets rows with a status, and so does a completion that holds a control token before its end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from winnow.chat import Chat
from winnow.completion_ids import control_token_fault, cut_after_stop, decode, without_stop
from winnow.config import Dtype
from winnow.errors import ChatError, ControlTokenError
from winnow.records import OK, Completion, Message
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

    def sample(self, prompts: Mapping[str, list[int]], params: SamplingParams) -> dict[str, list[list[int]]]:
        """Return `num_generated` sequences of token ids for each prompt under its id, in the order of the prompts.

        A prompt is the token ids of a conversation up to the assistant turn. A sequence ends with the first id at which
        sampling stops, or at `max_new_tokens`; padding may follow.
        """
        ...


def open_engine(config: SamplingConfig, model: str, chat: Chat, dtype: Dtype) -> SamplingEngine:
    """Load a policy into the engine that the config names. Raises ModelError for an unusable model."""
    if config.engine == "vllm":
        from sampler.engines.vllm import VllmSampler

        return VllmSampler(config, model, chat, dtype)
    from sampler.engines.transformers import TransformersSampler

    return TransformersSampler(model, chat, dtype)


def max_prompt_tokens(max_tokens: int | None, max_new_tokens: int) -> int | None:
    """Return the longest prompt that can be completed, in tokens; `max_tokens` is an engine's, None without a limit."""
    if max_tokens is None:
        return None
    return max_tokens - max_new_tokens


def sample_conversations(
    engine: SamplingEngine, chat: Chat, conversations: Mapping[str, Sequence[Message]], params: SamplingParams
) -> dict[str, list[Completion]]:
    """Render conversations and complete them; return `num_completions` rows for each prompt id, in the same order.

    A conversation that cannot be rendered, or that is too long to be completed, gets rows with a status and an error.
    """
    limit = max_prompt_tokens(engine.max_tokens, params.max_new_tokens)
    prompts: dict[str, list[int]] = {}
    completions: dict[str, list[Completion]] = {}
    for prompt_id, messages in conversations.items():
        try:
            token_ids = chat.prompt_ids(messages)
        except ChatError as error:
            completions[prompt_id] = _failed_completions(prompt_id, params, chat, error.status, str(error))
            continue
        if limit is None or len(token_ids) <= limit:
            prompts[prompt_id] = token_ids
        else:
            problem = f"the prompt has {len(token_ids)} tokens; with max_new_tokens at most {limit} fit"
            completions[prompt_id] = _failed_completions(prompt_id, params, chat, "too_long", problem)
    if prompts:
        for prompt_id, sequences in engine.sample(prompts, params).items():
            completions[prompt_id] = make_completions(prompt_id, conversations[prompt_id], sequences, params, chat)
    return {prompt_id: completions[prompt_id] for prompt_id in conversations}


def make_completions(
    prompt_id: str, messages: Sequence[Message], sequences: Sequence[list[int]], params: SamplingParams, chat: Chat
) -> list[Completion]:
    """Return the `num_completions` rows of a prompt from the sequences of token ids that an engine sampled.

    If fewer sequences were sampled (see `num_generated`), they are repeated.
    """
    generated = [cut_after_stop(token_ids, chat.stop_ids) for token_ids in sequences]
    contents = [without_stop(token_ids, chat.stop_ids) for token_ids in generated]
    texts = [decode(chat.tokenizer, content) for content in contents]
    are_exact = _are_exact(chat, messages, contents, texts)
    completions = []
    for completion_id in range(params.num_completions):
        index = completion_id % len(generated)
        token_ids = generated[index]
        fault = control_token_fault(token_ids, chat.stop_ids, chat.control_tokens)
        completion = Completion(
            prompt_id=prompt_id,
            completion_id=completion_id,
            text=texts[index],
            token_ids=tuple(token_ids),
            tokenizer_hash=chat.tokenizer_hash,
            has_exact_text=are_exact[index],
            num_tokens=len(token_ids),
            is_finished=len(contents[index]) < len(token_ids),
            status=ControlTokenError.status if fault else OK,
            error=fault,
        )
        completions.append(completion)
    return completions


def _are_exact(
    chat: Chat, messages: Sequence[Message], contents: Sequence[list[int]], texts: Sequence[str]
) -> list[bool]:
    """Tell for each text whether, rendered after its prompt, it gives back the ids that it was decoded from.

    Reward server and trainer close every turn with the end of turn, so the id that ended the sampled turn has no part.
    An empty completion has nothing to give back.
    """
    _, encoded = chat.encode_completions(messages, texts)
    are_exact = []
    for content, encoded_ids in zip(contents, encoded, strict=True):
        if isinstance(encoded_ids, ChatError):
            are_exact.append(not content)
        else:
            are_exact.append(not content or without_stop(encoded_ids, {chat.end_of_turn_id}) == content)
    return are_exact


def _failed_completions(
    prompt_id: str, params: SamplingParams, chat: Chat, status: str, problem: str
) -> list[Completion]:
    """Return the rows of a prompt that cannot be completed; `status` is a name of `winnow.v1.Status` in lower case."""
    return [
        Completion(
            prompt_id=prompt_id,
            completion_id=completion_id,
            text="",
            token_ids=(),
            tokenizer_hash=chat.tokenizer_hash,
            has_exact_text=True,
            num_tokens=0,
            is_finished=False,
            status=status,
            error=problem,
        )
        for completion_id in range(params.num_completions)
    ]

"""Recipe rewardbench: the tokens that RewardBench scores, for comparisons with it (0.1.4: dpo.py and run_dpo.py).

    prompt      = template(messages)                            without the header of the assistant turn
    completion  = template(messages, completion), every occurrence of prompt taken out
    prompt_ids  = BOS + the ids of prompt + completion, up to where the ids of the prompt alone end
    scored_ids  = the rest of those ids + EOS
    logp        = sum over scored_ids of log p(token | the tokens before it)

BOS and EOS therefore appear twice if the template also writes them, and a header that the template writes before a
completion is scored. If the last token of the prompt merges into the completion, that token is scored with it.

    prompt + the longest scored_ids of the request over 2048 tokens?    the last 128 tokens of the prompt are kept
    still over 2048 tokens?                                             the first 1920 tokens of scored_ids are kept

RewardBench scores pairs: the longer completion decides how both are cut. Send its pairs as requests of two.

This recipe alone follows RewardBench in two points: it reads control tokens in a text as control tokens, and it scores
an empty completion. RewardBench computes its log-softmax in the models' half precision, winnow in single precision.
"""

from collections.abc import Sequence
from dataclasses import replace

from reward_server.scoring.spans import RenderedCompletion
from winnow.chat import Chat, check_messages
from winnow.errors import ChatError
from winnow.records import Message

MAX_LENGTH = 2048
MAX_PROMPT_LENGTH = 128


def render_rewardbench(
    chat: Chat, messages: Sequence[Message], completions: Sequence[str]
) -> list[RenderedCompletion | ChatError]:
    """Render a prompt's completions, in order; a ChatError stands in the place of one that cannot be rendered.

    Raises ChatError for a prompt that is not a conversation up to an assistant turn.
    """
    check_messages(messages, last_role="user")
    uncut: list[RenderedCompletion | ChatError] = []
    longest = 0
    for completion in completions:
        try:
            rendered = _render_uncut(chat, messages, completion)
        except ChatError as error:
            uncut.append(error)
        else:
            uncut.append(rendered)
            longest = max(longest, len(rendered.scored_ids))
    results: list[RenderedCompletion | ChatError] = []
    for result in uncut:
        if isinstance(result, RenderedCompletion):
            result = cut(result, longest)
        results.append(result)
    return results


def cut(rendered: RenderedCompletion, longest: int) -> RenderedCompletion:
    """Shorten a completion as RewardBench does; `longest` is the largest number of scored tokens in its request."""
    if len(rendered.prompt_ids) + longest <= MAX_LENGTH:
        return rendered
    prompt_ids = rendered.prompt_ids[-MAX_PROMPT_LENGTH:]
    scored_ids = rendered.scored_ids
    if len(prompt_ids) + longest > MAX_LENGTH:
        scored_ids = scored_ids[: MAX_LENGTH - MAX_PROMPT_LENGTH]
    eos_token_id = rendered.scored_ids[-1]  # before the cut, EOS is always the last
    return replace(
        rendered,
        prompt_ids=prompt_ids,
        scored_ids=scored_ids,
        is_eos_scored=scored_ids[-1] == eos_token_id,
        is_truncated=len(prompt_ids) + len(scored_ids) < rendered.num_tokens,
    )


def _render_uncut(chat: Chat, messages: Sequence[Message], completion: str) -> RenderedCompletion:
    """Render one completion, whatever its length. Raises ChatError."""
    prompt = chat.unchecked_text(messages)
    conversation = chat.unchecked_text([*messages, Message(role="assistant", content=completion)])
    prompt_ids = chat.encode(prompt)
    token_ids = chat.encode(prompt + conversation.replace(prompt, ""))
    border = len(prompt_ids)
    if len(token_ids) < border:
        raise ChatError("the prompt has more tokens than prompt and completion together; RewardBench cannot score it")
    if token_ids[:border] != prompt_ids:
        border -= 1
    eos = chat.end_of_turn_id
    bos = chat.tokenizer.bos_token_id
    if bos is None:
        bos = eos
    return RenderedCompletion(
        prompt_ids=[int(bos), *token_ids[:border]],
        scored_ids=[*token_ids[border:], eos],
        is_eos_scored=True,
        is_truncated=False,
    )

"""The tokens that RewardBench scores, to compare with its numbers (rewardbench 0.1.4: dpo.py and run_dpo.py).

    prompt      = template(messages)                            without the header of the assistant turn
    answer      = template(messages, completion), every occurrence of prompt taken out
    prompt_ids  = BOS + the ids of prompt + answer up to where those of the prompt alone end
    scored      = the rest of those ids + EOS
    logp        = sum over scored of log p(token | what stands before it)

So BOS and EOS come twice where the template writes them too, and a header that the template writes before an answer is
scored. Where the last token of the prompt merges into the answer, that token is scored with it.

    is a prompt + the longest scored of the request over 2048 tokens?    of the prompt, the last 128 tokens are kept
    is it still?                                                         of scored, the first 1920 tokens are kept

RewardBench scores pairs: the longer of the two decides what is cut of both. Send its pairs as requests of two.

Like RewardBench, and unlike everything else here, it takes control tokens in a text for what they are, and an empty
completion. Unlike RewardBench, whose log-softmax is in the models' half precision, ours is in single precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from winnow.chat import Chat, check_messages
from winnow.errors import ChatError
from winnow.records import Message

MAX_LENGTH = 2048
MAX_PROMPT_LENGTH = 128


@dataclass(frozen=True)
class Row:
    """What a model reads and what of it is scored; `is_cut` when some of either was too long and left out."""

    prompt_ids: list[int]
    scored_ids: list[int]
    is_cut: bool = False


def rewardbench_rows(chat: Chat, messages: Sequence[Message], completions: Sequence[str]) -> list[Row | ChatError]:
    """The rows of a prompt's completions, in order; what cannot be rendered is a ChatError in its place.

    Raises ChatError for a prompt that is no conversation up to an assistant turn.
    """
    check_messages(messages, last_role="user")
    rows = [_row_or_error(chat, messages, completion) for completion in completions]
    longest = max((len(row.scored_ids) for row in rows if isinstance(row, Row)), default=0)
    return [cut(row, longest) if isinstance(row, Row) else row for row in rows]


def cut(row: Row, longest: int) -> Row:
    """The row as RewardBench shortens it, where `longest` is the number of scored tokens of the longest of the pair."""
    if len(row.prompt_ids) + longest <= MAX_LENGTH:
        return row
    prompt_ids = row.prompt_ids[-MAX_PROMPT_LENGTH:]
    is_still_long = len(prompt_ids) + longest > MAX_LENGTH
    scored_ids = row.scored_ids[: MAX_LENGTH - MAX_PROMPT_LENGTH] if is_still_long else row.scored_ids
    kept, given = len(prompt_ids) + len(scored_ids), len(row.prompt_ids) + len(row.scored_ids)
    return replace(row, prompt_ids=prompt_ids, scored_ids=scored_ids, is_cut=kept < given)


def _row_or_error(chat: Chat, messages: Sequence[Message], completion: str) -> Row | ChatError:
    try:
        return _row(chat, messages, completion)
    except ChatError as error:
        return error


def _row(chat: Chat, messages: Sequence[Message], completion: str) -> Row:
    """The row before anything is cut. Raises ChatError."""
    prompt = chat.unchecked_text(messages)
    whole = chat.unchecked_text([*messages, Message(role="assistant", content=completion)])
    prompt_ids, ids = chat.encode(prompt), chat.encode(prompt + whole.replace(prompt, ""))
    border = len(prompt_ids)
    if len(ids) < border:
        raise ChatError("the prompt has more tokens than prompt and completion together; RewardBench has no answer")
    if ids[:border] != prompt_ids:
        border -= 1
    eos = chat.eos_token_id
    bos = chat.tokenizer.bos_token_id
    return Row([eos if bos is None else int(bos), *ids[:border]], [*ids[border:], eos])

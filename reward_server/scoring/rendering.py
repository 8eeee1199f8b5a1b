"""A prompt and a completion -> the tokens that one model reads and the tokens that are scored.

messages, text        rendered by the model's own chat template
messages, token ids   the rendered prompt, then the completion's ids as they are
token ids, token ids  both as they are; the prompt with its BOS

A group is rendered at once. What cannot be rendered is an `UnscorableError` in that completion's place;
nothing is cut, mended or guessed, but by the recipe that cuts (reward_server/scoring/rewardbench.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from reward_server.scoring.rewardbench import Row, rewardbench_rows
from reward_server.scoring.spans import EosPolicy, ScoredSpan, UnscorableError, scored_span
from winnow.chat import Chat, ScoredPair
from winnow.errors import ChatError, ControlTokenError
from winnow.records import Message

# Rendering takes time by the square of the messages; so many take half a second, and everybody waits for it.
MAX_MESSAGES = 512
# Of what came over the wire, in an error.
MAX_QUOTED_CHARS = 40


@dataclass(frozen=True)
class Conversation:
    """A prompt as (role, content) pairs, as they came over the wire: a role may be anything."""

    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Text:
    """A completion as text; `is_finished` when the policy ended it itself."""

    text: str
    is_finished: bool


@dataclass(frozen=True)
class Ids:
    """A prompt or a completion as token ids."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class PromptGroup:
    """One prompt and its completions."""

    prompt: Conversation | Ids
    completions: tuple[Text | Ids, ...]


@dataclass(frozen=True)
class Limits:
    """What a model can read: token ids below `vocab_size`, at most `max_tokens` of prompt and completion together."""

    vocab_size: int
    max_tokens: int


@dataclass(frozen=True)
class ScoredTokens:
    """What a model reads and what of it is scored.

    `is_truncated` when the policy did not end the turn itself, or when a recipe cut something.
    """

    prompt_ids: list[int]
    span: ScoredSpan
    is_truncated: bool


Rendering = ScoredTokens | UnscorableError


class Renderer:
    """Renders for one model of the pair."""

    def __init__(self, chat: Chat, limits: Limits) -> None:
        self.chat = chat
        self.limits = limits

    def scored_group(self, group: PromptGroup, eos_policy: EosPolicy) -> list[Rendering]:
        """The tokens of each completion with its prompt, or why there are none."""
        pairs = self._pairs(group)
        return [
            self._scored(pair, completion, eos_policy)
            for pair, completion in zip(pairs, group.completions, strict=True)
        ]

    def rewardbench_group(self, group: PromptGroup) -> list[Rendering]:
        """The tokens that RewardBench scores of each completion, or why there are none; messages and texts only."""
        texts = [one.text for one in group.completions if isinstance(one, Text)]
        try:
            rows = rewardbench_rows(self.chat, _messages(group.prompt), texts)
        except UnscorableError as error:
            return [error for _ in texts]
        except ChatError as error:
            return [_invalid(error) for _ in texts]
        return [_unrenderable(row) if isinstance(row, ChatError) else self._rewardbench_tokens(row) for row in rows]

    def _scored(self, pair: ScoredPair | UnscorableError, completion: Text | Ids, eos_policy: EosPolicy) -> Rendering:
        if isinstance(pair, UnscorableError):
            return pair
        is_finished = completion.is_finished if isinstance(completion, Text) else pair.has_eos
        try:
            span = scored_span(
                pair.completion_ids, self.chat.eos_token_id, is_finished=is_finished, eos_policy=eos_policy
            )
            self._check_limits(pair.prompt_ids, span)
        except UnscorableError as error:
            return error
        return ScoredTokens(pair.prompt_ids, span, not is_finished)

    def _rewardbench_tokens(self, row: Row) -> Rendering:
        span = ScoredSpan(row.scored_ids, row.scored_ids[-1] == self.chat.eos_token_id)
        try:
            self._check_limits(row.prompt_ids, span)
        except UnscorableError as error:
            return error
        return ScoredTokens(row.prompt_ids, span, row.is_cut)

    def _pairs(self, group: PromptGroup) -> list[ScoredPair | UnscorableError]:
        """The rendered prompt with each completion, or why there is none."""
        texts = iter(self._text_pairs(group.prompt, [one.text for one in group.completions if isinstance(one, Text)]))
        ids = iter(self._id_pairs(group.prompt, [one.ids for one in group.completions if isinstance(one, Ids)]))
        return [next(texts) if isinstance(one, Text) else next(ids) for one in group.completions]

    def _text_pairs(self, prompt: Conversation | Ids, texts: Sequence[str]) -> Iterator[ScoredPair | UnscorableError]:
        """The pairs of completions of text; an empty one has nothing to render."""
        pairs = iter(self._rendered(prompt, [text for text in texts if text]))
        empty = UnscorableError("empty_completion", "the completion is an empty text; there is nothing to score")
        return (next(pairs) if text else empty for text in texts)

    def _rendered(self, prompt: Conversation | Ids, texts: Sequence[str]) -> list[ScoredPair | UnscorableError]:
        if not texts:
            return []
        try:
            pairs = self.chat.scored_pairs(_messages(prompt), texts)
        except UnscorableError as error:
            return [error for _ in texts]
        except ChatError as error:
            return [_invalid(error) for _ in texts]
        return [_unrenderable(pair) if isinstance(pair, ChatError) else pair for pair in pairs]

    def _id_pairs(
        self, prompt: Conversation | Ids, completions: Sequence[tuple[int, ...]]
    ) -> list[ScoredPair | UnscorableError]:
        if not completions:
            return []
        try:
            prompt_ids = self._prompt_ids(prompt)
        except UnscorableError as error:
            return [error for _ in completions]
        eos = self.chat.eos_token_id
        return [ScoredPair(prompt_ids, list(ids), ids[-1:] == (eos,)) for ids in completions]

    def _prompt_ids(self, prompt: Conversation | Ids) -> list[int]:
        if isinstance(prompt, Ids):
            self._check_bos(prompt.ids)
            return list(prompt.ids)
        try:
            return self.chat.prompt_ids(_messages(prompt))
        except ChatError as error:
            raise _invalid(error) from error

    def _check_bos(self, ids: Sequence[int]) -> None:
        bos = self.chat.tokenizer.bos_token_id
        if bos is None or bos == self.chat.eos_token_id:
            return
        if list(ids[:1]) != [bos] or ids.count(bos) != 1:
            raise UnscorableError(
                "invalid_conversation",
                f"the prompt's token ids should hold exactly one BOS (id {bos}), at the start; they begin "
                f"{list(ids[:4])} and hold {ids.count(bos)}",
            )

    def _check_limits(self, prompt_ids: list[int], span: ScoredSpan) -> None:
        num_tokens = len(prompt_ids) + len(span.token_ids)
        if num_tokens > self.limits.max_tokens:
            raise UnscorableError(
                "too_long",
                f"prompt and completion are {len(prompt_ids)} + {len(span.token_ids)} = {num_tokens} tokens, more than "
                f"max_tokens {self.limits.max_tokens}; shorten them, or raise max_tokens if the models allow it",
            )
        if (largest := max([*prompt_ids, *span.token_ids])) >= self.limits.vocab_size:
            raise UnscorableError(
                "invalid_token", f"token id {largest} is not below the vocabulary's size {self.limits.vocab_size}"
            )


def with_instruction(group: PromptGroup, instruction: str) -> PromptGroup:
    """The group with an instruction before its first user message, a blank line between them; without one, as it is."""
    if not instruction or isinstance(group.prompt, Ids):
        return group
    turns = list(group.prompt.turns)
    first = next((index for index, (role, _) in enumerate(turns) if role == "user"), None)
    if first is not None:
        turns[first] = ("user", f"{instruction}\n\n{turns[first][1]}")
    return replace(group, prompt=Conversation(tuple(turns)))


def _invalid(error: ChatError) -> UnscorableError:
    """What is wrong with a prompt."""
    return UnscorableError(error.status, str(error))


def _unrenderable(error: ChatError) -> UnscorableError:
    """What is wrong with one completion of a prompt that is in order."""
    return _invalid(error) if isinstance(error, ControlTokenError) else UnscorableError("unrenderable", str(error))


def _messages(prompt: Conversation | Ids) -> list[Message]:
    """The prompt as messages of known roles. Raises UnscorableError."""
    if isinstance(prompt, Ids):
        raise UnscorableError("invalid_conversation", "a prompt of token ids needs completions of token ids")
    if len(prompt.turns) > MAX_MESSAGES:
        raise UnscorableError(
            "too_long",
            f"the prompt has {len(prompt.turns)} messages, more than {MAX_MESSAGES}; leave out the first, or send "
            "token ids",
        )
    messages = []
    for role, content in prompt.turns:
        try:
            messages.append(Message.model_validate({"role": role, "content": content}))
        except ValidationError:
            quoted = repr(role[:MAX_QUOTED_CHARS])
            raise UnscorableError(
                "invalid_conversation", f"unknown role {quoted}; the roles are system, user and assistant"
            ) from None
    return messages

"""The stored rows: one class for each kind of file.

    prompts/*.jsonl           Prompt        one conversation up to the assistant turn
    completions/*.parquet     Completion    one sampled assistant turn
    rewards/*.parquet         Reward        the reward server's result for one completion
    selected.jsonl            Selection     the kept completion as a training row
    rewards_by_prompt.jsonl   ProbeReward   a policy's rewards on one prompt of the probe
    eval/results.json         EvalResult    one metric of one task

The row of a failed item has a `status` other than "ok", and the reason as its `error`. It is counted and kept, but
never selected.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["system", "user", "assistant"]

OK = "ok"


class Row(BaseModel):
    """A stored row: immutable, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(Row):
    """One turn of a conversation."""

    role: Role
    content: str


class Prompt(Row):
    """A conversation up to the assistant turn.

    `prompt_id` is the hash of source and messages, so that it is stable across files and runs.
    """

    prompt_id: str
    source: str
    messages: tuple[Message, ...]


class Completion(Row):
    """One generated assistant turn.

    `token_ids` are the ids as sampled, through the id that ended the turn; they mean something only to a tokenizer with
    this `tokenizer_hash`. `text` is decoded from them, without the id that ended the turn. `has_exact_text` is True if
    the text, rendered after its prompt, gives the ids back. `is_finished` is True if the model ended the turn itself.
    """

    prompt_id: str
    completion_id: int
    text: str
    token_ids: tuple[int, ...]
    tokenizer_hash: str
    has_exact_text: bool
    num_tokens: int
    is_finished: bool
    status: str = OK
    error: str = ""


class Reward(Row):
    """The reward server's result for one completion; logps are natural logarithms, summed over its tokens.

    `status` is "ok" or a name of `winnow.v1.Status` in lower case; then the numbers are None.
    """

    prompt_id: str
    completion_id: int
    status: str = OK
    error: str = ""
    reward: float | None = None
    instruct_logp: float | None = None
    base_logp: float | None = None
    num_tokens: int = 0
    normalization: str = "sum"
    is_truncated: bool = False
    is_eos_scored: bool = False


class Selection(Row):
    """A kept completion as a training row, in the form that TRL and InstructLab read.

    Where the last message does not give the sampled token ids back, the metadata hold them as `completion_ids`, with
    the `tokenizer_hash` of the policy that sampled them.
    """

    messages: tuple[Message, ...]
    metadata: dict[str, Any]


class ProbeReward(Row):
    """A policy's mean and highest reward on one prompt of the probe, over its `num_eligible` eligible completions.

    Both are None if none of the completions is eligible.
    """

    prompt_id: str
    source: str
    num_eligible: int
    mean_reward: float | None
    best_of_n_reward: float | None


class EvalResult(Row):
    """One metric of one task on one checkpoint; `stderr` is the standard error of `value` over `n` items.

    `higher_is_better` is the metric's direction, None if the task does not say.
    `num_truncated` counts the requests whose prompt was cut on the left, because it did not fit the model.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool | None = True
    num_fewshot: int | None = None
    num_truncated: int = 0


def digest(value: object) -> str:
    """Return sixteen hex digits of the SHA-256 of a JSON-serialisable value; equal values have equal digests."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def seed_from(*parts: int | str) -> int:
    """Return a seed below 2**31 that depends on every part: each piece of a run has its own."""
    return int(digest(list(parts)), 16) % 2**31


def make_prompt(source: str, messages: tuple[Message, ...]) -> Prompt:
    """Return the prompt with its stable id."""
    turns = [[message.role, message.content] for message in messages]
    return Prompt(prompt_id=digest([source, turns]), source=source, messages=messages)

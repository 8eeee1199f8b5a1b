"""Completions -> rewards through a reward server. A failed completion is a counted row and does not stop the round.

    Completion(prompt_id, completion_id, text, token_ids, ...)  ->  Reward(prompt_id, completion_id, reward, ...)

    a completion whose text                                  is scored as
    gives the sampled ids back                               text
    does not, and both models read the policy's ids          ids
    does not, and they do not, but no byte was lost          text
    does not, and decoding lost bytes (U+FFFD)               nothing: status unrenderable

Files of rows, for users who only score, are handled by reward_server/client/score_file.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from reward_server.client import (
    CompletionInput,
    CompletionText,
    Group,
    RewardClient,
    RewardOptions,
    ScoredCompletion,
    ServerInfo,
)
from winnow.records import OK, Completion, Prompt, Reward
from winnow.reward_options import RewardSpec
from winnow.run_config import RewardConfig

# Stands in a decoded text for bytes that are not UTF-8.
REPLACEMENT_CHARACTER = "\ufffd"


def score_completions(
    client: RewardClient, config: RewardConfig, prompts: Mapping[str, Prompt], completions: Sequence[Completion]
) -> Iterator[list[Reward]]:
    """Yield the rewards of each prompt's completions, in input order.

    The completions of one prompt must be consecutive. Raises ServerError if the server cannot be reached.
    """
    options = reward_options(config)
    server = client.server_info()
    checked = [refuse_lost_bytes(row, server, options) for row in completions]
    completions_by_prompt = [list(rows) for _, rows in groupby(checked, key=lambda row: row.prompt_id)]
    groups = (_group(prompts[rows[0].prompt_id], rows, server, options) for rows in completions_by_prompt)
    scored_groups = client.score_many(groups, options)
    for rows, scored in zip(completions_by_prompt, scored_groups, strict=True):
        yield _reward_rows(rows, scored)


def reward_options(config: RewardConfig) -> RewardOptions:
    """Return the options of a score request that the config sets."""
    return RewardOptions(**{option: getattr(config, option) for option in RewardSpec.model_fields})


def refuse_lost_bytes(completion: Completion, server: ServerInfo, options: RewardOptions) -> Completion:
    """Give a completion that the server can score neither as ids nor as text a status; return others as they are."""
    if completion.status != OK or completion.has_exact_text or REPLACEMENT_CHARACTER not in completion.text:
        return completion
    refusal = ids_refusal(completion, server, options)
    if not refusal:
        return completion
    error = f"the text holds U+FFFD for sampled bytes that are not UTF-8, and the ids cannot be scored: {refusal}"
    return completion.model_copy(update={"status": "unrenderable", "error": error})


def ids_refusal(completion: Completion, server: ServerInfo, options: RewardOptions) -> str:
    """Return why a server's models cannot read a completion's ids, with the remedy; an empty text if they can."""
    if options.recipe != "winnow":
        return f"recipe {options.recipe} takes texts only; take recipe winnow"
    if not server.has_shared_tokenizer:
        return "the reward server's models have two tokenizers; take two models with the policy's"
    if completion.tokenizer_hash != server.instruct.tokenizer_hash:
        return "the reward server's tokenizer is not the policy's; take models with the policy's"
    if server.instruct.end_of_turn_id is None:
        return "the reward server is too old to state its end of turn; update it"
    return ""


def scored_content(completion: Completion, server: ServerInfo, options: RewardOptions) -> CompletionInput:
    """Return a completion in the form in which it is scored: its text, or its ids closed as the server closes a turn.

    The models' end of turn stands in the place of the id that ended the sampled turn, which may be another of the ids
    at which sampling stops. Texts that were cut short are closed by the template, which matters to eos_policy include;
    ids are closed for it in the same way.
    """
    if completion.has_exact_text or ids_refusal(completion, server, options):
        return CompletionText(completion.text, completion.is_finished)
    token_ids = list(completion.token_ids)
    if completion.is_finished:
        token_ids.pop()
    if completion.is_finished or options.resolved_eos_policy == "include":
        assert server.instruct.end_of_turn_id is not None  # else there is a refusal
        token_ids.append(server.instruct.end_of_turn_id)
    return token_ids


def _group(prompt: Prompt, completions: Sequence[Completion], server: ServerInfo, options: RewardOptions) -> Group:
    """Return the prompt with the completions that can be scored."""
    return Group(prompt.messages, [scored_content(row, server, options) for row in completions if row.status == OK])


def _reward_rows(completions: Sequence[Completion], scored: Sequence[ScoredCompletion]) -> list[Reward]:
    """Return one row per completion; `scored` has one item per completion whose status is ok, in the same order."""
    remaining = iter(scored)
    rewards = []
    for row in completions:
        if row.status == OK:
            rewards.append(_reward(row, next(remaining)))
        else:
            failed = Reward(
                prompt_id=row.prompt_id, completion_id=row.completion_id, status=row.status, error=row.error
            )
            rewards.append(failed)
    return rewards


def _reward(row: Completion, scored: ScoredCompletion) -> Reward:
    return Reward(
        prompt_id=row.prompt_id,
        completion_id=row.completion_id,
        status=scored.status,
        error=scored.error,
        reward=scored.reward,
        instruct_logp=scored.instruct_logp,
        base_logp=scored.base_logp,
        num_tokens=scored.num_tokens,
        normalization=scored.normalization,
        is_truncated=not row.is_finished,
        is_eos_scored=scored.is_eos_scored,
    )

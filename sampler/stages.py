"""The sampler's stages of a round: sample, score, select. Each takes a run and a round, and skips finished pieces.

sample   prompt pool -> prompts.jsonl -> completions/<shard>.parquet      (a ledger entry per shard)
score    completions/<shard>.parquet -> rewards/<shard>.parquet           (a ledger entry per shard)
select   prompts, completions, rewards -> selected.jsonl, metrics.json    (one ledger entry)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

from sampler.engines import SamplingParams, open_engine, sample_conversations
from sampler.metrics import round_metrics
from sampler.prompts import draw_prompts, group_by_source, read_pool
from sampler.selection import SELECTION_RULES
from winnow.chat import load_chat
from winnow.progress import progress
from winnow.records import Completion, Message, Prompt, Reward, Selection, digest, seed_from
from winnow.rows import read_jsonl, read_parquet, write_json, write_jsonl, write_parquet
from winnow.run_config import SamplingConfig
from winnow.rundir import Run

# Fields of RewardConfig that state where the reward server is and who may call it. They do not change a reward.
CONNECTION_FIELDS = {"address", "token_file", "tls_ca", "tls_certificate", "tls_key"}


@dataclass(frozen=True)
class Shard:
    """Consecutive prompts of a round whose completions share one file; `inputs` is a digest of what decides it."""

    name: str
    prompts: Sequence[Prompt]
    piece: str
    inputs: str


def sample(run: Run, round_number: int) -> None:
    """Sample N completions of each prompt of the round from the previous round's policy."""
    draw_round_prompts(run, round_number)
    pending = _pending(run, _sampling_shards(run, round_number))
    if not pending:
        return
    config = run.config
    model = run.policy_path(round_number - 1)
    chat = load_chat(config.policy, model)
    engine = open_engine(config.sampling, model, chat, config.policy.dtype)
    with progress(f"round {round_number}: sample", _num_prompts(pending), "prompts") as advance:
        for shard in pending:
            with run.ledger.record(shard.piece, shard.inputs) as facts:
                params = sampling_params(config.sampling, seed_from(config.seed, round_number, shard.name))
                conversations = {prompt.prompt_id: prompt.messages for prompt in shard.prompts}
                completions = sample_conversations(engine, chat, conversations, params)
                rows = list(chain.from_iterable(completions.values()))
                write_parquet(run.completions_dir(round_number) / f"{shard.name}.parquet", rows)
                facts.update(
                    num_completions=len(rows),
                    num_tokens=sum(row.num_tokens for row in rows),
                    num_inexact_texts=sum(not row.has_exact_text for row in rows),
                )
            advance(len(shard.prompts))


def score(run: Run, round_number: int) -> None:
    """Score the round's completions on the reward server, which is started first if the config describes one."""
    pending = _pending(run, _scoring_shards(run, round_number))
    if not pending:
        return
    from sampler.managed_server import reward_client
    from sampler.score import score_completions

    config = run.config.reward
    assert config is not None  # RunConfig: rounds need reward
    with (
        reward_client(config, run.round_dir(round_number)) as client,
        progress(f"round {round_number}: score", _num_prompts(pending), "prompts") as advance,
    ):
        for shard in pending:
            with run.ledger.record(shard.piece, shard.inputs) as facts:
                completions = read_parquet(run.completions_dir(round_number) / f"{shard.name}.parquet", Completion)
                prompts = {prompt.prompt_id: prompt for prompt in shard.prompts}
                rows: list[Reward] = []
                for rewards in score_completions(client, config, prompts, completions):
                    rows += rewards
                    advance()
                write_parquet(run.rewards_dir(round_number) / f"{shard.name}.parquet", rows)
                facts.update(num_rewards=len(rows), num_failed=sum(row.reward is None for row in rows))


def select(run: Run, round_number: int) -> None:
    """Keep the completions that the selection rule chooses as training rows; write the round's metrics."""
    piece = f"{run.round_name(round_number)}/select"
    inputs = _selection_inputs(run, round_number)
    if run.ledger.is_finished(piece, inputs):
        return
    rule = SELECTION_RULES[run.config.selection.rule]
    with run.ledger.record(piece, inputs) as facts:
        prompts = _read_prompts(run, round_number)
        scored = rewards_by_prompt(read_parquet(run.rewards_dir(round_number), Reward))
        kept = {prompt_id: rule(rewards) for prompt_id, rewards in scored.items()}
        completions = _kept_completions(run, round_number, kept)
        selected = []
        for prompt in prompts:
            for reward in kept.get(prompt.prompt_id, []):
                completion = completions[reward.prompt_id, reward.completion_id]
                selected.append(training_row(prompt, reward, completion, round_number))
        num_completions = run.config.sampling.num_completions
        metrics = round_metrics(scored, kept, num_completions, seed_from(run.config.seed, round_number))
        num_by_source = {source: len(rows) for source, rows in sorted(group_by_source(prompts).items())}
        write_jsonl(run.selected_path(round_number), selected)
        write_json(run.metrics_path(round_number), {"round": round_number, **metrics, "by_source": num_by_source})
        facts.update(num_selected=len(selected), batch_reward=metrics["batch_reward"], gap=metrics["gap"])


def draw_round_prompts(run: Run, round_number: int) -> None:
    """Draw the round's prompts once and store them, so that the round keeps them if the pool's files change."""
    config = run.config.prompts
    assert config is not None  # RunConfig: rounds need prompts
    piece = f"{run.round_name(round_number)}/prompts"
    inputs = digest([config.model_dump(mode="json"), run.config.seed, round_number])
    if run.ledger.is_finished(piece, inputs):
        return
    with run.ledger.record(piece, inputs) as facts:
        prompts = draw_prompts(read_pool(config.files), config.num_prompts, round_number, run.config.seed)
        write_jsonl(run.prompts_path(round_number), prompts)
        facts.update(num_prompts=len(prompts))


def sampling_params(config: SamplingConfig, seed: int) -> SamplingParams:
    """Return the engine's settings for one shard."""
    return SamplingParams(
        num_completions=config.num_completions,
        temperature=config.temperature,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens,
        seed=seed,
    )


def rewards_by_prompt(rewards: Sequence[Reward]) -> dict[str, list[Reward]]:
    """Group rewards by prompt; the rows of one prompt must be consecutive."""
    return {prompt_id: list(rows) for prompt_id, rows in groupby(rewards, key=lambda row: row.prompt_id)}


def training_row(prompt: Prompt, reward: Reward, completion: Completion, round_number: int) -> Selection:
    """Return a kept completion as a training row: an assistant turn after the prompt's messages.

    Where its text does not give the sampled ids back, the metadata hold the ids, and winnow's SFT trains on these.
    """
    metadata = {
        "prompt_id": prompt.prompt_id,
        "completion_id": reward.completion_id,
        "source": prompt.source,
        "round": round_number,
        "reward": reward.reward,
    }
    if not completion.has_exact_text:
        metadata["completion_ids"] = list(completion.token_ids)
        metadata["tokenizer_hash"] = completion.tokenizer_hash
    return Selection(messages=(*prompt.messages, Message(role="assistant", content=completion.text)), metadata=metadata)


def _read_prompts(run: Run, round_number: int) -> list[Prompt]:
    return [Prompt.model_validate(row) for _, row in read_jsonl(run.prompts_path(round_number))]


def _kept_completions(
    run: Run, round_number: int, kept: Mapping[str, Sequence[Reward]]
) -> dict[tuple[str, int], Completion]:
    """Return the kept completions by prompt and number. One shard is read at a time: token ids take much memory."""
    kept_ids: set[tuple[str, int]] = set()
    for prompt_id, rewards in kept.items():
        kept_ids.update((prompt_id, reward.completion_id) for reward in rewards)
    completions = {}
    for path in sorted(run.completions_dir(round_number).glob("*.parquet")):
        for row in read_parquet(path, Completion):
            if (row.prompt_id, row.completion_id) in kept_ids:
                completions[row.prompt_id, row.completion_id] = row
    return completions


def _pending(run: Run, shards: Sequence[Shard]) -> list[Shard]:
    return [shard for shard in shards if not run.ledger.is_finished(shard.piece, shard.inputs)]


def _num_prompts(shards: Sequence[Shard]) -> int:
    return sum(len(shard.prompts) for shard in shards)


def _prompts_by_shard(run: Run, round_number: int) -> dict[str, list[Prompt]]:
    """Return the prompts of each shard by its name: "0000", "0001", ..."""
    prompts = _read_prompts(run, round_number)
    size = run.config.sampling.shard_size
    return {f"{start // size:04d}": prompts[start : start + size] for start in range(0, len(prompts), size)}


def _piece(run: Run, round_number: int, stage: str, shard_name: str) -> str:
    return f"{run.round_name(round_number)}/{stage}/{shard_name}"


def _sampling_shards(run: Run, round_number: int) -> list[Shard]:
    """Return the shards to sample; settings, policy, prompts and seed decide their completions."""
    policy_inputs = run.ledger.inputs_of(run.policy_piece(round_number - 1))
    shards = []
    for name, prompts in _prompts_by_shard(run, round_number).items():
        inputs = digest(
            [
                run.config.sampling.model_dump(mode="json"),
                run.config.policy.model_dump(mode="json"),
                policy_inputs,
                [prompt.prompt_id for prompt in prompts],
                [run.config.seed, round_number, name],
            ]
        )
        shards.append(Shard(name, prompts, _piece(run, round_number, "sample", name), inputs))
    return shards


def _scoring_shards(run: Run, round_number: int) -> list[Shard]:
    """Return the shards to score; their completions and the reward's definition decide their rewards."""
    assert run.config.reward is not None  # RunConfig: rounds need reward
    definition = run.config.reward.model_dump(mode="json", exclude=CONNECTION_FIELDS)
    shards = []
    for name, prompts in _prompts_by_shard(run, round_number).items():
        completions_inputs = run.ledger.inputs_of(_piece(run, round_number, "sample", name))
        inputs = digest([completions_inputs, definition])
        shards.append(Shard(name, prompts, _piece(run, round_number, "score", name), inputs))
    return shards


def _selection_inputs(run: Run, round_number: int) -> str:
    """Return a digest of the selection rule and of the inputs of all rewards."""
    pieces = [_piece(run, round_number, "score", name) for name in _prompts_by_shard(run, round_number)]
    rewards_inputs = [run.ledger.inputs_of(piece) for piece in pieces]
    return digest([run.config.selection.model_dump(mode="json"), rewards_inputs])

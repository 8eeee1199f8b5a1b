"""A set of prompts that one policy completes and the reward server scores: a round's prompts, or the probe's.

sample   prompts.jsonl -> completions/<shard>.parquet                (a ledger entry per shard)
score    completions/<shard>.parquet -> rewards/<shard>.parquet      (a ledger entry per shard)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

from sampler.engines import SamplingParams, open_engine, sample_conversations
from winnow.chat import load_chat
from winnow.progress import progress
from winnow.records import Completion, Prompt, Reward, digest, seed_from
from winnow.rows import read_jsonl, read_parquet, write_parquet
from winnow.run_config import SamplingConfig
from winnow.rundir import Run

# Fields of RewardConfig that state where the reward server is and who may call it. They do not change a reward.
CONNECTION_FIELDS = {"address", "token_file", "tls_ca", "tls_certificate", "tls_key"}


@dataclass(frozen=True)
class PromptSet:
    """Prompts of a run, the policy that completes them, and the files of their completions and rewards.

    `name` begins the names of its pieces, `label` is for people, and `policy_round` is the round of the policy. Shards
    of two sets have the same seeds if their `seed_name` is the same.
    """

    run: Run
    name: str
    label: str
    policy_round: int
    seed_name: int | str
    prompts_path: Path
    completions_dir: Path
    rewards_dir: Path
    server_dir: Path

    def prompts(self) -> list[Prompt]:
        """Read the prompts."""
        return [Prompt.model_validate(row) for _, row in read_jsonl(self.prompts_path)]

    def piece(self, step: str, shard_name: str) -> str:
        """Return the name of the piece that samples or scores a shard."""
        return f"{self.name}/{step}/{shard_name}"

    def prompts_by_shard(self) -> dict[str, list[Prompt]]:
        """Return the prompts of each shard by its name: "0000", "0001", ..."""
        prompts = self.prompts()
        size = self.run.config.sampling.shard_size
        return {f"{start // size:04d}": prompts[start : start + size] for start in range(0, len(prompts), size)}


@dataclass(frozen=True)
class Shard:
    """Consecutive prompts of a set whose completions share one file; `inputs` is a digest of what decides it."""

    name: str
    prompts: Sequence[Prompt]
    piece: str
    inputs: str


def sample_prompts(prompt_set: PromptSet) -> None:
    """Sample N completions of each prompt of a set from its policy."""
    run = prompt_set.run
    pending = _pending(run, _sampling_shards(prompt_set))
    if not pending:
        return
    config = run.config
    model = run.policy_path(prompt_set.policy_round)
    chat = load_chat(config.policy, model)
    engine = open_engine(config.sampling, model, chat, config.policy.dtype)
    with progress(f"{prompt_set.label}: sample", _num_prompts(pending), "prompts") as advance:
        for shard in pending:
            with run.ledger.record(shard.piece, shard.inputs) as facts:
                params = sampling_params(config.sampling, seed_from(config.seed, prompt_set.seed_name, shard.name))
                conversations = {prompt.prompt_id: prompt.messages for prompt in shard.prompts}
                completions = sample_conversations(engine, chat, conversations, params)
                rows = list(chain.from_iterable(completions.values()))
                write_parquet(prompt_set.completions_dir / f"{shard.name}.parquet", rows)
                facts.update(
                    num_completions=len(rows),
                    num_tokens=sum(row.num_tokens for row in rows),
                    num_inexact_texts=sum(not row.has_exact_text for row in rows),
                )
            advance(len(shard.prompts))


def score_prompts(prompt_set: PromptSet) -> None:
    """Score the completions of a set on the reward server, which is started first if the config describes one."""
    run = prompt_set.run
    pending = _pending(run, _scoring_shards(prompt_set))
    if not pending:
        return
    from sampler.managed_server import reward_client
    from sampler.score import score_completions

    config = run.config.reward
    assert config is not None  # RunConfig: rounds need reward
    with (
        reward_client(config, prompt_set.server_dir) as client,
        progress(f"{prompt_set.label}: score", _num_prompts(pending), "prompts") as advance,
    ):
        for shard in pending:
            with run.ledger.record(shard.piece, shard.inputs) as facts:
                completions = read_parquet(prompt_set.completions_dir / f"{shard.name}.parquet", Completion)
                prompts = {prompt.prompt_id: prompt for prompt in shard.prompts}
                rows: list[Reward] = []
                for rewards in score_completions(client, config, prompts, completions):
                    rows += rewards
                    advance()
                write_parquet(prompt_set.rewards_dir / f"{shard.name}.parquet", rows)
                facts.update(num_rewards=len(rows), num_failed=sum(row.reward is None for row in rows))


def rewards_inputs(prompt_set: PromptSet) -> list[str | None]:
    """Return the digest of the inputs of each shard's rewards; None for a shard that was not scored."""
    ledger = prompt_set.run.ledger
    return [ledger.inputs_of(prompt_set.piece("score", name)) for name in prompt_set.prompts_by_shard()]


def rewards_by_prompt(rewards: Sequence[Reward]) -> dict[str, list[Reward]]:
    """Group rewards by prompt; the rows of one prompt must be consecutive."""
    return {prompt_id: list(rows) for prompt_id, rows in groupby(rewards, key=lambda row: row.prompt_id)}


def sampling_params(config: SamplingConfig, seed: int) -> SamplingParams:
    """Return the engine's settings for one shard."""
    return SamplingParams(
        num_completions=config.num_completions,
        temperature=config.temperature,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens,
        seed=seed,
    )


def _pending(run: Run, shards: Sequence[Shard]) -> list[Shard]:
    return [shard for shard in shards if not run.ledger.is_finished(shard.piece, shard.inputs)]


def _num_prompts(shards: Sequence[Shard]) -> int:
    return sum(len(shard.prompts) for shard in shards)


def _sampling_shards(prompt_set: PromptSet) -> list[Shard]:
    """Return the shards to sample; settings, policy, prompts and seed decide their completions."""
    run = prompt_set.run
    policy_inputs = run.ledger.inputs_of(run.policy_piece(prompt_set.policy_round))
    shards = []
    for name, prompts in prompt_set.prompts_by_shard().items():
        inputs = digest(
            [
                run.config.sampling.model_dump(mode="json"),
                run.config.policy.model_dump(mode="json"),
                policy_inputs,
                [prompt.prompt_id for prompt in prompts],
                [run.config.seed, prompt_set.seed_name, name],
            ]
        )
        shards.append(Shard(name, prompts, prompt_set.piece("sample", name), inputs))
    return shards


def _scoring_shards(prompt_set: PromptSet) -> list[Shard]:
    """Return the shards to score; their completions and the reward's definition decide their rewards."""
    run = prompt_set.run
    assert run.config.reward is not None  # RunConfig: rounds need reward
    definition = run.config.reward.model_dump(mode="json", exclude=CONNECTION_FIELDS)
    shards = []
    for name, prompts in prompt_set.prompts_by_shard().items():
        completions_inputs = run.ledger.inputs_of(prompt_set.piece("sample", name))
        inputs = digest([completions_inputs, definition])
        shards.append(Shard(name, prompts, prompt_set.piece("score", name), inputs))
    return shards

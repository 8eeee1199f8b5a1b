"""The sampler's stages of a round: sample, score, select. Each takes a run and a round, and skips finished pieces.

sample   prompt pool less the probe -> prompts.jsonl -> completions/<shard>.parquet     (a ledger entry per shard)
score    completions/<shard>.parquet -> rewards/<shard>.parquet                         (a ledger entry per shard)
select   prompts, completions, rewards -> selected.jsonl, metrics.json                  (one ledger entry)
"""

from collections.abc import Mapping, Sequence

from sampler.metrics import round_metrics
from sampler.probe import draw_probe_prompts
from sampler.prompt_sets import PromptSet, rewards_by_prompt, rewards_inputs, sample_prompts, score_prompts
from sampler.prompts import draw_prompts, group_by_source, read_pool, without_probe
from sampler.selection import SELECTION_RULES
from winnow.records import Completion, Message, Prompt, Reward, Selection, digest, seed_from
from winnow.rows import read_parquet, write_json, write_jsonl
from winnow.rundir import Run


def sample(run: Run, round_number: int) -> None:
    """Sample N completions of each prompt of the round from the previous round's policy."""
    draw_round_prompts(run, round_number)
    sample_prompts(round_prompts(run, round_number))


def score(run: Run, round_number: int) -> None:
    """Score the round's completions."""
    score_prompts(round_prompts(run, round_number))


def select(run: Run, round_number: int) -> None:
    """Keep the completions that the selection rule chooses as training rows; write the round's metrics."""
    piece = f"{run.round_name(round_number)}/select"
    prompt_set = round_prompts(run, round_number)
    inputs = digest([run.config.selection.model_dump(mode="json"), rewards_inputs(prompt_set)])
    if run.ledger.is_finished(piece, inputs):
        return
    rule = SELECTION_RULES[run.config.selection.rule]
    with run.ledger.record(piece, inputs) as facts:
        prompts = prompt_set.prompts()
        scored = rewards_by_prompt(read_parquet(prompt_set.rewards_dir, Reward))
        kept = {prompt_id: rule(rewards) for prompt_id, rewards in scored.items()}
        completions = _kept_completions(prompt_set, kept)
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


def round_prompts(run: Run, round_number: int) -> PromptSet:
    """Return the prompts of a round, which the policy of the round before completes."""
    return PromptSet(
        run=run,
        name=run.round_name(round_number),
        label=f"round {round_number}",
        policy_round=round_number - 1,
        seed_name=round_number,
        prompts_path=run.prompts_path(round_number),
        completions_dir=run.completions_dir(round_number),
        rewards_dir=run.rewards_dir(round_number),
        server_dir=run.round_dir(round_number),
    )


def draw_round_prompts(run: Run, round_number: int) -> None:
    """Draw the round's prompts once and store them, so that the round keeps them if the pool's files change."""
    config = run.config.prompts
    assert config is not None  # RunConfig: rounds need prompts
    probe = draw_probe_prompts(run)
    piece = f"{run.round_name(round_number)}/prompts"
    probe_ids = [prompt.prompt_id for prompt in probe]
    inputs = digest([config.model_dump(mode="json"), run.config.seed, round_number, probe_ids])
    if run.ledger.is_finished(piece, inputs):
        return
    with run.ledger.record(piece, inputs) as facts:
        pool = without_probe(read_pool(config.files), probe)
        prompts = draw_prompts(pool, config.num_prompts, round_number, run.config.seed)
        write_jsonl(run.prompts_path(round_number), prompts)
        facts.update(num_prompts=len(prompts))


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


def _kept_completions(prompt_set: PromptSet, kept: Mapping[str, Sequence[Reward]]) -> dict[tuple[str, int], Completion]:
    """Return the kept completions by prompt and number. One shard is read at a time: token ids take much memory."""
    kept_ids: set[tuple[str, int]] = set()
    for prompt_id, rewards in kept.items():
        kept_ids.update((prompt_id, reward.completion_id) for reward in rewards)
    completions = {}
    for path in sorted(prompt_set.completions_dir.glob("*.parquet")):
        for row in read_parquet(path, Completion):
            if (row.prompt_id, row.completion_id) in kept_ids:
                completions[row.prompt_id, row.completion_id] = row
    return completions

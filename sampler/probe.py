"""The probe of a run: prompts on which the rewards of all rounds are compared. No round trains on them.

draw      prompt pool, or files of the probe -> probe/prompts.jsonl                    (once in a run)
sample    probe/prompts.jsonl -> round-NN/probe/completions/<shard>.parquet            (a ledger entry per shard)
score     the completions -> round-NN/probe/rewards/<shard>.parquet                    (a ledger entry per shard)
          -> round-NN/probe.json, round-NN/probe/rewards_by_prompt.jsonl               (one ledger entry)

The policy after every round, round 0 included, completes the same prompts with the round's own N and settings, and with
the same seeds: what differs between rounds is the policy. Sampling and scoring are two stages, because vLLM frees a
GPU only at the end of its process.
"""

from sampler.metrics import probe_metrics, probe_rewards
from sampler.prompt_sets import PromptSet, rewards_by_prompt, rewards_inputs, sample_prompts, score_prompts
from sampler.prompts import draw_probe, group_by_source, read_pool
from winnow.records import Prompt, Reward, digest
from winnow.rows import read_jsonl, read_parquet, write_json, write_jsonl
from winnow.run_config import ProbeConfig
from winnow.rundir import Run


def sample_probe(run: Run, round_number: int) -> None:
    """Sample N completions of each prompt of the probe from the policy after a round."""
    if run.config.probe is None:
        return
    draw_probe_prompts(run)
    sample_prompts(probe_prompts(run, round_number))


def score_probe(run: Run, round_number: int) -> None:
    """Score the probe's completions; write the round's rewards on the probe."""
    if run.config.probe is None:
        return
    prompt_set = probe_prompts(run, round_number)
    score_prompts(prompt_set)
    piece = run.probe_piece(round_number)
    inputs = digest(rewards_inputs(prompt_set))
    if run.ledger.is_finished(piece, inputs):
        return
    with run.ledger.record(piece, inputs) as facts:
        prompts = prompt_set.prompts()
        rewards: list[Reward] = []
        if prompts:
            rewards = read_parquet(prompt_set.rewards_dir, Reward)
        scored = rewards_by_prompt(rewards)
        metrics = probe_metrics(scored, run.config.sampling.num_completions)
        num_by_source = {source: len(rows) for source, rows in sorted(group_by_source(prompts).items())}
        write_jsonl(run.probe_rewards_path(round_number), probe_rewards(prompts, scored))
        write_json(run.probe_path(round_number), {"round": round_number, **metrics, "by_source": num_by_source})
        facts.update(mean_reward=metrics["mean_reward"], best_of_n_reward=metrics["best_of_n_reward"])


def probe_prompts(run: Run, round_number: int) -> PromptSet:
    """Return the prompts of the probe, which the policy after a round completes."""
    folder = run.probe_dir(round_number)
    return PromptSet(
        run=run,
        name=f"{run.round_name(round_number)}/probe",
        label=f"round {round_number} probe",
        policy_round=round_number,
        seed_name="probe",
        prompts_path=run.probe_prompts_path,
        completions_dir=folder / "completions",
        rewards_dir=folder / "rewards",
        server_dir=folder,
    )


def draw_probe_prompts(run: Run) -> list[Prompt]:
    """Draw the probe's prompts once and store them; return them, or none if the run has no probe."""
    config = run.config.probe
    if config is None:
        return []
    piece = run.probe_prompts_piece
    inputs = _drawing_inputs(run, config)
    if not run.ledger.is_finished(piece, inputs):
        with run.ledger.record(piece, inputs) as facts:
            prompts = _draw(run, config)
            write_jsonl(run.probe_prompts_path, prompts)
            facts.update(num_prompts=len(prompts))
    return [Prompt.model_validate(row) for _, row in read_jsonl(run.probe_prompts_path)]


def _draw(run: Run, config: ProbeConfig) -> list[Prompt]:
    if config.files:
        return draw_probe(read_pool(config.files), config.num_prompts, run.config.seed, is_shared=False)
    assert run.config.prompts is not None  # RunConfig: rounds need prompts
    return draw_probe(read_pool(run.config.prompts.files), config.num_prompts, run.config.seed, is_shared=True)


def _drawing_inputs(run: Run, config: ProbeConfig) -> str:
    """Return a digest of what decides the probe's prompts; the pool has no part if the probe has files."""
    assert run.config.prompts is not None  # RunConfig: rounds need prompts
    pool = None
    if not config.files:
        pool = run.config.prompts.model_dump(mode="json", include={"files"})
    return digest([config.model_dump(mode="json"), pool, run.config.seed])

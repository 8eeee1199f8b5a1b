"""The training stages of a run: the supervised start, and each round's SFT. Finished pieces are skipped.

start   policy.model -> LAB phases -> round-00/checkpoint     without phases round 0 is policy.model itself
train   round-(n-1) policy + round-n/selected.jsonl -> round-n/checkpoint
"""

import json

from sft.phases import phase_inputs, run_phases
from winnow.chat import load_chat
from winnow.errors import TrainingError
from winnow.records import digest, seed_from
from winnow.rows import file_sha256, read_jsonl_files
from winnow.run_config import TrainConfig
from winnow.rundir import Run


def start(run: Run, round_number: int) -> None:
    """Make round 0's policy: the checkpoint of the last LAB phase, or the start model if there are no phases."""
    piece = run.policy_piece(round_number)
    phases = phase_inputs(run)
    inputs = digest([run.config.policy.model_dump(mode="json"), phases])
    if run.ledger.is_finished(piece, inputs):
        return
    with run.ledger.record(piece, inputs) as facts:
        if phases:
            run_phases(run, phases)
        facts.update(policy=run.policy_path(round_number), phases=[phase.name for phase in run.config.lab.phases])


def train(run: Run, round_number: int) -> None:
    """Train the previous round's policy on the round's selected rows."""
    config = run.config.rounds.train
    assert config is not None  # RunConfig: rounds need train
    piece = run.policy_piece(round_number)
    inputs = _train_inputs(run, round_number, config)
    if run.ledger.is_finished(piece, inputs):
        return
    from sft.train import TrainingJob
    from sft.train import train as train_policy

    policy = run.config.policy
    model = run.policy_path(round_number - 1)
    rows = read_jsonl_files([run.selected_path(round_number)])
    if not rows:
        raise TrainingError(_explain_no_rows(run, round_number))
    with run.ledger.record(piece, inputs) as facts:
        job = TrainingJob(
            config=config,
            model=model,
            chat=load_chat(policy, model),
            rows=rows,
            output_dir=run.checkpoint_dir(round_number),
            seed=seed_from(run.config.seed, "train", round_number),
            dtype=policy.dtype,
            description=f"round {round_number}: train",
            is_last_turn_only=True,
        )
        facts.update(train_policy(job).model_dump(exclude={"seconds"}))


def _explain_no_rows(run: Run, round_number: int) -> str:
    """Return the error of a round that selected nothing: what became of its completions, and what to change."""
    metrics = json.loads(run.metrics_path(round_number).read_text())
    failures = [f"{count} x {status}" for status, count in metrics["failures"].items()] or ["none"]
    return (
        f"{run.round_name(round_number)} selected nothing to train on: of the completions of {metrics['num_prompts']} "
        f"prompts {metrics['num_truncated']} are unfinished, and {', '.join(failures)} could not be scored; raise "
        "sampling.max_new_tokens for unfinished ones and reward.server.max_tokens for too_long ones, in a new name=; "
        f"each failure's error is in {run.rewards_dir(round_number)}"
    )


def _train_inputs(run: Run, round_number: int, config: TrainConfig) -> str:
    """Return a digest of all inputs of a round's checkpoint: config, rows, seed, and the policy it starts from."""
    return digest(
        [
            config.model_dump(mode="json"),
            run.config.policy.model_dump(mode="json"),
            file_sha256(run.selected_path(round_number))[:16],
            [run.config.seed, round_number],
            run.ledger.inputs_of(run.policy_piece(round_number - 1)),
        ]
    )

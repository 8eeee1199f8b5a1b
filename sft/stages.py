"""The training stages of a run: the supervised start, and each round's SFT. Each skips what is finished.

start   policy.model -> LAB phases -> round-00/checkpoint     without phases round 0 is policy.model itself
train   round-(n-1) policy + round-n/selected.jsonl -> round-n/checkpoint
"""

from sft.phases import phase_inputs, run_phases
from sft.row_files import file_hash, read_rows
from winnow.chat import load_chat
from winnow.records import digest, seed_from
from winnow.run_config import TrainConfig
from winnow.rundir import Run


def start(run: Run, number: int) -> None:
    """Make round 0's policy: the LAB phases' checkpoint, or the start model where there are no phases."""
    piece = f"{run.round_name(number)}/start"
    phases = phase_inputs(run)
    inputs = digest([run.config.policy.model_dump(mode="json"), phases])
    if run.ledger.is_finished(piece, inputs):
        return
    with run.ledger.record(piece, inputs) as facts:
        if phases:
            run_phases(run, phases)
        facts.update(policy=run.policy_path(number), phases=[phase.name for phase in run.config.lab.phases])


def train(run: Run, number: int) -> None:
    """Train the last round's policy on the round's selected rows."""
    config = run.config.rounds.train
    assert config is not None  # RunConfig: rounds need train
    piece, inputs = f"{run.round_name(number)}/train", _train_inputs(run, number, config)
    if run.ledger.is_finished(piece, inputs):
        return
    from sft.train import train as train_policy

    model, policy = run.policy_path(number - 1), run.config.policy
    with run.ledger.record(piece, inputs) as facts:
        report = train_policy(
            config,
            model=model,
            chat=load_chat(policy, model),
            rows=read_rows([run.selected_path(number)]),
            output_dir=run.checkpoint_dir(number),
            seed=seed_from(run.config.seed, "train", number),
            dtype=policy.dtype,
            description=f"round {number}: train",
            is_last_turn_only=True,
        )
        facts.update(report.model_dump(exclude={"seconds"}))


def _train_inputs(run: Run, number: int, config: TrainConfig) -> str:
    """What decides a round's checkpoint: the job, its rows, the seed, and the policy it starts from."""
    before = run.ledger.line(f"{run.round_name(number - 1)}/{'start' if number == 1 else 'train'}")
    return digest(
        [
            config.model_dump(mode="json"),
            run.config.policy.model_dump(mode="json"),
            file_hash(run.selected_path(number)),
            [run.config.seed, number],
            before and before["inputs"],
        ]
    )

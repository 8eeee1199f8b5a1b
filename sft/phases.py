"""LAB's supervised start: the phases in order, each trained from the last one's checkpoint on its rows and a replay.

policy.model -> phases/knowledge-1 -> phases/knowledge-2 -> phases/skills = round-00/checkpoint

Each phase is a piece of the ledger, `round-00/phase/<name>`; a finished one is not done again.
"""

import os
import shutil
from pathlib import Path

from sft.mixing import Row, mix
from sft.row_files import file_hash, read_rows
from winnow.chat import load_chat
from winnow.records import digest, seed_from
from winnow.run_config import PhaseConfig
from winnow.rundir import Run, whole_folder


def run_phases(run: Run, inputs: list[str]) -> None:
    """Do the phases that are not finished; the last one's checkpoint becomes round 0's. `inputs` as `phase_inputs`."""
    model = run.config.policy.model
    for phase, identity in zip(run.config.lab.phases, inputs, strict=True):
        piece = f"{run.round_name(0)}/phase/{phase.name}"
        if not run.ledger.is_finished(piece, identity):
            with run.ledger.record(piece, identity) as facts:
                facts.update(train_phase(run, phase, model))
        model = str(run.phase_dir(phase.name))
    link_folder(Path(model), run.checkpoint_dir(0))


def train_phase(run: Run, phase: PhaseConfig, model: str) -> dict[str, object]:
    """Train one phase from `model`; the facts of its report."""
    from sft.train import train

    rows = phase_rows(run, phase)
    policy = run.config.policy
    report = train(
        phase.train,
        model=model,
        chat=load_chat(policy, model),
        rows=rows,
        output_dir=run.phase_dir(phase.name),
        seed=seed_from(run.config.seed, "phase", phase.name),
        dtype=policy.dtype,
        description=f"phase {phase.name}",
    )
    num_replayed = sum(row["metadata"]["is_replay"] for row in rows)
    return {"num_replayed": num_replayed, **report.model_dump(exclude={"seconds"})}


def phase_rows(run: Run, phase: PhaseConfig) -> list[Row]:
    """The rows that a phase trains on."""
    files = {other.name: other.files for other in run.config.lab.phases}
    replayed = {name: read_rows(files[name]) for name in phase.replay_from}
    return mix(phase.name, read_rows(phase.files), replayed, phase.replay_fraction, run.config.seed)


def phase_inputs(run: Run) -> list[str]:
    """What decides each phase's checkpoint: its config and rows, the seed, and the phase before it."""
    config = run.config
    before = digest(config.policy.model_dump(mode="json"))
    hashes = {phase.name: [file_hash(path) for path in phase.files] for phase in config.lab.phases}
    inputs = []
    for phase in config.lab.phases:
        rows = [hashes[name] for name in (phase.name, *phase.replay_from)]
        before = digest([phase.model_dump(mode="json"), rows, config.seed, before])
        inputs.append(before)
    return inputs


def link_folder(source: Path, target: Path) -> None:
    """Let `target` hold the files of `source`, without a second copy of them where the file system can share files."""
    with whole_folder(target) as folder:
        for path in sorted(source.iterdir()):
            _link(path, folder / path.name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

"""LAB's supervised start: phases in order, each trained from the previous checkpoint on its rows and a replay.

policy.model -> phases/knowledge-1 -> phases/knowledge-2 -> phases/skills = round-00/checkpoint

Each phase is a piece of the ledger, `round-00/phase/<name>`; a finished phase is skipped.
"""

import os
import shutil
from pathlib import Path

from sft.mixing import TrainingRow, mix
from winnow.chat import load_chat
from winnow.records import digest, seed_from
from winnow.rows import file_sha256, read_jsonl_files
from winnow.run_config import PhaseConfig
from winnow.rundir import Run, atomic_folder


def run_phases(run: Run, inputs: list[str]) -> None:
    """Train the unfinished phases; the last one's checkpoint becomes round 0's. `inputs` come from `phase_inputs`."""
    model = run.config.policy.model
    for phase, phase_digest in zip(run.config.lab.phases, inputs, strict=True):
        piece = run.phase_piece(phase.name)
        if not run.ledger.is_finished(piece, phase_digest):
            with run.ledger.record(piece, phase_digest) as facts:
                facts.update(train_phase(run, phase, model))
        model = str(run.phase_dir(phase.name))
    link_folder(Path(model), run.checkpoint_dir(0))


def train_phase(run: Run, phase: PhaseConfig, model: str) -> dict[str, object]:
    """Train one phase from `model`; return its report as facts for the ledger."""
    from sft.train import TrainingJob, train

    rows = phase_rows(run, phase)
    policy = run.config.policy
    job = TrainingJob(
        config=phase.train,
        model=model,
        chat=load_chat(policy, model),
        rows=rows,
        output_dir=run.phase_dir(phase.name),
        seed=seed_from(run.config.seed, "phase", phase.name),
        dtype=policy.dtype,
        description=f"phase {phase.name}",
    )
    report = train(job)
    num_replayed = sum(row["metadata"]["is_replay"] for row in rows)
    return {"num_replayed": num_replayed, **report.model_dump(exclude={"seconds"})}


def phase_rows(run: Run, phase: PhaseConfig) -> list[TrainingRow]:
    """Read the rows of a phase and of the phases that it replays, and mix them."""
    files = {earlier.name: earlier.files for earlier in run.config.lab.phases}
    replayed = {name: read_jsonl_files(files[name]) for name in phase.replay_from}
    return mix(phase.name, read_jsonl_files(phase.files), replayed, phase.replay_fraction, run.config.seed)


def phase_inputs(run: Run) -> list[str]:
    """Return a digest of all inputs of each phase: config, rows, seed, and the previous phase's digest."""
    config = run.config
    hashes: dict[str, list[str]] = {}
    for phase in config.lab.phases:
        hashes[phase.name] = [file_sha256(path)[:16] for path in phase.files]
    previous = digest(config.policy.model_dump(mode="json"))
    inputs = []
    for phase in config.lab.phases:
        row_hashes = [hashes[name] for name in (phase.name, *phase.replay_from)]
        previous = digest([phase.model_dump(mode="json"), row_hashes, config.seed, previous])
        inputs.append(previous)
    return inputs


def link_folder(source: Path, target: Path) -> None:
    """Give `target` the files of `source`: as hard links, or as copies if the file system has no hard links."""
    with atomic_folder(target) as folder:
        for path in sorted(source.iterdir()):
            try:
                os.link(path, folder / path.name)
            except OSError:
                shutil.copy2(path, folder / path.name)

"""The verbs of a run: the whole recipe, its status, and single stages of one round."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from winnow.errors import UsageError

if TYPE_CHECKING:
    from winnow.inspection import Inspection
    from winnow.run_config import RunConfig
    from winnow.rundir import Run


from winnow.cli.application import Verb
from winnow.cli.flags import (
    Overrides,
    RoundNumber,
    RunFolder,
)

verbs = typer.Typer()


@verbs.command(cls=Verb, epilog="Example: winnow run configs/merlinite-7b-pt.yaml rounds.num_rounds=2 --dry-run")
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The recipe.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, check its files, do nothing.")] = False,
) -> None:
    """Run a recipe: SFT start, rounds of best-of-N, evaluation, peak."""
    from winnow.config import load_config
    from winnow.run_config import RunConfig

    resolved = load_config(config, RunConfig, overrides or [])
    if dry_run:
        _plan_run(resolved, is_resumed=resume)
        return
    from sampler.rounds import run_rounds
    from winnow.inspection import Inspection
    from winnow.rundir import locked, run_root, start_run
    from winnow.stages import run_in_subprocess, run_inline

    stage = run_inline
    if resolved.stages == "subprocess":
        stage = run_in_subprocess
    with locked(run_root(resolved)):
        started_run = start_run(resolved, is_resumed=resume)
        inspection = Inspection(started_run, is_dry=False, finished_pieces=started_run.ledger.pieces())
        _inspect(inspection)
        inspection.print_findings(sys.stderr)
        inspection.raise_faults()
        run_rounds(started_run, stage)


def _plan_run(config: "RunConfig", *, is_resumed: bool) -> None:
    """Print the plan of a run and what its checks find. Raises PreflightError with every fault."""
    from sampler.plan import print_plan
    from winnow.inspection import Inspection
    from winnow.rundir import Run, check_run_folder, run_root

    print_plan(config)
    planned_run = Run(run_root(config), config)
    finished: frozenset[str] = frozenset()
    if is_resumed:
        finished = planned_run.ledger.pieces()
    inspection = Inspection(planned_run, is_dry=True, finished_pieces=finished)
    with inspection.collect():
        check_run_folder(planned_run, is_resumed=is_resumed)
    _inspect(inspection)
    inspection.print_findings(sys.stdout)
    inspection.raise_faults()


def _inspect(inspection: "Inspection") -> None:
    """Check everything of a run that can be checked without weights; a package is imported if the run needs it."""
    from sampler.preflight import check_disk, check_libraries, check_policy, check_probe_files, check_prompts

    config = inspection.config
    if inspection.is_finished("peak"):
        inspection.unchecked.append("anything: the run is finished")
        return
    check_libraries(inspection)
    chat = check_policy(inspection)
    if config.lab.phases:
        from sft.preflight import check_phases

        check_phases(inspection, chat)
    if not inspection.has_all_rewards:
        check_prompts(inspection, chat)
        check_probe_files(inspection, chat)
        _inspect_reward_server(inspection)
    if config.evaluation.benchmarks or config.evaluation.questions is not None:
        from eval.preflight import check_evaluation

        check_evaluation(inspection, chat)
    check_disk(inspection)


def _inspect_reward_server(inspection: "Inspection") -> None:
    """Find the faults of a run's reward server. A server elsewhere is not called: it may start during training."""
    reward = inspection.config.reward
    assert reward is not None  # RunConfig: rounds need reward
    from sampler.managed_server import connection_settings, managed_config

    if reward.server is None:
        with inspection.collect():
            connection_settings(reward).credentials()
        inspection.unchecked.append(f"reward server at {reward.address}: it may start later")
        return
    from reward_server.serving.preflight import inspect_server

    inspect_server(managed_config(reward.server), inspection)


@verbs.command(cls=Verb, epilog="Example: winnow status runs/miniature --json")
def status(
    run_dir: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the finished stages of a run and the next one."""
    from winnow.rundir import open_run
    from winnow.status import print_status

    print_status(open_run(run_dir, is_read_only=True), is_json=as_json)


@verbs.command(cls=Verb, epilog="Example: winnow sample runs/miniature --round 1")
def sample(run_dir: RunFolder, round_number: RoundNumber = 1) -> None:
    """Run the sample stage of one round: N completions of each prompt."""
    run_stage("sample", run_dir, round_number, first_round=1)


@verbs.command(cls=Verb, epilog="Example: winnow select runs/miniature --round 1")
def select(run_dir: RunFolder, round_number: RoundNumber = 1) -> None:
    """Run the select stage of one round: keep the best completion of each prompt."""
    run_stage("select", run_dir, round_number, first_round=1)


@verbs.command(cls=Verb, epilog="Example: winnow sft runs/miniature --round 0")
def sft(run_dir: RunFolder, round_number: RoundNumber = 0) -> None:
    """Run the SFT of one round; round 0 is the LAB start."""
    stage = "train"
    if round_number == 0:
        stage = "start"
    run_stage(stage, run_dir, round_number)


@verbs.command(cls=Verb, epilog="Example: winnow peak runs/miniature")
def peak(run_dir: RunFolder) -> None:
    """Pick the peak checkpoint of a run's evaluated rounds; write peak.json and the chart."""
    from winnow.rundir import open_run

    run_stage("peak", run_dir, open_run(run_dir).config.rounds.num_rounds)


def run_stage(name: str, run_dir: Path, round_number: int, first_round: int = 0) -> None:
    """Run a stage of one round in this process. Raises UsageError if the run has no such round."""
    from winnow.rundir import locked, open_run
    from winnow.stages import run_inline

    opened_run = open_run(run_dir)
    check_round(opened_run, round_number, first_round)
    with locked(opened_run.root):
        run_inline(name, opened_run, round_number)


def check_round(opened_run: "Run", round_number: int, first_round: int = 0) -> None:
    """Raise UsageError if a run has no such round."""
    last_round = opened_run.config.rounds.num_rounds
    if not first_round <= round_number <= last_round:
        raise UsageError(
            f"{opened_run.root} has rounds {first_round} to {last_round}; --round {round_number} is not one of them"
        )

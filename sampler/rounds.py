"""The loop: sample -> score -> select -> train -> evaluate, round after round, then the peak.

The loop knows no library and no file: it is handed its stages. A stage takes a run and a round number, reads and writes
files of the run's folder, and skips what its ledger says is finished: a killed run goes on by being run again.
"""

from collections.abc import Callable

from winnow.rundir import Run

Stage = Callable[[str, Run, int], None]


def run_rounds(run: Run, stage: Stage) -> None:
    """Take a run from its SFT start to its peak; `stage(name, run, number)` does one stage of one round."""
    stage("start", run, 0)
    stage("evaluate", run, 0)
    for number in range(1, run.config.rounds.num_rounds + 1):
        stage("sample", run, number)
        stage("score", run, number)
        stage("select", run, number)
        stage("train", run, number)
        stage("evaluate", run, number)
    stage("peak", run, run.config.rounds.num_rounds)

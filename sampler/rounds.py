"""The loop: sample -> score -> select -> train -> probe -> evaluate, round after round, then the peak.

The loop knows no library and no file: its caller passes the stages. A stage takes a run and a round number, reads and
writes files of the run's folder, and skips the pieces that the ledger lists. To resume a killed run, run it again.
"""

from collections.abc import Callable

from winnow.rundir import Run

Stage = Callable[[str, Run, int], None]


def run_rounds(run: Run, stage: Stage) -> None:
    """Run every round from the SFT start to the peak; `stage(name, run, round_number)` does one stage of one round."""
    stage("start", run, 0)
    stage("sample_probe", run, 0)
    stage("score_probe", run, 0)
    stage("evaluate", run, 0)
    for round_number in range(1, run.config.rounds.num_rounds + 1):
        stage("sample", run, round_number)
        stage("score", run, round_number)
        stage("select", run, round_number)
        stage("train", run, round_number)
        stage("sample_probe", run, round_number)
        stage("score_probe", run, round_number)
        stage("evaluate", run, round_number)
    stage("peak", run, run.config.rounds.num_rounds)

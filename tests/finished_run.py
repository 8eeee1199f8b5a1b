"""The folder of a run whose peak is round 1, without the work of a run: its results are written by hand."""

from pathlib import Path
from typing import Any

from eval.stages import pick_peak
from tests.test_eval_stages import record_round
from tests.tiny_models import make_model
from tests.tiny_run import tiny_config
from winnow.run_config import RunConfig
from winnow.rundir import Run, start_run


def make_finished_run(folder: Path, **policy: Any) -> Run:
    """Make the folder; `policy` are keys of the policy's config."""
    tree = tiny_config(folder)
    tree["policy"] |= policy
    run = start_run(RunConfig.model_validate(tree), is_resumed=False)
    make_model("llama", run.checkpoint_dir(1), seed=3)
    record_round(run, 0, judged=5.0, num_right=15, reward=0.0, verdicts=(4, 5, 6, 5))
    record_round(run, 1, judged=7.0, num_right=16, reward=1.0, verdicts=(6, 7, 8, 7))
    pick_peak(run, 1)
    return run

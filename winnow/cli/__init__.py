"""The command line: the composition root, which knows every package.

    winnow run examples/miniature/config.yaml

application.py   the app and the class of a verb
flags.py         arguments and flags that several verbs have; judge_flags.py: those of a judge
runs.py          run, status, sample, select, sft, peak
rewards.py       serve, score, gateway
evaluation.py    eval, import-data, eval-reward, judge
results.py       compare, card, export

A package is imported when a verb needs it, so that `--help` needs no torch.
"""

import os

from winnow.cli import evaluation, results, rewards, runs
from winnow.cli.application import app
from winnow.exit_codes import exit_on_error
from winnow.import_path import child_environment

# `winnow --help` lists the verbs in this order.
for verbs in (runs.verbs, rewards.verbs, evaluation.verbs, results.verbs):
    app.add_typer(verbs)


def main() -> None:
    """Run the command line; winnow/exit_codes.py describes its exit codes."""
    # gRPC's core logs failed connections, which winnow's own message reports too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Libraries start processes too, as vLLM does its workers: none may import from the working directory.
    os.environ.update(child_environment())
    with exit_on_error():
        app()

"""The whole recipe in miniature, on a CPU: the world and its models, LAB SFT, rounds against a reward server, the peak.

    python -m examples.miniature [--seed 0] [KEY=VALUE ...]

The files are written to runs/miniature-world and runs/miniature in the working directory. Finished work is kept: a
second call resumes the run.
"""

import argparse
import sys
import time
from pathlib import Path

from sampler.rounds import run_rounds
from winnow.config import load_config
from winnow.errors import WinnowError
from winnow.run_config import RunConfig
from winnow.rundir import locked, run_root, start_run
from winnow.stages import run_inline

HERE = Path(__file__).parent
WORLD = Path("runs/miniature-world")


def main() -> None:
    """Make the world and its models if they are missing, then run the recipe."""
    parser = argparse.ArgumentParser(prog="python -m examples.miniature", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the world, its models and the run (default: 0)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of config.yaml to set")
    arguments = parser.parse_args()
    start = time.monotonic()
    try:
        run_miniature(arguments.seed, arguments.overrides)
    except WinnowError as error:
        print(f"winnow: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{time.monotonic() - start:.0f} s in all")


def run_miniature(seed: int, overrides: list[str]) -> None:
    """Make the world and its models in WORLD, and run config.yaml on them."""
    from examples.miniature.models import make_world

    make_world(WORLD, seed)
    config = load_config(
        HERE / "config.yaml", RunConfig, [f"seed={seed}", f"evaluation.task_dir={HERE / 'tasks'}", *overrides]
    )
    root = run_root(config)
    with locked(root):
        run_rounds(start_run(config, is_resumed=(root / "config.json").exists()), run_inline)


if __name__ == "__main__":
    main()

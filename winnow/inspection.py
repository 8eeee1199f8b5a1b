"""The checks of a run before anything is computed: what was found, and what each check needs to know.

    inspection = Inspection(run, is_dry=True)
    with inspection.collect():
        check_model_path(policy.model)      its error becomes a fault of the list, and the next check follows
    inspection.print_findings(sys.stdout)   checked: ...   not checked: ...   warning: ...
    inspection.raise_faults()               PreflightError with every fault

The packages that know a part of the run check it: sampler, sft, eval and reward_server.serving have a preflight.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import TextIO

from winnow.checkpoints import max_positions
from winnow.errors import PreflightError
from winnow.exit_codes import report_of
from winnow.run_config import RunConfig
from winnow.rundir import Run

# Rows of each file that a dry run renders, and a resumed run: it rendered all of them when it began.
DRAWN_ROWS = 1000


@dataclass
class Inspection:
    """What the checks of a run found; `finished_pieces` of a resumed run need no checks any more.

    A dry run downloads nothing.
    """

    run: Run
    is_dry: bool
    finished_pieces: frozenset[str] = frozenset()
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)

    @property
    def config(self) -> RunConfig:
        """The config of the run."""
        return self.run.config

    @property
    def is_thorough(self) -> bool:
        """True if every row of a file is rendered, and not DRAWN_ROWS of them."""
        return not self.is_dry and not self.finished_pieces

    @property
    def rounds(self) -> range:
        """The numbers of the rounds after the start."""
        return range(1, self.config.rounds.num_rounds + 1)

    @property
    def model(self) -> str:
        """The policy from which the run goes on: of the last finished round, else the start model.

        All of them have the start model's tokenizer, and a resumed run needs no earlier one any more.
        """
        for round_number in reversed(range(self.config.rounds.num_rounds + 1)):
            if self.is_finished(self.run.policy_piece(round_number)):
                return self.run.policy_path(round_number)
        return self.config.policy.model

    @cached_property
    def context_tokens(self) -> int | None:
        """Largest number of tokens of a prompt and its completion together; None if it is unknown."""
        sampling = self.config.sampling
        if sampling.engine == "vllm" and sampling.max_model_len is not None:
            return sampling.max_model_len
        return max_positions(self.model)

    @property
    def has_all_rewards(self) -> bool:
        """True if no stage samples or scores any more: the last round's rewards and its probe's are there."""
        last_round = self.config.rounds.num_rounds
        if last_round == 0:
            return True
        if self.config.probe is not None:
            return self.is_finished(self.run.probe_piece(last_round))
        return self.is_finished(f"{self.run.round_name(last_round)}/select")

    def is_finished(self, piece: str) -> bool:
        """Tell whether a resumed run has finished a piece."""
        return piece in self.finished_pieces

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Add an error of the block that a user can fix to the faults; a bug stays an exception."""
        try:
            yield
        except Exception as error:
            report = report_of(error)
            if report is None:
                raise
            self.add_fault(report.message)

    def add_fault(self, fault: str) -> None:
        """Add a fault, once if several checks find it."""
        if fault not in self.faults:
            self.faults.append(fault)

    def add_checked(self, text: str, num_faults: int) -> None:
        """Add what was checked, unless its checks have added to the `num_faults` faults that there were before."""
        if len(self.faults) == num_faults:
            self.checked.append(text)

    def require_module(self, name: str) -> None:
        """Add a fault if an optional library that a later stage imports is not installed."""
        with self.collect():
            if find_spec(name) is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    def print_findings(self, file: TextIO) -> None:
        """Print everything but the faults, one line each."""
        for title, lines in (
            ("checked", self.checked),
            ("not checked", self.unchecked),
            ("warning", self.warnings),
        ):
            for line in lines:
                print(f"{title}: {line}", file=file)

    def raise_faults(self) -> None:
        """Raise PreflightError if there are faults."""
        if self.faults:
            raise PreflightError(self.faults)

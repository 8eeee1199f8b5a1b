"""A command-line argument of `winnow compare` -> a result.

runs/a/round-01/eval   runs/a/round-01      a round
runs/a --rounds                             every evaluated round of a run
out/  out/model/results_DATE.json           lm-eval
gpt-4_single.jsonl#vicuna-7b-v1.3           FastChat's judgments of one model; #MODEL unless the file holds one
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.compare.judged_files import read_judged
from eval.compare.lm_eval_files import read_lm_eval, result_files
from eval.compare.results import JudgedResult, ResultSet, TaskResult
from eval.compare.round_files import read_round
from eval.judging.judge_folder import SUITE_INPUTS_NAME
from winnow.errors import UsageError

KINDS = "a round's eval folder, a folder of lm-eval's results, or a judgment file"


@dataclass(frozen=True)
class ReadingOptions:
    """The options of reading: all rounds of a run, the judge, the share of unreadable verdicts, files of answers."""

    has_rounds: bool = False
    judge: str | None = None
    max_unreadable: float = 0.1
    answers: tuple[Path, ...] = ()


def read_results(arguments: Sequence[str], options: ReadingOptions) -> list[ResultSet]:
    """Read every argument. Raises UsageError for a path without results, InputError for a file at fault."""
    results: list[ResultSet] = []
    for argument in arguments:
        if options.has_rounds:
            results += [read_result(str(folder), options) for folder in _round_folders(Path(argument))]
        else:
            results.append(read_result(argument, options))
    return results


def read_result(argument: str, options: ReadingOptions) -> ResultSet:
    """Read one result; it has the argument as its name."""
    name, _, model = argument.partition("#")
    path = Path(name)
    if path.is_dir():
        return _read_folder(path, argument, model or None, options)
    if not path.is_file():
        raise UsageError(f"{name} does not exist; give {KINDS}")
    if path.suffix == ".jsonl":
        judged_model, judged = read_judged(path, model or None, options.judge, options.max_unreadable, options.answers)
        return ResultSet(argument if model else f"{name}#{judged_model}", {}, judged)
    return ResultSet(argument, read_lm_eval(path))


def _read_folder(folder: Path, name: str, model: str | None, options: ReadingOptions) -> ResultSet:
    """Read everything that a folder holds: the benchmarks of a round or of lm-eval, and judgments."""
    if (folder / "eval" / "results.json").is_file():
        return _read_folder(folder / "eval", name, model, options)
    if (folder / "ledger.jsonl").is_file():
        raise UsageError(f"{folder} is a whole run; give --rounds for all its rounds, or the folder of one round")
    tasks: dict[tuple[str, str], TaskResult] = {}
    judged: JudgedResult | None = None
    if (folder / "results.json").is_file() and not (folder / SUITE_INPUTS_NAME).is_file():
        tasks = read_round(folder)
    if (folder / "judgments.jsonl").is_file():
        _, judged = read_judged(
            folder / "judgments.jsonl", model, options.judge, options.max_unreadable, options.answers
        )
    files = result_files(folder)
    if len(files) > 1:
        raise UsageError(f"{folder} holds {len(files)} results of lm-eval, {files[0]} and {files[1]}; give one of them")
    if files:
        tasks = {**tasks, **read_lm_eval(files[0])}
    if not tasks and judged is None:
        raise UsageError(f"{folder} holds no result; give {KINDS}")
    return ResultSet(name, tasks, judged)


def _round_folders(root: Path) -> list[Path]:
    """Return the evaluated rounds of a run. Raises UsageError without any."""
    folders = sorted(path.parent for path in root.glob("round-*/eval/results.json"))
    if not folders:
        raise UsageError(f"{root} has no evaluated round; --rounds takes the folder of a run that was evaluated")
    return folders

"""The content of a card -> its Markdown text: a front matter for the hub, tables, settings, hashes, the prompt."""

from collections.abc import Iterable, Iterator, Sequence

from eval.compare.results import TaskResult
from eval.judging.judged_scores import JudgedScore
from eval.publishing.card_tasks import CARD_TASKS, CardTask
from eval.publishing.content import CardContent, CardPrompt
from eval.publishing.intervals import PublishedInterval, normal_interval, task_interval
from eval.publishing.metadata import front_matter, settings_text
from eval.report import PeakReport, RoundReport
from eval.suites.definition import PublishedRow, published_rows

NONE = "-"


def card_text(content: CardContent) -> str:
    """Return the whole text of README.md."""
    sections = ["---", front_matter(content).rstrip(), "---", "", f"# {content.name}", ""]
    sections += _introduction(content)
    sections += _section("Results", _card_table(content))
    if content.tasks:
        sections += _section("Benchmarks", _task_table(content.tasks))
    if content.judged is not None:
        sections += _section("MT-Bench", _judged_table(content.judged))
    if content.peak is not None:
        sections += _section("Rounds", _round_table(content.peak))
    if content.prompt is not None:
        sections += _section("Prompt", _prompt(content.prompt))
    if content.settings:
        sections += _section("Settings", _pairs("setting", content.settings.items()))
    if content.hashes:
        sections += _section("Hashes", _pairs("SHA-256 of", content.hashes.items()))
    return "\n".join(sections).rstrip() + "\n"


def _introduction(content: CardContent) -> Iterator[str]:
    if content.peak is not None:
        start = f" from `{content.start_model}`" if content.start_model else ""
        yield f"The peak of a winnow run{start}: round {content.peak.round} of best-of-N and supervised fine-tuning."
        yield ""


def _section(title: str, lines: Iterable[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""]


def _card_table(content: CardContent) -> Iterator[str]:
    """Yield the table of the recipe's cards, their rows below; a task with other shots than theirs says so."""
    header = ["model", "MT-Bench", *(f"{card_task.name} ({card_task.shots})" for card_task in CARD_TASKS)]
    cells = [content.name, NONE if content.judged is None else f"{content.judged.mean:.2f}"]
    for card_task in CARD_TASKS:
        cells.append(_card_cell(content.tasks, card_task))
    published = published_rows()
    yield from _table(header, [cells, *map(_published_cells, published.rows)])
    yield ""
    yield "Percent; in brackets the number of examples before each item. MT-Bench is from 1 to 10."
    yield ""
    yield f"Rows marked as published are shown, not compared. {published.provenance}"


def _card_cell(tasks: Sequence[TaskResult], card_task: CardTask) -> str:
    for result in tasks:
        if (result.task, result.metric) == (card_task.task, card_task.metric):
            notes: list[str] = []
            shots = result.conditions.get("shots", card_task.shots)
            if shots != card_task.shots:
                notes.append(f"{shots}-shot")
            if result.num_items != card_task.num_items:
                notes.append(f"{result.num_items} items")
            text = f"{100 * result.value:.2f}"
            return f"{text} ({', '.join(notes)})" if notes else text
    return NONE


def _published_cells(row: PublishedRow) -> list[str]:
    """Return the cells of a model card's row, which has no MT-Bench."""
    cells = [f"{row.model} (published)", NONE]
    for card_task in CARD_TASKS:
        value = getattr(row, card_task.task)
        cells.append(NONE if value is None else f"{value:.2f}")
    return cells


def _task_table(tasks: Sequence[TaskResult]) -> Iterator[str]:
    rows: list[list[str]] = []
    for result in tasks:
        stderr = NONE if result.stderr is None else f"{result.stderr:.4f}"
        items = NONE if result.num_items is None else str(result.num_items)
        interval = _interval(task_interval(result), 4)
        rows.append([result.task, f"{result.value:.4f}", stderr, interval, items, settings_text(result)])
    yield from _table(["task", "value", "standard error", "95 % interval", "items", "settings"], rows)


def _judged_table(judged: JudgedScore) -> Iterator[str]:
    rows = [_judged_row("all", judged.mean, judged.stderr)]
    for turn, mean in judged.by_turn.items():
        rows.append(_judged_row(f"turn {turn}", mean, judged.by_turn_stderr.get(turn)))
    for category, mean in judged.by_category.items():
        rows.append(_judged_row(category, mean, judged.by_category_stderr.get(category)))
    yield from _table(["", "mean", "standard error", "95 % interval"], rows)
    yield ""
    runs = f"{len(judged.runs)} run" + ("s" if len(judged.runs) > 1 else "")
    spread = "" if judged.sd is None else f", {judged.min:.2f} to {judged.max:.2f}, standard deviation {judged.sd:.2f}"
    yield (
        f"Judged by {judged.judge} in {runs}{spread}; {judged.num_unparsable} of {judged.num_judgments} verdicts "
        "unreadable. Standard errors are over questions."
    )


def _judged_row(name: str, mean: float, stderr: float | None) -> list[str]:
    error = NONE if stderr is None else f"{stderr:.2f}"
    return [name, f"{mean:.2f}", error, _interval(normal_interval(mean, stderr), 2)]


def _round_table(peak: PeakReport) -> Iterator[str]:
    header = ["round", "batch reward", "random control", "judged score"]
    if peak.has_probe:
        header += ["probe: mean reward", "probe: best of N"]
    rows: list[list[str]] = []
    for report in peak.rounds:
        row = _round_row(report, is_peak=report.round == peak.round)
        if peak.has_probe:
            row += _probe_cells(report)
        rows.append(row)
    yield from _table(header, rows)
    yield ""
    yield "Batch reward is of the round's own prompts; rewards on the probe are of the same prompts in every round."
    yield f"Rule: {peak.rule}."
    for dropped in peak.dropped:
        yield f"Round {dropped.round} was dropped: {dropped.reason}."


def _round_row(report: RoundReport, *, is_peak: bool) -> list[str]:
    judged = NONE if report.judge_score is None else f"{report.judge_score.mean:.2f}"
    name = f"**{report.round}** (peak)" if is_peak else str(report.round)
    return [name, _decimal(report.batch_reward), _decimal(report.random_control_reward), judged]


def _probe_cells(report: RoundReport) -> list[str]:
    """Return both rewards on the probe, each with its standard error."""
    probe = report.probe
    if probe is None:
        return [NONE, NONE]
    cells: list[str] = []
    for reward, stderr in (
        (probe.mean_reward, probe.mean_reward_stderr),
        (probe.best_of_n_reward, probe.best_of_n_stderr),
    ):
        error = "" if stderr is None else f" +- {stderr:.3f}"
        cells.append(f"{reward:.3f}{error}")
    return cells


def _prompt(prompt: CardPrompt) -> Iterator[str]:
    if prompt.system_prompt:
        yield "System prompt:"
        yield ""
        yield from _fenced(prompt.system_prompt, "text")
        yield ""
    yield f"Chat template `{prompt.template_name}`:"
    yield ""
    yield from _fenced(prompt.template.rstrip(), "jinja")


def _fenced(text: str, language: str) -> Iterator[str]:
    """Yield a text as a code block, whose fence is longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    yield f"{fence}{language}"
    yield text
    yield fence


def _pairs(kind: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    return list(_table([kind, "value"], [[name, f"`{value}`"] for name, value in pairs]))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _row(header)
    yield _row(["---"] * len(header))
    for row in rows:
        yield _row(row)


def _row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table; a bar in a cell would begin another cell."""
    escaped = [" ".join(cell.replace("|", "\\|").split()) for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _interval(interval: PublishedInterval | None, num_digits: int) -> str:
    if interval is None:
        return NONE
    low, high = interval.interval
    return f"{low:.{num_digits}f} to {high:.{num_digits}f}"


def _decimal(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"

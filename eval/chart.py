"""The chart of a run: reward and judged score by round, each on its own axis, with the peak marked. PNG and SVG.

The rewards are those on the probe, mean and best of N. Their bars are one paired standard error of the gain over the
round before. Without a probe it is the batch reward, of other prompts in every round.
Colour-blind readers can distinguish the colours (Okabe and Ito); the two lines also differ in marker and dash. Equal
numbers give equal bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.report import PeakReport, RoundReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

REWARD_COLOUR = "#0072B2"
JUDGED_COLOUR = "#D55E00"
PEAK_COLOUR = "#009E73"
SIZE_INCHES = (7.5, 4.5)
PNG_DPI = 150
MAX_LEGEND_COLUMNS = 3
# These entries would differ between versions of matplotlib (Software) and between calls (Date).
OMITTED_METADATA: dict[str, dict[str, None]] = {".png": {"Software": None}, ".svg": {"Date": None}}
STYLE: Any = {"svg.hashsalt": "winnow", "svg.fonttype": "path", "font.size": 11}


def draw_chart(report: PeakReport, title: str, paths: Sequence[Path]) -> None:
    """Write the chart to each path, in the format of its suffix: .png or .svg."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = chart(report, title)
        for path in paths:
            partial = path.with_name(f".{path.stem}.partial{path.suffix}")
            figure.savefig(partial, dpi=PNG_DPI, metadata=OMITTED_METADATA[path.suffix])
            partial.replace(path)


def chart(report: PeakReport, title: str) -> "Figure":
    """Draw the figure; no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    rewards = figure.add_subplot()
    judged = rewards.twinx()
    if report.has_probe:
        reward_lines: Sequence[Any] = _draw_probe(rewards, report)
    else:
        reward_lines = _draw_batch_reward(rewards, report.rounds)
    lines = [*reward_lines, _draw_judged(judged, report.rounds), _mark_peak(rewards, report)]
    rewards.tick_params(axis="y", labelcolor=REWARD_COLOUR)
    rewards.set_xlabel("round (0 is the SFT start)")
    rewards.set_xticks([round_report.round for round_report in report.rounds])
    rewards.set_xlim(report.rounds[0].round - 0.5, report.rounds[-1].round + 0.5)
    rewards.margins(y=0.15)
    judged.margins(y=0.15)
    rewards.spines["top"].set_visible(False)
    judged.spines["top"].set_visible(False)
    figure.suptitle(title)
    figure.legend(handles=lines, loc="outside lower center", ncols=min(len(lines), MAX_LEGEND_COLUMNS), frameon=False)
    return figure


def _draw_probe(axes: "Axes", report: PeakReport) -> "list[ErrorbarContainer]":
    """Draw mean and best-of-N reward on the probe; round 0 has no bar."""
    points = [(peer.round, peer.probe) for peer in report.rounds if peer.probe is not None]
    mean_stderrs = {gain.round: gain.mean_reward_stderr or 0.0 for gain in report.probe_gains}
    best_stderrs = {gain.round: gain.best_of_n_stderr or 0.0 for gain in report.probe_gains}
    means = {number: score.mean_reward for number, score in points}
    bests = {number: score.best_of_n_reward for number, score in points}
    return [
        _draw_probe_curve(axes, means, mean_stderrs, "mean reward", "o-"),
        _draw_probe_curve(axes, bests, best_stderrs, "best of N", "^:"),
    ]


def _draw_probe_curve(
    axes: "Axes", rewards: Mapping[int, float], stderrs: Mapping[int, float], label: str, form: str
) -> "ErrorbarContainer":
    axes.set_ylabel("reward on the probe", color=REWARD_COLOUR)
    bars = [stderrs.get(round_number, 0.0) for round_number in rewards]
    return axes.errorbar(
        list(rewards), list(rewards.values()), yerr=bars, fmt=form, color=REWARD_COLOUR, capsize=4, label=label
    )


def _draw_batch_reward(axes: "Axes", rounds: Sequence[RoundReport]) -> "list[Line2D]":
    points = [(report.round, report.batch_reward) for report in rounds if report.batch_reward is not None]
    lines = axes.plot(
        [round_number for round_number, _ in points],
        [reward for _, reward in points],
        color=REWARD_COLOUR,
        marker="o",
        label="batch reward",
    )
    axes.set_ylabel("batch reward", color=REWARD_COLOUR)
    return lines


def _draw_judged(axes: "Axes", rounds: Sequence[RoundReport]) -> "ErrorbarContainer":
    points = [(report.round, report.judge_score) for report in rounds if report.judge_score is not None]
    means = [score.mean for _, score in points]
    below = [score.mean - score.min for _, score in points]
    above = [score.max - score.mean for _, score in points]
    bars = axes.errorbar(
        [round_number for round_number, _ in points],
        means,
        yerr=[below, above],
        color=JUDGED_COLOUR,
        marker="s",
        linestyle="--",
        capsize=4,
        label="judged score (min to max over runs)",
    )
    axes.set_ylabel("judged score (1 to 10)", color=JUDGED_COLOUR)
    axes.tick_params(axis="y", labelcolor=JUDGED_COLOUR)
    return bars


def _mark_peak(axes: "Axes", report: PeakReport) -> "Rectangle":
    return axes.axvspan(
        report.round - 0.2, report.round + 0.2, color=PEAK_COLOUR, alpha=0.18, lw=0, label=f"peak: round {report.round}"
    )

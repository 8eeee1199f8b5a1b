"""The chart of a run: batch reward and judged score by round, each on its own axis, with the peak marked. PNG and SVG.

Colour-blind readers can distinguish the colours (Okabe and Ito); the two lines also differ in marker and dash. Equal
numbers give equal bytes.
"""

from collections.abc import Sequence
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
    lines = [_draw_rewards(rewards, report.rounds), _draw_judged(judged, report.rounds), _mark_peak(rewards, report)]
    rewards.set_xlabel("round (0 is the SFT start)")
    rewards.set_xticks([round_report.round for round_report in report.rounds])
    rewards.set_xlim(report.rounds[0].round - 0.5, report.rounds[-1].round + 0.5)
    rewards.margins(y=0.15)
    judged.margins(y=0.15)
    rewards.spines["top"].set_visible(False)
    judged.spines["top"].set_visible(False)
    figure.suptitle(title)
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
    return figure


def _draw_rewards(axes: "Axes", rounds: Sequence[RoundReport]) -> "Line2D":
    points = [(report.round, report.batch_reward) for report in rounds if report.batch_reward is not None]
    (line,) = axes.plot(
        [round_number for round_number, _ in points],
        [reward for _, reward in points],
        color=REWARD_COLOUR,
        marker="o",
        label="batch reward",
    )
    axes.set_ylabel("batch reward", color=REWARD_COLOUR)
    axes.tick_params(axis="y", labelcolor=REWARD_COLOUR)
    return line


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

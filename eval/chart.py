"""The chart of a run: batch reward and judged score by round, on an axis each, the peak marked. PNG and SVG.

Colours are Okabe and Ito's, which colour-blind readers tell apart; the two lines also differ in marker and dash. The
SVG is the same, byte for byte, whenever the numbers are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.report import PeakReport, RoundReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REWARD_COLOUR = "#0072B2"
JUDGED_COLOUR = "#D55E00"
PEAK_COLOUR = "#009E73"
SIZE_INCHES = (7.5, 4.5)
PNG_DPI = 150
STYLE: Any = {"svg.hashsalt": "winnow", "svg.fonttype": "path", "font.size": 11}


def draw_chart(report: PeakReport, title: str, paths: Sequence[Path]) -> None:
    """Write the chart to each path, in the format of its suffix."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = chart(report, title)
        for path in paths:
            partial = path.with_name(f".{path.stem}.partial{path.suffix}")
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(partial, dpi=PNG_DPI, metadata=metadata)
            partial.replace(path)


def chart(report: PeakReport, title: str) -> "Figure":
    """The figure, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    rewards = figure.add_subplot()
    judged = rewards.twinx()
    lines = [_draw_rewards(rewards, report.rounds), _draw_judged(judged, report.rounds), _mark_peak(rewards, report)]
    rewards.set_xlabel("round (0 is the SFT start)")
    rewards.set_xticks([one.round for one in report.rounds])
    rewards.set_xlim(report.rounds[0].round - 0.5, report.rounds[-1].round + 0.5)
    rewards.margins(y=0.15)
    judged.margins(y=0.15)
    rewards.spines["top"].set_visible(False)
    judged.spines["top"].set_visible(False)
    figure.suptitle(title)
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
    return figure


def _draw_rewards(axes: "Axes", rounds: Sequence[RoundReport]) -> Any:
    known = [(one.round, one.batch_reward) for one in rounds if one.batch_reward is not None]
    (line,) = axes.plot(
        [number for number, _ in known],
        [reward for _, reward in known],
        color=REWARD_COLOUR,
        marker="o",
        label="batch reward",
    )
    axes.set_ylabel("batch reward", color=REWARD_COLOUR)
    axes.tick_params(axis="y", labelcolor=REWARD_COLOUR)
    return line


def _draw_judged(axes: "Axes", rounds: Sequence[RoundReport]) -> Any:
    known = [(one.round, one.judge_score) for one in rounds if one.judge_score is not None]
    means = [score.mean for _, score in known]
    below = [score.mean - score.min for _, score in known]
    above = [score.max - score.mean for _, score in known]
    bars = axes.errorbar(
        [number for number, _ in known],
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


def _mark_peak(axes: "Axes", report: PeakReport) -> Any:
    return axes.axvspan(
        report.round - 0.2, report.round + 0.2, color=PEAK_COLOUR, alpha=0.18, lw=0, label=f"peak: round {report.round}"
    )

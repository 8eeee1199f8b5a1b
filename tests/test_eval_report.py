"""peak.json, the closing table and the chart."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eval.chart import chart, draw_chart
from eval.judging.judged_scores import JudgedScore
from eval.peak import Comparison, GuardTest, Peak, Rule
from eval.probe import probe_gains
from eval.report import PeakReport, RoundReport, named_results, peak_report, round_report
from eval.table import print_closing
from winnow.records import EvalResult, ProbeReward

REWARDS = {1: (1.51, -4.72), 2: (1.77, 0.24), 3: (2.02, 1.08)}
SCORES = (5.9, 7.9, 7.85, 7.6)
COUNTS = {"num_unparsable": 0, "num_judgments": 40}
FIVE_TASKS = ("arc_challenge", "hellaswag", "mmlu", "winogrande", "gsm8k")


def judged(mean: float, num_unanswered: int = 0, num_unparsable: int = 0) -> JudgedScore:
    return JudgedScore(
        judge="reference-judge",
        mean=mean,
        min=mean - 0.2,
        max=mean + 0.1,
        sd=0.15,
        runs=(mean - 0.2, mean + 0.1),
        by_category={},
        by_turn={},
        num_judgments=40,
        num_unparsable=num_unparsable,
        mean_answer_chars=12.0,
        num_unanswered=num_unanswered,
    )


def probe_rows(*means: float) -> list[ProbeReward]:
    """Return rewards on a probe with a prompt for each mean; the best completion of each is 1 better."""
    rows = []
    for index, mean in enumerate(means):
        row = ProbeReward(
            prompt_id=str(index), source="sums", num_eligible=4, mean_reward=mean, best_of_n_reward=mean + 1
        )
        rows.append(row)
    return rows


# Four rounds on four prompts: round 1 gains .5 on each, round 2 hardly anything, round 3 gains again.
PROBES = [
    probe_rows(0.0, 1.0, 2.0, 3.0),
    probe_rows(0.5, 1.6, 2.4, 3.5),
    probe_rows(0.6, 1.5, 2.5, 3.4),
    probe_rows(1.1, 2.1, 3.0, 3.8),
]


def rounds(
    tasks: tuple[str, ...] = ("facts", "sums"), *, is_judged: bool = True, is_probed: bool = False
) -> list[RoundReport]:
    reports = []
    for round_number, score in enumerate(SCORES):
        results = [EvalResult(task=task, metric="acc,none", value=0.715, stderr=0.029, n=240) for task in tasks]
        batch_reward, control = REWARDS.get(round_number, (None, None))
        metrics = {"batch_reward": batch_reward, "random_control_reward": control}
        judge_score = judged(score) if is_judged else None
        probe = PROBES[round_number] if is_probed else []
        reports.append(round_report(round_number, results, judge_score, metrics, probe))
    return reports


def report(
    tasks: tuple[str, ...] = ("facts", "sums"), *, is_judged: bool = True, is_probed: bool = False
) -> PeakReport:
    rounds_below = [(0, 1.95, 0.3), (2, 0.05, 0.12)]
    comparisons = [
        Comparison(round=number, difference=difference, stderr=stderr, num_questions=20, num_verdicts=40)
        for number, difference, stderr in rounds_below
    ]
    tests = [
        GuardTest(
            round=number,
            guard="facts",
            loss=loss,
            low=loss - 0.05,
            high=loss + 0.05,
            p_value=p_value,
            uncorrected_p_value=p_value / 3,
            num_items=240,
            method="exact McNemar test",
        )
        for number, loss, p_value in [(1, 0.0, 1.0), (2, 0.01, 0.6), (3, 0.16, 0.0004)]
    ]
    peak = Peak(2, 1, [1, 2], {3: "facts lost 16.0 points"}, Rule().text, tests, comparisons)
    reports = rounds(tasks, is_judged=is_judged, is_probed=is_probed)
    return peak_report(peak, reports, "runs/tiny/round-02/checkpoint", PROBES if is_probed else [])


def printed(peak: PeakReport, width: int = 100) -> str:
    text = io.StringIO()
    print_closing(peak, Console(file=text, width=width))
    return text.getvalue()


def test_peak_report_has_exactly_the_documented_keys() -> None:
    content = report().model_dump(mode="json")
    assert set(content) == {
        "round",
        "checkpoint",
        "batch_reward",
        "judge_score",
        "best",
        "ties",
        "rule",
        "rounds",
        "dropped",
        "comparisons",
        "guards",
        "probe_gains",
        "saturation_round",
    }
    assert (content["round"], content["checkpoint"]) == (2, "runs/tiny/round-02/checkpoint")
    assert content["batch_reward"] == 1.77
    judge_score = {"mean": 7.85, "min": 7.85 - 0.2, "max": 7.85 + 0.1, "num_unanswered": 0, **COUNTS}
    assert content["judge_score"] == judge_score
    assert (content["best"], content["ties"]) == (1, [1, 2])
    assert content["dropped"] == [{"round": 3, "reason": "facts lost 16.0 points"}]
    assert content["comparisons"][1] == {
        "round": 2,
        "difference": 0.05,
        "stderr": 0.12,
        "num_questions": 20,
        "num_verdicts": 40,
    }
    assert content["guards"][1] == {
        "round": 2,
        "guard": "facts",
        "loss": 0.01,
        "low": 0.01 - 0.05,
        "high": 0.01 + 0.05,
        "p_value": 0.6,
        "uncorrected_p_value": 0.6 / 3,
        "num_items": 240,
        "method": "exact McNemar test",
    }
    assert content["rounds"][0] == {
        "round": 0,
        "batch_reward": None,
        "random_control_reward": None,
        "probe": None,
        "judge_score": {"mean": 5.9, "min": 5.9 - 0.2, "max": 5.9 + 0.1, "num_unanswered": 0, **COUNTS},
        "benchmarks": {
            task: {"value": 0.715, "stderr": 0.029, "n": 240, "metric": "acc,none"} for task in ("facts", "sums")
        },
    }


def test_named_results_adds_the_metric_for_a_task_with_two_metrics() -> None:
    results = [
        EvalResult(task=task, metric=metric, value=1, stderr=None, n=1)
        for task, metric in [("a", "x"), ("a", "y"), ("b", "x")]
    ]
    assert list(named_results(results)) == ["a x", "a y", "b"]


def test_print_closing_shows_every_round_and_marks_the_peak() -> None:
    lines = printed(report()).splitlines()
    peak = next(line for line in lines if line.lstrip().startswith("2 "))
    assert peak.split() == ["2", "1.77", "+1.53", "71.5+-2.9", "71.5+-2.9", "7.85", "[7.65..7.95]", "<-", "peak"]
    assert next(line for line in lines if line.lstrip().startswith("0 ")).split()[1:3] == ["-", "-"]
    assert next(line for line in lines if line.lstrip().startswith("3 ")).rstrip().endswith("dropped")


def test_print_closing_explains_the_peak_the_ties_and_the_dropped_rounds() -> None:
    text = " ".join(printed(report()).split())
    assert "Peak: round 2 (runs/tiny/round-02/checkpoint), the earliest within half a paired standard error" in text
    assert "Ties: rounds 1 and 2 cannot be told apart (within 1.96 paired standard errors)." in text
    assert "Judged: round 1 minus round 2: +0.050 (paired standard error 0.120, 20 questions, 40 verdicts)." in text
    assert "Dropped: round 3: facts lost 16.0 points." in text
    assert "Spearman of batch reward against judged score over rounds: -1.00." in text
    assert "robe:" not in text
    assert "Saturation" not in text


def test_the_report_has_the_probe_of_every_round_and_the_paired_gains() -> None:
    content = report(is_probed=True).model_dump(mode="json")
    probe = content["rounds"][0]["probe"]
    assert (probe["mean_reward"], probe["best_of_n_reward"], probe["num_prompts"]) == (1.5, 2.5, 4)
    assert probe["mean_reward_stderr"] == pytest.approx((5 / 3 / 4) ** 0.5)
    assert probe["best_of_n_stderr"] == pytest.approx(probe["mean_reward_stderr"])
    assert [gain["round"] for gain in content["probe_gains"]] == [1, 2, 3]
    assert content["probe_gains"][0]["mean_reward"] == pytest.approx(0.5)
    assert content["saturation_round"] == 1
    assert (content["round"], content["ties"]) == (2, [1, 2])  # the probe has no say


def test_print_closing_shows_the_probe_its_gains_and_the_saturation_round() -> None:
    lines = printed(report(is_probed=True)).splitlines()
    start, _, peak, _ = [line.split() for line in lines if line.lstrip()[:2] in ("0 ", "1 ", "2 ", "3 ")]
    assert start[1:5] == ["1.50", "2.50", "-", "-"]
    assert peak[1:5] == ["2.00", "3.00", "1.77", "+1.53"]
    text = " ".join(" ".join(lines).split())
    gain = probe_gains(PROBES)[0]
    assert f"Probe: round 1 minus round 0: mean reward +0.500+-{gain.mean_reward_stderr:.3f} (one-sided p = " in text
    assert "Saturation: round 1, the first after which the mean reward on the probe does not gain" in text
    assert "Spearman of mean reward on the probe against judged score over rounds: +0.32." in text
    risen = report(is_probed=True).model_copy(update={"saturation_round": None})
    assert "Saturation: none; the mean reward on the probe gains significantly in every round" in printed(risen)


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({"ties": (1,)}, "Ties: round 1 is told apart from every other by more than 1.96 paired standard errors."),
        ({"ties": (0, 1, 2)}, "Ties: rounds 0, 1 and 2 cannot be told apart"),
        ({"ties": None}, "Ties: not tested, since that takes verdicts by question, on two questions or more."),
        ({"best": None, "ties": None}, "Ties: not tested, since no round has a judged score."),
        ({"ties": (1,), "comparisons": ()}, "Ties: round 1 is the only kept round with a judged score."),
    ],
)
def test_print_closing_says_of_every_tie_set_whether_it_was_tested(update: dict[str, Any], words: str) -> None:
    text = " ".join(printed(report().model_copy(update=update)).split())
    assert words in text
    assert "Ties: none" not in text


def test_print_closing_counts_the_turns_without_an_answer() -> None:
    assert "Unanswered" not in printed(report())
    flawed = [*rounds()[:2], round_report(2, [], judged(7.85, num_unanswered=3), {})]
    text = printed(report().model_copy(update={"rounds": tuple(flawed)}))
    assert "Unanswered: round 2: 3 turns have no answer and no score." in text
    assert text.count("Unanswered") == 1


def test_print_closing_counts_the_unreadable_verdicts() -> None:
    flawed = [*rounds()[:2], round_report(2, [], judged(7.85, num_unparsable=4), {})]
    text = printed(report().model_copy(update={"rounds": tuple(flawed)}))
    assert "Unreadable: round 2: 4 of 40 verdicts are in no mean." in text
    assert text.count("Unreadable") == 1


@pytest.mark.parametrize("is_probed", [False, True])
@pytest.mark.parametrize("tasks", [("facts", "sums", "endings"), FIVE_TASKS])
def test_print_closing_fits_100_columns_with_a_line_per_round(tasks: tuple[str, ...], is_probed: bool) -> None:
    lines = printed(report(tasks, is_probed=is_probed), width=40).splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines if "71.5+-2.9" in line] == ["0", "1", "2", "3"]
    assert all(line.count("71.5+-2.9") == len(tasks) for line in lines if "71.5+-2.9" in line)
    assert all("[5.70..6.00]" in line for line in lines if line.lstrip().startswith("0 "))


def test_print_closing_explains_a_single_leader() -> None:
    alone = report().model_copy(update={"best": 2, "dropped": ()})
    assert "the highest judged score of all rounds." in " ".join(printed(alone).split())


def test_table_and_chart_show_the_rewards_without_questions_and_benchmarks(tmp_path: Path) -> None:
    bare = report((), is_judged=False).model_copy(update={"best": None, "ties": None, "comparisons": ()})
    assert "no round has a judged score, so nothing ranks them" in " ".join(printed(bare).split())
    assert "not defined" in printed(bare)
    draw_chart(bare, "tiny", [tmp_path / "rounds.png"])
    start_only = peak_report(Peak(0, 0, [0], {}, Rule().text), rounds()[:1], "start")
    draw_chart(start_only, "tiny", [tmp_path / "rounds.svg"])
    assert (tmp_path / "rounds.svg").stat().st_size > 0


def test_the_chart_shows_the_rewards_on_the_probe_in_the_place_of_batch_reward() -> None:
    axes = chart(report(is_probed=True), "tiny").axes[0]
    assert axes.get_ylabel() == "reward on the probe"
    labels = [container.get_label() for container in axes.containers]
    assert labels == ["mean reward", "best of N"]
    bars = axes.containers[0].lines[2][0].get_segments()  # type: ignore[attr-defined]
    heights = [float(segment[1][1] - segment[0][1]) for segment in bars]
    stderrs = [gain.mean_reward_stderr or 0.0 for gain in probe_gains(PROBES)]
    assert heights == pytest.approx([0.0, *(2 * stderr for stderr in stderrs)])
    assert axes.lines[0].get_ydata() == pytest.approx([1.5, 2.0, 2.0, 2.5])
    assert chart(report(), "tiny").axes[0].get_ylabel() == "batch reward"


@pytest.mark.parametrize("is_probed", [False, True])
def test_draw_chart_writes_equal_bytes_for_equal_numbers(tmp_path: Path, is_probed: bool) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        draw_chart(
            report(is_probed=is_probed), "tiny", [tmp_path / name / "rounds.png", tmp_path / name / "rounds.svg"]
        )
    for name in ("rounds.png", "rounds.svg"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert (tmp_path / "first" / "rounds.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "first" / "rounds.svg").read_bytes()
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["rounds.png", "rounds.svg"]

"""Rewards on the probe by round: their standard errors, the paired gains and the saturation round, against scipy."""

import random
from pathlib import Path

import pytest
from scipy import stats

from eval.probe import probe_gains, probe_score, read_probe_rewards, saturation_round
from winnow.records import ProbeReward
from winnow.rows import write_jsonl

NUM_PROMPTS = 64


def row(prompt_id: str, mean: float | None, best: float | None = None) -> ProbeReward:
    num_eligible = 0 if mean is None else 4
    best = mean if best is None else best
    return ProbeReward(
        prompt_id=prompt_id, source="sums", num_eligible=num_eligible, mean_reward=mean, best_of_n_reward=best
    )


def rounds_with_gains(*gains: float) -> list[list[ProbeReward]]:
    """Return the rounds of a made-up run: prompts differ much, rounds by the gains and little noise."""
    rng = random.Random(0)
    levels = [rng.gauss(0, 5) for _ in range(NUM_PROMPTS)]
    rounds = []
    for gain in (0.0, *gains):
        levels = [level + gain for level in levels]
        rounds.append([row(str(index), level + rng.gauss(0, 0.2)) for index, level in enumerate(levels)])
    return rounds


def test_gains_are_paired_by_prompt_as_in_scipy() -> None:
    earlier, later = rounds_with_gains(0.06)
    [gain] = probe_gains([earlier, later])
    befores = [prompt.mean_reward for prompt in earlier]
    afters = [prompt.mean_reward for prompt in later]
    expected = stats.ttest_rel(afters, befores, alternative="greater")
    assert gain.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert gain.mean_reward / (gain.mean_reward_stderr or 0) == pytest.approx(expected.statistic)
    score = probe_score(later)
    assert score is not None
    assert score.mean_reward_stderr == pytest.approx(stats.sem(afters))
    assert (score.mean_reward_stderr or 0) > 10 * (gain.mean_reward_stderr or 0)


def test_the_saturation_round_is_the_first_after_which_nothing_is_gained() -> None:
    assert saturation_round(probe_gains(rounds_with_gains(0.5, 0.0, 0.5))) == 1
    assert saturation_round(probe_gains(rounds_with_gains(-0.5, 0.5))) == 0
    assert saturation_round(probe_gains(rounds_with_gains(0.5, 0.5))) is None
    assert saturation_round([]) is None


def test_a_round_that_changes_nothing_gains_nothing() -> None:
    [earlier] = rounds_with_gains()
    [gain] = probe_gains([earlier, earlier])
    assert (gain.mean_reward, gain.p_value) == (0.0, 1.0)


def test_only_prompts_with_an_eligible_completion_in_both_rounds_are_compared() -> None:
    earlier = [row("a", 1.0, 2.0), row("b", None), row("c", 5.0, 6.0), row("d", 1.0, 3.0)]
    later = [row("a", 2.0, 4.0), row("b", 9.0), row("c", None), row("d", 4.0, 5.0)]
    [gain] = probe_gains([earlier, later])
    assert (gain.num_prompts, gain.mean_reward, gain.best_of_n_reward) == (2, 2.0, 2.0)
    score = probe_score(earlier)
    assert score is not None
    assert score.num_prompts == 3
    assert score.mean_reward == pytest.approx(7 / 3)


def test_without_rewards_there_is_no_score_and_no_gain(tmp_path: Path) -> None:
    assert read_probe_rewards(tmp_path / "rewards_by_prompt.jsonl") == []
    assert probe_score([row("a", None)]) is None
    assert probe_gains([[], []]) == []
    assert probe_gains([[row("a", None)], [row("a", 1.0)]]) == []


def test_rewards_are_read_as_they_are_written(tmp_path: Path) -> None:
    rows = [row("a", 1.0, 2.0), row("b", None)]
    write_jsonl(tmp_path / "rewards_by_prompt.jsonl", rows)
    assert read_probe_rewards(tmp_path / "rewards_by_prompt.jsonl") == rows

"""The rewards of all rounds on the probe: means, paired gains, and the round at which reward saturates. Pure.

    reward       of a round: the mean over prompts of a prompt's mean reward (max@1) and of its best-of-N reward (max@N)
    gain         of a round over the round before: the mean over prompts of the difference of a prompt's rewards, on the
                 prompts that have an eligible completion in both rounds
    saturation   the first round after which the gain of the mean reward is not significantly positive: one-sided paired
                 t test, null hypothesis gain <= 0, at ALPHA; None if every round gains

Standard errors are over prompts. The gains' are paired, and much smaller than those of the rewards: the same prompts
are hard for both rounds. The tests are not corrected for their number: the saturation round describes the run and
decides nothing.

Worked example: rounds 0 to 3 with mean gains +0.40, +0.02, +0.30 and paired standard errors of 0.05 saturate at round
1, whose next round gains 0.4 standard errors.
"""

from collections.abc import Sequence
from pathlib import Path

from eval.statistics.estimates import estimate
from eval.statistics.loss_test import loss_test
from eval.statistics.pairing import shared_differences
from winnow.records import ProbeReward, Row
from winnow.rows import read_jsonl

ALPHA = 0.05


class ProbeScore(Row):
    """A round's rewards on the probe, over the prompts that have an eligible completion; stderr is None for one."""

    mean_reward: float
    mean_reward_stderr: float | None
    best_of_n_reward: float
    best_of_n_stderr: float | None
    num_prompts: int


class ProbeGain(Row):
    """A round minus the round before, on the prompts of both; `p_value` is that of the gain of the mean reward."""

    round: int
    mean_reward: float
    mean_reward_stderr: float | None
    best_of_n_reward: float
    best_of_n_stderr: float | None
    p_value: float
    num_prompts: int


def read_probe_rewards(path: Path) -> list[ProbeReward]:
    """Read the rewards of a round's probe; none if the round has no probe."""
    if not path.is_file():
        return []
    return [ProbeReward.model_validate(row) for _, row in read_jsonl(path)]


def probe_score(rewards: Sequence[ProbeReward]) -> ProbeScore | None:
    """Return the rewards of a round on the probe; None if no prompt has an eligible completion."""
    means = _mean_rewards(rewards)
    if not means:
        return None
    mean = estimate(means.values())
    best = estimate(_best_rewards(rewards).values())
    return ProbeScore(
        mean_reward=mean.mean,
        mean_reward_stderr=mean.stderr,
        best_of_n_reward=best.mean,
        best_of_n_stderr=best.stderr,
        num_prompts=mean.n,
    )


def probe_gains(rounds: Sequence[Sequence[ProbeReward]]) -> list[ProbeGain]:
    """Return the gain of each round after the first over the round before; none for two rounds without common prompts.

    `rounds` holds the probe's rewards of rounds 0, 1, ...
    """
    gains: list[ProbeGain] = []
    for round_number in range(1, len(rounds)):
        earlier = rounds[round_number - 1]
        later = rounds[round_number]
        names = (f"the probe of round {round_number - 1}", f"the probe of round {round_number}")
        differences = list(shared_differences(_mean_rewards(earlier), _mean_rewards(later), names).values())
        if not differences:
            continue
        mean = estimate(differences)
        best = estimate(shared_differences(_best_rewards(earlier), _best_rewards(later), names).values())
        gains.append(
            ProbeGain(
                round=round_number,
                mean_reward=mean.mean,
                mean_reward_stderr=mean.stderr,
                best_of_n_reward=best.mean,
                best_of_n_stderr=best.stderr,
                p_value=loss_test([-difference for difference in differences], tolerance=0.0).p_value,
                num_prompts=mean.n,
            )
        )
    return gains


def saturation_round(gains: Sequence[ProbeGain]) -> int | None:
    """Return the first round after which reward does not gain significantly; None if there is none.

    >>> def gain(number, p_value):
    ...     return ProbeGain(round=number, mean_reward=0.1, mean_reward_stderr=0.1, best_of_n_reward=0.1,
    ...                      best_of_n_stderr=0.1, p_value=p_value, num_prompts=64)
    >>> saturation_round([gain(1, 0.001), gain(2, 0.3), gain(3, 0.001)])
    1
    """
    for gain in gains:
        if gain.p_value >= ALPHA:
            return gain.round - 1
    return None


def _mean_rewards(rewards: Sequence[ProbeReward]) -> dict[str, float]:
    """Return the mean reward by prompt id."""
    return {row.prompt_id: row.mean_reward for row in rewards if row.mean_reward is not None}


def _best_rewards(rewards: Sequence[ProbeReward]) -> dict[str, float]:
    """Return the best-of-N reward by prompt id."""
    return {row.prompt_id: row.best_of_n_reward for row in rewards if row.best_of_n_reward is not None}

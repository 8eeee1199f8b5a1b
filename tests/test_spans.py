"""select_scored_ids: the EOS policy decides whether the closing EOS is scored."""

import pytest

from reward_server.scoring.spans import UnscorableError, select_scored_ids
from winnow.reward_options import EosPolicy

EOS = 2


@pytest.mark.parametrize(
    ("completion_ids", "is_finished", "policy", "scored_ids", "is_eos_scored"),
    [
        ([5, 6, EOS], True, "include", [5, 6, EOS], True),
        ([5, 6, EOS], False, "include", [5, 6, EOS], True),
        ([5, 6, EOS], True, "exclude", [5, 6], False),
        ([5, 6, EOS], True, "if_finished", [5, 6, EOS], True),
        ([5, 6, EOS], False, "if_finished", [5, 6], False),
        ([5, 6], False, "if_finished", [5, 6], False),
        ([5, 6], True, "exclude", [5, 6], False),
        ([5, EOS, 6, EOS], True, "exclude", [5, EOS, 6], False),
        ([EOS, EOS], True, "if_finished", [EOS, EOS], True),
    ],
)
def test_the_eos_policy_decides_on_the_closing_token_alone(
    completion_ids: list[int], is_finished: bool, policy: EosPolicy, scored_ids: list[int], is_eos_scored: bool
) -> None:
    selected = select_scored_ids(completion_ids, {EOS}, is_finished=is_finished, eos_policy=policy)
    assert selected == (scored_ids, is_eos_scored)


@pytest.mark.parametrize("policy", ["include", "exclude", "if_finished"])
@pytest.mark.parametrize("completion_ids", [[], [EOS]])
def test_nothing_before_eos_is_an_empty_completion(completion_ids: list[int], policy: EosPolicy) -> None:
    with pytest.raises(UnscorableError, match="empty") as caught:
        select_scored_ids(completion_ids, {EOS}, is_finished=True, eos_policy=policy)
    assert caught.value.status == "empty_completion"


def test_eos_policy_include_refuses_token_ids_without_eos() -> None:
    with pytest.raises(UnscorableError, match="end it in EOS") as caught:
        select_scored_ids([5, 6], {EOS}, is_finished=True, eos_policy="include")
    assert caught.value.status == "missing_eos"

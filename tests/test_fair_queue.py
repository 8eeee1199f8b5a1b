"""The queue's policy: worked examples, and what holds for any work: fair turns, nothing lost, the bound kept."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_server.scheduling.fair_queue import (
    FairQueue,
    QueueFullError,
    Throughput,
    Ticket,
    TooLateError,
    weighted_median,
)


def queue(max_tokens: int = 1000, max_groups: int = 100, quantum: int = 10) -> FairQueue[str]:
    return FairQueue(max_tokens, max_groups, quantum)


def ticket(client: str, tokens: int, item: str = "", deadline: float | None = None) -> Ticket[str]:
    return Ticket(client, tokens, item or client, 0.0, deadline)


def fill(waiting: FairQueue[str], *tickets: Ticket[str]) -> None:
    for one in tickets:
        waiting.offer(one, 0.0)


def measure(waiting: FairQueue[str], tokens: int, seconds: float) -> None:
    """Let a batch be computed at tokens / seconds."""
    waiting.offer(ticket("measured", tokens), 0.0)
    waiting.take(tokens, 0.0)
    waiting.finished(seconds)


def batch(waiting: FairQueue[str], budget: int, now: float = 0.0) -> str:
    return "".join(one.item for one in waiting.take(budget, now)[0])


def test_two_clients_take_turns_whoever_came_first() -> None:
    waiting = queue()
    fill(waiting, *(ticket("a", 10) for _ in range(4)), *(ticket("b", 10) for _ in range(2)))
    assert batch(waiting, 60) == "ababaa"


def test_turns_are_weighed_in_tokens() -> None:
    waiting = queue()
    fill(waiting, *(ticket("a", 20) for _ in range(2)), *(ticket("b", 5) for _ in range(6)))
    assert batch(waiting, 100) == "bbabbbba"


def test_a_batch_keeps_to_its_budget_and_the_next_goes_on_where_it_stopped() -> None:
    waiting = queue()
    fill(waiting, *(ticket(client, 10) for client in "aaabbb"))
    assert [batch(waiting, 25) for _ in range(4)] == ["ab", "ab", "ab", ""]


def test_a_group_beyond_the_budget_is_a_batch_of_its_own() -> None:
    waiting = queue()
    fill(waiting, ticket("a", 90), ticket("b", 5))
    assert [batch(waiting, 20) for _ in range(2)] == ["b", "a"]


def test_a_full_queue_refuses_and_says_when_half_of_it_will_be_done() -> None:
    waiting = queue(max_tokens=100)
    measure(waiting, 50, 1.0)
    fill(waiting, *(ticket(client, 20) for client in "abcde"))
    with pytest.raises(QueueFullError) as caught:
        waiting.offer(ticket("f", 20), 0.0)
    assert caught.value.retry_s == pytest.approx(1.0)
    assert (waiting.tokens, waiting.groups) == (100, 5)


def test_before_anything_was_measured_the_push_back_is_a_second() -> None:
    waiting = queue(max_groups=1)
    fill(waiting, ticket("a", 20))
    with pytest.raises(QueueFullError) as caught:
        waiting.offer(ticket("b", 20), 0.0)
    assert caught.value.retry_s == 1.0


def test_one_client_leaves_half_of_the_queue_to_others() -> None:
    waiting = queue(max_tokens=100)
    fill(waiting, *(ticket("greedy", 10) for _ in range(5)))
    with pytest.raises(QueueFullError):
        waiting.offer(ticket("greedy", 10), 0.0)
    assert waiting.is_full("greedy")
    assert not waiting.is_full("other")
    fill(waiting, ticket("other", 50))
    assert waiting.tokens == 100


def test_a_larger_group_takes_no_more_than_half_either() -> None:
    waiting = queue(max_tokens=100)
    fill(waiting, ticket("greedy", 25))
    with pytest.raises(QueueFullError):
        waiting.offer(ticket("greedy", 50), 0.0)
    fill(waiting, ticket("other", 30))


def test_a_refusal_lasts_until_something_leaves_so_that_small_groups_do_not_overtake() -> None:
    waiting = queue(max_tokens=100)
    fill(waiting, first := ticket("a", 50), ticket("b", 10))
    with pytest.raises(QueueFullError):
        waiting.offer(ticket("c", 50), 0.0)
    assert waiting.is_full("d")
    waiting.discard(first)
    assert not waiting.is_full("d")


def test_a_client_whose_part_is_full_is_refused_alone() -> None:
    waiting = queue(max_tokens=100)
    fill(waiting, ticket("greedy", 40))
    with pytest.raises(QueueFullError):
        waiting.offer(ticket("greedy", 40), 0.0)
    assert waiting.is_full("greedy")
    assert not waiting.is_full("other")
    fill(waiting, ticket("other", 50))


def test_groups_that_are_on_their_way_count() -> None:
    waiting = queue(max_groups=3)
    fill(waiting, ticket("a", 1))
    assert waiting.is_full("b", num_own=0, num_coming=2)
    assert not waiting.is_full("b", num_own=0, num_coming=1)


def test_a_clients_groups_on_their_way_leave_half_of_the_queue_to_others() -> None:
    waiting = queue(max_groups=10)
    assert not waiting.is_full("greedy", num_own=4, num_coming=4)
    assert waiting.is_full("greedy", num_own=5, num_coming=5)
    assert not waiting.is_full("other", num_own=0, num_coming=5)


def test_the_largest_groups_leave_room_to_others() -> None:
    waiting = queue(max_tokens=100)
    fill(waiting, ticket("greedy", 500))
    with pytest.raises(QueueFullError):
        waiting.offer(ticket("greedy", 500), 0.0)
    fill(waiting, ticket("other", 1), ticket("another", 40))
    assert (waiting.tokens, waiting.groups) == (541, 3)


def test_half_of_the_tokens_were_computed_at_the_measured_rate_or_a_higher_one() -> None:
    assert weighted_median([(5.0, 1), (1.0, 1), (9.0, 1)]) == 5.0
    assert weighted_median([(1.0, 10), (5.0, 1), (9.0, 1)]) == 1.0
    throughput = Throughput()
    assert throughput.tokens_per_s is None
    for seconds in (1.0, 1.0, 100.0, 1.0):  # models were loaded again before the third
        throughput.add(100, seconds)
    assert throughput.tokens_per_s == 100.0


def test_a_batch_that_failed_says_nothing_of_the_rate() -> None:
    waiting = queue()
    measure(waiting, 100, 1.0)
    fill(waiting, ticket("a", 100))
    waiting.take(100, 0.0)
    waiting.finished(50.0, is_failed=True)
    assert waiting.throughput.tokens_per_s == 100.0


def test_a_group_larger_than_the_queue_is_taken_where_nothing_waits() -> None:
    waiting = queue(max_tokens=100)
    fill(waiting, ticket("a", 500))
    assert batch(waiting, 20) == "a"


def test_a_group_that_is_discarded_gives_up_its_place_once() -> None:
    waiting = queue()
    fill(waiting, gone := ticket("a", 10), ticket("a", 10, "b"))
    assert waiting.discard(gone)
    assert not waiting.discard(gone)
    assert (waiting.tokens, waiting.groups) == (10, 1)
    assert batch(waiting, 100) == "b"


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    waiting = queue()
    measure(waiting, 100, 1.0)
    fill(waiting, ticket("a", 200))
    with pytest.raises(TooLateError, match=r"about 4.0 s, and 3.0 s are left"):
        waiting.offer(ticket("b", 200, deadline=3.0), 0.0)
    fill(waiting, ticket("b", 200, deadline=5.0))


def test_the_estimate_goes_by_fair_turns() -> None:
    waiting = queue()
    measure(waiting, 100, 1.0)
    fill(waiting, *(ticket("a", 100) for _ in range(4)), ticket("b", 100))
    assert waiting.estimate_s("c", 50, 0.0) == pytest.approx((50 + 50 + 50) / 100)
    assert waiting.estimate_s("a", 100, 0.0) == pytest.approx((500 + 100) / 100)


def test_an_idle_queue_tries_what_a_wrong_estimate_calls_hopeless() -> None:
    waiting = queue()
    measure(waiting, 1, 60.0)
    fill(waiting, ticket("a", 10, deadline=1.0))
    assert batch(waiting, 100) == "a"


def test_a_deadline_that_is_over_is_refused_and_dropped() -> None:
    waiting = queue()
    with pytest.raises(TooLateError, match="over"):
        waiting.offer(ticket("a", 10, deadline=1.0), 1.0)
    fill(waiting, ticket("a", 10, deadline=1.0), ticket("a", 10, "b"))
    taken, late = waiting.take(100, 1.5)
    assert ([one.item for one in taken], [one.item for one in late]) == (["b"], ["a"])
    assert (waiting.tokens, waiting.groups) == (0, 0)


works = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 40)), max_size=60)


@given(works, st.integers(1, 60), st.integers(1, 30))
def test_nothing_is_lost_and_each_client_keeps_its_order(
    work: list[tuple[str, int]], budget: int, quantum: int
) -> None:
    waiting = queue(max_tokens=10**6, max_groups=10**4, quantum=quantum)
    for number, (client, tokens) in enumerate(work):
        waiting.offer(ticket(client, tokens, str(number)), 0.0)
    taken: list[Ticket[str]] = []
    while waiting.groups:
        one, late = waiting.take(budget, 0.0)
        assert one
        assert not late
        assert len(one) == 1 or sum(each.tokens for each in one) <= budget
        taken += one
    assert sorted(int(one.item) for one in taken) == list(range(len(work)))
    for client in "abcd":
        own = [int(one.item) for one in taken if one.client == client]
        assert own == sorted(own)
    assert (waiting.tokens, waiting.groups) == (0, 0)


@given(works, st.integers(1, 60), st.integers(1, 30))
def test_clients_that_wait_are_served_alike_but_for_a_turn_and_a_group(
    work: list[tuple[str, int]], budget: int, quantum: int
) -> None:
    waiting = queue(max_tokens=10**6, max_groups=10**4, quantum=quantum)
    for client, tokens in work:
        waiting.offer(ticket(client, tokens), 0.0)
    owed = Counter({client: 0 for client, _ in work})
    owed.update({client: sum(tokens for name, tokens in work if name == client) for client in owed})
    served = Counter(dict.fromkeys(owed, 0))
    largest = max((tokens for _, tokens in work), default=0)
    while waiting.groups:
        for one in waiting.take(budget, 0.0)[0]:
            served[one.client] += one.tokens
            still_waiting = [served[client] for client in owed if served[client] < owed[client]]
            if still_waiting:
                assert max(still_waiting) - min(still_waiting) <= 2 * quantum + largest


steps = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.sampled_from("abc"), st.integers(1, 120)),
        st.tuples(st.just("take"), st.just(""), st.integers(1, 80)),
        st.tuples(st.just("leave"), st.just(""), st.integers(0, 50)),
    ),
    max_size=80,
)


@given(steps, st.integers(1, 100), st.integers(1, 10))
def test_the_bound_is_kept_whatever_comes_and_goes(
    steps: list[tuple[str, str, int]], max_tokens: int, max_groups: int
) -> None:
    waiting = queue(max_tokens, max_groups)
    inside: list[Ticket[str]] = []
    for what, client, number in steps:
        if what == "offer":
            one = ticket(client, number)
            try:
                waiting.offer(one, 0.0)
            except QueueFullError:
                assert inside, "an empty queue takes anything"
            else:
                inside.append(one)
        elif what == "take":
            taken = waiting.take(number, 0.0)[0]
            inside = [one for one in inside if one not in taken]
        elif inside:
            assert waiting.discard(inside.pop(number % len(inside)))
        assert (waiting.tokens, waiting.groups) == (sum(one.tokens for one in inside), len(inside))
        assert waiting.groups <= max_groups
        assert sum(min(one.tokens, max(max_tokens // 2, 1)) for one in inside) <= max_tokens

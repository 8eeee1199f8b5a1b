"""FairQueue: the worked examples of its module, and for any load: fairness, no lost group, the bound."""

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


def make_queue(max_tokens: int = 1000, max_groups: int = 100, quantum: int = 10) -> FairQueue[str]:
    return FairQueue(max_tokens, max_groups, quantum)


def make_ticket(client: str, num_tokens: int, item: str = "", deadline: float | None = None) -> Ticket[str]:
    return Ticket(client, num_tokens, item or client, 0.0, deadline)


def fill(queue: FairQueue[str], *tickets: Ticket[str]) -> None:
    for ticket in tickets:
        queue.offer(ticket, 0.0)


def measure(queue: FairQueue[str], num_tokens: int, seconds: float) -> None:
    """Let a batch be computed at num_tokens / seconds."""
    queue.offer(make_ticket("measured", num_tokens), 0.0)
    queue.take(num_tokens, 0.0)
    queue.finish_batch(seconds)


def take_items(queue: FairQueue[str], budget: int, now: float = 0.0) -> str:
    """Return the items of the next batch, one letter each."""
    batch, _ = queue.take(budget, now)
    return "".join(ticket.item for ticket in batch)


def test_deficit_round_robin_of_the_modules_example() -> None:
    queue = make_queue(quantum=10)
    fill(queue, *(make_ticket("a", 20) for _ in range(2)), *(make_ticket("b", 5) for _ in range(6)))
    assert take_items(queue, 100) == "bbabbbba"


def test_deficits_of_the_modules_example() -> None:
    queue = make_queue(quantum=10)
    fill(queue, *(make_ticket("a", 20) for _ in range(2)), *(make_ticket("b", 5) for _ in range(6)))
    assert [take_items(queue, budget) for budget in (10, 20, 10, 10, 20)] == ["bb", "a", "bb", "bb", "a"]


def test_admission_of_the_modules_example() -> None:
    queue = make_queue(max_tokens=100)
    fill(queue, *(make_ticket("a", 10) for _ in range(5)))
    with pytest.raises(QueueFullError):
        queue.offer(make_ticket("a", 10), 0.0)
    assert queue.is_full("a")
    assert not queue.is_full("b")
    fill(queue, make_ticket("b", 50))
    assert queue.num_tokens == 100


def test_estimate_of_the_modules_example() -> None:
    queue = make_queue()
    measure(queue, 100, 1.0)
    fill(queue, *(make_ticket("a", 100) for _ in range(4)), make_ticket("b", 100))
    assert queue.estimate_s("c", 50, 0.0) == pytest.approx((50 + 50 + 50) / 100)
    assert queue.estimate_s("a", 100, 0.0) == pytest.approx((500 + 100) / 100)


def test_the_estimate_counts_the_rest_of_the_current_batch() -> None:
    queue = make_queue()
    measure(queue, 100, 1.0)
    fill(queue, make_ticket("a", 200))
    queue.take(200, 0.0)
    assert queue.estimate_s("b", 50, 0.5) == pytest.approx((150 + 50) / 100)
    assert queue.estimate_s("b", 50, 9.0) == pytest.approx(50 / 100)


def test_clients_alternate_in_any_order_of_arrival() -> None:
    queue = make_queue()
    fill(queue, *(make_ticket("a", 10) for _ in range(4)), *(make_ticket("b", 10) for _ in range(2)))
    assert take_items(queue, 60) == "ababaa"


def test_a_batch_keeps_its_budget_and_the_next_batch_resumes_the_rotation() -> None:
    queue = make_queue()
    fill(queue, *(make_ticket(client, 10) for client in "aaabbb"))
    assert [take_items(queue, 25) for _ in range(4)] == ["ab", "ab", "ab", ""]


def test_a_group_beyond_the_budget_is_a_batch_by_itself() -> None:
    queue = make_queue()
    fill(queue, make_ticket("a", 90), make_ticket("b", 5))
    assert [take_items(queue, 20) for _ in range(2)] == ["b", "a"]


def test_a_full_queue_refuses_with_the_time_until_half_of_it_is_done() -> None:
    queue = make_queue(max_tokens=100)
    measure(queue, 50, 1.0)
    fill(queue, *(make_ticket(client, 20) for client in "abcde"))
    with pytest.raises(QueueFullError) as caught:
        queue.offer(make_ticket("f", 20), 0.0)
    assert caught.value.retry_s == pytest.approx(1.0)
    assert (queue.num_tokens, queue.num_groups) == (100, 5)


def test_the_retry_time_is_a_second_before_anything_was_measured() -> None:
    queue = make_queue(max_groups=1)
    fill(queue, make_ticket("a", 20))
    with pytest.raises(QueueFullError) as caught:
        queue.offer(make_ticket("b", 20), 0.0)
    assert caught.value.retry_s == 1.0


def test_large_groups_of_a_client_take_no_more_than_half_of_the_queue_either() -> None:
    queue = make_queue(max_tokens=100)
    fill(queue, make_ticket("greedy", 25))
    with pytest.raises(QueueFullError):
        queue.offer(make_ticket("greedy", 50), 0.0)
    fill(queue, make_ticket("modest", 30))


def test_a_refusal_lasts_until_a_group_leaves_so_that_small_groups_do_not_overtake() -> None:
    queue = make_queue(max_tokens=100)
    first = make_ticket("a", 50)
    fill(queue, first, make_ticket("b", 10))
    with pytest.raises(QueueFullError):
        queue.offer(make_ticket("c", 50), 0.0)
    assert queue.is_full("d")
    queue.discard(first)
    assert not queue.is_full("d")


def test_a_client_that_used_its_fair_share_is_refused_alone() -> None:
    queue = make_queue(max_tokens=100)
    fill(queue, make_ticket("greedy", 40))
    with pytest.raises(QueueFullError):
        queue.offer(make_ticket("greedy", 40), 0.0)
    assert queue.is_full("greedy")
    assert not queue.is_full("modest")
    fill(queue, make_ticket("modest", 50))


def test_is_full_counts_groups_that_are_coming() -> None:
    queue = make_queue(max_groups=3)
    fill(queue, make_ticket("a", 1))
    assert queue.is_full("b", num_coming_of_client=0, num_coming=2)
    assert not queue.is_full("b", num_coming_of_client=0, num_coming=1)


def test_groups_that_are_coming_keep_the_fair_share_too() -> None:
    queue = make_queue(max_groups=10)
    assert not queue.is_full("greedy", num_coming_of_client=4, num_coming=4)
    assert queue.is_full("greedy", num_coming_of_client=5, num_coming=5)
    assert not queue.is_full("modest", num_coming_of_client=0, num_coming=5)


def test_the_largest_groups_leave_capacity_to_other_clients() -> None:
    queue = make_queue(max_tokens=100)
    fill(queue, make_ticket("greedy", 500))
    with pytest.raises(QueueFullError):
        queue.offer(make_ticket("greedy", 500), 0.0)
    fill(queue, make_ticket("b", 1), make_ticket("c", 40))
    assert (queue.num_tokens, queue.num_groups) == (541, 3)


def test_throughput_is_the_token_weighted_median() -> None:
    assert weighted_median([(5.0, 1), (1.0, 1), (9.0, 1)]) == 5.0
    assert weighted_median([(1.0, 10), (5.0, 1), (9.0, 1)]) == 1.0
    throughput = Throughput()
    assert throughput.tokens_per_s is None
    for seconds in (1.0, 1.0, 100.0, 1.0):  # models were loaded again before the third
        throughput.add(100, seconds)
    assert throughput.tokens_per_s == 100.0


def test_a_failed_batch_does_not_count_for_the_throughput() -> None:
    queue = make_queue()
    measure(queue, 100, 1.0)
    fill(queue, make_ticket("a", 100))
    queue.take(100, 0.0)
    queue.finish_batch(50.0, is_failed=True)
    assert queue.throughput.tokens_per_s == 100.0


def test_an_empty_queue_admits_a_group_larger_than_itself() -> None:
    queue = make_queue(max_tokens=100)
    fill(queue, make_ticket("a", 500))
    assert take_items(queue, 20) == "a"


def test_discard_removes_a_group_once() -> None:
    queue = make_queue()
    gone = make_ticket("a", 10)
    fill(queue, gone, make_ticket("a", 10, "b"))
    assert queue.discard(gone)
    assert not queue.discard(gone)
    assert (queue.num_tokens, queue.num_groups) == (10, 1)
    assert take_items(queue, 100) == "b"


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    queue = make_queue()
    measure(queue, 100, 1.0)
    fill(queue, make_ticket("a", 200))
    with pytest.raises(TooLateError, match=r"about 4.0 s, and 3.0 s are left"):
        queue.offer(make_ticket("b", 200, deadline=3.0), 0.0)
    fill(queue, make_ticket("b", 200, deadline=5.0))


def test_an_idle_queue_admits_and_computes_a_group_of_any_estimate() -> None:
    queue = make_queue()
    measure(queue, 1, 60.0)
    fill(queue, make_ticket("a", 10, deadline=1.0))
    assert take_items(queue, 100) == "a"


def test_a_deadline_that_has_passed_is_refused_and_dropped() -> None:
    queue = make_queue()
    with pytest.raises(TooLateError, match="has passed"):
        queue.offer(make_ticket("a", 10, deadline=1.0), 1.0)
    fill(queue, make_ticket("a", 10, deadline=1.0), make_ticket("a", 10, "b"))
    batch, late = queue.take(100, 1.5)
    assert [ticket.item for ticket in batch] == ["b"]
    assert [ticket.item for ticket in late] == ["a"]
    assert (queue.num_tokens, queue.num_groups) == (0, 0)


loads = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 40)), max_size=60)


@given(loads, st.integers(1, 60), st.integers(1, 30))
def test_no_group_is_lost_and_each_client_keeps_its_order(
    load: list[tuple[str, int]], budget: int, quantum: int
) -> None:
    queue = make_queue(max_tokens=10**6, max_groups=10**4, quantum=quantum)
    for index, (client, num_tokens) in enumerate(load):
        queue.offer(make_ticket(client, num_tokens, str(index)), 0.0)
    taken: list[Ticket[str]] = []
    while queue.num_groups:
        batch, late = queue.take(budget, 0.0)
        assert batch
        assert not late
        assert len(batch) == 1 or sum(ticket.num_tokens for ticket in batch) <= budget
        taken += batch
    assert sorted(int(ticket.item) for ticket in taken) == list(range(len(load)))
    for client in "abcd":
        indices = [int(ticket.item) for ticket in taken if ticket.client == client]
        assert indices == sorted(indices)
    assert (queue.num_tokens, queue.num_groups) == (0, 0)


@given(loads, st.integers(1, 60), st.integers(1, 30))
def test_waiting_clients_differ_by_at_most_two_quanta_and_a_group(
    load: list[tuple[str, int]], budget: int, quantum: int
) -> None:
    queue = make_queue(max_tokens=10**6, max_groups=10**4, quantum=quantum)
    offered: Counter[str] = Counter()
    largest = 0
    for client, num_tokens in load:
        queue.offer(make_ticket(client, num_tokens), 0.0)
        offered[client] += num_tokens
        largest = max(largest, num_tokens)
    computed = Counter(dict.fromkeys(offered, 0))
    while queue.num_groups:
        for ticket in queue.take(budget, 0.0)[0]:
            computed[ticket.client] += ticket.num_tokens
            still_waiting = [computed[client] for client in offered if computed[client] < offered[client]]
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
def test_the_queue_never_exceeds_its_bound(steps: list[tuple[str, str, int]], max_tokens: int, max_groups: int) -> None:
    queue = make_queue(max_tokens, max_groups)
    waiting: list[Ticket[str]] = []
    for action, client, amount in steps:
        if action == "offer":
            ticket = make_ticket(client, amount)
            try:
                queue.offer(ticket, 0.0)
            except QueueFullError:
                assert waiting, "an empty queue takes anything"
            else:
                waiting.append(ticket)
        elif action == "take":
            batch, _ = queue.take(amount, 0.0)
            waiting = [ticket for ticket in waiting if ticket not in batch]
        elif waiting:
            assert queue.discard(waiting.pop(amount % len(waiting)))
        assert (queue.num_tokens, queue.num_groups) == (sum(ticket.num_tokens for ticket in waiting), len(waiting))
        assert queue.num_groups <= max_groups
        assert sum(min(ticket.num_tokens, max(max_tokens // 2, 1)) for ticket in waiting) <= max_tokens

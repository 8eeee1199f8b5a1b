"""The bounded queue of groups: deficit round robin decides which group is next, admission control which is refused.

Pure: times are passed in and nothing runs here. The cost of a group is its number of tokens, both models together.

Deficit round robin (Shreedhar and Varghese, 1995). Each client has a queue of its own, and the clients form a rotation.

    1. When a client is next in rotation, its deficit (the tokens that it may spend) grows by `quantum`.
    2. Its first group is taken if it costs at most the deficit; the deficit shrinks by the cost. Repeat.
    3. A first group that costs more waits. The client moves to the end of the rotation and keeps its deficit.
    4. A client without waiting groups leaves the rotation and loses its deficit.

    Example: quantum 10. Client a has two groups of 20 tokens, client b has six groups of 5 tokens.

        next in rotation   deficit         taken
        a                   0 + 10 = 10    nothing, a's first group costs 20
        b                   0 + 10 = 10    b b, deficit 0
        a                  10 + 10 = 20    a, deficit 0
        b                   0 + 10 = 10    b b, deficit 0
        a                   0 + 10 = 10    nothing
        b                   0 + 10 = 10    b b, and b leaves the rotation
        a                  10 + 10 = 20    a, and a leaves the rotation

    A batch takes groups in this order until its budget is used up; the next batch resumes at the same point.

Admission control. A group is refused (backpressure: the caller retries later) unless both of these hold, for tokens and
for numbers of groups:

    capacity     waiting + cost <= max_tokens
    fair share   held + cost <= max_tokens - (waiting + cost), if the client already has `held` tokens waiting:
                 it may hold at most as much as it leaves free

    Example: max_tokens 100, groups of 10 tokens. Client a's fifth group is admitted: 40 + 10 <= 100 - (40 + 10). Its
    sixth is refused: 50 + 10 > 100 - (50 + 10). A first group of client b, of 50 tokens, is admitted: 50 + 50 <= 100.

One client alone fills half of the queue at most, n clients together n / (n + 1). A group is charged half of the queue
at most, so that even the largest group leaves capacity to other clients. After a refusal the queue counts as full, for
that client or for all clients, until a group leaves: otherwise small groups would overtake a large one for ever.

Estimate. The time until a new group would be computed, if it came now:

    (computing + before + queued) / rate

    computing    tokens of the current batch that are not computed yet, by the clock
    queued       tokens of the client: its waiting groups and the new one
    before       tokens of other clients that round robin takes meanwhile: of each client min(its tokens, queued)
    rate         measured tokens per second, see Throughput

    Example: rate 100, nothing is being computed, 400 tokens of client a and 100 tokens of client b wait. For a group of
    50 tokens of client c, queued = 50 and before = min(400, 50) + min(100, 50) = 100: (0 + 100 + 50) / 100 = 1.5 s.

A group that cannot meet its deadline is refused when it comes, or dropped when it is next. Estimates only refuse groups
while others wait: an idle server tries every group, so that a wrong estimate corrects itself.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")

THROUGHPUT_WINDOW = 64
"""Batches over which the throughput is measured."""
MIN_RETRY_S = 0.1
MAX_RETRY_S = 30.0
UNMEASURED_RETRY_S = 1.0


class QueueFullError(Exception):
    """A refusal: the queue has no capacity for this group; the caller should retry after `retry_s` seconds."""

    def __init__(self, retry_s: float) -> None:
        super().__init__(f"the queue is full; come back in {retry_s:.1f} s")
        self.retry_s = retry_s


class TooLateError(Exception):
    """A refusal or a drop: the group cannot be computed by its deadline."""


@dataclass(eq=False)
class Ticket(Generic[Item]):
    """A waiting group: its client, its cost in tokens, the time of its arrival, its deadline (None: no deadline)."""

    client: str
    num_tokens: int
    item: Item
    arrived_at: float
    deadline: float | None = None


@dataclass
class ClientQueue(Generic[Item]):
    """The waiting groups of one client.

    `num_charged_tokens` is what admission control counts, `deficit` the tokens that the client may still spend.
    `has_quantum` is true after the client received the quantum of its current place in the rotation.
    """

    tickets: deque[Ticket[Item]] = field(default_factory=deque)
    num_tokens: int = 0
    num_charged_tokens: int = 0
    deficit: int = 0
    has_quantum: bool = False


class Throughput:
    """The token-weighted median of the tokens per second of the last THROUGHPUT_WINDOW batches.

    Half of the tokens were computed at this rate or a higher one. One batch that took long, because the models were
    loaded again, does not change it.
    """

    def __init__(self) -> None:
        self._batches: deque[tuple[float, int]] = deque(maxlen=THROUGHPUT_WINDOW)
        self.tokens_per_s: float | None = None
        """None before the first batch."""

    def add(self, num_tokens: int, seconds: float) -> None:
        """Add a batch that was computed."""
        if num_tokens > 0 and seconds > 0:
            self._batches.append((num_tokens / seconds, num_tokens))
            self.tokens_per_s = weighted_median(self._batches)


def weighted_median(weighted_values: Iterable[tuple[float, int]]) -> float:
    """Return the lowest value up to which at least half of the weight lies, of (value, weight) pairs.

    Raises ValueError if there are no pairs.
    """
    pairs = sorted(weighted_values)
    half_weight = sum(weight for _, weight in pairs) / 2
    weight_so_far = 0
    for value, weight in pairs:
        weight_so_far += weight
        if weight_so_far >= half_weight:
            return value
    raise ValueError("a median needs at least one value")


class FairQueue(Generic[Item]):
    """The bounded queue. All times are seconds of one clock, which may be any.

    `num_tokens` and `num_groups` count the waiting groups.
    """

    def __init__(self, max_tokens: int, max_groups: int, quantum: int) -> None:
        self.max_tokens = max_tokens
        self.max_groups = max_groups
        self.quantum = quantum
        self.num_tokens = 0
        self.num_groups = 0
        self.throughput = Throughput()
        # The order of the rotation; a client has an entry as long as it has waiting groups.
        self._client_queues: OrderedDict[str, ClientQueue[Item]] = OrderedDict()
        self._num_charged_tokens = 0
        self._num_computing_tokens = 0
        self._computing_since = 0.0
        self._full_for_clients: set[str] = set()
        self._is_full_for_all = False

    def is_full(self, client: str, num_coming_of_client: int = 0, num_coming: int = 0) -> bool:
        """Return whether every group of this client would be refused, even one that costs a single token.

        `num_coming` groups will be offered soon, `num_coming_of_client` of them by this client. They count as groups;
        their costs are not known yet.
        """
        if self._is_full_for_all or client in self._full_for_clients:
            return True
        client_queue = self._client_queues.get(client) or ClientQueue()
        num_groups_of_client = len(client_queue.tickets) + num_coming_of_client
        num_free_tokens = self.max_tokens - self._num_charged_tokens
        num_free_groups = self.max_groups - self.num_groups - num_coming
        if num_groups_of_client == 0:
            return num_free_tokens < 1 or num_free_groups < 1
        is_fair_in_tokens = _is_fair_share(client_queue.num_charged_tokens, 1, num_free_tokens)
        is_fair_in_groups = _is_fair_share(num_groups_of_client, 1, num_free_groups)
        return not (is_fair_in_tokens and is_fair_in_groups)

    def offer(self, ticket: Ticket[Item], now: float) -> None:
        """Admit a group to the queue. Raises QueueFullError, TooLateError."""
        if ticket.deadline is not None and ticket.deadline <= now:
            raise TooLateError("its deadline has passed")
        self._check_capacity(ticket)
        self._check_deadline(ticket, now)
        client_queue = self._client_queues.setdefault(ticket.client, ClientQueue())
        client_queue.tickets.append(ticket)
        self._count(client_queue, ticket, 1)

    def discard(self, ticket: Ticket[Item]) -> bool:
        """Remove a group from the queue. Return False if it no longer waits."""
        client_queue = self._client_queues.get(ticket.client)
        if client_queue is None or ticket not in client_queue.tickets:
            return False
        client_queue.tickets.remove(ticket)
        self._count(client_queue, ticket, -1)
        if not client_queue.tickets:
            del self._client_queues[ticket.client]
        # There is capacity again: the queue no longer counts as full.
        self._is_full_for_all = False
        self._full_for_clients.clear()
        return True

    def take(self, budget: int, now: float) -> tuple[list[Ticket[Item]], list[Ticket[Item]]]:
        """Remove the next batch from the queue, and the groups before its end that are too late for their deadlines.

        Return both. The batch holds at most `budget` tokens, or a single larger group.
        """
        batch: list[Ticket[Item]] = []
        late: list[Ticket[Item]] = []
        num_batch_tokens = 0
        while self._client_queues:
            ticket = self._next_in_rotation()
            if self._is_late(ticket, now):
                late.append(ticket)
                self.discard(ticket)
                continue
            if batch and num_batch_tokens + ticket.num_tokens > budget:
                break
            batch.append(ticket)
            num_batch_tokens += ticket.num_tokens
            self._client_queues[ticket.client].deficit -= ticket.num_tokens
            self.discard(ticket)
        self._num_computing_tokens = num_batch_tokens
        self._computing_since = now
        return batch, late

    def finish_batch(self, now: float, *, is_failed: bool = False) -> None:
        """Record that the batch taken last was computed. A failed batch does not count for the throughput."""
        if not is_failed:
            self.throughput.add(self._num_computing_tokens, now - self._computing_since)
        self._num_computing_tokens = 0

    def estimate_s(self, client: str, num_tokens: int, now: float) -> float | None:
        """Return the seconds until a group that came now would be computed; None before the first batch."""
        rate = self.throughput.tokens_per_s
        if not rate:
            return None
        num_queued = num_tokens
        if client in self._client_queues:
            num_queued += self._client_queues[client].num_tokens
        num_before = 0
        for name, client_queue in self._client_queues.items():
            if name != client:
                num_before += min(client_queue.num_tokens, num_queued)
        num_already_computed = rate * (now - self._computing_since)
        num_computing = max(self._num_computing_tokens - num_already_computed, 0.0)
        return (num_computing + num_before + num_queued) / rate

    def retry_s(self) -> float:
        """Return the seconds until half of the work is done: the queue then has capacity, and is not empty yet."""
        rate = self.throughput.tokens_per_s
        if not rate:
            return UNMEASURED_RETRY_S
        half_s = (self._num_computing_tokens + self.num_tokens) / 2 / rate
        return min(max(half_s, MIN_RETRY_S), MAX_RETRY_S)

    def _check_capacity(self, ticket: Ticket[Item]) -> None:
        """Raise QueueFullError if a group does not fit, and record for which clients the queue is now full."""
        num_tokens = self._num_charged(ticket)
        num_free_tokens = self.max_tokens - self._num_charged_tokens
        num_free_groups = self.max_groups - self.num_groups
        client_queue = self._client_queues.get(ticket.client)
        if client_queue is not None:
            is_fair_in_tokens = _is_fair_share(client_queue.num_charged_tokens, num_tokens, num_free_tokens)
            is_fair_in_groups = _is_fair_share(len(client_queue.tickets), 1, num_free_groups)
            if not (is_fair_in_tokens and is_fair_in_groups):
                self._full_for_clients.add(ticket.client)
                raise QueueFullError(self.retry_s())
        if num_tokens > num_free_tokens or num_free_groups < 1:
            self._is_full_for_all = True
            raise QueueFullError(self.retry_s())

    def _check_deadline(self, ticket: Ticket[Item], now: float) -> None:
        """Raise TooLateError if a group cannot meet its deadline by the estimate."""
        is_idle = self.num_groups == 0 and self._num_computing_tokens == 0
        if is_idle or ticket.deadline is None:
            return
        wait_s = self.estimate_s(ticket.client, ticket.num_tokens, now)
        if wait_s is not None and now + wait_s > ticket.deadline:
            raise TooLateError(f"it would take about {wait_s:.1f} s, and {ticket.deadline - now:.1f} s are left")

    def _next_in_rotation(self) -> Ticket[Item]:
        """Return the group that deficit round robin takes next. At least one group must wait."""
        while True:
            client, client_queue = next(iter(self._client_queues.items()))
            if not client_queue.has_quantum:
                client_queue.deficit += self.quantum
                client_queue.has_quantum = True
            first = client_queue.tickets[0]
            if first.num_tokens <= client_queue.deficit:
                return first
            client_queue.has_quantum = False
            self._client_queues.move_to_end(client)

    def _is_late(self, ticket: Ticket[Item], now: float) -> bool:
        """Return whether a group that is computed now would miss its deadline."""
        if ticket.deadline is None:
            return False
        rate = self.throughput.tokens_per_s
        compute_s = 0.0
        # The last waiting group is computed in spite of the estimate, which corrects a wrong rate.
        if rate and self.num_groups > 1:
            compute_s = ticket.num_tokens / rate
        return now + compute_s >= ticket.deadline

    def _num_charged(self, ticket: Ticket[Item]) -> int:
        """Return the tokens that admission control counts for a group: at most half of the queue."""
        return min(ticket.num_tokens, max(self.max_tokens // 2, 1))

    def _count(self, client_queue: ClientQueue[Item], ticket: Ticket[Item], sign: int) -> None:
        """Add a group to the counts (sign 1), or subtract it (sign -1)."""
        num_charged = sign * self._num_charged(ticket)
        num_tokens = sign * ticket.num_tokens
        client_queue.num_charged_tokens += num_charged
        self._num_charged_tokens += num_charged
        client_queue.num_tokens += num_tokens
        self.num_tokens += num_tokens
        self.num_groups += sign


def _is_fair_share(held: int, cost: int, free: int) -> bool:
    """Return whether a client that holds `held` and takes `cost` of `free` leaves as much free as it then holds."""
    return held + cost <= free - cost

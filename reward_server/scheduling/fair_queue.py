"""What waits to be computed, whose turn it is, and what is refused. Pure: times are given, nothing runs here.

    turns      deficit round robin over clients, weighed in tokens: at each turn a client may spend `quantum` tokens
               more; a group that costs more than it has waits for its later turns
    room       waiting + tokens <= max_tokens, and for a client that has groups waiting
               own + tokens <= max_tokens - (waiting + tokens): one client takes half of the queue at most, n take
               n / (n + 1); a group counts as half of the queue at most, so that even the largest leaves room to others
    estimate   (being computed + what goes before, by fair turns + tokens) / measured tokens per second

The same room holds for numbers of groups. A queue that refused somebody stays full for them until something leaves, so
that small groups do not overtake a large one for ever.

What cannot be done by its deadline is refused when it comes, or dropped when its turn comes. Estimates only decide
where others wait: on an idle server a group is always tried, so that a wrong estimate mends itself.
"""

import itertools
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")

WINDOW = 64
MIN_RETRY_S = 0.1
MAX_RETRY_S = 30.0
UNMEASURED_RETRY_S = 1.0


class QueueFullError(Exception):
    """There is no room for this group; ask again after `retry_s` seconds."""

    def __init__(self, retry_s: float) -> None:
        super().__init__(f"the queue is full; come back in {retry_s:.1f} s")
        self.retry_s = retry_s


class TooLateError(Exception):
    """The group cannot be computed by its deadline."""


@dataclass(eq=False)
class Ticket(Generic[Item]):
    """A group that waits: who asked, what it costs, and until when the answer is wanted (None: any time)."""

    client: str
    tokens: int
    item: Item
    arrived: float
    deadline: float | None = None


@dataclass
class ClientQueue(Generic[Item]):
    """What one client has waiting, and what it may still spend at its turn."""

    tickets: deque[Ticket[Item]] = field(default_factory=deque)
    tokens: int = 0
    room: int = 0
    deficit: int = 0
    has_turn: bool = False


class Throughput:
    """Tokens per second over the last WINDOW batches: half of their tokens were computed at this rate or a higher one.

    So one batch that took long, while models were loaded again, changes nothing.
    """

    def __init__(self) -> None:
        self._batches: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self.tokens_per_s: float | None = None
        """None before the first batch."""

    def add(self, tokens: int, seconds: float) -> None:
        """A batch was computed."""
        if tokens > 0 and seconds > 0:
            self._batches.append((tokens / seconds, tokens))
            self.tokens_per_s = weighted_median(self._batches)


def weighted_median(weighted: Iterable[tuple[float, int]]) -> float:
    """The value up to which half of the weight lies, of (value, weight) pairs."""
    pairs = sorted(weighted)
    half = sum(weight for _, weight in pairs) / 2
    sums = itertools.accumulate(weight for _, weight in pairs)
    return next(value for (value, _), below in zip(pairs, sums, strict=True) if below >= half)


class FairQueue(Generic[Item]):
    """The bounded queue. Times are seconds of any one clock."""

    def __init__(self, max_tokens: int, max_groups: int, quantum: int) -> None:
        self.max_tokens = max_tokens
        self.max_groups = max_groups
        self.quantum = quantum
        self.tokens = 0
        self.groups = 0
        self.throughput = Throughput()
        self._lines: OrderedDict[str, ClientQueue[Item]] = OrderedDict()
        self._room = 0
        self._computing = 0
        self._computing_since = 0.0
        self._full_for: set[str] = set()
        self._is_full_for_all = False

    def is_full(self, client: str, num_own: int = 0, num_coming: int = 0) -> bool:
        """Whether a group of this client would be refused, whatever it costs.

        `num_coming` groups are on their way, `num_own` of them this client's; nobody knows yet what they cost.
        """
        if self._is_full_for_all or client in self._full_for:
            return True
        line = self._lines.get(client) or ClientQueue()
        free_tokens, free_groups = self.max_tokens - self._room, self.max_groups - self.groups - num_coming
        own_groups = len(line.tickets) + num_own
        if not own_groups:
            return free_tokens < 1 or free_groups < 1
        return not (_is_fair(line.room, 1, free_tokens) and _is_fair(own_groups, 1, free_groups))

    def offer(self, ticket: Ticket[Item], now: float) -> None:
        """Let a group wait. Raises QueueFullError, TooLateError."""
        if ticket.deadline is not None and ticket.deadline <= now:
            raise TooLateError("its deadline is over")
        self._check_room(ticket)
        wait_s = self.estimate_s(ticket.client, ticket.tokens, now)
        is_idle = self.groups == 0 and self._computing == 0
        if not is_idle and ticket.deadline is not None and wait_s is not None and now + wait_s > ticket.deadline:
            raise TooLateError(f"it would take about {wait_s:.1f} s, and {ticket.deadline - now:.1f} s are left")
        line = self._lines.setdefault(ticket.client, ClientQueue())
        line.tickets.append(ticket)
        self._count(line, ticket, 1)

    def discard(self, ticket: Ticket[Item]) -> bool:
        """Give up a group's place; False where it no longer waits."""
        line = self._lines.get(ticket.client)
        if line is None or ticket not in line.tickets:
            return False
        line.tickets.remove(ticket)
        self._left(ticket, line)
        return True

    def take(self, budget: int, now: float) -> tuple[list[Ticket[Item]], list[Ticket[Item]]]:
        """The next batch, of at most `budget` tokens or one larger group; and what was dropped as too late."""
        batch: list[Ticket[Item]] = []
        late: list[Ticket[Item]] = []
        used = 0
        while (ticket := self._next()) is not None:
            if self._is_late(ticket, now):
                late.append(ticket)
                self.discard(ticket)
                continue
            if batch and used + ticket.tokens > budget:
                break
            batch.append(ticket)
            used += ticket.tokens
            self._lines[ticket.client].deficit -= ticket.tokens
            self.discard(ticket)
        self._computing, self._computing_since = used, now
        return batch, late

    def finished(self, now: float, *, is_failed: bool = False) -> None:
        """The batch that was taken last is over; one that failed says nothing of the rate."""
        if not is_failed:
            self.throughput.add(self._computing, now - self._computing_since)
        self._computing = 0

    def estimate_s(self, client: str, tokens: int, now: float) -> float | None:
        """Seconds until a group that came now would be computed; None before anything was measured."""
        rate = self.throughput.tokens_per_s
        if not rate:
            return None
        own = tokens + (self._lines[client].tokens if client in self._lines else 0)
        before = sum(min(line.tokens, own) for name, line in self._lines.items() if name != client)
        computing = max(self._computing - rate * (now - self._computing_since), 0.0)
        return (computing + before + own) / rate

    def retry_s(self) -> float:
        """Seconds until half of what waits now will be computed: there will be room, and still work."""
        rate = self.throughput.tokens_per_s
        if not rate:
            return UNMEASURED_RETRY_S
        return min(max((self._computing + self.tokens) / 2 / rate, MIN_RETRY_S), MAX_RETRY_S)

    def _room_of(self, ticket: Ticket[Item]) -> int:
        return min(ticket.tokens, max(self.max_tokens // 2, 1))

    def _check_room(self, ticket: Ticket[Item]) -> None:
        """Raise QueueFullError where there is none, and remember it: for the client whose part is full, or for all."""
        line, room = self._lines.get(ticket.client), self._room_of(ticket)
        free_tokens, free_groups = self.max_tokens - self._room, self.max_groups - self.groups
        if line and not (_is_fair(line.room, room, free_tokens) and _is_fair(len(line.tickets), 1, free_groups)):
            self._full_for.add(ticket.client)
            raise QueueFullError(self.retry_s())
        if room > free_tokens or free_groups < 1:
            self._is_full_for_all = True
            raise QueueFullError(self.retry_s())

    def _next(self) -> Ticket[Item] | None:
        """The group whose turn it is."""
        while self._lines:
            client, line = next(iter(self._lines.items()))
            if not line.has_turn:
                line.deficit, line.has_turn = line.deficit + self.quantum, True
            if line.tickets[0].tokens <= line.deficit:
                return line.tickets[0]
            line.has_turn = False
            self._lines.move_to_end(client)
        return None

    def _is_late(self, ticket: Ticket[Item], now: float) -> bool:
        if ticket.deadline is None:
            return False
        rate = self.throughput.tokens_per_s
        own_s = ticket.tokens / rate if rate and self.groups > 1 else 0.0
        return now + own_s >= ticket.deadline

    def _left(self, ticket: Ticket[Item], line: ClientQueue[Item]) -> None:
        self._count(line, ticket, -1)
        if not line.tickets:
            del self._lines[ticket.client]
        self._is_full_for_all = False
        self._full_for.clear()

    def _count(self, line: ClientQueue[Item], ticket: Ticket[Item], sign: int) -> None:
        room = self._room_of(ticket)
        line.room += sign * room
        self._room += sign * room
        line.tokens += sign * ticket.tokens
        self.tokens += sign * ticket.tokens
        self.groups += sign


def _is_fair(own: int, more: int, free: int) -> bool:
    """Whether a client that has `own` of something and takes `more` leaves as much to others as it then has."""
    return own + more <= free - more

"""What waits to be computed, whose turn it is, and what is refused. Pure: times are given, nothing runs here.

    turns      deficit round robin over clients, weighed in tokens: at each turn a client may spend `quantum` tokens
               more; a group that costs more than it has waits for its later turns
    room       waiting + tokens <= max_tokens, and for a client that has groups waiting
               own + tokens <= max_tokens - waiting: one client takes half of the queue at most, n take n / (n + 1)
    estimate   (being computed + what goes before, by fair turns + tokens) / measured tokens per second

The same room holds for numbers of groups. A group larger than the queue is taken where nothing waits. A queue that
refused somebody stays full for them until something leaves, so that small groups do not overtake a large one for ever.

What cannot be done by its deadline is refused when it comes, or dropped when its turn comes. Estimates only decide
where others wait: on an idle server a group is always tried, so that a wrong estimate mends itself.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping
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
class Line(Generic[Item]):
    """What one client has waiting, and what it may still spend at its turn."""

    tickets: deque[Ticket[Item]] = field(default_factory=deque)
    tokens: int = 0
    deficit: int = 0
    has_turn: bool = False


class Throughput:
    """Tokens per second over the last WINDOW batches."""

    def __init__(self) -> None:
        self._batches: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def add(self, tokens: int, seconds: float) -> None:
        """A batch was computed."""
        self._batches.append((tokens, seconds))

    @property
    def tokens_per_s(self) -> float | None:
        """None before the first batch."""
        seconds = sum(seconds for _, seconds in self._batches)
        return sum(tokens for tokens, _ in self._batches) / seconds if seconds > 0 else None


class FairQueue(Generic[Item]):
    """The bounded queue. Times are seconds of any one clock."""

    def __init__(self, max_tokens: int, max_groups: int, quantum: int) -> None:
        self.max_tokens = max_tokens
        self.max_groups = max_groups
        self.quantum = quantum
        self.tokens = 0
        self.groups = 0
        self.throughput = Throughput()
        self._lines: OrderedDict[str, Line[Item]] = OrderedDict()
        self._computing = 0
        self._computing_since = 0.0
        self._full_for: set[str] = set()
        self._is_full_for_all = False

    def is_full(self, client: str, coming: Mapping[str, int]) -> bool:
        """Whether a group of this client would be refused, whatever it costs.

        `coming` counts each client's groups that are on their way; each is taken to cost what those that wait cost on
        average.
        """
        if self._is_full_for_all or client in self._full_for:
            return True
        mean, num_coming, own_coming = self.tokens / max(self.groups, 1), sum(coming.values()), coming.get(client, 0)
        free_tokens = self.max_tokens - self.tokens - num_coming * mean
        free_groups = self.max_groups - self.groups - num_coming
        line = self._lines.get(client) or Line()
        own_tokens, own_groups = line.tokens + own_coming * mean, len(line.tickets) + own_coming
        return own_tokens >= free_tokens or own_groups >= free_groups

    def offer(self, ticket: Ticket[Item], now: float) -> None:
        """Let a group wait. Raises QueueFullError, TooLateError."""
        if ticket.deadline is not None and ticket.deadline <= now:
            raise TooLateError("its deadline is over")
        self._check_room(ticket)
        wait_s = self.estimate_s(ticket.client, ticket.tokens, now)
        is_idle = self.groups == 0 and self._computing == 0
        if not is_idle and ticket.deadline is not None and wait_s is not None and now + wait_s > ticket.deadline:
            raise TooLateError(f"it would take about {wait_s:.1f} s, and {ticket.deadline - now:.1f} s are left")
        line = self._lines.setdefault(ticket.client, Line())
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

    def finished(self, now: float) -> None:
        """The batch that was taken last is computed."""
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

    def _check_room(self, ticket: Ticket[Item]) -> None:
        """Raise QueueFullError where there is none, and remember it."""
        if self.groups == 0:
            return
        line = self._lines.get(ticket.client) or Line()
        free_tokens, free_groups = self.max_tokens - self.tokens, self.max_groups - self.groups
        if ticket.tokens > free_tokens or free_groups < 1:
            self._is_full_for_all = True
            raise QueueFullError(self.retry_s())
        if line.tickets and (line.tokens + ticket.tokens > free_tokens or len(line.tickets) + 1 > free_groups):
            self._full_for.add(ticket.client)
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

    def _left(self, ticket: Ticket[Item], line: Line[Item]) -> None:
        self._count(line, ticket, -1)
        if not line.tickets:
            del self._lines[ticket.client]
        self._is_full_for_all = False
        self._full_for.clear()

    def _count(self, line: Line[Item], ticket: Ticket[Item], sign: int) -> None:
        line.tokens += sign * ticket.tokens
        self.tokens += sign * ticket.tokens
        self.groups += sign

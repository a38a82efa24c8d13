"""The queue of an endpoint: its deliveries that are due, and how many of them may be under way.

An endpoint begins with one attempt at a time; each success adds one, up to a bound, and each failure takes half. So one
that hangs holds a connection or two, and one that answers soon has its share. Pure; times are monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from deliveries.circuit_breaker import (
    Admitted,
    AttemptEnd,
    BreakerPolicy,
    BreakerState,
    CircuitBreaker,
    NotAdmitted,
    Permit,
    admit,
    breaker_state,
    record_end,
)
from deliveries.deliverer.delivery import Delivery

FIRST_LIMIT: Final = 1
LIVE_STREAMS: Final = ("live", "endpoints")
MEMORY_SECONDS: Final = 4.0
"""How long a delivery may have to wait in memory for its endpoint's rate, or where room is short for its answers. What
is there counts against what a partition reads ahead, so that others are held up by it."""
PACED_SECONDS: Final = 0.25
"""From when on the time that attempts take is the endpoint's own: shorter ones are often this process's."""
_LAST_WEIGHT: Final = 0.2
"""Of the last attempt, in what an endpoint's attempts take on average."""


class Blocked(msgspec.Struct, frozen=True):
    """The endpoint gets no attempts for a time. It is no fault of the delivery's."""

    wait_seconds: float


class Waiting(msgspec.Struct, frozen=True):
    """The endpoint's attempts under way have to end first, or its rate lets the next one go in a moment."""

    wait_seconds: float | None = None


class DeliveryQueue:
    """Deliveries of an endpoint that are due: live ones first, then those of backfills and redrives, each in order."""

    def __init__(self) -> None:
        self._live: deque[Delivery] = deque()
        self._others: deque[Delivery] = deque()

    def __len__(self) -> int:
        return len(self._live) + len(self._others)

    def __bool__(self) -> bool:
        return bool(self._live or self._others)

    def append(self, delivery: Delivery) -> None:
        """Add a delivery behind those of its kind."""
        (self._live if delivery.stream in LIVE_STREAMS else self._others).append(delivery)

    def popleft(self) -> Delivery:
        """Take the first one. Raises IndexError where there is none."""
        return (self._live or self._others).popleft()

    def pop(self) -> Delivery:
        """Take the last one. Raises IndexError where there is none."""
        return (self._others or self._live).pop()


class EndpointQueue:
    """What one process knows of an endpoint's attempts."""

    def __init__(self, policy: BreakerPolicy, limit_max: int, due_max: int) -> None:
        """At most `limit_max` attempts are under way at a time, and `due_max` deliveries wait in memory."""
        self.due = DeliveryQueue()
        self.in_flight = 0
        self.slow = 0
        """How many of the attempts under way have taken long."""
        self.awaits_turn = False
        self.awaits_rate = False
        self.proven = False
        """Whether it has taken a delivery from this process."""
        self.is_suspect = False
        """Whether its last attempt failed, and took long or opened the breaker: its next one tells if it is well."""
        self._policy = policy
        self._breaker = CircuitBreaker()
        self._limit = FIRST_LIMIT
        self._limit_max = limit_max
        self._due_max = due_max
        self._throttled_until = 0.0
        self._busy_until = 0.0
        """Nothing is read from Postgres until then: it rests, asked for time, or its breaker is open."""
        self._rate_per_second: float | None = None
        self._attempt_seconds = 0.0
        """What its attempts take on average, the last ones above all."""
        self._next_slot = 0.0

    def blocked_seconds(self, now_seconds: float) -> float:
        """Return for how long the endpoint gets no attempts; 0 where it may get one."""
        if now_seconds < self._throttled_until:
            return self._throttled_until - now_seconds
        if breaker_state(self._breaker, now_seconds) == "open":
            return self._breaker.open_until_seconds - now_seconds
        return 0.0

    def rest(self, until_seconds: float) -> None:
        """Let nothing of the endpoint be read from Postgres for a time: it would only be put off again."""
        self._busy_until = max(self._busy_until, until_seconds)

    def is_busy(self, now_seconds: float) -> bool:
        """Return whether nothing of the endpoint is to be read from Postgres, since it would only be put back.

        It gets no attempts for a time, is slow, or has half of its share in memory: one delivery, where it is suspect.
        """
        if now_seconds < self._busy_until or self.slow:
            return True
        return self.in_flight > 0 or bool(self.due) if self.is_suspect else len(self.due) >= self._half_share

    @property
    def rows_max(self) -> int:
        """How many deliveries may be read from Postgres at a time."""
        return 1 if self.is_suspect else self._half_share

    def share(self, due_max: int, by_pace: bool) -> int:
        """Return how many of at most so many deliveries may wait in memory: those that the rate lets go soon.

        With `by_pace`, of one that is slow to answer no more than it takes soon.
        """
        share = float(due_max)
        if self._rate_per_second is not None:
            share = min(share, self._rate_per_second * MEMORY_SECONDS)
        if by_pace and self._attempt_seconds >= PACED_SECONDS:
            share = min(share, self._limit_max / self._attempt_seconds * MEMORY_SECONDS)
        return max(1, int(share))

    @property
    def _half_share(self) -> int:
        return max(1, self.share(self._due_max, by_pace=True) // 2)

    def throttle(self, until_seconds: float) -> None:
        """Let the endpoint have no attempts for a time: it asked for that."""
        self._throttled_until = max(self._throttled_until, until_seconds)
        self._busy_until = max(self._busy_until, until_seconds)

    def state(self, now_seconds: float) -> BreakerState:
        """Return the breaker's state."""
        return breaker_state(self._breaker, now_seconds)

    def admit(self, now_seconds: float, rate_per_second: float | None, crowded: bool) -> Permit | Blocked | Waiting:
        """Return whether the next delivery may be attempted now. A permit has to be given back by `end`."""
        self._rate_per_second = rate_per_second
        blocked_seconds = self.blocked_seconds(now_seconds)
        if blocked_seconds > 0:
            return Blocked(blocked_seconds)
        if self.slow or self.in_flight >= self._limit or (crowded and not self.proven):
            return Waiting()
        if rate_per_second is not None and self._next_slot > now_seconds:
            return Waiting(self._next_slot - now_seconds)
        self._breaker, admission = admit(self._breaker, self._policy, now_seconds)
        match admission:
            case NotAdmitted():
                return Waiting() if self.in_flight else Blocked(admission.wait_seconds)
            case Admitted():
                self.in_flight += 1
                if rate_per_second is not None:
                    self._next_slot = max(self._next_slot, now_seconds) + 1 / rate_per_second
                return admission.permit

    def note_slow(self) -> None:
        """Note that one of the attempts under way has taken long."""
        self.slow += 1

    def end(
        self, permit: Permit, end: AttemptEnd, now_seconds: float, *, slow: bool = False, took_seconds: float = 0.0,
        throttled_seconds: float = 0.0,
    ) -> None:  # fmt: skip
        """Note how an attempt ended, and how long it took; `slow`: it was noted that it took long."""
        self.in_flight -= 1
        self._attempt_seconds += _LAST_WEIGHT * (took_seconds - self._attempt_seconds)
        self.slow -= slow
        self._breaker = record_end(self._breaker, self._policy, permit, end, now_seconds)
        if end == "success":
            self.proven = True
            self.is_suspect = self.is_suspect and self._breaker.state != "closed"
            self._limit = min(self._limit + 1, self._limit_max)
        elif end == "failure":
            self._limit = max(FIRST_LIMIT, self._limit // 2)
            self.is_suspect = slow or self._breaker.state != "closed"
            self._busy_until = max(self._busy_until, self._breaker.open_until_seconds)
        if throttled_seconds:
            self.throttle(now_seconds + throttled_seconds)

"""What endpoints are owed from before their live events: read from the log in slices, an endpoint after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from deliveries.dispatch.endpoint_backfills import EndpointBackfills
from deliveries.dispatch.endpoint_directory import KnownEndpoints
from deliveries.dispatch.queued_deliveries import Match
from deliveries.endpoints import EndpointId
from deliveries.matching import Subscription
from projections.effective_events import EffectiveEvent, logged_events
from projections.session import Session

SLICE_EVENTS_MAX: Final = 200
"""Events of a slice. Live events wait for one at most."""


class BackfillSlice(NamedTuple):
    """Events that take effect in a range of offsets, for one endpoint alone."""

    endpoint_id: EndpointId
    events: list[EffectiveEvent]
    next_offset: int


class BackfillReader:
    """The turns of a partition's endpoints that are owed events."""

    def __init__(self, topic: str, partition: int) -> None:
        self._topic = topic
        self._partition = partition
        self._last: EndpointId | None = None
        self._set_aside: set[EndpointId] = set()

    def try_again(self) -> None:
        """Try again what was set aside."""
        self._set_aside.clear()

    def set_aside(self, endpoint_id: EndpointId) -> None:
        """Leave out an endpoint whose events can't be read, until all are tried again."""
        self._set_aside.add(endpoint_id)

    def next_slice(self, session: Session, backfills: EndpointBackfills, known: KnownEndpoints) -> BackfillSlice | None:
        """Return the next slice of the endpoint whose turn it is; None where no active one is owed anything."""
        owed = {
            endpoint_id: each
            for endpoint_id, each in backfills.unfinished().items()
            if endpoint_id in known.active and endpoint_id not in self._set_aside
        }
        # Live events join those that wait in order: one after the other such endpoints come to their ends all the same.
        waiting = sorted((each for each in owed if known.is_in_order(each)), key=lambda each: owed[each].left)
        for endpoint_id in waiting[1:]:
            del owed[endpoint_id]
        if not owed:
            return None
        last = self._last
        endpoint_id = next((each for each in owed if last is not None and each > last), next(iter(owed)))
        self._last = endpoint_id
        offsets = owed[endpoint_id].next_offset, owed[endpoint_id].until_offset
        found = logged_events(session, self._topic, self._partition, offsets, SLICE_EVENTS_MAX)
        return BackfillSlice(endpoint_id, found.events, found.next_offset)


def asked_alone(subscription: Subscription) -> Match:
    """Return the function that asks one endpoint whether it gets an event."""

    def match(event_type: str, data: object) -> Sequence[EndpointId]:
        return [subscription.endpoint_id] if subscription.matches_event(event_type, data) else []

    return match


class BackfillRate:
    """How many deliveries of backfills all partitions of a process publish in a second. Thread-safe.

    A slice is let pass while there is something left, and may use more than that: the next one waits for it.
    """

    def __init__(self, per_second: int, clock: Callable[[], float]) -> None:
        """`clock` gives monotonic seconds."""
        self._per_second = per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._left = float(per_second)
        self._at_seconds = clock()

    def has_room(self) -> bool:
        """Return whether a slice may be published now."""
        with self._lock:
            now = self._clock()
            self._left = min(self._per_second, self._left + (now - self._at_seconds) * self._per_second)
            self._at_seconds = now
            return self._left > 0

    def consume(self, deliveries: int) -> None:
        """Count deliveries that were published."""
        with self._lock:
            self._left -= deliveries

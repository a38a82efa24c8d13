"""What tells a delivery's first record from copies of it: the last one that came from each source. Pure.

A dispatcher writes the deliveries of one source partition to a partition in order, and sends none before all earlier
ones have been acknowledged, once at least; one that begins again from its checkpoint sends some a second time. So a
record is the first of its delivery just where it is after all that came before from its source. A redrive is a source
of its own: another one sends the same delivery again, and that is no copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from deliveries.deliverer.delivery import Delivery
from deliveries.hops import redrive_of


class MarkedSource(NamedTuple):
    """A stream of deliveries in order: `live`, `endpoints`, a redrive, or the endpoint whose earlier events are fed."""

    stream: str
    source_partition: int


class SourceMark(NamedTuple):
    """The last delivery of a source."""

    source_offset: int
    source_rank: int
    endpoint_id: bytes


class SourceMarks:
    """The marks of one partition, and which of them have changed since they were stored."""

    def __init__(self, stored: Mapping[MarkedSource, SourceMark]) -> None:
        self._marks = dict(stored)
        self._changed: set[MarkedSource] = set()

    def pass_new(self, delivery: Delivery) -> bool:
        """Return whether a record is the first of its delivery, and take it for the last of its source from then on."""
        source = MarkedSource(_stream_of(delivery), delivery.source_partition)
        order = SourceMark(*delivery.source_order)
        last = self._marks.get(source)
        if last is not None and order <= last:
            return False
        self._marks[source] = order
        self._changed.add(source)
        return True

    def changed(self) -> dict[MarkedSource, SourceMark]:
        """Return the marks that are to be stored."""
        return {source: self._marks[source] for source in sorted(self._changed)}

    def note_stored(self, stored: Mapping[MarkedSource, SourceMark]) -> None:
        """Note that marks were stored as they are here, unless they have changed since."""
        self._changed -= {source for source, mark in stored.items() if self._marks[source] == mark}


def redrive_stream(number: int | str) -> str:
    """Return the name of a redrive's stream."""
    return f"redrive {number}"


def _stream_of(delivery: Delivery) -> str:
    match delivery.stream:
        case "live" | "endpoints":
            return delivery.stream
        case "backfill":
            return str(delivery.endpoint)
        case "redrive":
            return redrive_stream(redrive_of(delivery.hop))

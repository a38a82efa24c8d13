"""The redrives of a partition: which slots are sent next, and how far each order is.

A slice of an order's slots is claimed under the partition's fence before it is sent, and done once Kafka has it. Every
owner sends slots in their order, and none before all earlier ones were acknowledged; those of a claim that its owner
did not finish are sent again, whatever became of the order since. So what is not above the last record of an order
that a deliverer has seen is a copy.

Live deliveries are on the same topic. An order waits while deliverers have many records before them, so that live ones
do not wait behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from deliveries.dispatch.delivery_sender import EndOffsets
from deliveries.dispatch.queued_deliveries import DeliveryRecord, DispatchedStream, deliveries_of
from deliveries.endpoints import EndpointId
from deliveries.hops import first_hop
from projections.effective_events import EffectiveEvent, events_at
from projections.session import Session, sql_literal
from runtime import metrics
from runtime.logging import get_logger
from schemas.events import Event
from streams.errors import AppliedEventUnreadable, SchemaNewer

SLICE_SLOTS_MAX: Final = 200
"""Slots of a slice. Live events wait for one at most."""
POLL_SECONDS: Final = 1.0
"""How often a partition looks for new orders."""
BACKLOG_POLL_SECONDS: Final = 0.05
BACKLOG_RECORDS_MAX: Final = 500
"""Records of a partition of deliveries that are not done, up to the last redriven one: more of them let it wait."""

_OPEN: Final = """
SELECT r.number, p.slots, p.claimed, p.done,
       r.rate_per_second * p.slots::float8
           / (SELECT sum(a.slots) FROM redrive_partitions AS a WHERE a.number = r.number) AS rate_per_second
FROM redrive_partitions AS p JOIN redrives AS r ON r.number = p.number
WHERE p.source_partition = $1 AND p.done < p.slots AND (r.state = 'running' OR p.claimed > p.done)
ORDER BY r.number
"""
_CLAIM: Final = """
UPDATE redrive_partitions AS p SET claimed = {until}, claimed_at = clock_timestamp()
FROM (SELECT number FROM redrives WHERE number = {number} AND state = 'running' FOR SHARE) AS r
WHERE p.number = r.number AND p.source_partition = {partition} RETURNING p.claimed
"""
_SLOTS: Final = """
SELECT source_offset, source_rank, uuid_send(event_id) AS event_id, uuid_send(endpoint_id) AS endpoint_id
FROM redrive_slots WHERE number = $1 AND source_partition = $2 AND slot >= $3 AND slot < $4 ORDER BY slot
"""
_DONE: Final = """
UPDATE redrive_partitions SET done = {until}, unfound = unfound + {unfound}
WHERE number = {number} AND source_partition = {partition}
"""
_LOCK: Final = "SELECT FROM redrives WHERE number = {number} FOR UPDATE"
_FINISH: Final = """
UPDATE redrives SET state = 'finished', ended_at = clock_timestamp()
WHERE number = {number} AND state = 'running'
  AND NOT EXISTS (SELECT FROM redrive_partitions WHERE number = {number} AND done < slots)
"""
_DELIVERED_TO: Final = """
SELECT partition, next_offset FROM delivery_checkpoints WHERE consumer = 'deliverer' AND topic = {topic}
"""

log = get_logger(__name__)

Decode: TypeAlias = Callable[[EffectiveEvent], Event]
"""Raises SchemaNewer, AppliedEventUnreadable."""


class OpenRedrive(msgspec.Struct):
    """An order of which this partition has slots left."""

    number: int
    slots: int
    claimed: int
    done: int
    rate_per_second: float
    """Of this partition: its share of the order's."""
    allowed: float = 1.0
    allowed_at_seconds: float = 0.0

    def room(self, now_seconds: float) -> int:
        """Return how many slots the rate lets pass now; those of a second may be saved."""
        saved = self.allowed + (now_seconds - self.allowed_at_seconds) * self.rate_per_second
        self.allowed = min(max(1.0, self.rate_per_second), saved)
        self.allowed_at_seconds = now_seconds
        return int(self.allowed)


class RedriveSlice(NamedTuple):
    """Slots of an order that are claimed: from one slot on, up to another one."""

    redrive: OpenRedrive
    records: list[DeliveryRecord]
    until: int
    unfound: int
    """Slots whose event the log does not have."""


class RedriveReader:
    """The orders of one partition. The session is that of the partition's owner."""

    def __init__(
        self, topic: str, partition: int, deliveries_topic: str, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._topic = topic
        self._partition = partition
        self._deliveries_topic = deliveries_topic
        self._monotonic = monotonic
        self._open: dict[int, OpenRedrive] = {}
        self._set_aside: set[int] = set()
        self._last = 0
        self._ends: dict[int, int] = {}
        self._look_at = self._backlog_at = 0.0

    def begin(self) -> None:
        """Know nothing of any order, as a new owner."""
        self._open.clear()
        self._set_aside.clear()
        self._ends.clear()
        self._look_at = self._backlog_at = 0.0

    @property
    def has_open(self) -> bool:
        """Whether an order was open when they were looked at last."""
        return bool(self._open)

    def feed(
        self, session: Session, lock_statement: str, token: int, decode: Decode, send: Callable[..., EndOffsets]
    ) -> bool:
        """Publish the next slice; return whether there was one. `send` returns once Kafka has acknowledged it."""
        try:
            found = self.next_slice(session, lock_statement, token, decode)
        except SchemaNewer as error:  # live events and other orders go on
            self._set_aside.add(self._last)
            del self._open[self._last]
            log.error("redrive.stopped", number=self._last, partition=self._partition, why=error.why)
            return True
        if found is None:
            return False
        ends = send(found.records)
        metrics.DISPATCHER_DELIVERIES.labels("redrive").inc(len(found.records))
        self.finish(session, lock_statement, found, ends)
        log.debug("deliveries.redriven", number=found.redrive.number, partition=self._partition,
                  deliveries=len(found.records), unfound=found.unfound)  # fmt: skip
        return True

    def next_slice(self, session: Session, lock_statement: str, token: int, decode: Decode) -> RedriveSlice | None:
        """Claim and return the next slice of the order whose turn it is; None where none may be sent now."""
        self._look(session)
        now = self._monotonic()
        numbers = sorted(number for number, each in self._open.items() if each.room(now))
        if not numbers or not self._deliverers_keep_up(session):
            return None
        number = next((each for each in numbers if each > self._last), numbers[0])
        redrive, self._last = self._open[number], number
        if redrive.claimed == redrive.done and not self._claim(session, lock_statement, redrive):
            del self._open[number]
            return None
        return self._read(session, redrive, token, decode)

    def finish(self, session: Session, lock_statement: str, sent: RedriveSlice, ends: Mapping[int, int]) -> None:
        """Note that a slice is on Kafka, up to these offsets by partition."""
        redrive = sent.redrive
        names = {"number": int(redrive.number), "partition": int(self._partition)}
        done = _DONE.format(**names, until=int(sent.until), unfound=int(sent.unfound))
        last = sent.until == redrive.slots
        finish = (_LOCK.format(**names), done, _FINISH.format(**names)) if last else (done,)
        session.script("BEGIN", lock_statement, *finish, "COMMIT")
        redrive.allowed -= sent.until - redrive.done
        redrive.done = sent.until
        self._ends |= ends
        if last:
            del self._open[redrive.number]

    def _look(self, session: Session) -> None:
        now = self._monotonic()
        if now < self._look_at:
            return
        self._look_at = now + POLL_SECONDS
        found = {}
        for number, slots, claimed, done, rate in session.query(_OPEN, (self._partition,)):
            if number not in self._set_aside:
                known = self._open.get(number) or OpenRedrive(number, slots, claimed, done, rate, 1.0, now)
                known.claimed, known.done = claimed, done
                found[number] = known
        self._open = found

    def _deliverers_keep_up(self, session: Session) -> bool:
        if not self._ends or self._monotonic() < self._backlog_at:
            return not self._ends
        query = _DELIVERED_TO.format(topic=sql_literal(self._deliveries_topic))
        delivered = dict(session.query(query))
        self._ends = {
            partition: end
            for partition, end in self._ends.items()
            if end - delivered.get(partition, 0) > BACKLOG_RECORDS_MAX
        }
        self._backlog_at = self._monotonic() + BACKLOG_POLL_SECONDS
        return not self._ends

    def _claim(self, session: Session, lock_statement: str, redrive: OpenRedrive) -> bool:
        """Claim the next slots; return False where the order was stopped."""
        count = min(SLICE_SLOTS_MAX, int(redrive.allowed), redrive.slots - redrive.done)
        until = redrive.done + count
        session.script("BEGIN", lock_statement)
        claim = _CLAIM.format(until=until, number=int(redrive.number), partition=int(self._partition))
        claimed = session.query(claim)
        session.commit()
        if claimed:
            redrive.claimed = until
        return bool(claimed)

    def _read(self, session: Session, redrive: OpenRedrive, token: int, decode: Decode) -> RedriveSlice:
        bounds = (redrive.number, self._partition, redrive.done, redrive.claimed)
        slots = session.frame(_SLOTS, bounds).rows()
        events = {
            (each.effective_offset, each.rank): each
            for each in events_at(session, self._topic, self._partition, {slot[0] for slot in slots})
        }
        by = DispatchedStream(self._partition, token, "redrive", first_hop(redrive.number))
        records: list[DeliveryRecord] = []
        for (offset, rank, event_id), those in groupby(slots, key=lambda slot: slot[:3]):
            effective = events.get((offset, rank))
            event = None if effective is None else self._decoded(effective, decode)
            if effective is None or event is None or event.event_id.bytes != event_id:
                continue
            endpoint_ids = [EndpointId(UUID(bytes=slot[3])) for slot in those]
            records += deliveries_of(effective, event, lambda *_, ids=endpoint_ids: ids, by)
        return RedriveSlice(redrive, records, redrive.claimed, redrive.claimed - redrive.done - len(records))

    def _decoded(self, effective: EffectiveEvent, decode: Decode) -> Event | None:
        try:
            return decode(effective)
        except AppliedEventUnreadable as error:
            log.error("redrive.unreadable", partition=self._partition, what=error.what, why=error.why)
            return None

"""One partition's events into deliveries: what the log calls applied, in the order in which it takes effect.

A batch comes from Kafka, as it does to the projector. Of what the log's checkpoint has passed of it, part by part:

    ask the log which records are not applied, and which events control records release
    hear of new endpoints, and store from where on each is live
    match each event, and publish its deliveries in slices, each acknowledged before the next one is sent
    lock the fencing token, and advance the checkpoint of the consumer `dispatcher`, at most some times a second

Where the checkpoint itself says that all of a part is applied, the part is small and there is nothing new to hear of,
it is done in the event loop, and the log is not asked again (`projections/log_checkpoints.py`). All else blocks, in
the partition's thread.

**Nothing is lost.** The checkpoint moves once Kafka has acknowledged the deliveries below it. After anything else the
partition is acquired again and goes on at its checkpoint, so deliveries may be published again.

**Copies are told by their order.** Deliveries of a partition are ordered by (effective offset, rank, endpoint id). To
each partition of the deliveries' topic they are sent in this order, and none before all earlier ones were acknowledged
there; every owner makes the same ones (`endpoint_backfills.py`). So what is not above the highest that a reader has
seen of a source partition is a copy, whichever owner wrote it, and however late.

**Never ahead of the log.** A former owner may go on for a moment, but asks the log in the session that the next one
terminates first, or is told the log's checkpoint together with a token that was still its own. So it has dispatched
nothing at or above the log's checkpoint as the next one reads it after that.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from database.errors import DatabaseUnreachable
from deliveries.dispatch.backfill_reader import BackfillReader, asked_alone
from deliveries.dispatch.dispatcher_parts import DispatcherParts
from deliveries.dispatch.endpoint_backfills import EndpointBackfills, NewBackfills
from deliveries.dispatch.endpoint_directory import NO_ENDPOINTS, KnownEndpoints
from deliveries.dispatch.partition_sender import PartitionSender
from deliveries.dispatch.queued_deliveries import DispatchedStream, Match
from deliveries.dispatch.redrive_reader import RedriveReader
from deliveries.endpoints import EndpointId
from projections import checkpoints
from projections.checkpoints import DISPATCHER, Fence
from projections.effective_events import EffectiveEvent, EffectiveSlice, fetched_events
from projections.log_checkpoints import NOWHERE, LogPosition
from projections.session import Session
from runtime import metrics
from runtime.log_budget import LogBudget
from runtime.logging import get_logger
from streams.batch import EventBatch
from streams.control_search import NamedPoison
from streams.errors import AppliedEventUnreadable, OwnershipLost, PartitionStopped, SchemaNewer
from streams.ownership import Acquired, InThread
from streams.watermarks import Watermarks

log = get_logger(__name__)

PART_RECORDS_MAX = 1_000
"""Records that are dispatched in one go: Kafka has the deliveries of all of them before any of the next is sent."""

IDLE_FEED_SECONDS = 0.1
"""How long backfills and redrives are fed in one go while no live events come."""
STILL_SECONDS = 1.0
"""How often that is done while a batch waits for the log, whose owner may be stopped."""
FEW_RECORDS = 64
"""Records of a part that may be dispatched in the event loop."""
ADVANCE_SECONDS = 0.25
"""How far apart the checkpoint is advanced at least: a transaction a batch would cost more than the batch. What was
dispatched since is dispatched again by the next owner of one that dies, as copies."""
INFO_LINES_PER_SECOND = 2
"""Lines of one partition at the usual level: a flood of repeats in small batches would write hundreds."""
BACKFILL_SHARE = 0.2
"""The part of a partition's time that backfills and redrives take while live events come."""
FEED_PAUSE_SECONDS = 0.02
"""How soon a backfill or redrive that has no room now is looked at again while live events come."""


class PartitionDispatcher:
    """The dispatcher of one partition (`streams.ownership.PartitionWriter`): one call at a time.

    :meth:`accept` lives in the event loop; all else is called from one thread.
    """

    def __init__(self, parts: DispatcherParts, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self._parts = parts
        self._sender = PartitionSender(parts, topic, partition)
        self._session: Session | None = None
        self._fence: Fence | None = None
        self._token: int | None = None
        self._dispatched_to = 0
        self._advance_at = 0.0
        self._settle_at = 0.0
        self._log_at_acquisition = 0
        self._backfills = EndpointBackfills(partition, {})
        self._known: KnownEndpoints = NO_ENDPOINTS
        self._reader = BackfillReader(topic, partition)
        self._redrives = RedriveReader(topic, partition, parts.deliveries_topic)
        self._feed_at = 0.0
        self._log_budget = LogBudget(INFO_LINES_PER_SECOND)
        self._interrupted = threading.Event()

    def acquire(self, watermarks: Watermarks, interrupted: threading.Event | None = None) -> Acquired:
        """Open a fresh connection, fence off former owners, and read which endpoints are live from where on."""
        self._drop()
        self._token = None  # that of a former ownership would hide a stop reason of this one
        self._interrupted = interrupted or threading.Event()
        self._sender.begin(self._interrupted)
        with self._closing_on_error():
            session = self._session = Session(self._parts.url)
            fence = self._fence = checkpoints.acquire(
                session, DISPATCHER, self.topic, self.partition, watermarks.partition_count,
                watermarks.leadership.topic_id,
            )  # fmt: skip
            self._token, self._dispatched_to = fence.token, fence.next_offset
            self._parts.log_checkpoints.forget(self.partition)
            self._log_at_acquisition = checkpoints.log_next_offset(session, self.topic, self.partition)
            self._backfills = EndpointBackfills.load(session, self.partition)
            self._known = NO_ENDPOINTS
            self._reader.try_again()
            self._redrives.begin()
            if not len(self._backfills):
                # No endpoint was ever live here, so nothing was dispatched: who comes now is given the past apart.
                self._dispatched_to = max(fence.next_offset, self._log_at_acquisition)
                self._advance()
            log_end = checkpoints.log_end(session, self.topic, self.partition, self._require_fence())
        return Acquired(fence.token, log_end)

    async def accept(self, batch: EventBatch, in_thread: InThread) -> int:
        """Publish a batch's deliveries and return the next offset, which the checkpoint reaches before long.

        Waits until the log's checkpoint has passed each record. Raises OwnershipLost, DatabaseUnreachable,
        KafkaUnavailable, PublishRefused or a named stop. After any of them the connection is closed and the partition
        has to be acquired again.
        """
        try:
            while (rest := checkpoints.remainder(batch, self._dispatched())) is not None:
                position = NOWHERE
                if rest.offsets:
                    position = await self._log_past(rest.offsets[0], in_thread)
                    rest = rest.between(0, bisect_left(rest.offsets, position.next_offset))
                if not await self._dispatch_few(rest, position):
                    await in_thread(self.project, rest)
                elif time.monotonic() >= self._settle_at:
                    await in_thread(self.settle)
        except Exception:
            await in_thread(self._drop)
            raise
        return self._dispatched_to

    def project(self, batch: EventBatch) -> int:
        """Do as `accept`, from the thread, with a batch that the log's checkpoint has passed. Raises what it raises."""
        with self._closing_on_error():
            while (rest := checkpoints.remainder(batch, self._dispatched())) is not None:
                self._project(rest)
                self._settle()
        return self._dispatched_to

    def settle(self) -> None:
        """Advance the checkpoint, and feed backfills and redrives, as far as that is due. Raises as `accept` does."""
        with self._closing_on_error():
            self._settle()

    def skip(self, offset: int, reason: str) -> None:
        """Do nothing: what becomes of a record is the log's to say."""

    def make_room(self, named: Collection[NamedPoison]) -> None:
        """Do nothing: the log's owner alone keeps parked entities."""

    def idle(self) -> None:
        """Advance the checkpoint, hear of new endpoints, and feed who is owed events. Raises what `project` raises."""
        if self._session is not None:
            until = time.monotonic() + IDLE_FEED_SECONDS
            with self._closing_on_error():
                self._advance()
                self._hear()
                while time.monotonic() < until and self._feed():
                    self._sender.require_current()

    def note_stop(self, reason: str) -> None:
        """Write down why the partition is stopped; acquiring it clears that."""
        with contextlib.suppress(DatabaseUnreachable), contextlib.closing(Session(self._parts.url)) as session:
            checkpoints.note_stop(session, DISPATCHER, self.topic, self.partition, self._token, reason)

    def close(self) -> None:
        """Advance the checkpoint if that can be done, and drop the connection; what is on its way is waited for."""
        if self._session is not None:
            with contextlib.suppress(DatabaseUnreachable, OwnershipLost, PartitionStopped):
                self._advance()
        self._drop()

    def forget(self) -> None:
        """Drop the connection: nothing else is kept."""
        self.close()

    async def _log_past(self, offset: int, in_thread: InThread) -> LogPosition:
        """Return the log's position once it is past an offset; until then all goes on that does not wait for it."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STILL_SECONDS):
                    return await self._parts.log_checkpoints.past(self.partition, offset)
            await in_thread(self.idle)

    async def _dispatch_few(self, part: EventBatch, position: LogPosition) -> bool:
        """Dispatch a part in the event loop, if that is quickly done; return whether it was."""
        fence = self._require_fence()
        if not part.offsets:
            self._dispatched_to = part.next_offset
            return True
        is_usual = position.token == fence.token and position.applied_from <= part.offsets[0]
        has_news = self._known is not self._parts.directory.known or self._backfills.has_unfinished
        if not is_usual or has_news or len(part) > FEW_RECORDS:
            return False
        started = time.perf_counter()
        events = [
            EffectiveEvent(offset, 0, value or b"", headers)
            for offset, value, headers in zip(part.offsets, part.values, part.headers, strict=True)
        ]
        by = DispatchedStream(self.partition, fence.token, "live")
        index = self._known.index
        deliveries = self._sender.few_deliveries(events, self._live, by, index.has_type) if len(index) else []
        if deliveries is None:
            return False
        await self._sender.publish_few(deliveries, by)
        self._note_dispatched(part, EffectiveSlice(events, part.next_offset), len(deliveries), started)
        return True

    def _project(self, batch: EventBatch) -> None:
        """Dispatch the first part of a batch that the log has passed."""
        self._sender.require_current()
        if not batch.offsets:
            self._dispatched_to = batch.next_offset
            return
        started = time.perf_counter()
        part = batch.between(0, min(len(batch), PART_RECORDS_MAX))
        self._hear()
        found = fetched_events(self._require_session(), part, PART_RECORDS_MAX)
        self._put_off(found.next_offset)
        by = DispatchedStream(self.partition, self._require_fence().token, "live")
        sent = self._sender.publish(found.events, self._live, by) if len(self._known.index) else 0
        self._note_dispatched(part, found, sent, started)

    def _note_dispatched(self, part: EventBatch, found: EffectiveSlice, sent: int, started: float) -> None:
        self._dispatched_to = found.next_offset
        metrics.DISPATCHER_EVENTS.labels(self.topic).inc(len(found.events))
        unusual = len(found.events) != len(part) and self._log_budget.consume(time.monotonic()) is not None
        (log.info if unusual else log.debug)(
            "events.dispatched", topic=self.topic, partition=self.partition, stream="live", events=len(found.events),
            records=len(part), deliveries=sent, next_offset=found.next_offset,
            duration_ms=round((time.perf_counter() - started) * 1000, 3),
        )  # fmt: skip

    def _settle(self) -> None:
        """Advance the checkpoint where that is due, and feed who is owed events their part of the time."""
        started = time.monotonic()
        if started >= self._advance_at:
            self._advance()
        if started >= self._feed_at:
            fed, ended = self._feed(), time.monotonic()
            if fed:
                pause_seconds = (ended - started) * (1 / BACKFILL_SHARE - 1)
            else:
                waits = self._backfills.has_unfinished or self._redrives.has_open
                pause_seconds = FEED_PAUSE_SECONDS if waits else ADVANCE_SECONDS
            self._feed_at = ended + pause_seconds
        self._settle_at = min(self._feed_at, started + ADVANCE_SECONDS)

    def _hear(self) -> None:
        """Store from where on endpoints are live that this partition has heard of for the first time.

        Nothing is on its way here: all that was dispatched lies below what was acknowledged, or was dispatched by a
        former owner and lies below the log's checkpoint as it was then.
        """
        known = self._parts.directory.known
        if known is self._known:
            return
        dispatched_until = max(self._dispatched_to, self._log_at_acquisition)
        self._store(self._backfills.heard_of(known.subscriptions, dispatched_until, known.resumed))
        self._known = known
        self._feed_at = 0.0  # what they are owed does not wait for the next look

    def _put_off(self, next_offset: int) -> None:
        """Let live events below an offset wait behind what their endpoints are owed, where an entity's order counts."""
        if self._backfills.has_unfinished:
            known = self._known
            ordered = [each for each in self._backfills.unfinished() if known.is_in_order(each)]
            self._store(self._backfills.put_off(ordered, next_offset))

    def _store(self, rows: NewBackfills | None) -> None:
        if rows is not None:
            self._advance()  # they are of this offset: who goes on from an earlier one would find them too late
            self._require_session().script("BEGIN", self._lock_statement(), rows.statement, "COMMIT")
            self._backfills.note_heard(rows)

    def _feed(self) -> bool:
        """Publish a slice of a backfill and one of a redrive; return whether there was one."""
        fed = self._feed_backfill()
        session, token = self._require_session(), self._require_fence().token
        send, decode = self._sender.publish_slice, self._sender.decode
        return self._redrives.feed(session, self._lock_statement(), token, decode, send) or fed

    def _feed_backfill(self) -> bool:
        """Publish the next slice of what an endpoint is owed; return whether there was one, and room for it."""
        if not self._backfills.has_unfinished or not self._parts.backfill_rate.has_room():
            return False
        found = self._reader.next_slice(self._require_session(), self._backfills, self._known)
        if found is None:
            return False
        self._advance()
        endpoint_id = found.endpoint_id
        by = DispatchedStream(self.partition, self._require_fence().token, "backfill")
        try:
            match = asked_alone(self._known.subscriptions[endpoint_id])
            sent = self._sender.publish(found.events, lambda _: match, by)
        except (SchemaNewer, AppliedEventUnreadable) as error:  # live events and other endpoints go on
            self._reader.set_aside(endpoint_id)
            log.error("backfill.stopped", endpoint_id=str(endpoint_id), what=error.what, why=error.why)
            return True
        self._parts.backfill_rate.consume(sent)
        advance = self._backfills.advance_statement(endpoint_id, found.next_offset)
        self._require_session().script("BEGIN", self._lock_statement(), advance, "COMMIT")
        bound = log.bind(topic=self.topic, partition=self.partition, endpoint_id=str(endpoint_id))
        bound.debug("events.dispatched", stream="backfill", events=len(found.events), deliveries=sent)
        if self._backfills.note_advanced(endpoint_id, found.next_offset):
            bound.info("backfill.finished", next_offset=found.next_offset)
        return True

    def _live(self, offset: int) -> Match:
        """Return the function that finds the endpoints which get a live event of an offset."""
        index, is_live = self._known.index, self._backfills.is_live

        def match(event_type: str, data: object) -> Sequence[EndpointId]:
            return [each for each in index.match(event_type, data) if is_live(each, offset)]

        return match

    def _advance(self) -> None:
        """Advance the checkpoint to where all is dispatched."""
        fence = self._require_fence()
        if self._dispatched_to > fence.next_offset:
            advance = checkpoints.advance_statement(DISPATCHER, self.topic, self.partition, self._dispatched_to)
            self._require_session().script("BEGIN", self._lock_statement(), advance, "COMMIT")
            self._fence = replace(fence, next_offset=self._dispatched_to)
            self._advance_at = time.monotonic() + ADVANCE_SECONDS

    def _drop(self) -> None:
        """Drop the connection; what is on its way to Kafka is waited for."""
        self._sender.forget()
        if self._session is not None:
            self._session.close()
        self._session = self._fence = None

    def _dispatched(self) -> Fence:
        """Return the fence with the offset up to which all is dispatched, which the checkpoint may be short of."""
        return replace(self._require_fence(), next_offset=self._dispatched_to)

    def _lock_statement(self) -> str:
        fence = self._require_fence()
        return checkpoints.lock_statement(DISPATCHER, self.topic, self.partition, fence.token, fence.next_offset)

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._drop()
            raise

    def _require_fence(self) -> Fence:
        if self._fence is None:
            raise DatabaseUnreachable(why="The connection was closed.")
        return self._fence

    def _require_session(self) -> Session:
        if self._session is None:
            raise DatabaseUnreachable(why="The connection was closed.")
        return self._session

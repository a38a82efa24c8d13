"""One ownership of a partition: deliveries in, attempts out, and rounds in which what came of them is written down.

A round publishes what follows from attempts that ended (the record of each, and the one in which a delivery waits or is
dead), waits until Kafka has acknowledged all of that, and then writes, in one transaction under the fence: the rows of
deliveries that wait, the offsets that are done, the marks of what was read. What came of attempts that were published
and not written is read first by the next owner (`recorded_attempts.py`). A record that a process had published before
it died is known for a copy: its hop is not the one in the delivery's row, or another copy of it is under way.

Records of retry topics are compared with the rows at the beginning of a round, since every row of a record that was
read by then is written: rounds come one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any, Final

from deliveries.deliverer.attempt_records import EndedDelivery, Postponed, outcome_of, records_of, row_due_at
from deliveries.deliverer.delivery import Delivery, read_deliveries
from deliveries.deliverer.delivery_process import DeliveryProcess
from deliveries.deliverer.endpoint_queues import EndpointQueues
from deliveries.deliverer.endpoint_streaks import EndpointStreaks, StreakChanges
from deliveries.deliverer.entity_order import EntityOfEndpoint, EntityOrder, held_by
from deliveries.deliverer.offset_tracker import OffsetTracker
from deliveries.deliverer.recorded_attempts import RecordedAttempts, end_of
from deliveries.deliverer.round_writer import DeliveryRound, RoundWriter
from deliveries.deliverer.source_marks import MarkedSource, SourceMark, SourceMarks
from deliveries.delivery_fence import TopicOffsets
from deliveries.schedule import RetryAt
from runtime import metrics
from runtime.logging import get_logger, writes_debug
from schemas.errors import UnknownSchema
from streams.batch import EventBatch
from streams.errors import LogTruncated, OwnershipLost, SchemaNewer
from streams.log_end import record_of

log = get_logger(__name__)

READ_RECORDS: Final = 500
"""Records that are read between two turns of the loop."""


class PartitionRun:
    """The deliveries of a partition from the fence's acquiring on until its loss, or any other failure."""

    def __init__(
        self, process: DeliveryProcess, partition: int, writer: RoundWriter,
        marks: dict[MarkedSource, SourceMark], held: set[EntityOfEndpoint], streaks: EndpointStreaks,
        recorded: RecordedAttempts,
    ) -> None:  # fmt: skip
        """`marks`, `held` and `streaks` are what Postgres knows of the partition, `recorded` what Kafka knows.

        They were read once the fence was acquired.
        """
        self.writer: Final = writer
        self.token: Final = writer.fence.token
        self.failure: BaseException | None = None
        self.trackers: dict[str, OffsetTracker] = {}
        self._process = process
        self._partition = partition
        self._marks = SourceMarks(marks)
        self._order = EntityOrder(held)
        self._streaks = streaks
        self.queues: Final = EndpointQueues(process, self._note_end)
        self._recorded = recorded
        self._recorded_to = recorded.next_offset
        self._active: set[bytes] = set()
        self._taken: set[bytes] = set()
        self._unverified: list[Delivery] = []
        self._timers: list[tuple[datetime, int, Delivery]] = []
        self._sequence = count()
        self._ended: list[EndedDelivery] = []
        self._writing = False
        self._next_due_at: datetime | None = datetime.min.replace(tzinfo=UTC)
        self._released: set[EntityOfEndpoint] = set()
        self._changed: set[str] = set()
        self._stored: dict[str, TopicOffsets] = {}
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._due_changed = asyncio.Event()
        self._background = [
            asyncio.create_task(self._keep(self._run_rounds()), name=f"rounds {partition}"),
            asyncio.create_task(self._keep(self._run_timers()), name=f"timers {partition}"),
        ]
        self._log = log.bind(partition=partition, token=self.token)

    @property
    def waiting(self) -> int:
        """How many deliveries of retry topics wait in memory for their time."""
        return len(self._timers)

    def open_topic(self, topic: str, offsets: TopicOffsets) -> None:
        """Take records of a topic from its checkpoint on."""
        self.trackers[topic] = OffsetTracker(offsets)

    def check(self) -> None:
        """Raise what ended the run, if it has ended."""
        if self.failure is not None:
            raise OwnershipLost(why=f"The partition is read again: {self.failure}.") from self.failure

    async def accept(self, topic: str, batch: EventBatch) -> int:
        """Take a batch as soon as there is room; return the offset that is read next, whatever is done by then.

        Raises OwnershipLost, SchemaNewer.
        """
        tracker = self._tracker(topic, batch)
        for start in range(0, len(batch), READ_RECORDS):
            await self._take(topic, tracker, batch.between(start, min(start + READ_RECORDS, len(batch))))
        if not len(batch) and batch.next_offset > tracker.position:
            tracker.read(batch.next_offset, ())
            self._changed.add(topic)
        self.check()
        return tracker.position

    async def close(self) -> None:
        """Give up what is under way: it is attempted again by the next owner."""
        if self.failure is None:
            self.failure = OwnershipLost(why="The partition was given up.")
        self.queues.stop()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.queues.cancel()
        self._room.set()

    async def drain(self) -> None:
        """Return once nothing is under way and what ended is written down; nothing new is begun meanwhile."""
        self.queues.stop()
        await self.queues.finish()
        while (self._ended or self._writing) and self.failure is None:
            self._work.set()
            await asyncio.sleep(self._process.limits.round_seconds)

    def _tracker(self, topic: str, batch: EventBatch) -> OffsetTracker:
        self.check()
        tracker = self.trackers.get(topic)
        if tracker is None or batch.token != self.token:
            raise OwnershipLost(why=f"The batch was fetched under token {batch.token}, not {self.token}.")
        if batch.next_offset > tracker.position and batch.fetched_from != tracker.position:
            raise OwnershipLost(why=f"Offsets {tracker.position} to {batch.fetched_from} were not read.")
        return tracker

    async def _take(self, topic: str, tracker: OffsetTracker, batch: EventBatch) -> None:
        if batch.next_offset <= tracker.position:
            return
        while tracker.unfinished >= self._process.limits.unfinished_max:
            self._room.clear()
            await self._room.wait()
            self.check()
        try:
            deliveries, rejected = read_deliveries(batch.values, topic, self._partition, batch.offsets)
        except UnknownSchema as error:
            raise SchemaNewer(topic, self._partition, batch.offsets[error.row or 0], error.schema_id) from error
        await self._process.endpoints.load({each.endpoint_id for each in deliveries})
        self.check()
        self._compare(topic, tracker, batch)
        fresh = set(tracker.read(batch.next_offset, batch.offsets))
        self._changed.add(topic)
        for value in rejected:
            if (offset := batch.offsets[value.row]) in fresh:
                self._log.error("delivery.unreadable", topic=topic, offset=offset, why=value.reason)
                tracker.finish(offset)
        for delivery in sorted(deliveries, key=lambda each: each.offset):
            if delivery.offset in fresh:
                self._sort_in(topic, tracker, delivery)
        self._work.set()

    def _compare(self, topic: str, tracker: OffsetTracker, batch: EventBatch) -> None:
        """Compare what an owner before has read last. Raises LogTruncated where Kafka holds another record there."""
        known = tracker.last
        rows = {len(batch) - 1} if len(batch) else set()
        if known is not None and rows and batch.offsets[0] <= known.offset and known.offset in batch.offsets:
            rows.add(batch.offsets.index(known.offset))
        for row in sorted(rows):
            record = record_of(batch, row)
            if (difference := tracker.compare(record)) is not None:
                raise LogTruncated(topic, self._partition, difference)

    def _sort_in(self, topic: str, tracker: OffsetTracker, delivery: Delivery) -> None:
        """Let a delivery be attempted if it is new, or have it compared with the rows if it has been here before."""
        if topic != self._process.topics.deliveries:
            self._unverified.append(delivery)
        elif not self._is_new(tracker, delivery):
            metrics.DELIVERER_COPIES.inc()
            tracker.finish(delivery.offset)
        elif delivery.stream == "redrive":
            self._unverified.append(delivery)
        elif delivery.delivery_id in self._active:
            metrics.DELIVERER_COPIES.inc()
            tracker.finish(delivery.offset)
        else:
            self._active.add(delivery.delivery_id)
            if not self._note_recorded(delivery):
                self._enter(delivery)

    def _note_recorded(self, delivery: Delivery) -> bool:
        """Take what came of a delivery from the record of its attempt, if there is one; return whether there is.

        Where an entity's order counts the attempt is made again: what comes behind it has to go through its end.
        """
        if self._process.endpoints.is_ordered(delivery.endpoint_id):
            return False
        recorded = self._recorded.take(delivery)
        if recorded is None:
            return False
        if recorded.outcome == "gone":
            self.queues.note_gone(delivery.endpoint_id)
        self._ended.append(
            EndedDelivery(delivery=delivery, end=end_of(recorded), began_at=recorded.attempted_at, recorded=True)
        )
        self._work.set()
        return True

    def _is_new(self, tracker: OffsetTracker, delivery: Delivery) -> bool:
        return delivery.offset < tracker.judged_to or self._marks.pass_new(delivery)

    def _enter(self, delivery: Delivery) -> None:
        """Let a new delivery be attempted, unless an earlier one of its entity has to be done before."""
        if not self._process.endpoints.is_ordered(delivery.endpoint_id):
            self.queues.enqueue(delivery)
            return
        match self._order.enter(delivery):
            case "go":
                self.queues.enqueue(delivery)
            case "row":
                self._keep_behind(delivery)
            case "behind":
                pass

    def _resume(self, delivery: Delivery) -> None:
        """Let a delivery be attempted that has waited."""
        if self._process.endpoints.is_ordered(delivery.endpoint_id):
            self._order.resume(delivery)
        self.queues.enqueue(delivery)

    def _keep_behind(self, delivery: Delivery) -> None:
        """Let a delivery wait in Postgres behind another one of its entity."""
        behind = Postponed(None, "An earlier event of its entity waits.")
        self._ended.append(
            EndedDelivery(delivery=delivery, end=behind, began_at=self._process.clock.now(), ordered=True)
        )
        self._work.set()

    def _note_end(self, ended: EndedDelivery) -> None:
        """Keep what came of a delivery for the next round; let the next one of its entity go."""
        self._ended.append(ended)
        self._work.set()
        self._log_end(ended)
        if not ended.ordered:
            return
        if isinstance(ended.end, Postponed | RetryAt) or ended.blocks:
            for behind in self._order.wait(ended.delivery):
                self._keep_behind(behind)
            return
        following = self._order.end(ended.delivery)
        if following is not None:
            self.queues.enqueue(following)
        elif self._order.has_rows(held := held_by(ended.delivery)):
            self._released.add(held)

    def _log_end(self, ended: EndedDelivery) -> None:
        """Write the one line of a delivery that was due, and count it."""
        outcome, state, next_at = outcome_of(ended)
        metrics.DELIVERER_ATTEMPTS.labels(outcome).inc()
        if ended.attempt is not None:
            metrics.DELIVERER_ATTEMPT_SECONDS.observe(ended.attempt.duration_seconds)
        if state == "delivered" and not writes_debug():
            return
        (self._log.debug if state == "delivered" else self._log.info)(
            "delivery.attempted",
            delivery=ended.delivery.id_text,
            endpoint=str(ended.delivery.endpoint),
            type=ended.delivery.type,
            attempt=ended.delivery.attempt,
            outcome=outcome,
            state=state,
            status_code=None if ended.attempt is None else ended.attempt.outcome.status_code,
            error_class=None if ended.attempt is None else ended.attempt.outcome.error_class,
            duration_ms=None if ended.attempt is None else round(ended.attempt.duration_seconds * 1000, 3),
            next_attempt_at=None if next_at is None else next_at.isoformat(),
        )

    async def _run_timers(self) -> None:
        """Let deliveries of retry topics be attempted when they are due; look for slow attempts meanwhile."""
        while self.failure is None:
            now = self._process.clock.now()
            while self._timers and self._timers[0][0] <= now:
                self._resume(heapq.heappop(self._timers)[2])
            self._process.slots.sweep(self._process.clock.monotonic_seconds())
            wait_seconds = self._process.limits.poll_seconds
            if self._timers:
                wait_seconds = min(wait_seconds, max(0.001, (self._timers[0][0] - now).total_seconds()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    await self._due_changed.wait()
            self._due_changed.clear()

    async def _run_rounds(self) -> None:
        limits = self._process.limits
        while self.failure is None:
            with contextlib.suppress(TimeoutError):  # `wait_for` of Python 3.11 may swallow that the task is cancelled
                async with asyncio.timeout(self._seconds_to_next_look()):
                    await self._work.wait()
            self._work.clear()
            await asyncio.sleep(limits.round_seconds)
            self._writing = True
            await self._run_round()
            self._writing = False

    def _seconds_to_next_look(self) -> float:
        """Return for how long a round can wait that has nothing to write: at most until the next row is due."""
        poll_seconds = self._process.limits.poll_seconds
        if self._next_due_at is None:
            return poll_seconds
        until_due = (self._next_due_at - self._process.clock.now()).total_seconds()
        return min(until_due, poll_seconds) if until_due > 0 else poll_seconds

    async def _run_round(self) -> None:
        ended, self._ended = self._ended, []
        unverified, self._unverified = self._unverified, []
        behind = await self._process.publish([record for each in ended for record in records_of(each, self.token)])
        self._recorded_to = max(self._recorded_to, behind)
        for each in ended:
            if each.delivery.offset >= 0:
                self._finish(each.delivery)
        work = self._make_round(ended, unverified)
        if work.is_empty:
            return
        answer = await self.writer.write(work)
        if work.due_max:
            self._next_due_at = answer.next_due_at
        else:
            self._note_waits(ended)
        self._stored |= work.offsets
        self._marks.note_stored(work.marks)
        kept = set(answer.with_rows) | {held_by(each.delivery) for each in self._ended if each.ordered}
        self._order.note_empty(set(work.released) - kept)
        over = {each.delivery.delivery_id for each in ended}
        self._active -= over
        self._taken -= over
        self.queues.note_written(sum(each.attempted for each in ended))
        if work.gone or work.streaks.disabled:
            await self._process.endpoints.refresh()
        self._verify(unverified, answer.hops)
        due = read_deliveries(answer.due)[0]
        await self._process.endpoints.load({each.endpoint_id for each in due})
        for delivery in due:
            if delivery.delivery_id not in self._active:
                self._active.add(delivery.delivery_id)
                self._taken.add(delivery.delivery_id)
                if not self._note_recorded(delivery):
                    self._resume(delivery)
        self._room.set()

    def _make_round(self, ended: Sequence[EndedDelivery], unverified: Sequence[Delivery]) -> DeliveryRound:
        """Return what is to be written now: offsets, marks and ends of the same moment."""
        streaks = self._note_streaks(ended)
        gone, self.queues.gone = self.queues.gone, {}
        ids = {each.delivery_id for each in unverified}
        released = self._take_released(ended)
        looks = bool(released) or (self._next_due_at is not None and self._next_due_at <= self._process.clock.now())
        return DeliveryRound(
            ended=ended,
            offsets=self._changed_offsets(),
            marks=self._marks.changed(),
            released=released,
            gone=gone,
            unverified=ids,
            taken=frozenset(self._taken),
            busy=self.queues.busy_endpoints(),
            due_max=self._process.limits.queue_max if looks else 0,
            streaks=streaks,
        )

    def _note_streaks(self, ended: Sequence[EndedDelivery]) -> StreakChanges:
        """Return what becomes of the endpoints' streaks; one that failed for too long gets nothing from now on."""
        for each in ended:
            known = self._process.endpoints.get(each.delivery.endpoint_id)
            self._streaks.note(each, None if known is None else known.endpoint.enabled_at)
        changes = self._streaks.take_changes()
        for endpoint_id in changes.disabled:
            self._process.endpoints.disable(endpoint_id)
        return changes

    def _note_waits(self, ended: Sequence[EndedDelivery]) -> None:
        """Note when the first of the deliveries is due that were put into rows."""
        times = [time for each in ended if (time := row_due_at(each)) is not None]
        if self._next_due_at is not None:
            times.append(self._next_due_at)
        self._next_due_at = min(times, default=None)

    def _finish(self, delivery: Delivery) -> None:
        """Note that the record that a delivery was read from is done."""
        self.trackers[delivery.topic].finish(delivery.offset)
        self._changed.add(delivery.topic)

    def _take_released(self, ended: Sequence[EndedDelivery]) -> set[EntityOfEndpoint]:
        """Return the entities of which the first delivery that waits in a row may be due: none of them is under way."""
        released, self._released = self._released, set()
        released |= {
            held_by(each.delivery) for each in ended if isinstance(each.end, Postponed) and each.end.until is None
        }
        return {held for held in released if not self._order.is_going(held)}

    def _changed_offsets(self) -> dict[str, TopicOffsets]:
        changed, self._changed = self._changed, set()
        now = {topic: self.trackers[topic].offsets() for topic in changed if topic in self.trackers}
        if not self._recorded.are_needed(self._process.clock.now()):
            now[self._process.topics.attempts] = TopicOffsets(self._recorded_to, (), self._recorded_to)
        return {topic: offsets for topic, offsets in now.items() if self._stored.get(topic) != offsets}

    def _verify(self, deliveries: Sequence[Delivery], hops: Mapping[bytes, int]) -> None:
        """Let those records of retry topics wait for their time that are no copies, and redriven deliveries begin.

        A delivery that is redriven while it waits goes on as it is: it never has two chains of retries. Of one that has
        ended and is not written down it is not known yet whether it waits: the next round tells.
        """
        ending = {each.delivery.delivery_id for each in self._ended}
        for delivery in deliveries:
            redriven = delivery.topic == self._process.topics.deliveries
            if redriven and delivery.delivery_id in ending:
                self._unverified.append(delivery)
                continue
            expected = None if redriven else delivery.hop
            if hops.get(delivery.delivery_id) != expected or delivery.delivery_id in self._active:
                metrics.DELIVERER_COPIES.inc()
                self._finish(delivery)
                continue
            self._active.add(delivery.delivery_id)
            if self._note_recorded(delivery):
                continue
            if redriven:
                self._enter(delivery)
                continue
            due_at = delivery.due_at or datetime.min.replace(tzinfo=UTC)
            heapq.heappush(self._timers, (due_at, next(self._sequence), delivery))
        self._due_changed.set()

    async def _keep(self, work: Any) -> None:
        """Run until the end; whatever ends it ends the run."""
        try:
            await work
        except Exception as error:
            self._log.warning("deliveries.failed", error=type(error).__name__, why=str(error))
            self.failure = error
            self.queues.stop()
            self._room.set()

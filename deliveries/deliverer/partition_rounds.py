"""Rounds of a partition, one after the other: what came of deliveries is published, acknowledged, and written down.

A round publishes what follows from attempts that ended (the record of each, and the one in which a delivery waits or is
dead), waits until Kafka has acknowledged all of that, and then writes, in one transaction under the fence: the rows of
deliveries that wait, the offsets that are done, the marks of what was read. What came of attempts that were published
and not written is read first by the next owner (`recorded_attempts.py`). A record that a process had published before
it died is known for a copy: its hop is not the one in the delivery's row, or another copy of it is under way.

Where all that ended is delivered and has no row, nobody waits for the transaction, which costs more than the rest of
such a round: several rounds share one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime

from deliveries.deliverer.attempt_records import EndedDelivery, records_of, row_due_at
from deliveries.deliverer.delivery import Delivery, read_deliveries
from deliveries.deliverer.delivery_process import DeliveryProcess
from deliveries.deliverer.endpoint_streaks import EndpointStreaks, StreakChanges
from deliveries.deliverer.partition_deliveries import PartitionDeliveries
from deliveries.deliverer.partition_intake import PartitionIntake
from deliveries.deliverer.round_writer import DeliveryRound, RoundWriter
from deliveries.delivery_fence import TopicOffsets
from deliveries.schedule import Delivered


class PartitionRounds:
    """What of a partition is written down, and what is due next of what was."""

    def __init__(
        self, process: DeliveryProcess, writer: RoundWriter, intake: PartitionIntake, deliveries: PartitionDeliveries,
        streaks: EndpointStreaks,
    ) -> None:  # fmt: skip
        self._process = process
        self._writer = writer
        self._intake = intake
        self._deliveries = deliveries
        self._streaks = streaks
        self._recorded_to = deliveries.recorded.next_offset
        self._next_due_at: datetime | None = datetime.min.replace(tzinfo=UTC)
        self._stored: dict[str, TopicOffsets] = {}
        self._published: list[EndedDelivery] = []
        self._running = False
        self._write_waits = False
        self._write_at_seconds = 0.0

    @property
    def is_behind(self) -> bool:
        """Whether something has ended that is not written down."""
        return bool(self._deliveries.ended or self._published) or self._running

    async def run_next(self) -> None:
        """Wait until there may be something to write or something is due, gather for a moment, and run a round."""
        with contextlib.suppress(TimeoutError):  # `wait_for` of Python 3.11 may swallow that the task is cancelled
            async with asyncio.timeout(self._seconds_to_next_look()):
                await self._deliveries.work.wait()
        self._deliveries.work.clear()
        await asyncio.sleep(self._process.limits.round_seconds)
        self._running = True
        await self._run()
        self._running = False

    def _seconds_to_next_look(self) -> float:
        """Return for how long a round can wait that has nothing to publish: at most until the next row is due."""
        wait_seconds = self._process.limits.poll_seconds
        if self._write_waits:
            wait_seconds = min(wait_seconds, self._write_at_seconds - self._process.clock.monotonic_seconds())
        if self._next_due_at is not None:
            until_due = (self._next_due_at - self._process.clock.now()).total_seconds()
            wait_seconds = min(wait_seconds, until_due) if until_due > 0 else wait_seconds
        return max(0.0, wait_seconds)

    async def _run(self) -> None:
        ended, unverified = self._deliveries.take_ended(), self._intake.take_unverified()
        await self._publish(ended)
        self._published += ended
        self._write_waits = not (unverified or self._is_awaited(ended) or self._is_write_due())
        if self._write_waits:
            self._intake.look_for_room()
        else:
            ended, self._published = self._published, []
            await self._write(ended, unverified)

    async def _publish(self, ended: Sequence[EndedDelivery]) -> None:
        """Publish what follows from ends; once Kafka has it, the records that they were read from are done."""
        token = self._writer.fence.token
        behind = await self._process.publish([record for each in ended for record in records_of(each, token)])
        self._recorded_to = max(self._recorded_to, behind)
        for each in ended:
            if each.delivery.offset >= 0:
                self._intake.finish(each.delivery)

    def _is_awaited(self, ended: Sequence[EndedDelivery]) -> bool:
        """Return whether something waits for what a round writes, or for what Postgres answers."""
        due = self._next_due_at is not None and self._next_due_at <= self._process.clock.now()
        return (
            due
            or bool(self._deliveries.queues.gone)
            or any(not isinstance(each.end, Delivered) or each.ordered or each.delivery.hop > 0 for each in ended)
        )

    def _is_write_due(self) -> bool:
        """Return whether other rounds have waited for long enough, or are many."""
        now_seconds = self._process.clock.monotonic_seconds()
        return now_seconds >= self._write_at_seconds or len(self._published) >= self._process.limits.unwritten_max

    async def _write(self, ended: Sequence[EndedDelivery], unverified: Sequence[Delivery]) -> None:
        work = self._make_round(ended, unverified)
        if work.is_empty:
            return
        answer = await self._writer.write(work)
        self._write_at_seconds = self._process.clock.monotonic_seconds() + self._process.limits.write_seconds
        if work.due_max:
            self._next_due_at = answer.next_due_at
        else:
            self._note_waits(ended)
        self._stored |= work.offsets
        self._intake.marks.note_stored(work.marks)
        self._deliveries.note_written(ended, work.released, answer.with_rows)
        if work.gone or work.streaks.disabled:
            await self._process.endpoints.refresh()
        self._intake.verify(unverified, answer.hops)
        await self._begin_due(answer.due)
        self._intake.look_for_room()

    async def _begin_due(self, records: Sequence[bytes]) -> None:
        """Let deliveries that are due in rows be attempted."""
        due = read_deliveries(records)[0]
        await self._process.endpoints.load({each.endpoint_id for each in due})
        for delivery in due:
            if delivery.delivery_id not in self._deliveries.active:
                self._deliveries.begin_again(delivery)

    def _make_round(self, ended: Sequence[EndedDelivery], unverified: Sequence[Delivery]) -> DeliveryRound:
        """Return what is to be written now: offsets, marks and ends of the same moment."""
        streaks = self._note_streaks(ended)
        gone, self._deliveries.queues.gone = self._deliveries.queues.gone, {}
        released = self._deliveries.take_released(ended)
        looks = bool(released) or (self._next_due_at is not None and self._next_due_at <= self._process.clock.now())
        return DeliveryRound(
            ended=ended,
            offsets=self._changed_offsets(),
            marks=self._intake.marks.changed(),
            released=released,
            gone=gone,
            unverified={each.delivery_id for each in unverified},
            taken=frozenset(self._deliveries.taken) if looks else frozenset(),
            busy=self._deliveries.queues.busy_endpoints() if looks else frozenset(),
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

    def _changed_offsets(self) -> dict[str, TopicOffsets]:
        now = self._intake.take_changed()
        # Of a delivery that was read while this round was published, the next round writes what its record says.
        is_left = any(each.recorded for each in self._deliveries.ended)
        if not is_left and not self._deliveries.recorded.are_needed(self._process.clock.now()):
            now[self._process.topics.attempts] = TopicOffsets(self._recorded_to, (), self._recorded_to)
        return {topic: offsets for topic, offsets in now.items() if self._stored.get(topic) != offsets}

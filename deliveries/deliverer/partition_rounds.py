"""Rounds of a partition, one after the other: what came of deliveries is published, acknowledged, and written down.

A round publishes what follows from attempts that ended (the record of each, and the one in which a delivery waits or is
dead), waits until Kafka has acknowledged all of that, and then writes, in one transaction under the fence: the rows of
deliveries that wait, the offsets that are done, the marks of what was read. What came of attempts that were published
and not written is read first by the next owner (`recorded_attempts.py`). A record that a process had published before
it died is known for a copy: its hop is not the one in the delivery's row, or another copy of it is under way.

The transaction costs more than the rest of a round, and mostly nobody waits for it: several rounds share one. A kill
before it repeats nothing, since Kafka has the records of those attempts. A retry's row has to be there before its
record is compared with it, a second later, and a row of which nothing is due yet before that time.

Rows are looked for as they fall due, whosever they are. Left out are those of endpoints that get no attempts, or of
which one delivery has to tell first whether they are well: theirs are looked for endpoint by endpoint, once it can
have some. So a row is read when it can be attempted, however many are due that can not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final

import msgspec

from deliveries.deliverer.attempt_records import EndedDelivery, records_of, row_due_at
from deliveries.deliverer.delivery import Delivery, id_text, read_deliveries
from deliveries.deliverer.delivery_process import DeliveryProcess
from deliveries.deliverer.endpoint_streaks import EndpointStreaks, StreakChanges
from deliveries.deliverer.partition_deliveries import PartitionDeliveries
from deliveries.deliverer.partition_intake import PartitionIntake
from deliveries.deliverer.round_writer import DeliveryRound, RoundAnswer, RoundWriter
from deliveries.delivery_fence import TopicOffsets
from deliveries.schedule import DeadLettered

WANTED_MAX: Final = 100
"""Endpoints whose rows are asked for at a time."""


class PartitionRounds:
    """What of a partition is written down, and what is due next of what was."""

    def __init__(
        self, process: DeliveryProcess, writer: RoundWriter, intake: PartitionIntake, deliveries: PartitionDeliveries,
        streaks: EndpointStreaks, log: Any,
    ) -> None:  # fmt: skip
        self._process = process
        self._writer = writer
        self._intake = intake
        self._deliveries = deliveries
        self._streaks = streaks
        self._log = log
        self._recorded_to = deliveries.recorded.next_offset
        self._look_at: datetime | None = datetime.min.replace(tzinfo=UTC)
        self._poll_at_seconds = process.clock.monotonic_seconds() + process.limits.poll_seconds
        self._stored: dict[str, TopicOffsets] = {}
        self._published: list[EndedDelivery] = []
        self._unverified: list[Delivery] = []
        self._unreadable: set[bytes] = set()
        """Deliveries whose rows hold no record that can be read: these are asked for once."""
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
            async with asyncio.timeout(self._seconds_to_next_round()):
                await self._deliveries.work.wait()
        self._deliveries.work.clear()
        await asyncio.sleep(self._process.limits.round_seconds)
        self._running = True
        await self._run()
        self._running = False

    def _seconds_to_next_round(self) -> float:
        """Return for how long a round can wait that has nothing to publish: at most until the next row is due.

        Each begins by gathering for a moment, which counts.
        """
        limits, clock = self._process.limits, self._process.clock
        wait_seconds = limits.poll_seconds
        if self._write_waits:
            until_write = self._write_at_seconds - clock.monotonic_seconds()
            wait_seconds = min(wait_seconds, until_write - limits.round_seconds)
        if self._look_at is not None:
            until_look = (self._look_at - clock.now()).total_seconds()
            wait_seconds = min(wait_seconds, until_look - limits.round_seconds)
        if self._deliveries.left_in_rows:
            until_poll = self._poll_at_seconds - clock.monotonic_seconds()
            wait_seconds = min(wait_seconds, until_poll - limits.round_seconds)
        return max(0.0, wait_seconds)

    async def _run(self) -> None:
        ended, unverified = self._deliveries.take_ended(), self._intake.take_unverified()
        await self._publish(ended)
        self._published += ended
        self._unverified += unverified
        self._write_waits = not (self._is_awaited(ended, unverified) or self._is_write_due())
        if not self._write_waits:
            await self._write()
        elif not (work := self._make_look()).is_empty:
            await self._look(work, await self._writer.write(work))
        self._intake.look_for_room()

    async def _publish(self, ended: Sequence[EndedDelivery]) -> None:
        """Publish what follows from ends; once Kafka has it, the records that they were read from are done."""
        token = self._writer.fence.token
        behind = await self._process.publish([record for each in ended for record in records_of(each, token)])
        self._recorded_to = max(self._recorded_to, behind)
        for each in ended:
            if each.delivery.offset >= 0:
                self._intake.finish(each.delivery)

    def _is_awaited(self, ended: Sequence[EndedDelivery], unverified: Sequence[Delivery]) -> bool:
        """Return whether something can't wait for the next transaction that is shared.

        Where order counts, attempts are made again that were not written down, and dead letters are published again.
        A row, or a record that is compared with one, has its time: nothing of it has to be there long before.
        """
        next_write = self._process.clock.now() + timedelta(seconds=self._process.limits.write_seconds)
        return (
            bool(self._deliveries.queues.gone)
            or any(each.ordered or isinstance(each.end, DeadLettered) or _is_due(each, next_write) for each in ended)
            or any(each.due_at is None or each.due_at <= next_write for each in unverified)
        )

    def _is_write_due(self) -> bool:
        """Return whether other rounds have waited for long enough, or are many."""
        now_seconds = self._process.clock.monotonic_seconds()
        waiting = len(self._published) + len(self._unverified)
        return now_seconds >= self._write_at_seconds or waiting >= self._process.limits.unwritten_max

    async def _write(self) -> None:
        ended, self._published = self._published, []
        unverified, self._unverified = self._unverified, []
        work = self._make_round(ended, unverified)
        if work.is_empty:
            return
        answer = await self._writer.write(work)
        self._write_at_seconds = self._process.clock.monotonic_seconds() + self._process.limits.write_seconds
        self._note_waits(ended)
        self._stored |= work.offsets
        self._intake.marks.note_stored(work.marks)
        self._deliveries.note_written(ended, work.released, answer.with_rows)
        if work.gone or work.streaks.disabled:
            await self._process.endpoints.refresh()
        self._intake.verify(unverified, answer.hops)
        await self._look(work, answer)

    async def _look(self, work: DeliveryRound, answer: RoundAnswer) -> None:
        """Let deliveries that are due in rows be attempted, and note when the next look is due."""
        if not (work.due_max or work.wanted):
            return
        due, rejected = read_deliveries([row.record for row in answer.due])
        for value in rejected:
            delivery_id = answer.due[value.row].delivery_id
            self._unreadable.add(delivery_id)
            self._log.error("delivery.unreadable", row=id_text(delivery_id), why=value.reason)
        await self._process.endpoints.load({each.endpoint_id for each in due})
        now = self._process.clock.now()
        if answer.more_due:
            self._look_at = now
        elif answer.next_due_at is not None:
            soonest = now + timedelta(seconds=self._process.limits.look_seconds)
            self._look_at = min(self._look_at or datetime.max.replace(tzinfo=UTC), max(answer.next_due_at, soonest))
        self._deliveries.left_in_rows |= dict.fromkeys(answer.with_more)
        if any(work.wanted[each] > 1 for each in answer.with_more):
            self._poll_at_seconds = 0.0
        self._deliveries.queues.note_without_rows(answer.without_rows)
        for delivery in due:
            if delivery.delivery_id not in self._deliveries.active:
                self._deliveries.begin_again(delivery)
            else:
                self._deliveries.left_in_rows[delivery.endpoint_id] = None

    def _make_look(self, anyhow: bool = False) -> DeliveryRound:
        """Return what asks for deliveries that are due in rows, and writes nothing; empty where none can be attempted.

        `anyhow`: one may be due whose time was not known.
        """
        if anyhow:
            self._poll_at_seconds = 0.0
        wanted, aside, due_max = self._take_wanted(), set[bytes](), 0
        if anyhow or (self._look_at is not None and self._look_at <= self._process.clock.now()):
            self._look_at = None
            due_max = self._process.limits.queue_max
            self._deliveries.left_in_rows |= dict.fromkeys(self._deliveries.queues.set_aside() - wanted.keys())
            # All that are left: one that had its share and has just sent some would get as much as a look reads.
            aside = self._deliveries.left_in_rows.keys() | wanted.keys()
        if not (wanted or due_max):
            return DeliveryRound()
        taken = self._deliveries.taken | self._unreadable
        probed = self._deliveries.queues.probed(wanted)
        return DeliveryRound(taken=taken, wanted=wanted, probed=probed, aside=aside, due_max=due_max)

    def _take_wanted(self) -> dict[bytes, int]:
        """Return the endpoints whose rows are asked for now, and how many of each: no more in all than a look may."""
        now_seconds, left = self._process.clock.monotonic_seconds(), self._deliveries.left_in_rows
        if not left or now_seconds < self._poll_at_seconds:
            return {}
        wanted = dict(islice(self._deliveries.queues.rows_wanted(left), WANTED_MAX))
        if len(wanted) < WANTED_MAX:  # the others are busy
            self._poll_at_seconds = now_seconds + self._process.limits.poll_seconds
        share = max(1, self._process.limits.queue_max // max(1, len(wanted)))
        for endpoint_id in wanted:
            del left[endpoint_id]
        return {endpoint_id: min(rows, share) for endpoint_id, rows in wanted.items()}

    def _make_round(self, ended: Sequence[EndedDelivery], unverified: Sequence[Delivery]) -> DeliveryRound:
        """Return what is to be written now: offsets, marks and ends of the same moment."""
        streaks = self._note_streaks(ended)
        gone, self._deliveries.queues.gone = self._deliveries.queues.gone, {}
        released = self._deliveries.take_released(ended)
        return msgspec.structs.replace(
            self._make_look(anyhow=bool(released)),
            ended=ended,
            offsets=self._changed_offsets(),
            marks=self._intake.marks.changed(),
            released=released,
            gone=gone,
            unverified={each.delivery_id for each in unverified},
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
        """Note when the first of the deliveries is due that were put into rows, but for those of busy endpoints."""
        times = [] if self._look_at is None else [self._look_at]
        for each in ended:
            if (due_at := row_due_at(each)) is None:
                continue
            if self._deliveries.queues.is_busy(each.delivery.endpoint_id):
                self._deliveries.left_in_rows[each.delivery.endpoint_id] = None
            else:
                times.append(due_at)
        self._look_at = min(times, default=None)

    def _changed_offsets(self) -> dict[str, TopicOffsets]:
        now = self._intake.take_changed()
        # Of a delivery that was read while this round was published, the next round writes what its record says.
        is_left = any(each.recorded for each in self._deliveries.ended)
        if not is_left and not self._deliveries.recorded.are_needed(self._process.clock.now()):
            now[self._process.topics.attempts] = TopicOffsets(self._recorded_to, (), self._recorded_to)
        return {topic: offsets for topic, offsets in now.items() if self._stored.get(topic) != offsets}


def _is_due(ended: EndedDelivery, by: datetime) -> bool:
    """Return whether a delivery that waits in a row is due by a time."""
    due_at = row_due_at(ended)
    return due_at is not None and due_at <= by

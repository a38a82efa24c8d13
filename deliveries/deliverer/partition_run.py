"""One ownership of a partition: deliveries in, attempts out, and rounds in which what came of them is written down.

Each part has a file of its own:

    partition_intake        which records begin deliveries, and which are copies
    partition_deliveries    deliveries in their order, to their attempts and to their ends
    partition_rounds        what ended: published, acknowledged, written down
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from deliveries.deliverer.delivery_process import DeliveryProcess
from deliveries.deliverer.endpoint_queues import EndpointQueues
from deliveries.deliverer.endpoint_streaks import EndpointStreaks
from deliveries.deliverer.entity_order import EntityOfEndpoint
from deliveries.deliverer.offset_tracker import OffsetTracker
from deliveries.deliverer.partition_deliveries import PartitionDeliveries
from deliveries.deliverer.partition_intake import PartitionIntake
from deliveries.deliverer.partition_rounds import PartitionRounds
from deliveries.deliverer.recorded_attempts import RecordedAttempts
from deliveries.deliverer.round_writer import RoundWriter
from deliveries.deliverer.source_marks import MarkedSource, SourceMark, SourceMarks
from deliveries.delivery_fence import TopicOffsets
from runtime.logging import get_logger
from streams.batch import EventBatch
from streams.errors import OwnershipLost

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
        self._process = process
        self._log = log.bind(partition=partition, token=self.token)
        self._deliveries = PartitionDeliveries(process, held, recorded, self._log)
        self._intake = PartitionIntake(process, partition, SourceMarks(marks), self._deliveries, self._log)
        self._rounds = PartitionRounds(process, writer, self._intake, self._deliveries, streaks, self._log)
        self._background = [
            asyncio.create_task(self._keep(self._run_rounds), name=f"rounds {partition}"),
            asyncio.create_task(self._keep(self._run_timers), name=f"timers {partition}"),
        ]

    @property
    def queues(self) -> EndpointQueues:
        """The queues of the partition's endpoints."""
        return self._deliveries.queues

    @property
    def trackers(self) -> Mapping[str, OffsetTracker]:
        """The topics that have a part in the run, and how far each is done."""
        return self._intake.trackers

    @property
    def waiting(self) -> int:
        """How many deliveries of retry topics wait in memory for their time."""
        return self._deliveries.waiting

    def open_topic(self, topic: str, offsets: TopicOffsets) -> None:
        """Take records of a topic from its checkpoint on."""
        self._intake.open_topic(topic, offsets)

    def check(self) -> None:
        """Raise what ended the run, if it has ended."""
        if self.failure is not None:
            raise OwnershipLost(why=f"The partition is read again: {self.failure}.") from self.failure

    async def accept(self, topic: str, batch: EventBatch) -> int:
        """Take a batch as soon as there is room; return the offset that is read next, whatever is done by then.

        Raises OwnershipLost, SchemaNewer, LogTruncated.
        """
        tracker = self._tracker(topic, batch)
        for start in range(0, len(batch), READ_RECORDS):
            await self._take(topic, tracker, batch.between(start, min(start + READ_RECORDS, len(batch))))
        if not len(batch):
            self._intake.pass_gap(topic, batch.next_offset)
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
        self._intake.look_for_room()

    async def drain(self) -> None:
        """Return once nothing is under way and what ended is written down; nothing new is begun meanwhile."""
        self.queues.stop()
        await self.queues.finish()
        while self._rounds.is_behind and self.failure is None:
            self._deliveries.work.set()
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
        while not await self._intake.wait_for_room(tracker):
            self.check()
        loaded = await self._intake.load(topic, batch)
        self.check()
        self._intake.take(topic, batch, loaded)

    async def _run_timers(self) -> None:
        """Let deliveries of retry topics be attempted when they are due; look for slow attempts meanwhile."""
        while self.failure is None:
            until_due = self._deliveries.resume_due(self._process.clock.now())
            self._process.slots.sweep(self._process.clock.monotonic_seconds())
            wait_seconds = self._process.limits.poll_seconds
            if until_due is not None:
                wait_seconds = min(wait_seconds, max(0.001, until_due))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    await self._deliveries.due_changed.wait()
            self._deliveries.due_changed.clear()

    async def _run_rounds(self) -> None:
        while self.failure is None:
            await self._rounds.run_next()

    async def _keep(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run until the end; whatever ends it ends the run. The work is made here: a task may never take a step."""
        try:
            await work()
        except Exception as error:
            self._log.warning("deliveries.failed", error=type(error).__name__, why=str(error))
            self.failure = error
            self.queues.stop()
            self._intake.look_for_room()

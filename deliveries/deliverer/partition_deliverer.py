"""The owner of a partition's deliveries, and what the worker's loop calls for each of its topics.

`streams.ownership` opens each topic's partition by itself. All of one number share a run, under one fence: the first
that is acquired begins it, and where one of them fails, or is acquired again, the run ends and the others follow.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from database.errors import DatabaseUnreachable
from deliveries.deliverer import streak_rows, throttle_rows, wait_rows
from deliveries.deliverer.delivery_process import DeliveryProcess
from deliveries.deliverer.endpoint_streaks import EndpointStreak, EndpointStreaks
from deliveries.deliverer.entity_order import EntityOfEndpoint
from deliveries.deliverer.partition_run import PartitionRun
from deliveries.deliverer.recorded_attempts import read_recorded_attempts
from deliveries.deliverer.round_writer import RoundWriter
from deliveries.deliverer.source_marks import MarkedSource, SourceMark
from deliveries.delivery_fence import DeliveryFence, TopicOffsets
from projections.session import Session
from streams.batch import EventBatch
from streams.control_search import NamedPoison
from streams.errors import OwnershipLost
from streams.ownership import Acquired, InThread
from streams.watermarks import Watermarks

T = TypeVar("T")

INTERRUPTED_POLL_SECONDS: Final = 0.25


class _Stored(NamedTuple):
    """What an owner has once the fence is acquired: a session, and what Postgres knows of the partition."""

    session: Session
    fence: DeliveryFence
    marks: dict[MarkedSource, SourceMark]
    held: set[EntityOfEndpoint]
    streaks: dict[bytes, EndpointStreak]
    throttles: dict[bytes, datetime]


class PartitionDeliverer:
    """The deliveries of one partition number, on all topics. Lives in the event loop that it was made in."""

    def __init__(self, process: DeliveryProcess, url: str, partition: int) -> None:
        self.loop: Final = asyncio.get_running_loop()
        self._process = process
        self._url = url
        self._partition = partition
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"deliveries-{partition}")
        self._lock = asyncio.Lock()
        self._run: PartitionRun | None = None
        self._session: Session | None = None
        self._fence: DeliveryFence | None = None
        self._stop_reasons: dict[str, str] = {}

    @property
    def run(self) -> PartitionRun | None:
        """The run, while there is one."""
        return self._run

    async def open_topic(self, topic: str, watermarks: Watermarks) -> Acquired:
        """Take part in the run with a topic; begin one where there is none, or this topic had a part in it already.

        Raises DatabaseUnreachable, KafkaUnavailable, or a named stop, LogTruncated of the attempts' topic among them.
        """
        async with self._lock:
            was_stopped = self._stop_reasons.pop(topic, None) is not None
            if self._run is None or self._run.failure is not None or topic in self._run.trackers:
                await self._end()
                self._run = await self._begin()
            run = self._run
            try:
                # Where nobody has opened it, at the first record that Kafka has kept: none before it was ever read.
                offsets = await run.writer.call(run.writer.fence.open_topic, topic, watermarks, watermarks.low)
            except DatabaseUnreachable:  # a run with nothing to write would not notice that its session is gone
                await self._end()
                raise
            run.open_topic(topic, offsets)
            if was_stopped:
                await self._note_stop_reasons()
            return Acquired(run.token, offsets.log_end)

    async def accept(self, topic: str, batch: EventBatch) -> int:
        """Take a batch. Raises OwnershipLost, SchemaNewer, DatabaseUnreachable."""
        return await self._current().accept(topic, batch)

    async def check(self, topic: str) -> None:
        """Raise OwnershipLost where the run has ended that a topic had a part in, and where another one has begun."""
        run = self._current()
        run.check()
        if topic not in run.trackers:
            raise OwnershipLost(why=f"Partition {self._partition} is read again, and {topic} has no part in that yet.")

    async def note_stop(self, topic: str, reason: str) -> None:
        """Write down why a topic's partition is stopped, until that topic is opened or left."""
        async with self._lock:
            self._stop_reasons[topic] = reason
            await self._note_stop_reasons()

    async def leave(self, topic: str) -> None:
        """End the run, if a topic has a part in it."""
        async with self._lock:
            self._stop_reasons.pop(topic, None)
            if self._run is not None and topic in self._run.trackers:
                await self._end()

    async def drain(self) -> None:
        """Let what is under way end; begin nothing new."""
        if self._run is not None and self._run.failure is None:
            await self._run.drain()

    async def close(self) -> None:
        """End the run, and the thread."""
        async with self._lock:
            await self._end()
        self._thread.shutdown(wait=False)

    def _current(self) -> PartitionRun:
        if self._run is None:
            raise OwnershipLost(why=f"Partition {self._partition} is not owned.")
        return self._run

    async def _begin(self) -> PartitionRun:
        stored = await self.loop.run_in_executor(self._thread, self._acquire)
        fence = stored.fence
        if self._stop_reasons:  # acquiring has cleared them
            await self._note_stop_reasons()
        writer = RoundWriter(fence, stored.session, self._thread, self._partition)
        topic = self._process.topics.attempts

        async def open_attempts(watermarks: Watermarks) -> TopicOffsets:
            offsets: TopicOffsets = await writer.call(fence.open_topic, topic, watermarks, watermarks.high)
            return offsets

        last = await writer.call(fence.last_recorded, topic)  # before the topic is looked at: recorders read on
        recorded = await read_recorded_attempts(
            self._process.settings, topic, self._partition, last, open_attempts, self._process.clock.now()
        )
        streaks = EndpointStreaks(self._process.streaks, stored.streaks)
        run = PartitionRun(self._process, self._partition, writer, stored.marks, stored.held, streaks, recorded)
        run.queues.note_throttled(stored.throttles)
        return run

    async def _note_stop_reasons(self) -> None:
        """Write down the topics' stop reasons; where nobody could acquire the partition, who does so next writes them.

        Topics that the same thing stops are named once.
        """
        reason = " ".join(dict.fromkeys(self._stop_reasons.values())) or None
        if (fence := self._fence) is not None:
            await self.loop.run_in_executor(self._thread, fence.note_stop, reason)

    def _acquire(self) -> _Stored:
        session = self._session = Session(self._url)
        try:
            fence = self._fence = DeliveryFence(session, "deliverer", self._partition)
            return _Stored(
                session,
                fence,
                marks=wait_rows.find_marks(session, self._partition),
                held=wait_rows.find_held(session, self._partition),
                streaks=streak_rows.find_streaks(session, self._partition),
                throttles=throttle_rows.find_throttles(session, self._partition),
            )
        except BaseException:
            self._close_session()
            raise

    def _close_session(self) -> None:
        session, self._session, self._fence = self._session, None, None
        if session is not None:
            session.close()

    async def _end(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            await run.close()
        # In the thread: it may be acquiring for a topic that was given up meanwhile.
        await self.loop.run_in_executor(self._thread, self._close_session)


class DeliveryTopicWriter:
    """One topic's side of a partition (`streams.ownership.PartitionWriter`): calls come from its own thread."""

    def __init__(self, deliverer: PartitionDeliverer, topic: str) -> None:
        self._deliverer = deliverer
        self._topic = topic
        self._interrupted = threading.Event()

    def acquire(self, watermarks: Watermarks, interrupted: threading.Event) -> Acquired:
        """Fence off every former owner, unless another topic of the partition has done so."""
        self._interrupted = interrupted
        return self._wait(self._deliverer.open_topic(self._topic, watermarks))

    def project(self, batch: EventBatch) -> int:
        """Do as `accept`, from a thread."""
        return self._wait(self._deliverer.accept(self._topic, batch))

    async def accept(self, batch: EventBatch, in_thread: InThread) -> int:
        """Take a batch, once there is room, and return the offset behind it: the deliveries themselves end later."""
        return await self._deliverer.accept(self._topic, batch)

    def skip(self, offset: int, reason: str) -> None:
        """Nothing skips a delivery."""

    def make_room(self, named: Collection[NamedPoison]) -> None:
        """Nothing is parked here."""

    def idle(self) -> None:
        """Raise OwnershipLost where the run has ended: what it had in memory is read again."""
        self._wait(self._deliverer.check(self._topic))

    def note_stop(self, reason: str) -> None:
        """Write down why the partition is stopped."""
        self._wait(self._deliverer.note_stop(self._topic, reason))

    def close(self) -> None:
        """Leave the run, which ends it; never raises."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            asyncio.run_coroutine_threadsafe(self._deliverer.leave(self._topic), self._deliverer.loop)

    def forget(self) -> None:
        """Do as :meth:`close`."""
        self.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what comes of work in the loop. Raises OwnershipLost once the partition was given up."""
        future = asyncio.run_coroutine_threadsafe(work, self._deliverer.loop)
        while True:
            try:
                return future.result(INTERRUPTED_POLL_SECONDS)
            except concurrent.futures.TimeoutError:
                if future.done():
                    raise
                if self._interrupted.is_set():
                    future.cancel()
                    raise OwnershipLost(why="The partition was given up.") from None

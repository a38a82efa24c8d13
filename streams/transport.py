"""Faust's Kafka transport with the record batch as its message.

Stock Faust makes a message of every record and spends most of its time on that. Here a message is an EventBatch: one
slice of one partition, whose keys and headers stay inside. Faust's acknowledgements and committed offsets are not
used: Postgres holds the position of each partition (`checkpoints`), and Kafka's committed offset is only a hint for
tools that show lag.

A partition delivers nothing until it is *open*: its owner has acquired the fence, read the checkpoint and sought there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from mode.utils.futures import maybe_async

from runtime.logging import get_logger
from runtime.settings import Settings
from streams.batch import EventBatch
from streams.errors import LeaderChanged, OwnershipLost, RecordUnreadable
from streams.kafka.clients import make_consumer
from streams.kafka.consumer import RepairedConsumer
from streams.kafka.record_columns import RecordColumns
from streams.log_end import LogEnd
from streams.memory_budget import MemoryBudget
from streams.open_partition import OpenPartition
from streams.watermarks import Leadership, Watermarks

log = get_logger(__name__)

POLL_TIMEOUT_SECONDS = 0.05
"""How long a fetch waits for records. A partition that opens meanwhile waits no longer than this for its turn."""

TOPIC_ID_TIMEOUT_SECONDS = 3.0
"""How long leaders may take to tell topic ids and epochs where they refused a fetch; others wait meanwhile."""

PARTITION_FETCH_MAX_BYTES = 4 * 1024 * 1024
"""Most bytes of one partition in one fetch: 8-10 thousand events, where set-based SQL is at its best."""

PARTITION_FETCH_MIN_BYTES = 1024 * 1024
"""The least that a worker with many partitions asks for: no record is larger."""

FETCHED_PART = 8
"""What was fetched and not unpacked yet has up to this part of a partition's share of the budget."""


class RecordBatchFetcher(driver.AIOKafkaConsumerThread):  # type: ignore[misc]  # Faust is untyped
    """The owner of the aiokafka consumer: what Faust takes for its thread, in the app's event loop.

    Each hop between two threads costs milliseconds where the machine is busy (docs/decisions/0069). The loop answers
    the group's coordinator: what takes long has threads of its own.
    """

    consumer: RecordBatchConsumer
    shutdown_timeout = None
    """A stop waits for that of the consumer, each part of which is bounded: giving up sooner would skip some."""

    def __init__(self, consumer: RecordBatchConsumer, loop: asyncio.AbstractEventLoop, beacon: Any) -> None:
        super().__init__(consumer, loop=loop, thread_loop=loop, beacon=beacon)
        self._calls: set[asyncio.Task[Any]] = set()
        self._fetching = asyncio.Lock()
        self._served: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the consumer. Raises what aiokafka raises."""
        self._thread_started.set()
        self._thread_running = self.parent_loop.create_future()
        self._served = asyncio.create_task(self._serve(), name="kafka consumer")
        self._served.add_done_callback(self._note_end)
        try:
            await self._thread_running
        finally:
            self._thread_running = None

    async def stop(self) -> None:
        """Stop the consumer, and return once nothing of it is left in the loop."""
        await super().stop()
        if self._served is not None:
            if not self._started.is_set():
                self._served.cancel()
            await asyncio.wait([self._served])

    def close(self) -> None:
        """Do nothing in a rebalance while the app stops: after Faust's own `close` that stop skips the consumer."""

    def _note_end(self, served: asyncio.Task[None]) -> None:
        """Let go on who waits for the start or the stop, however the service has ended."""
        self.set_shutdown()
        error = None if served.cancelled() else served.exception()
        if error is not None:
            log.warning("consumer.ended", why=repr(error))
        if self._thread_running is not None and not self._thread_running.done():
            self._thread_running.set_exception(error or driver.ConsumerStoppedError())

    async def on_thread_started(self) -> None:
        """Leave out Faust's queue of calls."""

    async def on_thread_stop(self) -> None:
        """End what is under way, and stop the consumer."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await super().on_thread_stop()

    async def _gather_remaining_tasks(self) -> None:
        """Leave the loop's other tasks alone: it is not this service's own."""

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Call what the app does before a rebalance: Faust's queue of such calls ends where a service has crashed."""
        await self.consumer.on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Call what the app does after a rebalance."""
        await self.consumer.on_partitions_assigned(assigned, generation_id)

    async def call_thread(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the consumer. It goes on where its caller is cancelled: what it fetches is accounted for."""
        call = asyncio.create_task(_call(fun, *args, **kwargs))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return await asyncio.shield(call)

    def _create_worker_consumer(self, transport: RecordBatchTransport) -> RepairedConsumer:
        settings = transport.settings
        self._assignor = transport.assignor
        session_ms = settings.worker_session_timeout_seconds * 1000
        consumer = make_consumer(
            settings,
            client_id="plant-worker",
            group_id=settings.consumer_group,
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            # Nothing ever falls back to the earliest or the latest record: the checkpoint says where to read.
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_poll_records=settings.worker_batch_max_records,
            # Every fetch counts as a poll, with partitions open or not, so an outage of Postgres keeps the group.
            max_poll_interval_ms=max(60_000, 3 * session_ms),
            max_partition_fetch_bytes=PARTITION_FETCH_MAX_BYTES,
            fetch_max_bytes=8 * PARTITION_FETCH_MAX_BYTES,
            # While records of one partition wait to be delivered, aiokafka fetches the others alone, and that one waits
            # until the fetch comes back: this is the most that quiet partitions add to a record's latency.
            fetch_max_wait_ms=25,
            session_timeout_ms=session_ms,
            rebalance_timeout_ms=2 * session_ms,
            heartbeat_interval_ms=max(200, session_ms // 5),
            request_timeout_ms=max(20_000, 2 * session_ms),
            # A leader that is frozen does not answer that another one leads now: its partitions would wait out the
            # request's timeout.
            metadata_max_age_ms=5_000,
        )
        consumer.identify_fetches(transport.gathered_seconds)
        return consumer

    async def fetch_batches(self, budget: MemoryBudget) -> list[EventBatch]:
        """Return the next slice of each open partition that has records; empty after POLL_TIMEOUT_SECONDS.

        While the budget is spent nothing is fetched; the group's membership goes on. Raises ConsumerStoppedError where
        the fetch is cancelled and its caller is not: Faust's fetcher takes a CancelledError for its own, and ends
        without a word. Faust's other callers expect that one at a stop.
        """
        fetch_bytes = min(PARTITION_FETCH_MAX_BYTES, budget.share_bytes // FETCHED_PART)
        self._repaired_consumer().bound_fetches(max(PARTITION_FETCH_MIN_BYTES, fetch_bytes))
        try:
            return await self.call_thread(self._fetch_batches, not budget.is_spent)  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is None or caller.cancelling():
                raise
            raise driver.ConsumerStoppedError from None

    async def _fetch_batches(self, has_room: bool = True) -> list[EventBatch]:
        consumer, asked, waits = self._repaired_consumer(), self._current(), self._fetching.locked()
        # Of two at once, one would take records from aiokafka that belong before those of the other.
        async with self._fetching:
            if consumer.fetching_closed:
                raise driver.ConsumerStoppedError
            if waits:  # who asked may be gone since, and another one asks for what was opened meanwhile
                current = self._current()
                asked = {tp: state for tp, state in asked.items() if current.get(tp) is state}
            return await self._fetch_next(consumer, asked if has_room else {})

    async def _fetch_next(
        self, consumer: RepairedConsumer, asked: Mapping[TopicPartition, OpenPartition]
    ) -> list[EventBatch]:
        with consumer.poll_context():
            opened = {tp: state for tp, state in asked.items() if state.is_fetched}
            if not opened:
                await asyncio.sleep(POLL_TIMEOUT_SECONDS / 5)
                return []
            records = await self._fetch(consumer, opened)
            if records is None:
                return []
            if refused := consumer.take_refused(opened):
                await self._note_other_logs(opened, refused)
        # One that was paused meanwhile still gets what was fetched for it: aiokafka has moved on behind that.
        still_open = self._current()
        advanced = [
            state.advance(tp.topic, tp.partition, records.get(tp))
            for tp, state in opened.items()
            if state.has_moved and state.stop_reason is None and still_open.get(tp) is state
        ]
        return [batch for batch in advanced if batch is not None]

    async def _fetch(
        self, consumer: RepairedConsumer, opened: Mapping[TopicPartition, OpenPartition]
    ) -> dict[TopicPartition, RecordColumns] | None:
        """Return fetched records by partition; None where the fetch failed, which may set a stop reason.

        A partition that is opened again while this waits gets what comes from then on by the next fetch: here it would
        be taken from aiokafka, and be missing there.
        """

        def still_open() -> list[TopicPartition]:
            return [tp for tp, state in self._current().items() if opened.get(tp) is state]

        try:
            return await consumer.fetch_columns(opened, POLL_TIMEOUT_SECONDS, still_open)
        except NoOffsetForPartitionError:
            pass  # a partition without a committed hint, before its owner has sought
        except OffsetOutOfRangeError as error:
            for tp, offset in error.args[0].items():
                # The answer may be to a fetch from before the seek, at a committed hint that is out of date.
                if tp in opened and opened[tp].position == offset:
                    opened[tp].stop_reason = OwnershipLost(why=f"Kafka has no offset {offset} of {tp.topic} now.")
        except Exception as error:
            failing = consumer.failing_partition(opened)
            if failing is None:
                raise
            position = opened[failing].position
            opened[failing].stop_reason = RecordUnreadable(failing.topic, failing.partition, position, error)
            self._read_again(opened)
        return None

    def _current(self) -> dict[TopicPartition, OpenPartition]:
        """Return the open partitions, paused ones too, without those that were opened under an earlier assignment."""
        consumer = self._repaired_consumer()
        opened = {TopicPartition(*tp): state for tp, state in list(self.consumer.open.items())}
        return {tp: state for tp, state in opened.items() if consumer.fetch_state(tp) is state.fetch_state}

    def _read_again(self, opened: Mapping[TopicPartition, OpenPartition]) -> None:
        """Seek back to the positions of delivery: records that were unpacked since then are lost."""
        for tp, state in self._current().items():
            if opened.get(tp) is state:
                self._repaired_consumer().seek(tp, state.position)

    async def _note_other_logs(
        self, opened: Mapping[TopicPartition, OpenPartition], refused: Collection[TopicPartition]
    ) -> None:
        """Set the stop reason of partitions whose topic was made again, or whose leader was elected since.

        Fetches name the topic and the epoch that a partition was acquired under, and leaders refuse another one: of a
        topic that was deleted and made again, or a log that lost its tail and grew again. They are asked what they
        have. One that refused because it did not know yet is asked for records again.
        """
        found = await self._repaired_consumer().leaderships(refused, TOPIC_ID_TIMEOUT_SECONDS)
        ids = {tp.topic: leadership.topic_id for tp, leadership in found.items()}
        for tp, state in opened.items():
            if state.stop_reason is not None:
                continue
            if ids.get(tp.topic, state.leadership.topic_id) != state.leadership.topic_id:
                state.stop_reason = OwnershipLost(why=f"The topic {tp.topic} was made again.")
            elif (current := found.get(tp, state.leadership)) != state.leadership:
                epochs = f"{state.leadership.leader_epoch} to {current.leader_epoch}"
                state.stop_reason = LeaderChanged(why=f"The leader epoch went from {epochs}.")

    async def seek_to(self, tp: TP, position: int, leadership: Leadership) -> Any:
        """Read an assigned partition of this topic and epoch from `position` on.

        Returns aiokafka's state of it under this assignment.
        """
        return await self.call_thread(self._seek, TopicPartition(*tp), position, leadership)

    async def _seek(self, tp: TopicPartition, position: int, leadership: Leadership) -> Any:
        consumer = self._repaired_consumer()
        consumer.name_log(tp, leadership)
        consumer.seek(tp, position)
        return consumer.fetch_state(tp)

    async def watermarks(self, tp: TP) -> Watermarks:
        """Ask the broker for an assigned partition's watermarks."""
        return await self._repaired_consumer().watermarks(TopicPartition(*tp))

    def _repaired_consumer(self) -> RepairedConsumer:
        consumer: RepairedConsumer = self._ensure_consumer()
        return consumer

    async def commit_hints(self, positions: Mapping[TP, int]) -> bool:
        """Commit positions for tools that show lag; return whether it worked. A failure costs nothing."""
        return await self.call_thread(self._commit_hints, positions)  # type: ignore[no-any-return]

    async def _commit_hints(self, positions: Mapping[TP, int]) -> bool:
        consumer = self._repaired_consumer()
        assigned = consumer.assignment()
        offsets = {
            TopicPartition(*tp): OffsetAndMetadata(offset, "")
            for tp, offset in positions.items()
            if TopicPartition(*tp) in assigned
        }
        try:
            if offsets:
                await consumer.commit(offsets)
        except KafkaError as error:
            log.debug("hint.not_committed", error=repr(error))
            return False
        return bool(offsets)


async def _call(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return await maybe_async(fun(*args, **kwargs))  # called here: a task that is cancelled may never take a step


class RecordBatchConsumer(driver.Consumer):  # type: ignore[misc]  # Faust is untyped
    """Faust's consumer, delivering EventBatch messages of the partitions that are open."""

    _thread: RecordBatchFetcher

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.open: dict[TP, OpenPartition] = {}
        self.done: dict[TP, int] = {}
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> RecordBatchFetcher:
        return RecordBatchFetcher(self, self.loop, self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:  # noqa: ASYNC109 (Faust's)
        """Yield a message for each slice. Slices cut off by a rebalance are read again by the next owner."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        generation = self.app.consumer_generation_id
        for batch in await self._thread.fetch_batches(self.transport.budget):
            if self.should_stop or not self.flow_active or self.app.consumer_generation_id != generation:
                return
            tp = TP(batch.topic, batch.partition)
            yield tp, ConsumerMessage(
                tp.topic, tp.partition, batch.fetched_from, None, 0, (), None, batch, None, 0, 0, tp,
                generation_id=generation,
            )  # fmt: skip

    async def open_partition(
        self, tp: TP, token: int, leadership: Leadership, low: int, log_end: LogEnd
    ) -> OpenPartition:
        """Deliver from the checkpoint on, once Kafka's log was compared up to there. The partition must be assigned."""
        self.close_partition(tp)
        position = log_end.read_from(low)
        fetch_state = await self._thread.seek_to(tp, position, leadership)
        # Faust drops messages below the highest offset it has seen; reading again from a checkpoint is no error.
        self._read_offset.pop(tp, None)
        to_compare = log_end if position < log_end.next_offset else None
        state = self.open[tp] = OpenPartition(token, position, fetch_state, leadership, to_compare)
        self.done[tp] = log_end.next_offset
        return state

    def close_partition(self, tp: TP) -> None:
        """Deliver nothing more of a partition until it is opened again."""
        self.open.pop(tp, None)
        self.done.pop(tp, None)

    async def watermarks(self, tp: TP) -> Watermarks:
        """Ask the broker for a partition's watermarks."""
        return await self._thread.watermarks(tp)

    async def perform_seek(self) -> None:
        """Leave out Faust's seek to committed offsets after an assignment: owners seek to checkpoints."""

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit the checkpoints as hints; Faust calls it every few seconds."""
        return bool(self.done) and await self._thread.commit_hints(dict(self.done))

    async def verify_all_partitions_active(self) -> None:
        """Leave out Faust's livelock report: it goes by acknowledgements, which are not used."""


class RecordBatchTransport(driver.Transport):  # type: ignore[misc]  # Faust is untyped
    """The transport to give to a Faust app; `settings` says how to reach the brokers, `budget` when to wait.

    `assignor` divides partitions among the group's members. `gathered_seconds`, by topic, is how long records are left
    to gather after a fetch that brought few of them.
    """

    Consumer = RecordBatchConsumer
    settings: Settings
    budget: MemoryBudget
    assignor: type[AbstractPartitionAssignor] = RoundRobinPartitionAssignor
    gathered_seconds: Mapping[str, float] = MappingProxyType({})

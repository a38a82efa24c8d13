"""Faust's Kafka transport with the record batch as its message.

Stock Faust makes a message of every record and spends most of its time on that. Here a message is an EventBatch: one
slice of one partition, whose keys and headers stay inside. Faust's acknowledgements and committed offsets are not
used: Postgres holds the position of each partition (`checkpoints`), and Kafka's committed offset is only a hint for
tools that show lag.

A partition delivers nothing until it is *open*: its owner has taken the fence, read the checkpoint and sought there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import aiokafka
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError, UnknownTopicOrPartitionError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from runtime.logging import get_logger
from runtime.settings import Settings
from streams.batch import EventBatch
from streams.errors import OwnershipLost, RecordUnreadable, StreamsError
from streams.kafka.connection import connection_options
from streams.kafka.fetcher_restart import restart_fetcher
from streams.kafka.lenient_records import parse_leniently, unreadable
from streams.kafka.topic_ids import TopicIdsRequest, topic_ids_at_leaders
from streams.kafka.unresponsive_brokers import skip_unresponsive_brokers

log = get_logger(__name__)

POLL_SECONDS = 0.05
"""How long a fetch waits for records. A partition that opens meanwhile waits no longer than this for its turn."""

IDENTITY_SECONDS = 3.0
"""How long brokers may take to say what topics they have; the partitions of all others wait meanwhile."""

PARTITION_FETCH_MAX_BYTES = 4 * 1024 * 1024
"""Most bytes of one partition in one fetch: 8-10 thousand events, where set-based SQL is at its best."""


@dataclass(slots=True, eq=False)
class OpenPartition:
    """Leave to deliver one partition's records, from `position` on, under one fencing token."""

    token: int
    position: int
    place: Any
    """aiokafka's state of the partition, which belongs to one assignment; its position is the fetch's."""
    topic_id: UUID | None = None
    paused: bool = False
    obstacle: StreamsError | None = None
    """Why nothing more is fetched; its owner raises it."""

    @property
    def flows(self) -> bool:
        """Whether records are to be fetched now."""
        return not self.paused and self.obstacle is None


@dataclass(frozen=True, slots=True)
class Watermarks:
    """What the broker says of a partition: its first offset, the one after its last, its topic's id and size."""

    start: int
    end: int
    partitions: int
    topic_id: UUID | None


class RecordBatchThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]  # Faust is untyped
    """The thread that owns the aiokafka consumer."""

    consumer: RecordBatchConsumer

    def _create_worker_consumer(self, transport: RecordBatchTransport) -> aiokafka.AIOKafkaConsumer:
        settings = transport.settings
        parse_leniently()
        self._assignor = RoundRobinPartitionAssignor
        session_ms = settings.worker_session_timeout_seconds * 1000
        consumer = aiokafka.AIOKafkaConsumer(
            **connection_options(settings),
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
            # While records of one partition wait to be taken, aiokafka fetches the others alone, and that one has to
            # wait until the fetch comes back: this is the most that quiet partitions add to a record's way.
            fetch_max_wait_ms=25,
            session_timeout_ms=session_ms,
            rebalance_timeout_ms=2 * session_ms,
            heartbeat_interval_ms=max(200, session_ms // 5),
            request_timeout_ms=max(20_000, 2 * session_ms),
            # Leaders that are frozen tell nobody that others have taken their place: what they led would wait out the
            # request's timeout.
            metadata_max_age_ms=5_000,
        )
        skip_unresponsive_brokers(consumer._client)
        return consumer

    async def fetch_batches(self) -> list[EventBatch]:
        """The next slice of each open partition that has records; empty after POLL_SECONDS without any."""
        return await self.call_thread(self._fetch_batches)  # type: ignore[no-any-return]

    async def _fetch_batches(self) -> list[EventBatch]:
        consumer = self._ensure_consumer()
        fetcher = consumer._fetcher
        if fetcher._closed:
            raise driver.ConsumerStoppedError
        restart_fetcher(consumer)
        opened = {tp: state for tp, state in self._current().items() if state.flows}
        with fetcher._subscriptions.fetch_context():
            if not opened:
                await asyncio.sleep(POLL_SECONDS / 5)
                return []
            _leave_raw(fetcher)
            try:
                records = await fetcher.fetched_records(
                    set(opened), timeout=POLL_SECONDS, max_records=consumer._max_poll_records
                )
            except NoOffsetForPartitionError:
                return []  # a partition without a committed hint, before its owner has sought
            except OffsetOutOfRangeError as error:
                for tp, offset in error.args[0].items():
                    # The answer may be to a fetch from before the seek, at a committed hint that is out of date.
                    if tp in opened and opened[tp].position == offset:
                        opened[tp].obstacle = OwnershipLost(why=f"Kafka has no offset {offset} of {tp.topic} now.")
                return []
            except Exception as error:
                culprit = unreadable(fetcher, opened)
                if culprit is None:
                    raise
                position = opened[culprit].position
                opened[culprit].obstacle = RecordUnreadable(culprit.topic, culprit.partition, position, error)
                self._read_again(opened)
                return []
            if records and not await self._are_same_topics(opened, records):
                self._read_again(opened)
                return []
        # One that was paused meanwhile still gets what has been taken for it: aiokafka has moved on behind that.
        still_open = self._current()
        batches = []
        for tp, state in opened.items():
            # Where transactions end or were aborted, a slice can be empty and still move the position.
            if still_open.get(tp) is state and state.place.position > state.position:
                batches.append(_batch(tp, state, records.get(tp, []), state.place.position))
                state.position = state.place.position
        return batches

    def _current(self) -> dict[TopicPartition, OpenPartition]:
        """The open partitions, paused ones too; one that was opened under an earlier assignment is none."""
        subscription = self._ensure_consumer()._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        if assignment is None:
            return {}
        opened = {TopicPartition(*tp): state for tp, state in list(self.consumer.open.items())}
        return {tp: state for tp, state in opened.items() if assignment.state_value(tp) is state.place}

    def _read_again(self, opened: Mapping[TopicPartition, OpenPartition]) -> None:
        """Go back to where delivery is: what was unpacked since then is lost."""
        for tp, state in self._current().items():
            if opened.get(tp) is state:
                self._ensure_consumer().seek(tp, state.position)

    async def _are_same_topics(
        self, opened: Mapping[TopicPartition, OpenPartition], fetched: Iterable[TopicPartition]
    ) -> bool:
        """Whether what was fetched is from the topics that the partitions were taken on.

        Kafka fetches by name here, so a topic that was deleted and made again would answer with other records at the
        same offsets. Asked after the fetch, of the broker that answered it, so it holds for every record of it.
        """
        client = self._ensure_consumer()._client
        try:
            async with asyncio.timeout(IDENTITY_SECONDS):
                found = await topic_ids_at_leaders(client, fetched)
        except (KafkaError, TimeoutError) as error:
            log.warning("topics.not_identified", why=repr(error))
            return False
        for tp, state in opened.items():
            if state.topic_id is not None and found.get(tp.topic, state.topic_id) != state.topic_id:
                state.obstacle = OwnershipLost(why=f"The topic {tp.topic} was made again.")
        return all(tp.topic in found and opened[tp].obstacle is None for tp in fetched)

    async def seek_to(self, tp: TP, position: int) -> Any:
        """Read an assigned partition from `position` on; aiokafka's state of the partition under this assignment."""
        return await self.call_thread(self._seek, TopicPartition(*tp), position)

    async def _seek(self, tp: TopicPartition, position: int) -> Any:
        consumer = self._ensure_consumer()
        consumer.seek(tp, position)
        return consumer._subscription.subscription.assignment.state_value(tp)

    async def bounds(self, tp: TP) -> Watermarks:
        """First and last offsets and topic id of an assigned partition, from the broker.

        Asked beside the thread's queue of calls: a partition without a leader takes long to say so, and the fetches of
        the others wait in that queue.
        """
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._bounds(tp), self.thread_loop))

    async def _bounds(self, tp: TP) -> Watermarks:
        consumer = self._ensure_consumer()
        partition = TopicPartition(*tp)
        start = (await consumer.beginning_offsets([partition]))[partition]
        end = (await consumer.end_offsets([partition]))[partition]
        # The leader, since it has just answered; any other may be silent, or behind.
        leader = consumer._client.cluster.leader_for_partition(partition)
        response = await consumer._client.send(leader, TopicIdsRequest([tp.topic]))
        for code, name, topic_id, _internal, partitions, *_ in response.topics:
            if code == 0 and name == tp.topic:
                return Watermarks(start, end, len(partitions), topic_id)
        raise UnknownTopicOrPartitionError(tp.topic)

    async def commit_hints(self, positions: Mapping[TP, int]) -> bool:
        """Tell Kafka how far each partition is, for those who look at lag. A failure costs nothing."""
        return await self.call_thread(self._commit_hints, positions)  # type: ignore[no-any-return]

    async def _commit_hints(self, positions: Mapping[TP, int]) -> bool:
        consumer = self._ensure_consumer()
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


def _leave_raw(fetcher: Any) -> None:
    """Keep aiokafka from wrapping each record that waits here in a ConsumerRecord: 1.2 us of the 6.5 us a fetch costs.

    Records that arrive later are wrapped; both kinds have the attributes that a batch needs.
    """
    for result in fetcher._records.values():
        unpacking = getattr(result, "_partition_records", None)
        if unpacking is not None:
            unpacking._consumer_record = _raw_record


def _raw_record(_tp: TopicPartition, record: Any) -> Any:
    return record


def _batch(tp: TopicPartition, state: OpenPartition, records: list[Any], after: int) -> EventBatch:
    return EventBatch(
        topic=tp.topic,
        partition=tp.partition,
        token=state.token,
        fetched_from=state.position,
        next_offset=after,
        offsets=[record.offset for record in records],
        timestamps_ms=[record.timestamp for record in records],
        keys=[record.key for record in records],
        values=[record.value for record in records],
        headers=[record.headers for record in records],
    )


class RecordBatchConsumer(driver.Consumer):  # type: ignore[misc]  # Faust is untyped
    """Faust's consumer, delivering EventBatch messages of the partitions that are open."""

    _thread: RecordBatchThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.open: dict[TP, OpenPartition] = {}
        self.done: dict[TP, int] = {}
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> RecordBatchThread:
        # Its loop is asyncio's own, not uvloop's: there, writing to a connection that has just closed raises an error
        # that aiokafka doesn't expect, and the task that keeps its metadata fresh ends for good (seen).
        return RecordBatchThread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:  # noqa: ASYNC109 (Faust's)
        """Yield a message for each slice. Slices cut off by a rebalance are read again by the next owner."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        generation = self.app.consumer_generation_id
        for batch in await self._thread.fetch_batches():
            if self.should_stop or not self.flow_active or self.app.consumer_generation_id != generation:
                return
            tp = TP(batch.topic, batch.partition)
            yield tp, ConsumerMessage(
                tp.topic, tp.partition, batch.fetched_from, None, 0, (), None, batch, None, 0, 0, tp,
                generation_id=generation,
            )  # fmt: skip

    async def open_partition(self, tp: TP, token: int, position: int, topic_id: UUID | None) -> OpenPartition:
        """Seek to `position` and deliver from there. The partition must be assigned."""
        self.close_partition(tp)
        place = await self._thread.seek_to(tp, position)
        # Faust drops messages below the highest offset it has seen; reading again from a checkpoint is no error.
        self._read_offset.pop(tp, None)
        state = self.open[tp] = OpenPartition(token, position, place, topic_id)
        self.done[tp] = position
        return state

    def close_partition(self, tp: TP) -> None:
        """Deliver nothing more of a partition until it is opened again."""
        self.open.pop(tp, None)
        self.done.pop(tp, None)

    async def bounds(self, tp: TP) -> Watermarks:
        """What the broker says of a partition."""
        return await self._thread.bounds(tp)

    async def perform_seek(self) -> None:
        """Faust's seek to committed offsets after an assignment: left out, since owners seek to checkpoints."""

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit the checkpoints as hints; Faust calls it every few seconds."""
        return bool(self.done) and await self._thread.commit_hints(dict(self.done))

    async def verify_all_partitions_active(self) -> None:
        """Faust's livelock report judges by acknowledgements, which are not used."""


class RecordBatchTransport(driver.Transport):  # type: ignore[misc]  # Faust is untyped
    """The transport to give to a Faust app; `settings` says how to reach the brokers."""

    Consumer = RecordBatchConsumer
    settings: Settings

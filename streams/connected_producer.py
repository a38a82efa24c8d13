"""One connection's life as an idempotent Kafka producer, until something spoils its sequence numbers.

Batches are built here, one on its way to each partition, rather than by `AIOKafkaProducer.send`: it costs a fraction
of that a record, and one future a batch shows the broker's own base offset. (aiokafka 0.14 makes up offsets for a
batch that the broker says it had already: DuplicateSequenceNumber, offset -1.)

aiokafka retries a batch for ever, which is right: the sequence number makes a repeat harmless. But a batch that the
broker refuses leaves a hole in the sequence, and all later ones fail; so after any refusal the connection is *spoilt*,
and its successor begins with a new producer id.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    CorruptRecordException,
    InvalidTimestampError,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.producer.message_accumulator import BatchBuilder

from runtime import metrics
from runtime.errors import PlantError
from runtime.logging import get_logger
from runtime.settings import Settings
from streams.errors import KafkaUnavailable, OutcomeUnknown, PartitionCountChanged, PublishRefused, TopicMissing
from streams.kafka.connection import connection_options
from streams.kafka.unresponsive_brokers import skip_unresponsive_brokers
from streams.partitioning import partition_of
from streams.pending_publish import PendingPublish
from streams.record_position import RecordPosition

log = get_logger(__name__)

BATCH_MAX_BYTES: Final = 512 * 1024
REQUEST_TIMEOUT_MS: Final = 10_000
METADATA_AGE_MS: Final = 5_000
"""A leader that is frozen tells nobody that another has taken its place; it costs little to ask."""

CONNECT_TIMEOUT_SECONDS: Final = 15.0
CLOSE_GRACE_SECONDS: Final = 2.0
CHECK_TIMEOUT_SECONDS: Final = 2.0

CERTAINLY_NOT_WRITTEN: Final = (
    CorruptRecordException,
    InvalidTimestampError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)


class Batch:
    """Records that reach Kafka together, or not at all. `answer` is the place of the first."""

    __slots__ = ("answer", "builder", "records", "size_bytes")

    def __init__(self, builder: BatchBuilder, answer: asyncio.Future[RecordPosition]) -> None:
        self.builder = builder
        self.answer = answer
        self.records = 0
        self.size_bytes = 0


class Lane:
    """A partition's batches: those that gather, the last of them open, while `sending` says that one is on its way."""

    __slots__ = ("gathering", "partition", "sending", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.gathering: deque[Batch] = deque()
        self.sending = False


class ConnectedProducer:
    """Made by :meth:`connect`. `give_back(records, bytes)` is called for whatever Kafka has answered."""

    def __init__(self, kafka: AIOKafkaProducer, partition_counts: dict[str, int]) -> None:
        self.loop = asyncio.get_running_loop()
        self.partition_counts = partition_counts
        self.spoilt = asyncio.Event()
        self.refusal: PartitionCountChanged | None = None
        self.give_back: Callable[[int, int], None] = lambda records, size_bytes: None
        self._kafka = kafka
        self._lanes = {
            topic: [Lane(topic, partition) for partition in range(count)] for topic, count in partition_counts.items()
        }
        self._ready_lanes: list[Lane] = []
        self._sends: set[asyncio.Task[None]] = set()
        for background in (kafka.client._sync_task, kafka._sender.sender_task):
            background.add_done_callback(self._background_ended)

    @classmethod
    async def connect(cls, settings: Settings, topics: Iterable[str]) -> ConnectedProducer:
        """Reach the brokers, get a producer id, learn the topics' partition counts.

        Raises KafkaUnavailable or TopicMissing.
        """
        kafka = AIOKafkaProducer(
            acks="all",
            enable_idempotence=True,
            compression_type="lz4",
            max_batch_size=BATCH_MAX_BYTES,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            metadata_max_age_ms=METADATA_AGE_MS,
            **connection_options(settings),
        )
        skip_unresponsive_brokers(kafka.client)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await kafka.start()
                counts = {topic: await _partition_count(kafka, topic) for topic in topics}
        except BaseException as error:
            await _abandon(kafka)
            if isinstance(error, (KafkaError, TimeoutError)):
                raise KafkaUnavailable(
                    why=f"{type(error).__name__} from {settings.kafka_bootstrap_servers}.", next_step="plant status"
                ) from error
            raise
        return cls(kafka, counts)

    def add(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        size_bytes: int,
    ) -> PendingPublish:
        """Put a record on its key's lane. It leaves when this turn of the event loop ends, or with the next batch.

        One without a key goes to partition 0. `size_bytes` is what the record counts for until it is given back.
        """
        lanes = self._lanes[topic]
        lane = lanes[0 if key is None else partition_of(key, len(lanes))]
        gathering = lane.gathering
        batch = gathering[-1] if gathering else None
        # A batch that is full takes no more; an empty one takes whatever may be sent at all.
        if batch is None or batch.builder.append(timestamp=None, key=key, value=value, headers=headers) is None:
            batch = Batch(self._kafka.create_batch(), self.loop.create_future())
            batch.builder.append(timestamp=None, key=key, value=value, headers=headers)
            gathering.append(batch)
        publish = PendingPublish(batch.answer, batch.records)
        batch.records += 1
        batch.size_bytes += size_bytes
        if not lane.sending:
            lane.sending = True
            if not self._ready_lanes:
                self.loop.call_soon(self._send_ready)
            self._ready_lanes.append(lane)
        return publish

    async def ask(self) -> None:
        """Ask a broker for its metadata; raises KafkaUnavailable unless it answers soon."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                await self._kafka.client.fetch_all_metadata()
        except (KafkaError, TimeoutError) as error:
            raise KafkaUnavailable(why=f"{type(error).__name__} when asked for metadata.") from error

    def refuse(self, topic: str, known: int, found: int) -> None:
        """Take no more records: the topic's partition count is not what it was."""
        self.refusal = PartitionCountChanged(
            f"The topic {topic} had {known} partitions and now has {found}.",
            why="Keys would change partition, and lose their order and their repeat check.",
            next_step=f"plant topics list --topic {topic}",
        )
        self.spoilt.set()

    async def close(self, grace_seconds: float) -> None:
        """Let batches that are on their way arrive, for so long; what is left has an unknown outcome."""
        deadline = self.loop.time() + grace_seconds
        while self._sends and (left := deadline - self.loop.time()) > 0:
            await asyncio.wait(set(self._sends), timeout=left)
        clean = not self._sends
        for task in self._sends:
            task.cancel()
        await asyncio.gather(*self._sends, return_exceptions=True)
        self._fail_gathering(KafkaUnavailable(why="The connection to Kafka was given up before the event was sent."))
        if clean and not self.spoilt.is_set():
            await self._kafka.stop()
        else:
            await _abandon(self._kafka)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        """Renew a connection whose metadata, or whose sender, nobody looks after any more.

        Under uvloop, writing to a connection that has just closed raises an error that aiokafka doesn't expect; it ends
        the task, and whoever waits for metadata then waits for ever (seen).
        """
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("connection.broken", task=task.get_name(), why=repr(error))
            self.spoilt.set()

    def _send_ready(self) -> None:
        lanes, self._ready_lanes = self._ready_lanes, []
        for lane in lanes:
            task = self.loop.create_task(self._send(lane))
            self._sends.add(task)
            task.add_done_callback(self._sends.discard)

    async def _send(self, lane: Lane) -> None:
        """Send the lane's batches one after the other until nothing gathers."""
        while lane.gathering and not self.spoilt.is_set():
            batch = lane.gathering.popleft()
            batch.builder.close()
            started = time.perf_counter()
            try:
                found = len(self._kafka.client.cluster.partitions_for_topic(lane.topic) or ())
                if found not in (0, self.partition_counts[lane.topic]):
                    self.refuse(lane.topic, self.partition_counts[lane.topic], found)
                    raise self.refusal or KafkaUnavailable()
                sent = await self._kafka.send_batch(batch.builder, lane.topic, partition=lane.partition)
                answer = await sent
                if answer.offset < 0:
                    raise KafkaError("the broker had the batch already and no longer knows where")
            except asyncio.CancelledError:
                self._fail(batch, OutcomeUnknown(why="The connection to Kafka was given up.", retry_after_seconds=2))
                raise
            except Exception as error:  # aiokafka raises bare asserts too; whatever it is, the sequence is spoilt
                self._spoil(lane, batch, error)
                break
            self._succeed(lane, batch, answer.offset, time.perf_counter() - started)
        lane.sending = False

    def _succeed(self, lane: Lane, batch: Batch, base_offset: int, seconds: float) -> None:
        if not batch.answer.done():
            batch.answer.set_result(RecordPosition(lane.topic, lane.partition, base_offset))
        self.give_back(batch.records, batch.size_bytes)
        metrics.PRODUCER_BATCH_RECORDS.observe(batch.records)
        metrics.PRODUCER_BATCH_SECONDS.observe(seconds)

    def _spoil(self, lane: Lane, batch: Batch, error: Exception) -> None:
        """A batch failed: say so to its publishers, and give up the connection."""
        log.error(
            "batch.refused",
            topic=lane.topic,
            partition=lane.partition,
            records=batch.records,
            error=type(error).__name__,
            why=str(error),
        )
        metrics.PRODUCER_FAILED_BATCHES.labels(error=type(error).__name__).inc()
        self.spoilt.set()
        self._fail(batch, _meaning(lane.topic, error))
        self._fail_gathering(KafkaUnavailable(why="The connection to Kafka is being renewed."))

    def _fail_gathering(self, error: PlantError) -> None:
        for lanes in self._lanes.values():
            for lane in lanes:
                while lane.gathering:
                    self._fail(lane.gathering.popleft(), error)

    def _fail(self, batch: Batch, error: PlantError) -> None:
        if not batch.answer.done():
            batch.answer.set_exception(error)
            batch.answer.exception()  # publishers that no longer wait are no unretrieved error
        self.give_back(batch.records, batch.size_bytes)


def _meaning(topic: str, error: Exception) -> PlantError:
    """What a failed batch means for its events."""
    if isinstance(error, PlantError):
        return error
    if isinstance(error, UnknownTopicOrPartitionError):
        return TopicMissing(f"The topic {topic} does not exist.", next_step="plant topics apply")
    if isinstance(error, CERTAINLY_NOT_WRITTEN):
        return PublishRefused(why=f"{type(error).__name__} on {topic}.")
    return OutcomeUnknown(why=f"{type(error).__name__} on {topic}.", retry_after_seconds=2)


async def _partition_count(kafka: AIOKafkaProducer, topic: str) -> int:
    client = kafka.client
    if client.cluster.partitions_for_topic(topic) is None:
        await client.add_topic(topic)
    partitions = client.cluster.partitions_for_topic(topic)
    if not partitions:
        raise TopicMissing(f"The topic {topic} does not exist.", next_step="plant topics apply")
    return len(partitions)


async def _abandon(kafka: AIOKafkaProducer) -> None:
    """Disconnect without waiting for the broker: `stop` would wait for ever for batches that never expire."""
    kafka._closed = True
    synchronizer = kafka.client._sync_task
    if synchronizer is not None and synchronizer.done():
        kafka.client._sync_task = None  # or its error would come up in `close`, before the connections are closed
    for close in (kafka.client.close, kafka._sender.close, kafka.client.close):
        with contextlib.suppress(KafkaError, OSError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(CLOSE_GRACE_SECONDS):
                await close()

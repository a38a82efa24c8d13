"""One connection's life as an idempotent Kafka producer, until a fatal error breaks its sequence numbers.

Batches are built here, one on its way to each partition, rather than by `AIOKafkaProducer.send`: it costs a fraction
of that a record, and one future a batch shows the broker's own base offset. (aiokafka 0.14 makes up offsets for a
batch that the broker has already: DuplicateSequenceNumber, offset -1.)

aiokafka retries a batch without end, which is right: the sequence number makes a repeat harmless. But a batch that the
broker refuses leaves a hole in the sequence, and all later ones fail; so any such error is *fatal* to the connection,
and its successor begins with a new producer id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

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

from runtime import metrics
from runtime.errors import PlantError
from runtime.logging import get_logger
from runtime.settings import Settings
from streams.accumulator import Accumulator, PartitionQueue, PendingBatch
from streams.errors import KafkaUnavailable, OutcomeUnknown, PartitionCountChanged, PublishRefused, TopicMissing
from streams.kafka.clients import make_producer
from streams.kafka.producer import RepairedProducer
from streams.pending_publish import PendingPublish
from streams.record_position import RecordPosition

log = get_logger(__name__)

BATCH_MAX_BYTES: Final = 512 * 1024
REQUEST_TIMEOUT_MS: Final = 10_000
METADATA_AGE_MS: Final = 5_000
"""A leader that is frozen does not answer that another one leads now; asking all brokers costs little."""

CONNECT_TIMEOUT_SECONDS: Final = 15.0
PING_TIMEOUT_SECONDS: Final = 2.0

CERTAINLY_NOT_WRITTEN: Final = (
    CorruptRecordException,
    InvalidTimestampError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)


class ConnectedProducer:
    """A connection, made by :meth:`connect`. `release(records, bytes)` is called when a batch has its answer."""

    def __init__(self, kafka: RepairedProducer, partition_counts: dict[str, int]) -> None:
        self.loop = asyncio.get_running_loop()
        self.partition_counts = partition_counts
        self.fatal = asyncio.Event()
        """Set when the connection can send no more, and has to be replaced."""
        self.fatal_error: PartitionCountChanged | None = None
        """Why no other connection may replace this one."""
        self.release: Callable[[int, int], None] = lambda records, size_bytes: None
        self._kafka = kafka
        self._accumulator = Accumulator(partition_counts, kafka.create_batch)
        self._ready: list[PartitionQueue] = []
        self._sends: set[asyncio.Task[None]] = set()
        for background in kafka.background_tasks():
            background.add_done_callback(self._background_ended)

    @classmethod
    async def connect(cls, settings: Settings, topics: Iterable[str]) -> ConnectedProducer:
        """Reach the brokers, get a producer id, learn the topics' partition counts.

        Raises KafkaUnavailable or TopicMissing.
        """
        kafka = make_producer(
            settings,
            acks="all",
            enable_idempotence=True,
            compression_type="lz4",
            max_batch_size=BATCH_MAX_BYTES,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            metadata_max_age_ms=METADATA_AGE_MS,
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await kafka.start()
                counts = {topic: await _partition_count(kafka, topic) for topic in topics}
        except BaseException as error:
            await kafka.abandon()
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
        partition: int | None = None,
    ) -> PendingPublish:
        """Queue a record. It leaves when this turn of the event loop ends, or with its partition's next batch.

        It goes to `partition` where one is named, else to its key's. `size_bytes` is what the record counts for until
        it is released.
        """
        queue, publish = self._accumulator.add(topic, key, value, headers, size_bytes, partition)
        if not queue.sending:
            queue.sending = True
            if not self._ready:
                self.loop.call_soon(self._send_ready)
            self._ready.append(queue)
        return publish

    async def ping(self) -> None:
        """Ask a broker for its metadata; raise KafkaUnavailable unless it answers soon."""
        try:
            async with asyncio.timeout(PING_TIMEOUT_SECONDS):
                await self._kafka.client.fetch_all_metadata()
        except (KafkaError, TimeoutError) as error:
            raise KafkaUnavailable(why=f"{type(error).__name__} when asked for metadata.") from error

    def fail_permanently(self, error: PartitionCountChanged) -> None:
        """Take no more records, on this connection or another."""
        self.fatal_error = error
        self.fatal.set()

    async def close(self, grace_seconds: float) -> None:
        """Wait that long for batches that are on their way; the rest has an unknown outcome."""
        deadline = self.loop.time() + grace_seconds
        while self._sends and (left := deadline - self.loop.time()) > 0:
            await asyncio.wait(set(self._sends), timeout=left)
        clean = not self._sends
        for task in self._sends:
            task.cancel()
        await asyncio.gather(*self._sends, return_exceptions=True)
        self._fail_pending(KafkaUnavailable(why="The connection to Kafka was given up before the event was sent."))
        if clean and not self.fatal.is_set():
            await self._kafka.stop()
        else:
            await self._kafka.abandon()

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        """Renew a connection whose task for metadata, or for sending, has ended with an error.

        aiokafka does not expect every error; tasks that wait for metadata then wait without end (seen, before
        `closed_connections.py`).
        """
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("connection.broken", task=task.get_name(), why=repr(error))
            self.fatal.set()

    def _send_ready(self) -> None:
        queues, self._ready = self._ready, []
        for queue in queues:
            task = self.loop.create_task(self._send(queue))
            self._sends.add(task)
            task.add_done_callback(self._sends.discard)

    async def _send(self, queue: PartitionQueue) -> None:
        """Send the queue's batches one after the other until none is pending."""
        while queue.pending and not self.fatal.is_set():
            batch = queue.pending.popleft()
            batch.builder.close()
            started = time.perf_counter()
            try:
                self._check_partition_count(queue.topic)
                sent = await self._kafka.send_batch(batch.builder, queue.topic, partition=queue.partition)
                answer = await sent
                if answer.offset < 0:
                    raise KafkaError("the broker had the batch already and no longer knows its offset")
            except asyncio.CancelledError:
                self._fail(batch, OutcomeUnknown(why="The connection to Kafka was given up.", retry_after_seconds=2))
                raise
            except Exception as error:  # aiokafka raises bare asserts too; whatever it is, the sequence is broken
                self._fail_all(queue, batch, error)
                break
            self._succeed(queue, batch, answer.offset, time.perf_counter() - started)
        queue.sending = False

    def _check_partition_count(self, topic: str) -> None:
        expected = self.partition_counts[topic]
        actual = len(self._kafka.client.cluster.partitions_for_topic(topic) or ())
        if actual not in (0, expected):
            error = PartitionCountChanged(topic, expected, actual)
            self.fail_permanently(error)
            raise error

    def _succeed(self, queue: PartitionQueue, batch: PendingBatch, base_offset: int, seconds: float) -> None:
        if not batch.answer.done():
            batch.answer.set_result(RecordPosition(queue.topic, queue.partition, base_offset))
        self.release(batch.records, batch.size_bytes)
        metrics.PRODUCER_BATCH_RECORDS.observe(batch.records)
        metrics.PRODUCER_BATCH_SECONDS.observe(seconds)

    def _fail_all(self, queue: PartitionQueue, batch: PendingBatch, error: Exception) -> None:
        """Fail a batch with its error and the pending ones with another, and give up the connection."""
        log.error(
            "batch.refused",
            topic=queue.topic,
            partition=queue.partition,
            records=batch.records,
            error=type(error).__name__,
            why=str(error),
        )
        metrics.PRODUCER_FAILED_BATCHES.labels(error=type(error).__name__).inc()
        self.fatal.set()
        self._fail(batch, _map_error(queue.topic, error))
        self._fail_pending(KafkaUnavailable(why="The connection to Kafka is being renewed."))

    def _fail_pending(self, error: PlantError) -> None:
        for batch in self._accumulator.drain():
            self._fail(batch, error)

    def _fail(self, batch: PendingBatch, error: PlantError) -> None:
        if not batch.answer.done():
            batch.answer.set_exception(error)
            batch.answer.exception()  # publishers that no longer wait are no unretrieved error
        self.release(batch.records, batch.size_bytes)


def _map_error(topic: str, error: Exception) -> PlantError:
    """Return the error that the publishers of a failed batch get."""
    if isinstance(error, PlantError):
        return error
    if isinstance(error, UnknownTopicOrPartitionError):
        return TopicMissing(f"The topic {topic} does not exist.", next_step="plant topics apply")
    if isinstance(error, CERTAINLY_NOT_WRITTEN):
        return PublishRefused(why=f"{type(error).__name__} on {topic}.")
    return OutcomeUnknown(why=f"{type(error).__name__} on {topic}.", retry_after_seconds=2)


async def _partition_count(kafka: RepairedProducer, topic: str) -> int:
    client = kafka.client
    if client.cluster.partitions_for_topic(topic) is None:
        await client.add_topic(topic)
    partitions = client.cluster.partitions_for_topic(topic)
    if not partitions:
        raise TopicMissing(f"The topic {topic} does not exist.", next_step="plant topics apply")
    return len(partitions)

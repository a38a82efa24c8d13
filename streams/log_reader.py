"""One partition read from a position on, without a group: what a worker's transport delivers, for who needs no Faust.

The position is the caller's to know. Records come as the batches that workers get, and what the log holds at its end is
compared with Kafka first (`streams/open_partition.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import TopicPartition

from runtime.settings import Settings
from streams.batch import EventBatch
from streams.errors import CheckpointOutOfLog, KafkaUnavailable, RecordUnreadable
from streams.kafka.clients import make_consumer
from streams.kafka.consumer import RepairedConsumer
from streams.log_end import LogEnd
from streams.open_partition import OpenPartition
from streams.topic_watermarks import TopicWatermarks
from streams.watermarks import Watermarks

BATCH_RECORDS: Final = 16_000
"""Records of a batch: as many as a worker gathers that catches up."""

BATCH_BYTES: Final = 16 * 1024 * 1024
"""A batch ends at the fetch that reaches this."""

UNFENCED: Final = 0
"""The token of a reader that writes under no partition's fence."""

FETCH_BYTES: Final = 4 * 1024 * 1024
FETCH_RECORDS: Final = 10_000
FETCH_TIMEOUT_SECONDS: Final = 0.25


class LogReader:
    """Reads one partition; a context manager, within which its connections are open."""

    def __init__(self, settings: Settings, topic: str, partition: int, *, with_headers: bool = True) -> None:
        """Without headers records come in two thirds of the time, with no bytes for theirs."""
        self._tp = TopicPartition(topic, partition)
        self._settings = settings
        self._with_headers = with_headers
        self._consumer: RepairedConsumer | None = None
        self._opened: OpenPartition | None = None
        self._records_max = BATCH_RECORDS

    async def __aenter__(self) -> LogReader:
        """Connect. Raises KafkaUnavailable."""
        consumer = make_consumer(
            self._settings,
            client_id="plant-log-reader",
            group_id=None,
            enable_auto_commit=False,
            # Nothing ever falls back to the earliest or the latest record.
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_poll_records=FETCH_RECORDS,
            max_partition_fetch_bytes=FETCH_BYTES,
            metadata_max_age_ms=5_000,
        )
        try:
            await consumer.start()
        except BaseException as error:
            await consumer.stop()
            if isinstance(error, KafkaError | TimeoutError):
                raise self._unavailable(error) from error
            raise
        if not self._with_headers:
            consumer.leave_out_headers()
        consumer.assign([self._tp])
        self._consumer = consumer
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._consumer is not None:
            await self._consumer.stop()

    async def watermarks(self) -> Watermarks:
        """Ask the partition's leader where its log begins and ends. Raises KafkaUnavailable."""
        try:
            return await self._connected.watermarks(self._tp)
        except (KafkaError, TimeoutError) as error:
            raise self._unavailable(error) from error

    def open(self, token: int, watermarks: Watermarks, log_end: LogEnd) -> None:
        """Read from a checkpoint on, once Kafka's records up to it were compared. Raises CheckpointOutOfLog."""
        next_offset = log_end.next_offset
        if not watermarks.low <= next_offset <= watermarks.high:
            raise CheckpointOutOfLog(
                self._tp.topic, self._tp.partition, next_offset, watermarks.low, watermarks.high
            )  # fmt: skip
        position = log_end.read_from(watermarks.low)
        consumer = self._connected
        consumer.seek(self._tp, position)
        to_compare = log_end if position < next_offset else None
        self._opened = OpenPartition(
            token, position, consumer.fetch_state(self._tp), watermarks.leadership, to_compare
        )  # fmt: skip

    def halve(self) -> None:
        """Yield smaller batches from now on: one was too much."""
        self._records_max = max(1, self._records_max // 2)

    def grow(self) -> None:
        """Yield larger batches again, up to where they began."""
        self._records_max = min(self._records_max * 2, BATCH_RECORDS)

    async def batches(self, until: int) -> AsyncGenerator[EventBatch]:
        """Yield batches up to an offset, or past it where a fetch goes on; the next one is read meanwhile.

        Raises KafkaUnavailable, LogTruncated, RecordUnreadable, and CheckpointOutOfLog where the log has lost what is
        read next. Close it (`aclosing`) to stop early.
        """
        following = asyncio.create_task(self._gather(until))
        try:
            while (batch := await following) is not None:
                following = asyncio.create_task(self._gather(until))
                size = self._records_max
                for start in range(0, max(1, len(batch)), size):
                    yield batch.between(start, min(start + size, len(batch)))
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _gather(self, until: int) -> EventBatch | None:
        """Return the next records as one batch; None where the position is `until` or above."""
        opened, slices, records, size_bytes = self._open, list[EventBatch](), 0, 0
        while opened.position < until and records < self._records_max and size_bytes < BATCH_BYTES:
            batch = await self._fetch(opened)
            if opened.stop_reason is not None:
                raise opened.stop_reason
            if batch is not None:
                slices.append(batch)
                records += len(batch)
                size_bytes += batch.size_bytes
        return EventBatch.joined(slices) if slices else None

    async def _fetch(self, opened: OpenPartition) -> EventBatch | None:
        consumer, topic, partition = self._connected, self._tp.topic, self._tp.partition
        try:
            with consumer.poll_context():
                fetched = await consumer.fetch_columns([self._tp], FETCH_TIMEOUT_SECONDS)
        except OffsetOutOfRangeError as error:
            raise CheckpointOutOfLog(topic, partition, opened.position) from error
        except (KafkaError, TimeoutError) as error:
            raise self._unavailable(error) from error
        except Exception as error:
            if consumer.failing_partition([self._tp]) is None:
                raise
            raise RecordUnreadable(topic, partition, opened.position, error) from error
        return opened.advance(topic, partition, fetched.get(self._tp)) if opened.has_moved else None

    def _unavailable(self, error: BaseException) -> KafkaUnavailable:
        return KafkaUnavailable(why=f"{type(error).__name__} from {self._settings.kafka_bootstrap_servers}.")

    @property
    def _connected(self) -> RepairedConsumer:
        assert self._consumer is not None, "it is entered first"
        return self._consumer

    @property
    def _open(self) -> OpenPartition:
        assert self._opened is not None, "it is opened first"
        return self._opened


async def topic_batches(settings: Settings, topic: str, watermarks: TopicWatermarks) -> AsyncGenerator[EventBatch]:
    """Yield all records of a topic, one partition after the other, each from its first record to its end.

    Partitions that are empty, or did not answer for the watermarks, are left out. Raises what `batches` raises.
    """
    for partition, bounds in sorted(watermarks.bounds.items()):
        if bounds is None or bounds[0] == bounds[1]:
            continue
        async with LogReader(settings, topic, partition) as reader:
            at = await reader.watermarks()
            reader.open(UNFENCED, at, LogEnd(None, at.low, compared=False))
            async with contextlib.aclosing(reader.batches(at.high)) as batches:
                async for batch in batches:
                    yield batch

"""Who may write a partition, from assignment to revocation.

A partition that the group assigns to this worker goes through one loop, `OwnedPartition.run`:

    ask       Kafka for the log's watermarks, the partition count and the topic's id
    acquire   in Postgres: terminate the former owner's backend, take the next token, read the checkpoint;
              a topic or a checkpoint that does not fit Kafka's answer stops the partition
    open      seek to the checkpoint and let records flow
    project   batch by batch; each one is a transaction that begins by locking the token

After every failure while projecting (the fence is gone, Postgres is unreachable, a hole before a batch) the partition
is closed and acquired again, and reading resumes at the checkpoint. Nothing else is kept in memory, so nothing there
can be out of date.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any, Protocol, TypeVar

import msgspec
from aiokafka.errors import KafkaError
from faust.types import TP

from database.errors import DatabaseUnreachable
from runtime.logging import get_logger
from streams.batch import EventBatch
from streams.errors import CheckpointOutOfLog, OwnershipLost, PartitionStopped
from streams.open_partition import OpenPartition
from streams.transport import RecordBatchConsumer
from streams.watermarks import Watermarks

log = get_logger(__name__)

T = TypeVar("T")

QUEUED_RECORDS_MAX = 16_000
"""Records that wait while a batch is projected; from that on the partition is not fetched."""

QUEUED_BYTES_MAX = 32 * 1024 * 1024
"""The same in bytes of values: events are small, but nothing keeps a record from having a megabyte."""

BATCH_SECONDS_MIN = 0.005
"""Batches of a partition begin no closer together: under a steady load that makes fewer, larger transactions, and there
is CPU time left for the rest. An event that comes after a pause does not wait."""

IDLE_TIMEOUT_SECONDS = 1.0
"""After this without records a partition's owner looks for a stop reason, and for records that were cut off."""

RETRY_DELAYS_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
"""Delays after failures in a row, with no batch projected between them; the last one repeats."""


class Acquired(msgspec.Struct, frozen=True):
    """A partition that was acquired: the fencing token and the offset to read next."""

    token: int
    next_offset: int


class PartitionWriter(Protocol):
    """Postgres's side of one partition. Calls block and come from one thread, one at a time."""

    def acquire(self, watermarks: Watermarks) -> Acquired:
        """Fence off every former owner. Raises PartitionStopped where the topic is not the one that was read."""

    def project(self, batch: EventBatch) -> int:
        """Apply a batch and return the new checkpoint. Raises OwnershipLost, DatabaseUnreachable, PartitionStopped."""

    def note_stop(self, reason: str) -> None:
        """Write down, for those who look from outside, why the partition is stopped; what can't be written is left."""

    def close(self) -> None:
        """Drop the connection; never raises."""


class OwnedPartition:
    """One assigned partition: its thread, its queue and the loop that keeps it owned."""

    def __init__(
        self, tp: TP, writer: PartitionWriter, consumer: RecordBatchConsumer, *, heartbeat_seconds: float
    ) -> None:
        self.tp = tp
        self.stopped: PartitionStopped | None = None
        self._writer = writer
        self._consumer = consumer
        self._heartbeat_seconds = heartbeat_seconds
        self._queue: asyncio.Queue[EventBatch] = asyncio.Queue()
        self._queued_records = 0
        self._queued_bytes = 0
        self._missing_from: int | None = None
        self._open: OpenPartition | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{tp.topic}-{tp.partition}")
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        self._log = log.bind(topic=tp.topic, partition=tp.partition)

    def assign(self) -> None:
        """Begin to acquire the partition, once a call that its thread still runs has returned."""
        self._cancel()
        self.stopped = None
        self._task = asyncio.create_task(self._run(), name=f"own {self.tp.topic}/{self.tp.partition}")

    def revoke(self) -> None:
        """Stop at once. A batch in the middle of its transaction may still commit: the fence allows it or not."""
        self._cancel()
        self.stopped = None
        self._thread.submit(self._writer.close)

    async def shut_down(self) -> None:
        """Stop, wait for the running batch or acquisition (statements are bounded), and end the thread."""
        self.revoke()
        await asyncio.to_thread(self._thread.shutdown)

    def submit(self, batch: EventBatch) -> None:
        """Queue a batch. A full queue pauses the fetching of this partition and of no other."""
        self._queue.put_nowait(batch)
        self._queued_records += len(batch)
        self._queued_bytes += sum(len(value) for value in batch.values if value is not None)
        full = self._queued_records >= QUEUED_RECORDS_MAX or self._queued_bytes >= QUEUED_BYTES_MAX
        if self._open is not None and full:
            self._open.paused = True

    def _cancel(self) -> None:
        self._close()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _close(self) -> None:
        self._consumer.close_partition(self.tp)
        self._open = None
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queued_records = self._queued_bytes = 0
        self._missing_from = None

    async def _run(self) -> None:
        while True:
            try:
                self._open = await self._acquire()
                await self._project(self._open)
            except PartitionStopped as error:
                self.stopped = error
                self._close()
                self._log.error("partition.stopped", error=type(error).__name__, what=error.what, why=error.why)
                await self._note_stop(error)
                return
            except OwnershipLost as error:
                # Another worker holds the token. If the group has moved the partition, its next heartbeat says so;
                # acquiring it at once would only take it from its rightful owner.
                self._close()
                self._log.warning("ownership.lost", why=str(error))
                await asyncio.sleep(self._heartbeat_seconds)
            except (DatabaseUnreachable, KafkaError) as error:
                self._close()
                delay = self._next_delay_seconds()
                self._log.warning("partition.waiting", why=str(error) or repr(error), retry_seconds=delay)
                await asyncio.sleep(delay)
            except Exception:
                # A defect, ours or a library's. Trying again is safe and may help; doing nothing does not.
                self._close()
                delay = self._next_delay_seconds()
                self._log.exception("partition.failed", retry_seconds=delay)
                await asyncio.sleep(delay)

    async def _note_stop(self, error: PartitionStopped) -> None:
        try:
            await self._blocking(self._writer.note_stop, f"{type(error).__name__}: {error}")
        except Exception:
            self._log.exception("partition.stop_not_noted")

    def _next_delay_seconds(self) -> float:
        delay = RETRY_DELAYS_SECONDS[min(self._failures, len(RETRY_DELAYS_SECONDS) - 1)]
        self._failures += 1
        return delay

    async def _acquire(self) -> OpenPartition:
        log = await self._consumer.watermarks(self.tp)
        acquired = await self._blocking(self._writer.acquire, log)
        if not log.low <= acquired.next_offset <= log.high:
            # A former owner may have gone on until the partition was acquired: past the end that Kafka gave before it.
            log = await self._consumer.watermarks(self.tp)
        if not log.low <= acquired.next_offset <= log.high:
            raise CheckpointOutOfLog(self.tp.topic, self.tp.partition, acquired.next_offset, log.low, log.high)
        opened = await self._consumer.open_partition(self.tp, acquired.token, acquired.next_offset, log.topic_id)
        self._log.info("partition.acquired", token=acquired.token, next_offset=acquired.next_offset, log_end=log.high)
        return opened

    async def _project(self, opened: OpenPartition) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch(opened)
            if batch is None:
                self._check_idle(opened)
                continue
            started = loop.time()
            self._consumer.done[self.tp] = await self._blocking(self._writer.project, batch)
            self._failures = 0
            await asyncio.sleep(started + BATCH_SECONDS_MIN - loop.time())

    async def _next_batch(self, opened: OpenPartition) -> EventBatch | None:
        """Return all that waits, as one batch; None after IDLE_TIMEOUT_SECONDS without any."""
        try:
            # Not asyncio.wait_for: before Python 3.12 it can swallow the cancellation of this task, which then goes on
            # next to its successor; each drops the other's slices, and the partition stands still (seen).
            async with asyncio.timeout(IDLE_TIMEOUT_SECONDS):
                waiting = [await self._queue.get()]
        except TimeoutError:
            return None
        while not self._queue.empty():
            waiting.append(self._queue.get_nowait())
        self._queued_records = self._queued_bytes = 0
        opened.paused = False
        # A slice that was fetched under an earlier token may still be on its way here.
        current = [batch for batch in waiting if batch.token == opened.token]
        return reduce(EventBatch.followed_by, current) if current else None

    def _check_idle(self, opened: OpenPartition) -> None:
        """Raise the stop reason if there is one, and OwnershipLost where fetched records have not arrived."""
        if opened.stop_reason is not None:
            raise opened.stop_reason
        done = self._consumer.done[self.tp]
        if opened.position > done and self._missing_from == done:
            # A rebalance can cut off slices on their way from the fetch to the queue.
            raise OwnershipLost(why=f"Offsets {done} to {opened.position} were fetched and have not arrived.")
        # Once is no sign: what has just been fetched may be on its way.
        self._missing_from = done if opened.position > done else None

    async def _blocking(self, function: Callable[..., T], *args: Any) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
        except (Exception, asyncio.CancelledError):
            raise
        except BaseException as error:  # a panic inside polars, which must not end the partition without a log line
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

"""Who may write a partition, from assignment to revocation.

A partition that the group assigns to this worker goes through one loop, `OwnedPartition.run`:

    ask       Kafka for the log's watermarks, the partition count and the topic's id
    acquire   in Postgres: terminate the former owner's backend, take the next token, read the checkpoint;
              a topic or a checkpoint that does not fit Kafka's answer stops the partition
    open      read again from the last logged record, compare Kafka's with it, and let records behind it flow
    project   batch by batch; each one is a transaction that begins by locking the token

After every failure while projecting (the fence is gone, Postgres is unreachable, a hole before a batch), after an
election of a leader, and where other read models are to be fed, the partition is closed and acquired again, and reading
resumes at the checkpoint. Nothing else is kept in memory, so nothing there can be out of date.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec
from aiokafka.errors import KafkaError
from faust.types import TP

from database.errors import DatabaseUnreachable
from runtime.errors import drop_frames
from runtime.logging import get_logger
from streams.batch import EventBatch
from streams.batch_queue import BatchQueue
from streams.control_search import ControlSearch, NamedPoison
from streams.errors import (
    CheckpointOutOfLog,
    KafkaUnavailable,
    LeaderChanged,
    OwnershipLost,
    PartitionStopped,
    PublishRefused,
    ReadModelsChanged,
    SchemaNewer,
    TooMuchParked,
)
from streams.log_end import LogEnd
from streams.memory_budget import MemoryBudget
from streams.open_partition import OpenPartition
from streams.transport import RecordBatchConsumer
from streams.watermarks import Watermarks

log = get_logger(__name__)

T = TypeVar("T")

QUEUED_RECORDS_MAX = 16_000
"""Records that wait while a batch is projected; from that on the partition is not fetched. So it is from half of its
share of the worker's `MemoryBudget` on."""

BATCH_SECONDS_MIN = 0.005
"""Batches of a partition begin no closer together: under a steady load that makes fewer, larger transactions, and there
is CPU time left for the rest. An event that comes after a pause does not wait."""

IDLE_TIMEOUT_SECONDS = 1.0
"""After this without records a partition's owner looks for a stop reason, and for records that were cut off."""

RETRY_DELAYS_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
"""Delays after failures in a row, with no batch projected between them; the last one repeats."""

STOPPED_DELAYS_SECONDS = (10.0, 30.0, 60.0, 120.0, 300.0)
"""The same until a stopped partition is looked at again: what stopped it may have been mended meanwhile."""

LOOK_AHEAD_SECONDS = 10.0
"""How often a partition looks for control records further on that let it go on where it stands."""

QUICK_SECONDS = 5.0
"""A batch that took no longer than this lets the next one grow, after a batch that failed was halved."""


def delay_after(failures: int, delays: Sequence[float]) -> float:
    """Return the delay after one more failure than there were before in a row; the last one repeats.

    >>> [delay_after(failures, (0.5, 2.0)) for failures in range(3)]
    [0.5, 2.0, 2.0]
    """
    return delays[min(failures, len(delays) - 1)]


class Acquired(msgspec.Struct, frozen=True):
    """A partition that was acquired: the fencing token, and where the log ends."""

    token: int
    log_end: LogEnd


class PartitionWriter(Protocol):
    """Postgres's side of one partition. Calls block and come from one thread, one at a time."""

    def acquire(self, watermarks: Watermarks, interrupted: threading.Event) -> Acquired:
        """Fence off every former owner. Raises PartitionStopped where the topic is not the one that was read.

        Once `interrupted` is set, long work of this ownership ends between two of its transactions, in OwnershipLost.
        """

    def project(self, batch: EventBatch) -> int:
        """Apply a batch and return the new checkpoint.

        Raises OwnershipLost, DatabaseUnreachable, PartitionStopped, ReadModelsChanged; and KafkaUnavailable or
        PublishRefused where it publishes.
        """

    def skip(self, offset: int, reason: str) -> None:
        """Log the record at an offset as poison, for this reason, if its schema is not known when it comes again."""

    def make_room(self, named: Collection[NamedPoison]) -> None:
        """Keep more of parked entities for a while, since control records further on name these poison records."""

    def idle(self) -> None:
        """Do what could not be done so far, after a while without records.

        Raises DatabaseUnreachable, ReadModelsChanged.
        """

    def note_stop(self, reason: str) -> None:
        """Write down, for those who look from outside, why the partition is stopped; what can't be written is left."""

    def close(self) -> None:
        """Drop the connection; never raises."""

    def forget(self) -> None:
        """Drop the connection, and what was kept for going on with the partition; never raises."""


InThread = Callable[..., Awaitable[Any]]
"""Calls a function with arguments in a partition's thread, and returns what it returns."""


@runtime_checkable
class LoopWriter(Protocol):
    """A writer that takes batches in the event loop: two changes of thread cost more than a batch of few records."""

    async def accept(self, batch: EventBatch, in_thread: InThread) -> int:
        """Do as `project`, which is not called then. Cancelled, it has taken a part of the batch, or nothing.

        `in_thread` calls what blocks, in the thread that all other calls come from.
        """


class OwnedPartition:
    """One assigned partition: its thread, its queue and the loop that keeps it owned."""

    def __init__(
        self,
        tp: TP,
        writer: PartitionWriter,
        consumer: RecordBatchConsumer,
        *,
        heartbeat_seconds: float,
        budget: MemoryBudget,
        search: ControlSearch | None = None,
    ) -> None:
        """`search` looks for control records that let the partition go on where it stands; None: nothing does."""
        self.tp = tp
        self.stopped: PartitionStopped | None = None
        """Why an operator is needed, until a batch is projected, or reading goes on, after all."""
        self._writer = writer
        self._accept = writer.accept if isinstance(writer, LoopWriter) else None
        self._consumer = consumer
        self._heartbeat_seconds = heartbeat_seconds
        self._budget = budget
        self._search = search
        self._skipped_offset: int | None = None
        self._named: frozenset[NamedPoison] = frozenset()
        self._queue = BatchQueue(budget)
        self._records_max: int | None = None
        self._interrupted = threading.Event()
        self._stops = 0
        self._missing_from: int | None = None
        self._known_end = 0
        self._open: OpenPartition | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{tp.topic}-{tp.partition}")
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        self._log = log.bind(topic=tp.topic, partition=tp.partition)

    @property
    def assigned(self) -> bool:
        """Whether the group has it with this worker."""
        return self._task is not None

    def assign(self) -> None:
        """Begin to acquire the partition, once a call that its thread still runs has returned."""
        self._cancel()
        self._interrupted = threading.Event()
        self._task = asyncio.create_task(self._run(), name=f"own {self.tp.topic}/{self.tp.partition}")

    def revoke(self, *, moved: bool = False) -> None:
        """Stop at once. A batch in the middle of its transaction may still commit: the fence allows it or not.

        `moved` says that the group has given it to another worker: nothing is kept for going on.
        """
        self._cancel()
        self.stopped = None
        self._thread.submit(self._writer.forget if moved else self._writer.close)

    async def shut_down(self) -> None:
        """Stop, wait for the running batch or acquisition (statements are bounded), and end the thread."""
        self.revoke()
        await asyncio.to_thread(self._thread.shutdown)

    def submit(self, batch: EventBatch) -> None:
        """Queue a batch. A full queue pauses the fetching of this partition and of no other."""
        self._queue.put(batch)
        if self._open is not None:
            self._open.paused = self._is_full

    @property
    def _is_full(self) -> bool:
        share_bytes = self._budget.share_bytes // 2
        return self._queue.records >= QUEUED_RECORDS_MAX or self._queue.size_bytes >= share_bytes

    def _cancel(self) -> None:
        self._interrupted.set()
        self._close()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _close(self) -> None:
        self._consumer.close_partition(self.tp)
        self._open = None
        self._queue.clear()
        self._missing_from = None

    async def _run(self) -> None:
        while True:
            try:
                self._open = await self._acquire()
                await self._project(self._open)
            except PartitionStopped as error:
                # While it was acquired, records were read that the log has already: none of them can be skipped.
                waiting = error if isinstance(error, SchemaNewer | TooMuchParked) and self._open is not None else None
                self._close()
                drop_frames(error)
                delay = self._count_stop(error)
                await self._note_stop(error)
                await self._wait_stopped(waiting, delay)
            except OwnershipLost as error:
                # Another worker holds the token. If the group has moved the partition, its next heartbeat says so;
                # acquiring it at once would only take it from its rightful owner.
                self._close()
                self._log.warning("ownership.lost", why=str(error))
                await asyncio.sleep(self._heartbeat_seconds)
            except LeaderChanged as error:
                self._close()
                self._log.info("partition.leader_changed", why=error.why)
                await asyncio.sleep(self._next_delay_seconds())
            except ReadModelsChanged as error:
                self._close()
                self._log.info("partition.models_changed", why=error.why)
            except (DatabaseUnreachable, KafkaUnavailable, PublishRefused, KafkaError) as error:
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

    async def _wait_stopped(self, waiting: SchemaNewer | TooMuchParked | None, delay: float) -> None:
        """Wait until the partition is to be looked at again: at once where control records further on may help it."""
        until = asyncio.get_running_loop().time() + delay
        while waiting is not None and self._search is not None and self._skipped_offset != waiting.offset:
            if await self._look_ahead(self._search, waiting):
                return
            left = until - asyncio.get_running_loop().time()
            if left <= LOOK_AHEAD_SECONDS:
                break
            await asyncio.sleep(LOOK_AHEAD_SECONDS)
        await asyncio.sleep(until - asyncio.get_running_loop().time())

    async def _look_ahead(self, search: ControlSearch, waiting: SchemaNewer | TooMuchParked) -> bool:
        """Read ahead for control records that may help, and give them to the writer; return whether some are new."""
        try:
            if isinstance(waiting, SchemaNewer):
                return await self._find_skip(search, waiting)
            return await self._find_named(search, waiting)
        except Exception:
            self._log.exception("controls.not_searched")
            return False

    async def _find_skip(self, search: ControlSearch, waiting: SchemaNewer) -> bool:
        reason = await self._blocking(search.find_skip, waiting, self._interrupted)
        if reason is None:
            return False
        self._log.warning("record.skipped", offset=waiting.offset, reason=reason)
        self._skipped_offset = waiting.offset
        await self._blocking(self._writer.skip, waiting.offset, reason)
        return True

    async def _find_named(self, search: ControlSearch, waiting: TooMuchParked) -> bool:
        named = await self._blocking(search.find_named, waiting, self._interrupted)
        if named == self._named:
            return False
        self._log.info("controls.found", offset=waiting.offset, named=len(named))
        self._named = named
        await self._blocking(self._writer.make_room, named)
        return True

    async def _note_stop(self, error: PartitionStopped) -> None:
        try:
            await self._blocking(self._writer.note_stop, f"{type(error).__name__}: {error}")
        except Exception:
            self._log.exception("partition.stop_not_noted")

    def _count_stop(self, error: PartitionStopped) -> float:
        """Keep the reason for whoever asks; return how long until the partition is looked at again."""
        delay = delay_after(self._stops, STOPPED_DELAYS_SECONDS)
        known = self.stopped is not None and str(self.stopped) == str(error)
        self.stopped, self._stops = error, self._stops + 1
        (self._log.warning if known else self._log.error)(
            "partition.still_stopped" if known else "partition.stopped",
            error=type(error).__name__,
            what=error.what,
            why=error.why,
            retry_seconds=delay,
        )
        return delay

    def _note_progress(self) -> None:
        """Forget what stopped the partition."""
        self._failures = self._stops = 0
        if self.stopped is not None:
            self._log.warning("partition.resumed", error=type(self.stopped).__name__)
            self.stopped = None

    def _next_delay_seconds(self) -> float:
        delay = delay_after(self._failures, RETRY_DELAYS_SECONDS)
        self._failures += 1
        return delay

    async def _acquire(self) -> OpenPartition:
        log = await self._consumer.watermarks(self.tp)
        acquired = await self._blocking(self._writer.acquire, log, self._interrupted)
        next_offset = acquired.log_end.next_offset
        if not log.low <= next_offset <= log.high:
            # A former owner may have gone on until the partition was acquired: past the end that Kafka gave before it.
            log = await self._consumer.watermarks(self.tp)
        if not log.low <= next_offset <= log.high:
            raise CheckpointOutOfLog(self.tp.topic, self.tp.partition, next_offset, log.low, log.high)
        self._known_end = log.high
        opened = await self._consumer.open_partition(self.tp, acquired.token, log.leadership, log.low, acquired.log_end)
        self._log.info("partition.acquired", token=acquired.token, next_offset=next_offset, log_end=log.high)
        return opened

    async def _project(self, opened: OpenPartition) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch(opened)
            if batch is None:
                self._check_idle(opened)
                await self._blocking(self._writer.idle)
                continue
            started = loop.time()
            try:
                next_offset = await self._project_reserved(*batch)
            finally:
                if self._open is not opened:  # cancelled, which what a batch waits for in the event loop may swallow
                    raise asyncio.CancelledError
            self._consumer.done[self.tp] = next_offset
            self._note_progress()
            self._grow(len(batch[0]), loop.time() - started)
            await asyncio.sleep(started + BATCH_SECONDS_MIN - loop.time())

    async def _project_reserved(self, batch: EventBatch, size_bytes: int) -> int:
        """Project a batch, which keeps its bytes of the budget meanwhile; one that fails is halved the next time.

        That Postgres gave it up, or fell over it, may be for its size.
        """
        self._budget.reserve(size_bytes)
        try:
            if self._accept is not None:
                return await _passing_panics(self._accept(batch, self._blocking))
            return await self._blocking(self._writer.project, batch)
        except DatabaseUnreachable:
            self._records_max = max(1, len(batch) // 2)
            raise
        finally:
            self._budget.release(size_bytes)

    def _grow(self, records: int, seconds: float) -> None:
        """Let batches grow again after one that was quick, up to where there is no bound."""
        if self._records_max is not None and records >= self._records_max and seconds < QUICK_SECONDS:
            self._records_max = self._records_max * 2 if self._records_max * 2 < QUEUED_RECORDS_MAX else None

    async def _next_batch(self, opened: OpenPartition) -> tuple[EventBatch, int] | None:
        """Return all that waits, as one batch, or the bound of it, and its bytes.

        None after IDLE_TIMEOUT_SECONDS without any.
        """
        try:
            # Not asyncio.wait_for: before Python 3.12 it can swallow the cancellation of this task, which then goes on
            # next to its successor; each drops the other's slices, and the partition stands still (seen).
            async with asyncio.timeout(IDLE_TIMEOUT_SECONDS):
                await self._queue.wait()
        except TimeoutError:
            return None
        waiting = self._queue.take(self._records_max)
        opened.paused = self._is_full
        # A slice that was fetched under an earlier token may still be on its way here.
        current = [(batch, size_bytes) for batch, size_bytes in waiting if batch.token == opened.token]
        if not current:
            return None
        return EventBatch.joined([batch for batch, _ in current]), sum(size_bytes for _, size_bytes in current)

    def _check_idle(self, opened: OpenPartition) -> None:
        """Raise the stop reason if there is one, and OwnershipLost where fetched records have not arrived."""
        if opened.stop_reason is not None:
            raise opened.stop_reason
        done = self._consumer.done[self.tp]
        if opened.position > done and self._missing_from == done:
            # A rebalance can cut off slices on their way from the fetch to the queue.
            raise OwnershipLost(why=f"Offsets {done} to {opened.position} were fetched and have not arrived.")
        if opened.log_end is None and done >= self._known_end:
            # There was nothing to project. Otherwise the record that stopped it may be about to come.
            self._note_progress()
        # Once is no sign: what has just been fetched may be on its way.
        self._missing_from = done if opened.position > done else None

    async def _blocking(self, function: Callable[..., T], *args: Any) -> T:
        return await _passing_panics(asyncio.get_running_loop().run_in_executor(self._thread, function, *args))


async def _passing_panics(work: Awaitable[T]) -> T:
    """Wait for work, and pass on a panic inside polars as an error: it must not end a partition without a log line."""
    try:
        return await work
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error

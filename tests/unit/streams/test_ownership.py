"""An owned partition: its queue's bounds, and the watermarks that its checkpoint has to fit."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, cast
from uuid import UUID

import pytest
import structlog
from faust.types import TP

from database.errors import DatabaseUnreachable
from streams import ownership
from streams.batch import RECORD_OVERHEAD_BYTES, EventBatch
from streams.control_search import ControlSearch, NamedPoison
from streams.errors import CheckpointOutOfLog, LogRefused, OwnershipLost, SchemaNewer, TooMuchParked
from streams.log_end import LogEnd
from streams.memory_budget import MemoryBudget
from streams.open_partition import OpenPartition
from streams.ownership import Acquired, InThread, OwnedPartition, PartitionWriter
from streams.transport import RecordBatchConsumer
from streams.watermarks import Leadership, Watermarks
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

TOPIC = TP("genesis.events", 0)
LEADERSHIP = Leadership(UUID(int=7), 3)


class Consumer:
    """The consumer's side of one partition, whose high watermarks are answered one after the other."""

    def __init__(self, *high: int, low: int = 0) -> None:
        self.done: dict[TP, int] = {}
        self.opened: list[OpenPartition] = []
        self.asked = 0
        self._high = high
        self._low = low

    async def watermarks(self, tp: TP) -> Watermarks:
        assert tp == TOPIC
        high = self._high[min(self.asked, len(self._high) - 1)]
        self.asked += 1
        return Watermarks(self._low, high, 1, LEADERSHIP)

    async def open_partition(
        self, tp: TP, token: int, leadership: Leadership, low: int, log_end: LogEnd
    ) -> OpenPartition:
        assert (tp, token, leadership, low) == (TOPIC, 1, LEADERSHIP, self._low)
        self.opened.append(OpenPartition(token, log_end.next_offset, None, leadership))
        self.done[tp] = log_end.next_offset
        return self.opened[-1]

    def close_partition(self, tp: TP) -> None:
        assert tp == TOPIC
        self.done.pop(tp, None)


class Writer:
    """Postgres's side, which projects a batch when `allowed` is set."""

    def __init__(self, next_offset: int = 0) -> None:
        self.allowed = threading.Event()
        self.projecting = threading.Event()
        self.idled = threading.Event()
        self._next_offset = next_offset
        self.stop_reasons: list[str] = []

    def acquire(self, watermarks: Watermarks, interrupted: threading.Event) -> Acquired:
        assert watermarks.leadership == LEADERSHIP
        assert not interrupted.is_set()
        assert threading.current_thread().name.startswith("genesis.events-0")
        return Acquired(1, LogEnd(None, self._next_offset))

    def project(self, batch: EventBatch) -> int:
        assert threading.current_thread().name.startswith("genesis.events-0")
        self.projecting.set()
        assert self.allowed.wait(DEADLINE_SECONDS)
        return batch.next_offset

    def idle(self) -> None:
        self.idled.set()

    def skip(self, offset: int, reason: str) -> None:
        raise NotImplementedError

    def make_room(self, named: Collection[NamedPoison]) -> None:
        raise NotImplementedError

    def note_stop(self, reason: str) -> None:
        self.stop_reasons.append(reason)

    def close(self) -> None:
        self.allowed.set()


@asynccontextmanager
async def owned(
    consumer: Consumer, writer: PartitionWriter, budget: MemoryBudget | None = None, search: Search | None = None
) -> AsyncIterator[OwnedPartition]:
    partition = OwnedPartition(
        TOPIC,
        writer,
        cast(RecordBatchConsumer, consumer),
        heartbeat_seconds=0.01,
        budget=budget or MemoryBudget(1 << 30),
        search=cast(ControlSearch, search),
    )
    partition.assign()
    try:
        yield partition
    finally:
        if isinstance(writer, Writer):
            writer.allowed.set()
        await partition.shut_down()


def batch(start: int, *sizes: int, header_bytes: int = 0) -> EventBatch:
    """Records with values of these sizes."""
    stop = start + len(sizes)
    return EventBatch(
        topic=TOPIC.topic,
        partition=TOPIC.partition,
        token=1,
        fetched_from=start,
        next_offset=stop,
        offsets=list(range(start, stop)),
        timestamps_ms=[0] * len(sizes),
        keys=[None] * len(sizes),
        values=[b"x" * size for size in sizes],
        headers=[bytes(header_bytes)] * len(sizes),
    )


@pytest.mark.parametrize(
    ("records_max", "budget_bytes", "sizes", "header_bytes"),
    [
        (16_000, 2 * (2 * RECORD_OVERHEAD_BYTES + 1_000), (600, 400), 0),
        (16_000, 2 * (2 * RECORD_OVERHEAD_BYTES + 1_000), (100, 100), 400),
        (16_000, 2 * 1_000 * RECORD_OVERHEAD_BYTES, (0,) * 1_000, 0),
        (1_000, 1 << 30, (0,) * 1_000, 0),
    ],
    ids=["values", "headers", "Python's objects", "records"],
)
async def test_a_full_queue_pauses_its_partition(
    monkeypatch: pytest.MonkeyPatch, records_max: int, budget_bytes: int, sizes: tuple[int, ...], header_bytes: int
) -> None:
    """Few large records fill it as many small ones do; it is fetched again once the queue has been taken over."""
    monkeypatch.setattr(ownership, "QUEUED_RECORDS_MAX", records_max)
    consumer, writer, budget = Consumer(10_000), Writer(), MemoryBudget(budget_bytes)
    async with owned(consumer, writer, budget) as partition:
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
        partition.submit(batch(0, 1))
        await wait_until_async(writer.projecting.is_set, "the first batch is being projected")

        partition.submit(batch(1, *sizes[:-1], header_bytes=header_bytes))
        assert not consumer.opened[0].paused
        partition.submit(batch(len(sizes), sizes[-1], header_bytes=header_bytes))
        assert consumer.opened[0].paused

        writer.allowed.set()
        await wait_until_async(lambda: consumer.done[TOPIC] == len(sizes) + 1, "every record is done")
        assert not consumer.opened[0].paused
        assert budget.reserved_bytes == 0


class InLoop(Writer):
    """A writer that takes batches in the event loop, when `taken` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted: list[int] = []
        self.ended: list[str] = []
        self.taken = asyncio.Event()

    async def accept(self, batch: EventBatch, in_thread: InThread) -> int:
        assert threading.current_thread() is threading.main_thread()
        self.accepted.append(batch.fetched_from)
        try:
            await self.taken.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        return batch.next_offset

    def project(self, batch: EventBatch) -> int:
        raise NotImplementedError


async def test_a_writer_may_take_batches_in_the_event_loop() -> None:
    """One at a time; a partition that is given up waits for none of them, and keeps nothing of the budget."""
    consumer, writer, budget = Consumer(10_000), InLoop(), MemoryBudget(100_000)
    async with owned(consumer, writer, budget) as partition:
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
        partition.submit(batch(0, 1))
        await wait_until_async(lambda: writer.accepted, "the first batch is being taken")
        partition.submit(batch(1, 1))
        await asyncio.sleep(0)
        assert writer.accepted == [0]
        writer.taken.set()
        await wait_until_async(lambda: consumer.done[TOPIC] == 2, "both are done")
        assert writer.accepted == [0, 1]
        writer.taken.clear()
        partition.submit(batch(2, 1))
        await wait_until_async(lambda: len(writer.accepted) == 3, "the third one is being taken")
        partition.revoke()
        await wait_until_async(lambda: writer.ended == ["cancelled"], "it is given up")
        assert budget.reserved_bytes == 0


async def test_what_blocks_is_called_in_the_thread_of_all_other_calls() -> None:
    """So that a partition which is given up meanwhile is closed after it."""
    threads: list[threading.Thread] = []

    class Blocking(InLoop):
        async def accept(self, batch: EventBatch, in_thread: InThread) -> int:
            return int(await in_thread(self.note_thread, batch.next_offset))

        def note_thread(self, next_offset: int) -> int:
            threads.append(threading.current_thread())
            return next_offset

        def close(self) -> None:
            threads.append(threading.current_thread())

    consumer, writer = Consumer(10_000), Blocking()
    async with owned(consumer, writer, MemoryBudget(100_000)) as partition:
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
        partition.submit(batch(0, 1))
        await wait_until_async(lambda: consumer.done[TOPIC] == 1, "it is done")
        partition.revoke()
        await wait_until_async(lambda: len(threads) == 2, "it is closed")
    assert threads[0] is threads[1] is not threading.main_thread()


@pytest.mark.parametrize("failure", [None, DatabaseUnreachable(why="For tests.")], ids=["goes on", "fails"])
async def test_a_batch_that_swallows_its_cancellation_ends_its_ownership(failure: Exception | None) -> None:
    """Two that go on next to each other would drop each other's slices."""

    class Swallowing(InLoop):
        async def accept(self, batch: EventBatch, in_thread: InThread) -> int:
            with suppress(asyncio.CancelledError):
                await super().accept(batch, in_thread)
            if failure is not None:
                raise failure
            return batch.next_offset

    consumer, writer = Consumer(10_000), Swallowing()
    async with owned(consumer, writer, MemoryBudget(100_000)) as partition:
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
        partition.submit(batch(0, 1))
        await wait_until_async(lambda: writer.accepted, "a batch is being taken")
        task = partition._task
        assert task is not None
        partition.revoke()
        await wait_until_async(task.cancelled, "its ownership is over")
        assert writer.ended == ["cancelled"]
        assert consumer.done == {}


async def test_a_panic_in_the_event_loop_does_not_end_the_partition() -> None:
    """It is acquired again, as it is after a panic in its thread."""

    class Panicking(InLoop):
        async def accept(self, batch: EventBatch, in_thread: InThread) -> int:
            self.accepted.append(batch.fetched_from)
            raise Panic("index out of bounds")

    consumer, writer = Consumer(10_000), Panicking()
    async with owned(consumer, writer, MemoryBudget(100_000)) as partition:
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
        with structlog.testing.capture_logs() as lines:
            partition.submit(batch(0, 1))
            await wait_until_async(lambda: len(consumer.opened) == 2, "it is opened again")
    assert writer.accepted == [0]
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["partition.failed"]


async def test_partitions_share_one_budget() -> None:
    """What one holds is counted for all, the batch that is being projected too; what is dropped is released."""
    consumer, writer, budget = Consumer(10_000), Writer(), MemoryBudget(100_000)
    budget.divide(4)
    size_bytes = batch(0, 12_500).size_bytes
    async with owned(consumer, writer, budget) as partition:
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
        partition.submit(batch(0, 12_500))
        await wait_until_async(writer.projecting.is_set, "the first batch is being projected")
        assert budget.reserved_bytes == size_bytes
        partition.submit(batch(1, 12_500))
        assert consumer.opened[0].paused  # an eighth of the budget: half of a quarter
        assert budget.reserved_bytes == 2 * size_bytes
        for start in range(2, 8):
            partition.submit(batch(start, 12_500))
        assert budget.is_spent
        partition.revoke()
        await wait_until_async(lambda: budget.reserved_bytes == 0, "what waited is dropped")


class Unable(Writer):
    """Postgres gives up batches of more than so many records."""

    def __init__(self, records_max: int) -> None:
        super().__init__()
        self.tried: list[int] = []
        self.records_max = records_max
        self.next_offset = 0

    def acquire(self, _watermarks: Watermarks, _interrupted: threading.Event) -> Acquired:
        return Acquired(1, LogEnd(None, self.next_offset))

    def project(self, batch: EventBatch) -> int:
        self.tried.append(len(batch))
        if len(batch) > self.records_max:
            raise DatabaseUnreachable(why="canceling statement due to statement timeout")
        self.next_offset = batch.next_offset
        return batch.next_offset


async def test_a_batch_that_fails_is_halved_and_then_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not tried again at the same size; once batches are quick, they grow until there is no bound."""
    monkeypatch.setattr(ownership, "RETRY_DELAYS_SECONDS", (0.0,))
    monkeypatch.setattr(ownership, "QUEUED_RECORDS_MAX", 20)
    consumer, writer = Consumer(10_000), Unable(4)
    async with owned(consumer, writer) as partition:
        for attempt in range(1, 4):
            await wait_until_async(lambda n=attempt: len(consumer.opened) == n, "the partition is open")
            partition.submit(batch(0, *[1] * 10))
            await wait_until_async(lambda n=attempt: len(writer.tried) >= n, "it is tried")
        await wait_until_async(lambda: consumer.done.get(TOPIC) == 10, "all of it is done")
        assert writer.tried[:4] == [10, 5, 2, 4]

        writer.records_max = 1_000
        await wait_until_async(lambda: bool(consumer.opened), "the partition is open")
        del writer.tried[:]
        partition.submit(batch(10, *[1] * 100))
        await wait_until_async(lambda: consumer.done.get(TOPIC) == 110, "all of it is done")
        assert writer.tried[0] <= 16
        assert max(writer.tried) > 50


async def test_slices_with_a_hole_between_them_are_read_again() -> None:
    """It is no defect: a rebalance can cut off slices on their way."""
    consumer, writer = Consumer(10_000), Writer()
    with structlog.testing.capture_logs() as lines:
        async with owned(consumer, writer) as partition:
            await wait_until_async(lambda: consumer.opened, "the partition is opened")
            partition.submit(batch(0, 1))
            await wait_until_async(writer.projecting.is_set, "the first batch is being projected")
            partition.submit(batch(1, 1))
            partition.submit(batch(7, 1))
            writer.allowed.set()
            await wait_until_async(lambda: len(consumer.opened) == 2, "the partition is acquired again")
    assert [line["event"] for line in lines if line["log_level"] in ("warning", "error")] == ["ownership.lost"]


async def test_a_stopped_partition_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stopped it may be mended: it goes on then, and is no longer called stopped once it does."""
    monkeypatch.setattr(ownership, "STOPPED_DELAYS_SECONDS", (0.0,))
    consumer, writer = Consumer(10, 10, 10, 10, 20), Writer(next_offset=15)
    with structlog.testing.capture_logs() as lines:
        async with owned(consumer, writer) as partition:
            await wait_until_async(lambda: consumer.opened, "the partition is opened")
            assert partition.stopped is not None
            writer.allowed.set()
            partition.submit(batch(15, 1))
            await wait_until_async(lambda: partition.stopped is None, "it goes on")
    stops = ["partition.stopped", "partition.still_stopped", "partition.resumed"]
    assert [line["event"] for line in lines if line["event"] in stops] == stops


class Values(list[bytes | None]):
    """Values that a test sees go."""


class Refusing(Writer):
    """Postgres refuses every batch."""

    def project(self, batch: EventBatch) -> int:
        raise LogRefused(why=f"It has {len(batch)} records.") from ValueError(batch.topic)


async def test_a_stopped_partition_holds_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is kept for minutes; the frames of its traceback hold the records, which no budget counts."""
    monkeypatch.setattr(ownership, "STOPPED_DELAYS_SECONDS", (3600.0,))
    consumer, writer = Consumer(10), Refusing()
    async with owned(consumer, writer) as partition:
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
        refused = replace(batch(0, 1), values=Values([b"x"]))
        values = weakref.ref(refused.values)
        partition.submit(refused)
        del refused
        await wait_until_async(lambda: writer.stop_reasons, "the partition is stopped")
        assert partition.stopped is not None

        def gone() -> bool:
            gc.collect()
            return values() is None

        await wait_until_async(gone, "nobody holds the batch")


class Slow(Writer):
    """An acquisition that goes on until it is interrupted, as a read model that catches up does."""

    def __init__(self) -> None:
        super().__init__()
        self.acquiring = threading.Event()
        self.interrupted = False

    def acquire(self, _watermarks: Watermarks, interrupted: threading.Event) -> Acquired:
        self.acquiring.set()
        assert interrupted.wait(DEADLINE_SECONDS)
        self.interrupted = True
        raise OwnershipLost


@pytest.mark.parametrize("how", ["assign", "revoke", ""])
async def test_a_long_acquisition_is_interrupted(how: str) -> None:
    """When the partition is assigned again, when it moves, and by the worker's end."""
    writer = Slow()
    async with owned(Consumer(10), writer) as partition:
        await wait_until_async(writer.acquiring.is_set, "the partition is being acquired")
        if how:
            getattr(partition, how)()
            await wait_until_async(lambda: writer.interrupted, "the acquisition ends")
    assert writer.interrupted


async def test_watermarks_are_asked_for_again_before_a_checkpoint_is_out_of_the_log() -> None:
    """A former owner may have gone on past the high watermark of the first answer; then the second one counts."""
    consumer = Consumer(10, 20)
    async with owned(consumer, Writer(next_offset=15)) as partition:
        await wait_until_async(lambda: consumer.opened or partition.stopped, "the partition is opened or stops")
        assert partition.stopped is None
        assert [opened.position for opened in consumer.opened] == [15]
    assert consumer.asked == 2


async def test_a_checkpoint_that_both_answers_exclude_stops_the_partition() -> None:
    """It is never opened elsewhere."""
    consumer = Consumer(10, 14)
    async with owned(consumer, Writer(next_offset=15)) as partition:
        await wait_until_async(lambda: consumer.opened or partition.stopped, "the partition is opened or stops")
        assert isinstance(partition.stopped, CheckpointOutOfLog)
        assert consumer.opened == []


async def test_a_checkpoint_within_the_log_needs_one_answer() -> None:
    """At the high watermark, too, where the next record will be."""
    consumer = Consumer(15)
    async with owned(consumer, Writer(next_offset=15)):
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
    assert consumer.asked == 1


async def test_why_a_partition_is_stopped_is_written_down() -> None:
    """Those who look from outside find the error's name and what it says."""
    writer = Writer(next_offset=15)
    async with owned(Consumer(10, 14), writer) as partition:
        await wait_until_async(lambda: writer.stop_reasons, "the reason is written down")
        assert writer.stop_reasons == [f"CheckpointOutOfLog: {partition.stopped}"]


async def test_a_writer_hears_that_no_records_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that could not be done so far does not wait for the next record."""
    monkeypatch.setattr(ownership, "IDLE_TIMEOUT_SECONDS", 0.01)
    consumer, writer = Consumer(10), Writer()
    async with owned(consumer, writer):
        await wait_until_async(writer.idled.is_set, "the writer was called without a record")


@pytest.mark.parametrize("high", [15, 16])
async def test_a_partition_goes_on_once_nothing_is_left_to_read(monkeypatch: pytest.MonkeyPatch, high: int) -> None:
    """While a record is still to come, that may be the one that stopped it: it is not called resumed."""
    monkeypatch.setattr(ownership, "IDLE_TIMEOUT_SECONDS", 0.01)
    monkeypatch.setattr(ownership, "STOPPED_DELAYS_SECONDS", (0.0,))
    consumer, writer = Consumer(10, 10, high), Writer(next_offset=15)
    async with owned(consumer, writer) as partition:
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
        for _ in range(3):
            writer.idled.clear()
            await wait_until_async(writer.idled.is_set, "no record came")
        assert (partition.stopped is None) == (high == 15)
        writer.allowed.set()
        partition.submit(batch(15, 1))
        await wait_until_async(lambda: partition.stopped is None, "it goes on")


async def test_a_batch_is_halved_down_to_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """And once batches are quick, doubled from there, until the bound of the queue is reached and there is none."""
    monkeypatch.setattr(ownership, "RETRY_DELAYS_SECONDS", (0.0,))
    monkeypatch.setattr(ownership, "QUEUED_RECORDS_MAX", 16)
    consumer, writer = Consumer(10_000), Unable(1)
    async with owned(consumer, writer) as partition:
        for attempt in (1, 2):
            await wait_until_async(lambda n=attempt: len(consumer.opened) == n, "the partition is open")
            partition.submit(batch(0, 1, 1))
        await wait_until_async(lambda: consumer.done.get(TOPIC) == 2, "all of it is done")
        assert writer.tried[:2] == [2, 1]
        writer.records_max = 1_000
        del writer.tried[:]
        partition._records_max = 1
        partition.submit(batch(2, *[1] * 100))
        await wait_until_async(lambda: consumer.done.get(TOPIC) == 102, "all of it is done")
    assert writer.tried == [1, 2, 4, 8, 85]


async def test_a_batch_within_the_bound_or_a_slow_one_lets_none_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that had less than the bound shows nothing about a larger one."""
    consumer, writer = Consumer(10_000), Unable(1_000)
    async with owned(consumer, writer) as partition:
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
        partition._records_max = 4
        partition.submit(batch(0, 1, 1, 1))
        await wait_until_async(lambda: consumer.done.get(TOPIC) == 3, "it is done")
        assert partition._records_max == 4
        monkeypatch.setattr(ownership, "QUICK_SECONDS", 0.0)
        partition.submit(batch(3, 1, 1, 1, 1))
        await wait_until_async(lambda: consumer.done.get(TOPIC) == 7, "it is done")
        assert partition._records_max == 4


class Unreachable(Writer):
    """A Postgres that goes away, so many times, and stops the partition after that."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def acquire(self, watermarks: Watermarks, interrupted: threading.Event) -> Acquired:
        self.left -= 1
        if self.left >= 0:
            raise DatabaseUnreachable(why="It does not answer.")
        return super().acquire(watermarks, interrupted)

    def project(self, batch: EventBatch) -> int:
        if batch.next_offset == 2:
            raise DatabaseUnreachable(why="It went away.")
        return batch.next_offset


async def test_delays_grow_with_failures_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last delay repeats, and after a batch that was projected they begin with the first."""
    monkeypatch.setattr(ownership, "RETRY_DELAYS_SECONDS", (0.001, 0.002, 0.003))
    consumer, writer = Consumer(10_000), Unreachable(5)
    with structlog.testing.capture_logs() as lines:
        async with owned(consumer, writer) as partition:
            await wait_until_async(lambda: consumer.opened, "the partition is opened")
            partition.submit(batch(0, 1))
            await wait_until_async(lambda: consumer.done.get(TOPIC) == 1, "it is done")
            partition.submit(batch(1, 1))
            await wait_until_async(lambda: len(consumer.opened) == 2, "it is opened again")
    waiting = [line for line in lines if line["event"] == "partition.waiting"]
    assert [line["retry_seconds"] for line in waiting] == [0.001, 0.002, 0.003, 0.003, 0.003, 0.001]
    assert {(line["topic"], line["partition"]) for line in waiting} == {TOPIC}


async def test_delays_of_a_stopped_partition_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one repeats; the first line of a reason is an error with all that an operator needs."""
    monkeypatch.setattr(ownership, "STOPPED_DELAYS_SECONDS", (0.001, 0.002, 0.003))
    consumer, writer = Consumer(*[10] * 10, 20), Writer(next_offset=15)
    with structlog.testing.capture_logs() as lines:
        async with owned(consumer, writer) as partition:
            await wait_until_async(lambda: consumer.opened, "the partition is opened")
            assert partition.stopped is not None
            what, why = partition.stopped.what, partition.stopped.why
    stops = [line for line in lines if "stopped" in line["event"]]
    assert [line["retry_seconds"] for line in stops] == [0.001, 0.002, 0.003, 0.003, 0.003]
    assert [line["log_level"] for line in stops] == ["error"] + ["warning"] * 4
    assert {(line["error"], line["what"], line["why"]) for line in stops} == {("CheckpointOutOfLog", what, why)}


@pytest.mark.parametrize(("low", "next_offset", "fits"), [(5, 5, True), (5, 4, False), (5, 10, True), (5, 11, False)])
async def test_a_checkpoint_fits_the_log_from_its_first_record_to_behind_its_last(
    low: int, next_offset: int, fits: bool
) -> None:
    """One before the first record was deleted, and one behind the end was never written."""
    consumer = Consumer(10, low=low)
    async with owned(consumer, Writer(next_offset=next_offset)) as partition:
        await wait_until_async(lambda: consumer.opened or partition.stopped, "the partition is opened or stops")
        assert (partition.stopped is None) == fits
        if not fits:
            expected = CheckpointOutOfLog(TOPIC.topic, TOPIC.partition, next_offset, low, 10)
            assert str(partition.stopped) == str(expected)


async def test_calls_of_a_writer_come_one_at_a_time() -> None:
    """It has one connection, so its partition has one thread."""
    async with owned(Consumer(10), Writer()) as partition:
        assert partition._thread._max_workers == 1


async def test_a_slice_of_an_earlier_token_is_left_out() -> None:
    """It may still have been on its way when the partition was acquired again."""
    consumer, writer = Consumer(10_000), Unable(1_000)
    async with owned(consumer, writer) as partition:
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
        partition.submit(replace(batch(0, 1, 1), token=2))
        partition.submit(batch(0, 1))
        await wait_until_async(lambda: consumer.done.get(TOPIC) == 1, "the other one is done")
    assert writer.tried == [1]


async def test_records_that_were_fetched_and_do_not_come_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once: what has just been fetched may be on its way."""
    monkeypatch.setattr(ownership, "IDLE_TIMEOUT_SECONDS", 0.01)
    consumer, writer = Consumer(10_000), Writer()
    async with owned(consumer, writer):
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
        for _ in range(3):
            writer.idled.clear()
            await wait_until_async(writer.idled.is_set, "no record came")
        assert len(consumer.opened) == 1
        writer.idled.clear()
        consumer.opened[0].position = 3
        await wait_until_async(lambda: len(consumer.opened) == 2, "it is opened again")
        assert writer.idled.is_set()


class Waiting(Writer):
    """Waits at a record of a later release's schema, at offset 0, until that is skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.skips: list[tuple[int, str]] = []
        self.obeys = True

    def project(self, batch: EventBatch) -> int:
        if not self.skips or not self.obeys:
            raise SchemaNewer(batch.topic, batch.partition, 0, 99)
        return batch.next_offset

    def skip(self, offset: int, reason: str) -> None:
        assert threading.current_thread().name.startswith("genesis.events-0")
        self.skips.append((offset, reason))


class Search:
    """A search whose looks have these answers, one after the other; the last one repeats."""

    def __init__(self, *answers: str | frozenset[NamedPoison] | Exception | None) -> None:
        self.answers = answers
        self.looks = 0

    def find_skip(self, waiting: SchemaNewer, interrupted: threading.Event) -> str | None:
        assert (waiting.offset, interrupted.is_set()) == (0, False)
        return self._answer()

    def find_named(self, full: TooMuchParked, interrupted: threading.Event) -> frozenset[NamedPoison]:
        assert (full.offset, interrupted.is_set()) == (0, False)
        return self._answer()

    def _answer(self) -> Any:
        answer = self.answers[min(self.looks, len(self.answers) - 1)]
        self.looks += 1
        if isinstance(answer, Exception):
            raise answer
        return answer


@asynccontextmanager
async def standing_still(
    writer: Writer, search: Search, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[OwnedPartition]:
    monkeypatch.setattr(ownership, "STOPPED_DELAYS_SECONDS", (3600.0,))
    monkeypatch.setattr(ownership, "LOOK_AHEAD_SECONDS", 0.0)
    consumer = Consumer(10)
    async with owned(consumer, writer, search=search) as partition:
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
        partition.submit(batch(0, 1))
        yield partition


async def test_a_partition_that_waits_for_a_schema_looks_for_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Again and again, whatever a look fails with; found, it is the writer's, and the partition is acquired at once."""
    writer, search = Waiting(), Search(None, ValueError("a defect"), None, "nobody wrote it")
    async with standing_still(writer, search, monkeypatch) as partition:
        await wait_until_async(lambda: writer.skips, "the skip is found")
        assert (writer.skips, search.looks) == ([(0, "nobody wrote it")], 4)

        async def goes_on() -> bool:
            partition.submit(batch(0, 1))
            return partition.stopped is None

        await wait_until_async(goes_on, "the partition goes on")


async def test_a_partition_whose_search_finds_nothing_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the delay of a stopped partition: what it waits for may have come in another way."""
    monkeypatch.setattr(ownership, "STOPPED_DELAYS_SECONDS", (0.01,))
    monkeypatch.setattr(ownership, "LOOK_AHEAD_SECONDS", 0.0)
    consumer, search = Consumer(10), Search(None)
    async with owned(consumer, Waiting(), search=search) as partition:
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
        partition.submit(batch(0, 1))
        await wait_until_async(lambda: len(consumer.opened) == 2, "the partition is opened again")
    assert search.looks >= 1


async def test_a_skip_that_does_not_help_is_not_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The partition would be acquired again and again without a pause."""
    writer, search = Waiting(), Search("nobody wrote it")
    writer.obeys = False
    async with standing_still(writer, search, monkeypatch) as partition:
        await wait_until_async(lambda: writer.skips, "the skip is found")

        async def stops_again() -> bool:
            partition.submit(batch(0, 1))
            return len(writer.stop_reasons) == 2

        await wait_until_async(stops_again, "the partition is stopped again")
        assert (len(writer.skips), search.looks) == (1, 1)


NAMED = NamedPoison(b"key", 3)
ANOTHER = NamedPoison(b"key", 4)


class Full(Writer):
    """Would keep too much of parked entities at offset 0, until it is to make room for two records."""

    def __init__(self) -> None:
        super().__init__()
        self.named: list[Collection[NamedPoison]] = []

    def project(self, batch: EventBatch) -> int:
        if not self.named or len(self.named[-1]) < 2:
            raise TooMuchParked("Too many are parked.", 0, why="a test", next_step="a test")
        return batch.next_offset

    def make_room(self, named: Collection[NamedPoison]) -> None:
        assert threading.current_thread().name.startswith("genesis.events-0")
        self.named.append(named)


async def test_a_partition_that_keeps_too_much_looks_for_control_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Again and again; only where there are new ones it is acquired at once, and it goes on when they make room."""
    few, more = frozenset({NAMED}), frozenset({NAMED, ANOTHER})
    writer, search = Full(), Search(frozenset(), ValueError("a defect"), few, few, few, more)
    async with standing_still(writer, search, monkeypatch) as partition:

        async def goes_on() -> bool:
            if partition.stopped is None or len(writer.stop_reasons) == len(writer.named):
                partition.submit(batch(0, 1))
            return partition.stopped is None and len(writer.named) == 2

        await wait_until_async(goes_on, "the partition goes on")
    assert writer.named == [few, more]
    assert search.looks == 6
    assert writer.stop_reasons == ["TooMuchParked: Too many are parked. a test"] * 2


async def test_another_reason_to_stop_is_told_as_a_new_one() -> None:
    """The same one again is a warning; each line says what, why and when the partition is looked at again."""
    first, other = LogRefused(why="one"), LogRefused(why="another")
    with structlog.testing.capture_logs() as lines:
        partition = OwnedPartition(
            TOPIC, Writer(), cast(RecordBatchConsumer, Consumer(0)), heartbeat_seconds=1.0, budget=MemoryBudget(1)
        )
        stops = (first, LogRefused(why="one"), other, first, first, first)
        delays = [partition._count_stop(error) for error in stops]
        assert partition.stopped is first
        partition._note_progress()
        partition._note_progress()
        assert (partition.stopped, partition._count_stop(other)) == (None, ownership.STOPPED_DELAYS_SECONDS[0])
    await partition.shut_down()
    assert delays == [*ownership.STOPPED_DELAYS_SECONDS, ownership.STOPPED_DELAYS_SECONDS[-1]]
    where = {"topic": TOPIC.topic, "partition": TOPIC.partition, "error": "LogRefused"}
    new, known = ("partition.stopped", "error"), ("partition.still_stopped", "warning")
    kinds = zip(stops, (new, known, new, new, known, known), delays, strict=True)
    told = [
        {**where, "event": event, "log_level": level, "what": first.what, "why": error.why, "retry_seconds": delay}
        for error, (event, level), delay in kinds
    ]
    resumed = {**where, "event": "partition.resumed", "log_level": "warning"}
    again = {**told[2], "retry_seconds": ownership.STOPPED_DELAYS_SECONDS[0]}
    assert lines == [*told, resumed, again]


class Panic(BaseException):
    """What a library raises that has panicked."""


async def test_a_panic_in_the_thread_is_an_error_with_its_name() -> None:
    """So that the loop goes on, and a line says what it was; other errors come as they are."""
    budget, consumer = MemoryBudget(1), cast(RecordBatchConsumer, Consumer(0))
    partition = OwnedPartition(TOPIC, Writer(), consumer, heartbeat_seconds=1.0, budget=budget)

    def fail(error: BaseException) -> None:
        raise error

    panic, defect = Panic("index out of bounds"), KeyError("k")
    with pytest.raises(RuntimeError) as raised:
        await partition._blocking(fail, panic)
    assert (str(raised.value), raised.value.__cause__) == ("Panic: index out of bounds", panic)
    with pytest.raises(KeyError) as passed:
        await partition._blocking(fail, defect)
    assert passed.value is defect
    assert await partition._blocking(lambda *args: args, 1, 2) == (1, 2)
    await partition.shut_down()

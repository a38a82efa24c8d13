"""Records that a consumer has fetched, unpacked in columns; aiokafka's own fetcher, without a broker."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from audit.canonical import headers_bytes
from streams.kafka.consumer import RepairedConsumer
from streams.kafka.lenient_records import LenientRecords
from tests.support.raw_records import RawRecord, record_batch
from tests.support.waiting import DEADLINE_SECONDS

FIRST, SECOND = TopicPartition("genesis.events", 0), TopicPartition("genesis.events", 1)


class State:
    """aiokafka's state of a partition."""

    paused = False

    def __init__(self, position: int) -> None:
        self.position = position

    def consumed_to(self, position: int) -> None:
        self.position = position


def batches(*counts: int) -> bytes:
    """Return batches of so many records, one behind the other; each record's key is its offset."""
    made, offset = b"", 0
    for count in counts:
        records = [RawRecord(b"%d" % number, b"v") for number in range(offset, offset + count)]
        made += record_batch(records, base_offset=offset)
        offset += count
    return made


class Fetched:
    """A consumer that has fetched these bytes, from these positions."""

    def __init__(
        self, fetched: dict[TopicPartition, bytes], *, position: int = 0, records_max: int | None = 100
    ) -> None:
        self.states = {partition: State(position) for partition in fetched}
        assignment = SimpleNamespace(active=True, state_value=self.states.__getitem__)
        fetcher = Fetcher.__new__(Fetcher)
        fetcher._subscriptions = SimpleNamespace(reassignment_in_progress=False, is_assigned=lambda _: True)
        fetcher._wait_consume_future = None
        fetcher._records = {
            partition: FetchResult(
                partition,
                assignment=assignment,
                partition_records=PartitionRecords(
                    partition, LenientRecords(data), [], position, None, None, True, READ_COMMITTED
                ),
                backoff=0,
            )
            for partition, data in fetched.items()
        }
        fetcher._loop = asyncio.get_running_loop()
        fetcher._fetch_waiters = set()
        fetcher._closed = False
        self.results = fetcher._records
        self.consumer = RepairedConsumer.__new__(RepairedConsumer)
        self.consumer._closed = True
        self.consumer._fetcher = fetcher
        self.consumer._max_poll_records = records_max

    def arrive(self, results: dict[TopicPartition, FetchResult]) -> None:
        """Let these be fetched now, for who waits."""
        self.results.update(results)
        for waiter in list(self.consumer._fetcher._fetch_waiters):
            waiter.set_result(None)

    async def offsets(self, *partitions: TopicPartition) -> list[list[int]]:
        """Return the offsets of each partition's records in the next fetch."""
        columns = await self.consumer.fetch_columns(partitions, 0)
        keys = [[int(key or b"") for key in columns[each].keys] if each in columns else [] for each in partitions]
        assert keys == [columns[each].offsets if each in columns else [] for each in partitions]
        return keys


async def test_everything_that_was_fetched_comes_from_the_position_on() -> None:
    """A batch may begin before it; afterwards there is nothing left, and the position is behind the last record."""
    fetched = Fetched({FIRST: batches(3, 2)}, position=1)
    assert await fetched.offsets(FIRST) == [[1, 2, 3, 4]]
    assert (fetched.states[FIRST].position, dict(fetched.results)) == (5, {})
    assert await fetched.offsets(FIRST) == [[]]


async def test_a_fetch_ends_with_the_batch_that_reaches_the_bound() -> None:
    """The rest comes next, none twice; a partition behind a full one waits for its turn."""
    fetched = Fetched({FIRST: batches(2, 2, 2), SECOND: batches(3)}, records_max=3)
    assert await fetched.offsets(FIRST, SECOND) == [[0, 1, 2, 3], []]
    assert (fetched.states[FIRST].position, fetched.states[SECOND].position) == (4, 0)
    assert await fetched.offsets(FIRST, SECOND) == [[4, 5], [0, 1, 2]]


async def test_a_consumer_without_a_bound_gets_all_that_was_fetched() -> None:
    """Of every partition."""
    fetched = Fetched({FIRST: batches(2, 2, 2), SECOND: batches(3)}, records_max=None)
    assert await fetched.offsets(FIRST, SECOND) == [[0, 1, 2, 3, 4, 5], [0, 1, 2]]


async def test_headers_are_left_out_for_who_needs_none() -> None:
    """Of what was fetched already, too."""
    fetched = Fetched({FIRST: batches(2), SECOND: batches(3)})
    whole = await fetched.consumer.fetch_columns([FIRST], 0)
    fetched.consumer.leave_out_headers()
    columns = await fetched.consumer.fetch_columns([SECOND], 0)
    assert whole[FIRST].headers == [headers_bytes([])] * 2
    assert columns[SECOND].headers == [b""] * 3


async def test_what_was_begun_record_by_record_goes_on() -> None:
    """As where `getmany` was called before."""
    fetched = Fetched({FIRST: batches(3, 2)})
    (first,) = fetched.results[FIRST].getall(1)
    assert first.offset == 0
    assert await fetched.offsets(FIRST) == [[1, 2, 3, 4]]


async def test_records_that_arrive_while_it_waits_come_batch_by_batch() -> None:
    """An object of each, as aiokafka makes them where it waits itself, costs as much again as all the rest."""
    fetched = Fetched({FIRST: batches(3, 2)})
    late = dict(fetched.results)
    fetched.results.clear()

    def refuse(*_: object) -> None:
        raise AssertionError("a record by itself")

    late[FIRST]._partition_records._consumer_record = refuse
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(fetched.consumer.fetch_columns([FIRST], DEADLINE_SECONDS))
        await asyncio.sleep(0)
        fetched.arrive({})  # what came is of no partition that is asked for
        await asyncio.sleep(0)
        fetched.arrive(late)
    assert waiting.result()[FIRST].offsets == [0, 1, 2, 3, 4]
    assert fetched.consumer._fetcher._fetch_waiters == set()


async def test_what_is_no_longer_wanted_is_left_to_the_next_fetch() -> None:
    """A partition may be opened again while a fetch waits: what it took would be missing there."""
    fetched = Fetched({FIRST: batches(3), SECOND: batches(2)})
    late = dict(fetched.results)
    for wanted in ([SECOND], []):
        fetched.results.clear()
        async with asyncio.TaskGroup() as tasks:
            fetch = fetched.consumer.fetch_columns([FIRST, SECOND], DEADLINE_SECONDS, lambda: wanted)  # noqa: B023
            waiting = tasks.create_task(fetch)
            await asyncio.sleep(0)
            fetched.arrive(late)
        assert waiting.result().keys() == set(wanted)
        late.pop(SECOND, None)
    assert (fetched.states[FIRST].position, fetched.states[SECOND].position) == (0, 2)
    assert await fetched.offsets(FIRST) == [[0, 1, 2]]


async def test_a_fetch_for_which_nothing_arrives_ends_in_time() -> None:
    """Nobody waits for it afterwards either."""
    fetched = Fetched({})
    assert await fetched.consumer.fetch_columns([FIRST], 0.001) == {}
    await asyncio.sleep(0)
    assert fetched.consumer._fetcher._fetch_waiters == set()


async def test_a_corrupt_batch_fails_its_partition_and_moves_nothing() -> None:
    """The partition is named, and what was unpacked before it is read again."""
    data = bytearray(batches(2, 2))
    data[-1] ^= 1
    fetched = Fetched({FIRST: bytes(data)})
    with pytest.raises(CorruptRecordException):
        await fetched.offsets(FIRST)
    assert fetched.consumer.failing_partition([FIRST]) == FIRST
    assert fetched.states[FIRST].position == 0


@pytest.mark.parametrize("counts", [(2,), (2, 2, 2), (400, 400)])
@pytest.mark.parametrize("behind", ["nothing", "a corrupt batch", "a batch for the next fetch"])
async def test_a_batch_that_cannot_be_read_fails_its_partition_and_moves_nothing(
    counts: tuple[int, ...], behind: str
) -> None:
    """It is read with others after all were unpacked, and what is wrong with it comes first."""
    data = bytearray(batches(*counts, *([] if behind == "nothing" else [1])))
    start, end = (len(batches(*which)) for which in (counts[:-1], counts))
    data[end - 1] = 0x7E  # how many headers the last record has
    data[start + 17 : start + 21] = calc_crc32c(bytes(data[start + 21 : end])).to_bytes(4, "big")
    if behind == "a corrupt batch":
        data[-1] ^= 1
    records_max = sum(counts) if behind == "a batch for the next fetch" else None
    fetched = Fetched({FIRST: bytes(data)}, records_max=records_max)
    with pytest.raises(CorruptRecordException, match="unreadable record"):
        await fetched.offsets(FIRST)
    assert fetched.consumer.failing_partition([FIRST]) == FIRST
    assert await fetched.offsets(FIRST) == [[]]
    assert (fetched.states[FIRST].position, dict(fetched.results)) == (0, {})


async def test_nothing_that_was_fetched_keeps_itself() -> None:
    """Megabytes would stay until Python looks for cycles."""
    fetched = Fetched({FIRST: batches(2, 2)}, records_max=1)
    result = fetched.results[FIRST]
    await fetched.offsets(FIRST)
    assert "getall" not in vars(result)

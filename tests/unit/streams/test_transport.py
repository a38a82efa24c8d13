"""The transport's decisions about a fetch: whose records they are, and what an offset out of range means."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
import structlog
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers.aiokafka import ConsumerStoppedError
from faust.types import TP
from mode.services import Service
from mode.utils.trees import Node

from runtime.settings import Settings
from streams import transport
from streams.batch import EventBatch
from streams.errors import LeaderChanged, OwnershipLost, RecordUnreadable
from streams.kafka.consumer import RepairedConsumer
from streams.kafka.record_columns import RecordColumns
from streams.log_end import LogEnd, LoggedRecord
from streams.memory_budget import MemoryBudget
from streams.open_partition import OpenPartition
from streams.transport import RecordBatchConsumer, RecordBatchFetcher, RecordBatchTransport
from streams.watermarks import Leadership
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

FIRST, SECOND = TopicPartition("genesis.events", 0), TopicPartition("genesis.events", 1)
SAME, ELECTED, OTHER_TOPIC = Leadership(UUID(int=7), 3), Leadership(UUID(int=7), 4), Leadership(UUID(int=8), 3)


class Consumer:
    """A consumer whose leaders refused these logs and have those, and whose fetches have these records, or fail."""

    fetching_closed = False

    def __init__(
        self,
        *,
        refused: Collection[TopicPartition] = (),
        leaderships: Mapping[TopicPartition, Leadership] = MappingProxyType({}),
        fetch: dict[TopicPartition, RecordColumns] | Exception = KafkaError(),  # noqa: B008 (never raised by default)
        failing: TopicPartition | None = None,
    ) -> None:
        self.fetches: list[list[TopicPartition]] = []
        self._refused = refused
        self._leaderships = leaderships
        self._fetch = fetch
        self._failing = failing

    def poll_context(self) -> AbstractContextManager[None]:
        return nullcontext()

    def take_refused(self, among: Collection[TopicPartition]) -> list[TopicPartition]:
        return [tp for tp in among if tp in self._refused]

    async def leaderships(
        self, partitions: Collection[TopicPartition], _timeout_seconds: float
    ) -> Mapping[TopicPartition, Leadership]:
        return {tp: self._leaderships[tp] for tp in partitions if tp in self._leaderships}

    async def fetch_columns(
        self, partitions: Collection[TopicPartition], _timeout_seconds: float, still_open: Callable[[], object]
    ) -> dict[TopicPartition, RecordColumns]:
        self.still_open = still_open
        self.fetches.append(list(partitions))
        if isinstance(self._fetch, Exception):
            raise self._fetch
        return self._fetch

    def failing_partition(self, _among: object) -> TopicPartition | None:
        return self._failing


class FetchState:
    """aiokafka's state of a partition."""

    def __init__(self, position: int) -> None:
        self.position = position


class Fetcher(RecordBatchFetcher):
    """The fetcher's decisions alone, without its consumer."""

    def __init__(self, consumer: Consumer, opened: dict[TopicPartition, OpenPartition] | None = None) -> None:
        self._ours = consumer
        self._fetching = asyncio.Lock()
        self._opened = opened or {}
        self.sought: list[TopicPartition] = []

    def _current(self) -> dict[TopicPartition, OpenPartition]:
        return self._opened

    def _repaired_consumer(self) -> RepairedConsumer:
        return cast(RepairedConsumer, self._ours)

    def _read_again(self, opened: Mapping[TopicPartition, OpenPartition]) -> None:
        self.sought += opened


def opened_at(*positions: int, fetched: int = 0) -> dict[TopicPartition, OpenPartition]:
    return {
        tp: OpenPartition(1, position, FetchState(position + fetched), SAME)
        for tp, position in zip((FIRST, SECOND), positions, strict=False)
    }


def record(offset: int, value: bytes = b"v") -> RecordColumns:
    return RecordColumns([offset], [1], [b"k"], [value], [bytes(4)])


async def test_what_was_fetched_is_delivered() -> None:
    """Leaders have sent it for the topic and the epoch that the partition was opened under: none is asked again."""
    opened = opened_at(5, fetched=1)
    batches = await Fetcher(Consumer(leaderships={FIRST: ELECTED}, fetch={FIRST: record(5)}), opened)._fetch_batches()
    assert [(batch.fetched_from, batch.next_offset, batch.values) for batch in batches] == [(5, 6, [b"v"])]
    assert opened[FIRST].position == 6


@pytest.mark.parametrize(
    ("found", "reason"),
    [(SAME, None), (OTHER_TOPIC, OwnershipLost), (ELECTED, LeaderChanged), (None, None)],
    ids=["same", "topic made again", "leader elected", "unanswered"],
)
async def test_a_log_that_was_refused_stops_where_it_is_another_one(
    found: Leadership | None, reason: type[Exception] | None
) -> None:
    """Its leader is asked why; one that did not know the log yet, or does not answer, is asked for records again."""
    opened = opened_at(5, 6)
    opened[SECOND].fetch_state.position = 7
    leaderships = {} if found is None else {FIRST: found}
    fetcher = Fetcher(Consumer(refused=[FIRST], leaderships=leaderships, fetch={SECOND: record(6)}), opened)

    batches = await fetcher._fetch_batches()

    assert [batch.partition for batch in batches] == [SECOND.partition] * (found != OTHER_TOPIC)
    assert opened[FIRST].position == 5
    assert type(opened[FIRST].stop_reason) is (reason or type(None))


async def test_a_partition_behind_a_stopped_one_is_compared_too() -> None:
    """The one that is stopped keeps its reason, and so does one whose leader was never asked."""
    opened = opened_at(5, 6)
    stopped = opened[FIRST].stop_reason = OwnershipLost(why="an earlier reason")
    await Fetcher(Consumer(leaderships={FIRST: ELECTED, SECOND: ELECTED}))._note_other_logs(opened, [FIRST, SECOND])
    assert opened[FIRST].stop_reason is stopped
    assert isinstance(opened[SECOND].stop_reason, LeaderChanged)


async def test_a_partition_that_was_stopped_during_the_fetch_holds_up_no_other() -> None:
    """It is delivered no more, and those behind it are."""
    opened = opened_at(5, 6, fetched=1)
    fetcher = Fetcher(Consumer(fetch={FIRST: record(5), SECOND: record(6)}), opened)
    fetch = fetcher._fetch

    async def stopping(*arguments: Any) -> Any:
        opened[FIRST].stop_reason = OwnershipLost(why="meanwhile")
        return await fetch(*arguments)

    fetcher._fetch = stopping  # type: ignore[method-assign]
    assert [batch.partition for batch in await fetcher._fetch_batches()] == [SECOND.partition]
    assert opened[FIRST].position == 5


async def test_one_fetch_waits_for_another() -> None:
    """What the second gets is behind what the first has got, and is delivered behind it."""
    opened, answered = opened_at(5, fetched=1), asyncio.Event()
    fetcher = Fetcher(Consumer(), opened)
    fetched = [record(5), record(6)]

    async def fetch(*_: object) -> dict[TopicPartition, RecordColumns]:
        mine = fetched.pop(0)
        opened[FIRST].fetch_state.position = mine.offsets[0] + 1
        if fetched:
            await answered.wait()
        return {FIRST: mine}

    fetcher._fetch = fetch  # type: ignore[method-assign, assignment]
    first, second = (asyncio.create_task(fetcher._fetch_batches()) for _ in range(2))
    for _ in range(10):
        await asyncio.sleep(0)
    answered.set()
    batches = [*await first, *await second]
    assert [(batch.fetched_from, batch.next_offset, batch.values) for batch in batches] == [
        (5, 6, [b"v"]),
        (6, 7, [b"v"]),
    ]


async def test_a_fetch_that_waited_leaves_what_was_opened_meanwhile_to_the_next_one() -> None:
    """Its caller may be gone by then: what it took of that partition would be missing."""
    opened = opened_at(5, fetched=1)
    consumer = Consumer(fetch={FIRST: record(5)})
    fetcher = Fetcher(consumer, opened)
    await fetcher._fetching.acquire()
    waiting = asyncio.create_task(fetcher._fetch_batches())
    for _ in range(10):
        await asyncio.sleep(0)
    fetcher._opened = opened_at(5, fetched=1)
    fetcher._fetching.release()
    assert await waiting == []
    assert consumer.fetches == []
    assert [batch.fetched_from for batch in await fetcher._fetch_batches()] == [5]
    assert consumer.fetches == [[FIRST]]


async def test_a_fetch_that_waited_ends_where_the_consumer_was_stopped_meanwhile() -> None:
    """It asks nobody for records."""
    consumer = Consumer()
    fetcher = Fetcher(consumer, opened_at(5, fetched=1))
    await fetcher._fetching.acquire()
    waiting = asyncio.create_task(fetcher._fetch_batches())
    for _ in range(10):
        await asyncio.sleep(0)
    consumer.fetching_closed = True
    fetcher._fetching.release()
    with pytest.raises(ConsumerStoppedError):
        await waiting


async def test_a_gap_is_delivered() -> None:
    """A fetch past markers of transactions has no record, and moves the checkpoint all the same."""
    batches = await Fetcher(Consumer(fetch={}), opened_at(5, fetched=2))._fetch_batches()
    assert [(batch.fetched_from, batch.next_offset) for batch in batches] == [(5, 7)]


async def test_all_partitions_of_a_topic_that_was_made_again_stop() -> None:
    """Also those whose leader has not refused yet."""
    opened = opened_at(5, 6)
    await Fetcher(Consumer(leaderships={FIRST: OTHER_TOPIC}))._note_other_logs(opened, [FIRST])
    assert {type(state.stop_reason) for state in opened.values()} == {OwnershipLost}


async def test_an_election_stops_its_own_partition_alone() -> None:
    """The others have leaders of their own."""
    opened = opened_at(5, 6)
    leaderships = {FIRST: ELECTED, SECOND: SAME}
    await Fetcher(Consumer(leaderships=leaderships))._note_other_logs(opened, [FIRST, SECOND])
    assert [type(state.stop_reason) for state in opened.values()] == [LeaderChanged, type(None)]
    reason = opened[FIRST].stop_reason
    assert isinstance(reason, LeaderChanged)
    assert reason.why == "The leader epoch went from 3 to 4."


async def test_an_offset_out_of_range_stops_the_partition_that_is_there() -> None:
    """Only the one whose position it is: the answer may be to a fetch from before the seek to the checkpoint."""
    opened = opened_at(5, 6)
    error = OffsetOutOfRangeError({FIRST: 5, SECOND: 1_000, TopicPartition("genesis.events", 2): 3})
    fetcher = Fetcher(Consumer(fetch=error))
    assert await fetcher._fetch(cast(RepairedConsumer, fetcher._ours), opened) is None
    assert isinstance(opened[FIRST].stop_reason, OwnershipLost)
    assert opened[SECOND].stop_reason is None


async def test_a_partition_without_a_committed_hint_is_no_failure() -> None:
    """Its owner has not sought yet."""
    opened = opened_at(5)
    fetcher = Fetcher(Consumer(fetch=NoOffsetForPartitionError(FIRST)))
    assert await fetcher._fetch(cast(RepairedConsumer, fetcher._ours), opened) is None
    assert opened[FIRST].stop_reason is None


async def test_a_damaged_record_stops_its_partition() -> None:
    """The others are read again from where they were delivered; an error of no partition is raised."""
    opened = opened_at(5, 6)
    fetcher = Fetcher(Consumer(fetch=ValueError("damaged"), failing=SECOND))
    assert await fetcher._fetch(cast(RepairedConsumer, fetcher._ours), opened) is None
    assert isinstance(opened[SECOND].stop_reason, RecordUnreadable)
    assert opened[FIRST].stop_reason is None
    assert fetcher.sought == [FIRST, SECOND]
    fetcher = Fetcher(Consumer(fetch=ValueError("elsewhere")))
    with pytest.raises(ValueError, match="elsewhere"):
        await fetcher._fetch(cast(RepairedConsumer, fetcher._ours), opened)


async def test_nothing_is_fetched_while_the_budget_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records wait in Kafka then; the poll still counts for the group, and the next one comes soon."""
    opened = opened_at(5, fetched=1)
    fetcher = Fetcher(Consumer(leaderships={FIRST: SAME}, fetch={FIRST: record(5)}), opened)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(transport, "asyncio", SimpleNamespace(sleep=sleep))
    assert await fetcher._fetch_batches(has_room=False) == []
    assert opened[FIRST].position == 5
    assert slept == [transport.POLL_TIMEOUT_SECONDS / 5]
    assert len(await fetcher._fetch_batches(has_room=True)) == 1


@pytest.mark.parametrize(
    ("session_seconds", "times"),
    [(10, (60_000, 10_000, 20_000, 2_000, 20_000)), (40, (120_000, 40_000, 80_000, 8_000, 80_000))],
)
def test_the_consumer_reads_what_is_committed_from_where_it_is_told(
    monkeypatch: pytest.MonkeyPatch, session_seconds: int, times: tuple[int, ...]
) -> None:
    """It falls back to no other offset, commits nothing by itself, and its timeouts follow the session's."""
    made: dict[str, Any] = {}
    identified: list[dict[str, float]] = []

    def make(_settings: Settings, **options: Any) -> object:
        made.update(options)
        return SimpleNamespace(identify_fetches=identified.append)

    monkeypatch.setattr(transport, "make_consumer", make)
    settings = Settings(
        kafka_bootstrap_servers="127.0.0.1:1",
        consumer_group="g",
        worker_session_timeout_seconds=session_seconds,
        worker_batch_max_records=77,
    )
    fetcher = Fetcher(Consumer())
    of_worker = SimpleNamespace(settings=settings, assignor=RangePartitionAssignor, gathered_seconds={"topic": 2.0})
    fetcher._create_worker_consumer(cast(RecordBatchTransport, of_worker))
    assert identified == [{"topic": 2.0}]
    poll_ms, session_ms, rebalance_ms, heartbeat_ms, request_ms = times
    assert made == {
        "client_id": "plant-worker",
        "group_id": "g",
        "partition_assignment_strategy": [RangePartitionAssignor],
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "isolation_level": "read_committed",
        "max_poll_records": 77,
        "max_poll_interval_ms": poll_ms,
        "max_partition_fetch_bytes": 4 * 1024 * 1024,
        "fetch_max_bytes": 32 * 1024 * 1024,
        "fetch_max_wait_ms": 25,
        "session_timeout_ms": session_ms,
        "rebalance_timeout_ms": rebalance_ms,
        "heartbeat_interval_ms": heartbeat_ms,
        "request_timeout_ms": request_ms,
        "metadata_max_age_ms": 5_000,
    }


class Group:
    """A consumer of a group: its assigned partitions, aiokafka's states of them, and what it is asked to do."""

    def __init__(self, assigned: Collection[TopicPartition], error: KafkaError | None = None) -> None:
        self.states = {tp: FetchState(0) for tp in assigned}
        self.committed: list[Mapping[TopicPartition, OffsetAndMetadata]] = []
        self.sought: list[tuple[TopicPartition, int]] = []
        self.named: list[tuple[TopicPartition, Leadership]] = []
        self.bounds: list[int] = []
        self._error = error

    def assignment(self) -> Collection[TopicPartition]:
        return self.states.keys()

    def fetch_state(self, tp: TopicPartition) -> FetchState | None:
        return self.states.get(tp)

    def name_log(self, tp: TopicPartition, log: Leadership) -> None:
        assert not self.sought
        self.named.append((tp, log))

    def seek(self, tp: TopicPartition, position: int) -> None:
        self.sought.append((tp, position))

    def bound_fetches(self, size_bytes: int) -> None:
        self.bounds.append(size_bytes)

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        if self._error is not None:
            raise self._error
        self.committed.append(offsets)


class GroupFetcher(RecordBatchFetcher):
    """The fetcher's calls, made where they are asked for."""

    def __init__(self, group: Group, opened: Mapping[TP, OpenPartition] = MappingProxyType({})) -> None:
        self._group = group
        self.consumer = cast(RecordBatchConsumer, SimpleNamespace(open=opened))
        self.called: list[tuple[Any, ...]] = []

    def _repaired_consumer(self) -> RepairedConsumer:
        return cast(RepairedConsumer, self._group)

    async def call_thread(self, method: Callable[..., Any], *arguments: Any) -> Any:
        self.called.append((method.__name__, *arguments))
        return [] if method.__name__ == "_fetch_batches" else await method(*arguments)


async def test_a_hint_is_committed_for_what_is_assigned_alone() -> None:
    """Kafka refuses a commit with another partition in it; where none is left nothing is asked of it."""
    group = Group([FIRST])
    fetcher = GroupFetcher(group)
    assert await fetcher.commit_hints({TP(*FIRST): 7, TP(*SECOND): 9}) is True
    assert await fetcher.commit_hints({TP(*SECOND): 9}) is False
    assert group.committed == [{FIRST: OffsetAndMetadata(7, "")}]


async def test_a_hint_that_can_not_be_committed_costs_nothing() -> None:
    """The next one comes in seconds."""
    assert await GroupFetcher(Group([FIRST], KafkaError())).commit_hints({TP(*FIRST): 7}) is False


async def test_what_was_opened_under_an_earlier_assignment_is_not_read() -> None:
    """Neither fetched nor sought: the partition may have been away meanwhile, and its position with another owner."""
    group = Group([FIRST, SECOND])
    current = OpenPartition(1, 5, group.states[FIRST], SAME)
    opened = {TP(*FIRST): current, TP(*SECOND): OpenPartition(1, 6, FetchState(6), SAME)}
    fetcher = GroupFetcher(group, opened)
    assert fetcher._current() == {FIRST: current}
    fetcher._read_again({FIRST: current, SECOND: opened[TP(*SECOND)]})
    fetcher._read_again({FIRST: OpenPartition(1, 4, group.states[FIRST], SAME)})
    assert group.sought == [(FIRST, 5)]


async def test_a_seek_returns_the_state_of_this_assignment() -> None:
    """By which a later assignment of the same partition is told from it; the log is named before."""
    group = Group([FIRST, SECOND])
    assert await GroupFetcher(group).seek_to(TP(*SECOND), 7, ELECTED) is group.states[SECOND]
    assert (group.named, group.sought) == ([(SECOND, ELECTED)], [(SECOND, 7)])


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("share_bytes", "spent", "fetch_bytes"),
    [(16 * MIB, False, 2 * MIB), (MIB, True, MIB), (1024 * MIB, False, 4 * MIB)],
    ids=["part of the share", "at least the largest record", "at most what SQL takes well"],
)
async def test_a_fetch_is_bounded_by_the_budget(share_bytes: int, spent: bool, fetch_bytes: int) -> None:
    """By an eighth of a partition's share; with the budget spent it only counts as a poll."""
    group = Group([FIRST])
    fetcher = GroupFetcher(group)
    assert (
        await fetcher.fetch_batches(cast(MemoryBudget, SimpleNamespace(share_bytes=share_bytes, is_spent=spent))) == []
    )
    assert (group.bounds, fetcher.called) == ([fetch_bytes], [("_fetch_batches", not spent)])


async def test_a_consumer_that_is_closing_fetches_no_more() -> None:
    """Faust ends its loop of fetches by that error."""
    consumer = Consumer()
    consumer.fetching_closed = True
    with pytest.raises(ConsumerStoppedError):
        await Fetcher(consumer, opened_at(5))._fetch_batches()


async def test_a_partition_that_was_opened_again_meanwhile_gets_nothing_of_the_fetch() -> None:
    """Its new owner reads from the checkpoint; what was fetched for the earlier one is no batch of its."""
    opened = opened_at(5, 6, fetched=1)
    again = {**opened, FIRST: opened_at(5)[FIRST]}
    fetcher = Fetcher(Consumer(leaderships={FIRST: SAME, SECOND: SAME}, fetch={FIRST: record(5), SECOND: record(6)}))
    states = iter([opened, again])
    fetcher._current = lambda: next(states)  # type: ignore[method-assign]
    assert [batch.partition for batch in await fetcher._fetch_batches()] == [1]
    assert opened[FIRST].position == 5


class Slices:
    """A fetcher whose fetches have these batches, and whose seeks are noted."""

    def __init__(self, *batches: EventBatch) -> None:
        self._batches = batches
        self.sought: list[tuple[TP, int]] = []
        self.budgets: list[object] = []
        self.hints: list[Mapping[TP, int]] = []
        self.fetched: Callable[[], None] = lambda: None

    async def fetch_batches(self, budget: object) -> list[EventBatch]:
        self.budgets.append(budget)
        self.fetched()
        return list(self._batches)

    async def commit_hints(self, hints: Mapping[TP, int]) -> bool:
        self.hints.append(hints)
        return True

    async def seek_to(self, tp: TP, position: int, leadership: Leadership) -> object:
        assert leadership == SAME
        self.sought.append((tp, position))
        return (tp, position)


class Delivering(RecordBatchConsumer):
    """The consumer's side of Faust: whether it flows, and under which generation of the group."""

    should_stop = False
    flow_active = True

    def __init__(self, slices: Slices) -> None:
        self._thread = cast(RecordBatchFetcher, slices)
        self.open, self.done = {}, {}
        self._read_offset = {TP(*FIRST): 100, TP(*SECOND): 200}
        self.app = SimpleNamespace(consumer_generation_id=3)
        self.transport = SimpleNamespace(budget="the budget")


def slice_of(tp: TopicPartition, fetched_from: int) -> EventBatch:
    batch = opened_at(fetched_from, fetched_from, fetched=1)[tp].advance(*tp, record(fetched_from))
    assert batch is not None
    return batch


async def test_each_slice_is_a_message_of_its_partition() -> None:
    """With the group's generation, by which Faust leaves out those of an earlier assignment."""
    batches = [slice_of(FIRST, 5), slice_of(SECOND, 6)]
    slices = Slices(*batches)
    messages = [message async for message in Delivering(slices).getmany(1.0)]
    assert slices.budgets == ["the budget"]
    for (tp, message), batch in zip(messages, batches, strict=True):
        assert tp == message.tp == TP(batch.topic, batch.partition)
        assert (message.topic, message.partition, message.offset) == (*tp, batch.fetched_from)
        assert (message.timestamp, message.timestamp_type, message.headers) == (None, 0, ())
        assert (message.serialized_key_size, message.serialized_value_size) == (0, 0)
        assert message.key is None
        assert message.value is batch
        assert message.generation_id == 3


@pytest.mark.parametrize("change", ["stop", "pause", "rebalance"])
async def test_what_was_fetched_before_a_change_of_the_group_is_not_delivered(change: str) -> None:
    """The next owner reads it again."""
    slices = Slices(slice_of(FIRST, 5))
    consumer = Delivering(slices)
    changes: dict[str, Callable[[], None]] = {
        "stop": lambda: setattr(consumer, "should_stop", True),
        "pause": lambda: setattr(consumer, "flow_active", False),
        "rebalance": lambda: setattr(consumer.app, "consumer_generation_id", 4),
    }
    slices.fetched = changes[change]
    assert [message async for message in consumer.getmany(1.0)] == []


@pytest.mark.parametrize(("last", "position"), [(8, 8), (None, 9)], ids=["a record to compare", "none"])
async def test_a_partition_opens_at_what_is_to_be_compared(last: int | None, position: int) -> None:
    """Else at the checkpoint; Faust forgets how far it was read, and hints begin at the checkpoint."""
    slices, tp = Slices(), TP(*FIRST)
    consumer = Delivering(slices)
    earlier = consumer.open[tp] = opened_at(1)[FIRST]
    log_end = LogEnd(None if last is None else LoggedRecord(last, 1, b"k", b"v", bytes(4)), 9)

    state = await consumer.open_partition(tp, 2, SAME, 9 if last is None else 0, log_end)

    assert consumer.open == {tp: state}
    assert state is not earlier
    assert (state.token, state.position, state.leadership) == (2, position, SAME)
    assert state.fetch_state == (tp, position)
    assert state.log_end is (None if last is None else log_end)
    assert slices.sought == [(tp, position)]
    assert consumer.done == {tp: 9}
    assert await consumer.commit() is True
    assert slices.hints == [{tp: 9}]
    assert consumer._read_offset == {TP(*SECOND): 200}
    consumer.close_partition(tp)
    consumer.close_partition(tp)
    assert (consumer.open, consumer.done) == ({}, {})
    assert await consumer.commit() is False


async def test_a_fetch_takes_nothing_of_a_partition_that_was_opened_again() -> None:
    """Its successor in the place of a partition has a position of its own, and gets all from there on."""
    opened = opened_at(5, 6)
    fetcher = Fetcher(Consumer(fetch={}), dict(opened))
    assert await fetcher._fetch(cast(RepairedConsumer, fetcher._ours), opened) == {}
    assert fetcher._ours.still_open() == [FIRST, SECOND]
    fetcher._opened |= opened_at(5)
    assert fetcher._ours.still_open() == [SECOND]
    fetcher._opened.clear()
    assert fetcher._ours.still_open() == []


class Served:
    """A consumer that starts and stops, or fails to."""

    def __init__(self, error: Exception | None = None, stop_error: Exception | None = None) -> None:
        self._error, self._stop_error = error, stop_error
        self.started = self.stopped = False
        self.may_stop = asyncio.Event()
        self.may_stop.set()

    async def start(self) -> None:
        if self._error is not None:
            raise self._error
        self.started = True

    async def stop(self) -> None:
        await self.may_stop.wait()
        self.stopped = True
        if self._stop_error is not None:
            raise self._stop_error


class Root:
    """The root of the services: the worker that ends where one of them has crashed."""

    crashed: BaseException | None = None

    async def crash(self, error: BaseException) -> None:
        self.crashed = error


def serving(served: Served, root: Root | None = None) -> RecordBatchFetcher:
    """A fetcher in the running loop, as the consumer makes it, around a consumer of this test's own."""
    consumer = Delivering(Slices())
    consumer.loop, consumer.beacon = asyncio.get_running_loop(), Node(root or Root())
    names = ("producer_partitioner", "stream_processing_timeout", "broker_commit_livelock_soft_timeout")
    consumer.app.conf = SimpleNamespace(**dict.fromkeys(names))
    consumer.transport.app = consumer.app
    fetcher = consumer._new_consumer_thread()
    fetcher._create_consumer = lambda loop: served  # type: ignore[method-assign]
    return fetcher


async def test_the_consumer_lives_in_the_loop_of_the_app() -> None:
    """No thread is begun; a stop ends what is under way and the consumer, and nothing else that the loop does."""
    served, threads, other = Served(), threading.active_count(), asyncio.create_task(asyncio.Event().wait())
    fetcher = serving(served)
    await fetcher.start()
    assert threading.active_count() == threads
    call = asyncio.create_task(fetcher.call_thread(asyncio.Event().wait))
    await asyncio.sleep(0)
    await fetcher.stop()
    assert served.stopped
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not other.done()
    other.cancel()


async def test_a_call_goes_on_where_its_caller_is_cancelled() -> None:
    """A fetch that was given up half-way would have taken records from aiokafka that no partition accounts for."""
    fetcher, fetched = serving(Served()), asyncio.Event()
    went_on = asyncio.Event()

    async def fetch() -> None:
        await fetched.wait()
        went_on.set()

    caller = asyncio.create_task(fetcher.call_thread(fetch))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    fetched.set()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await went_on.wait()


async def test_a_fetch_that_is_cancelled_says_that_the_consumer_has_stopped() -> None:
    """Faust's fetcher would end in silence otherwise; one that is cancelled itself is told just that."""
    fetcher = serving(Served())
    await fetcher.start()
    fetcher._consumer.bound_fetches = lambda _: None
    fetcher._fetch_batches = lambda _: asyncio.Event().wait()  # type: ignore[method-assign, assignment, return-value]
    fetching, cancelled = (asyncio.create_task(fetcher.fetch_batches(MemoryBudget(1))) for _ in range(2))
    await asyncio.sleep(0)
    stopping = asyncio.create_task(fetcher.stop())
    while fetcher._calls:
        await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    with pytest.raises(ConsumerStoppedError):
        await fetching
    await stopping


async def test_a_call_may_be_of_a_function_that_does_not_wait() -> None:
    """Faust hands over both kinds, and what they raise is raised."""
    fetcher = serving(Served())
    assert await fetcher.call_thread(max, 3, 5) == 5
    with pytest.raises(ZeroDivisionError):
        await fetcher.call_thread(divmod, 1, 0)


async def test_a_consumer_that_does_not_start_ends_the_worker(capsys: pytest.CaptureFixture[str]) -> None:
    """Who starts it gets the error, and so does the root of the services that the fetcher is one of."""
    root, served = Root(), Served(KafkaError("no broker"))
    fetcher = serving(served, root)
    with pytest.raises(KafkaError, match="no broker"):
        await fetcher.start()
    await wait_until_async(lambda: served.stopped, "the consumer is stopped")
    assert isinstance(root.crashed, KafkaError)
    assert "no broker" in capsys.readouterr().err


async def test_a_consumer_that_does_not_stop_holds_up_nothing() -> None:
    """Who stops the worker closes all the rest behind it; why is in the log."""
    served = Served(stop_error=KafkaError("seen in aiokafka"))
    fetcher = serving(served)
    await fetcher.start()
    with structlog.testing.capture_logs() as lines:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await fetcher.stop()
    assert served.stopped
    assert "seen in aiokafka" in str(lines)


async def test_a_stop_waits_for_the_consumer_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves its group last. Other services give up after a minute."""
    monkeypatch.setattr(Service, "shutdown_timeout", 0.0)
    served = Served()
    fetcher = serving(served)
    await fetcher.start()
    served.may_stop.clear()
    stopping = asyncio.create_task(fetcher.stop())
    done, _ = await asyncio.wait([stopping], timeout=0.05)
    assert not done
    served.may_stop.set()
    await stopping
    assert served.stopped


async def test_nothing_is_left_in_the_loop_after_a_stop() -> None:
    """Not where it comes before the consumer's first step either: it would start without anybody to stop it."""
    before, served = asyncio.all_tasks(), Served()
    fetcher = serving(served)
    starting = asyncio.create_task(fetcher.start())
    await asyncio.sleep(0)
    await fetcher.stop()
    with pytest.raises(ConsumerStoppedError):
        await starting
    assert not served.started
    fetcher = serving(served)
    await fetcher.start()
    await fetcher.stop()
    assert asyncio.all_tasks() <= before


async def test_a_stop_returns_once_the_service_has_ended() -> None:
    """Its last tasks may take a while after the consumer has stopped: others close the loop next."""
    fetcher = serving(Served())
    await fetcher.start()

    async def end_slowly() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(100):
                await asyncio.sleep(0)

    ending = fetcher.add_future(end_slowly())
    await asyncio.sleep(0)
    await fetcher.stop()
    assert ending.done()
    assert fetcher._served is not None
    assert fetcher._served.done()


async def test_a_rebalance_during_a_stop_leaves_the_consumer_to_that_stop() -> None:
    """Marked as closed by Faust, it would be stopped by nobody."""
    served = Served()
    fetcher = serving(served)
    await fetcher.start()
    fetcher.close()
    await fetcher.stop()
    assert served.stopped


async def test_a_rebalance_is_answered_where_services_have_ended() -> None:
    """The group's coordinator calls what the app does, without a queue that nobody reads after a crash."""
    fetcher, calls = serving(Served()), list[tuple[object, ...]]()

    async def call(*arguments: object) -> None:
        calls.append(arguments)

    fetcher.consumer.on_partitions_revoked = call
    fetcher.consumer.on_partitions_assigned = call
    await fetcher.on_partitions_revoked({TP(*FIRST)})
    await fetcher.on_partitions_assigned({TP(*SECOND)}, 7)
    assert calls == [({TP(*FIRST)},), ({TP(*SECOND)}, 7)]

"""The parts of the Kafka client side that need no broker: partitioning, deadlines, bounds, connection options."""

from __future__ import annotations

import asyncio
import doctest
from collections.abc import Callable, Iterable
from typing import Any, cast
from uuid import UUID

import pytest
import structlog
from aiokafka.partitioner import murmur2 as reference
from hypothesis import given
from hypothesis import strategies as st

from runtime import metrics
from runtime.errors import ConfigurationError
from runtime.settings import Settings
from schemas import codec
from schemas.clock_fields import ClockStamped
from schemas.examples import examples
from streams import partitioning, start, topics
from streams import record_position as position
from streams.connected_producer import ConnectedProducer
from streams.deadlines import Deadlines
from streams.errors import (
    KafkaUnavailable,
    OutcomeUnknown,
    Overloaded,
    PartitionCountChanged,
    PartitionUnknown,
    PublishRefused,
    RecordTooLarge,
)
from streams.kafka.connection import connection_options
from streams.pending_publish import PendingPublish
from streams.producer import (
    HEADER_NAME_BYTES,
    HEADER_OVERHEAD_BYTES,
    RECORD_OVERHEAD_BYTES,
    TURN_EVERY_RECORDS,
    EventProducer,
    Limits,
    _each,
)
from streams.record_position import RecordPosition
from streams.topics import EVENTS_TOPIC, RECORD_MAX_BYTES
from tests.support.waiting import wait_until_async

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@given(st.binary(max_size=80))
def test_partitioning_is_kafkas_own(key: bytes) -> None:
    """Any key's hash is that of Kafka's Java client, as aiokafka has it too."""
    assert partitioning.murmur2(key) == reference(key) & 0xFFFFFFFF


@given(st.uuids())
def test_entity_ids_have_a_partition(entity_id: UUID) -> None:
    """An entity id's partition is within the topic."""
    assert 0 <= partitioning.partition_of(str(entity_id).encode(), 8) < 8


class Late(Exception):
    pass


async def test_deadlines_give_up_and_leave_the_shared_future_alone() -> None:
    """A waiter gets its error in time, its future goes on, and later waiters get their result."""
    deadlines: Deadlines[int] = Deadlines(0.02, Late)
    shared: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with pytest.raises(Late):
        await deadlines.wait(shared)
    assert not shared.done()
    later = asyncio.create_task(deadlines.wait(shared))
    await asyncio.sleep(0)
    shared.set_result(7)
    assert await later == 7
    assert await deadlines.wait(shared) == 7


async def test_waiters_that_gave_up_are_forgotten() -> None:
    """A future that is waited for again and again, as while Kafka is away, holds none of those who gave up."""
    deadlines: Deadlines[int] = Deadlines(0.01, Late)
    shared = _Counted(loop=asyncio.get_running_loop())
    waiting = [asyncio.create_task(deadlines.wait(shared)) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    assert {type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)} == {
        Late,
        asyncio.CancelledError,
    }
    assert shared.callbacks == 0


class _Counted(asyncio.Future[int]):
    """Counts who waits."""

    callbacks = 0

    def add_done_callback(self, callback: Any, *, context: Any = None) -> None:
        self.callbacks += 1
        super().add_done_callback(callback, context=context)

    def remove_done_callback(self, callback: Any, /) -> int:
        removed = super().remove_done_callback(callback)
        self.callbacks -= removed
        return removed


async def test_deadlines_keep_their_order_and_pass_errors_on() -> None:
    """Several waiters share one timer; each gets its own future's outcome, errors and cancellation included."""
    deadlines: Deadlines[int] = Deadlines(0.05, Late)
    loop = asyncio.get_running_loop()
    good, bad, dropped, slow = (loop.create_future() for _ in range(4))
    tasks = [asyncio.create_task(deadlines.wait(shared)) for shared in (good, bad, dropped, slow)]
    await asyncio.sleep(0)
    good.set_result(1)
    bad.set_exception(OSError("x"))
    dropped.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert outcomes[0] == 1
    assert [type(outcome) for outcome in outcomes[1:]] == [OSError, asyncio.CancelledError, Late]


def test_connection_options_follow_the_settings() -> None:
    """Plain, TLS and SASL settings become aiokafka's arguments; no address is a configuration error."""
    plain = connection_options(Settings(kafka_bootstrap_servers="k:1"))
    assert plain == {"bootstrap_servers": "k:1", "security_protocol": "PLAINTEXT"}
    secured = connection_options(
        Settings(
            kafka_bootstrap_servers="k:1",
            kafka_security_protocol="SASL_SSL",
            kafka_sasl_username="u",
            kafka_sasl_password="p",
        )
    )
    assert (secured["sasl_mechanism"], secured["sasl_plain_username"]) == ("SCRAM-SHA-512", "u")
    assert "ssl_context" in secured
    with pytest.raises(ConfigurationError):
        connection_options(Settings())


def test_the_docstrings_are_right() -> None:
    """The examples in the modules hold."""
    for module in (partitioning, position, start, topics):
        assert doctest.testmod(module).failed == 0


class Connected:
    """A connection that takes every record and answers when a test does."""

    def __init__(self, **partition_counts: int) -> None:
        self.partition_counts = {EVENTS_TOPIC: 4, "generation-2": 4, **partition_counts}
        self.fatal = asyncio.Event()
        self.fatal_error: PartitionCountChanged | None = None
        self.release: Callable[[int, int], None] = lambda records, size_bytes: None
        self.added: list[tuple[Any, ...]] = []
        self.pinged = 0

    def add(self, *record: Any) -> PendingPublish:
        self.added.append(record)
        return PendingPublish(asyncio.get_running_loop().create_future(), 0)

    async def ping(self) -> None:
        self.pinged += 1

    def fail_permanently(self, error: PartitionCountChanged) -> None:
        self.fatal_error = error
        self.fatal.set()


def producer_on(connected: Connected, **limits: Any) -> EventProducer:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    producer = EventProducer(settings, topics=(EVENTS_TOPIC,), events_topic="generation-2", limits=Limits(**limits))
    producer._use(cast(ConnectedProducer, connected))
    return producer


async def test_a_record_goes_to_its_topic_as_it_is() -> None:
    """In the topic's later generation; to the partition that was named, whether it has a key or not.

    It counts with its key, its value, its headers and what Python needs.
    """
    connected = Connected()
    producer = producer_on(connected)
    headers = [("name", b"content"), ("none", None)]
    producer.submit_record(EVENTS_TOPIC, b"key", b"value", headers)
    producer.submit_record(EVENTS_TOPIC, None, None, [])
    producer.submit_record(EVENTS_TOPIC, None, None, [], 3)
    producer.submit_record(EVENTS_TOPIC, b"key", None, [], 0)
    size_bytes = 8 + RECORD_OVERHEAD_BYTES + HEADER_NAME_BYTES * 8 + 7 + 2 * HEADER_OVERHEAD_BYTES
    assert connected.added == [
        ("generation-2", b"key", b"value", headers, size_bytes, None),
        ("generation-2", None, None, [], RECORD_OVERHEAD_BYTES, None),
        ("generation-2", None, None, [], RECORD_OVERHEAD_BYTES, 3),
        ("generation-2", b"key", None, [], 3 + RECORD_OVERHEAD_BYTES, 0),
    ]


@pytest.mark.parametrize("partition", [-1, 4])
async def test_a_partition_that_there_is_not_takes_no_record(partition: int) -> None:
    """It is refused before anything is sent, and takes no room."""
    connected = Connected()
    producer = producer_on(connected)
    with pytest.raises(PartitionUnknown, match=f"There is no generation-2/{partition}"):
        producer.submit_record(EVENTS_TOPIC, b"key", b"v", [], partition)
    assert connected.added == []


async def test_an_event_is_sent_with_its_headers() -> None:
    """Its source, its sender's, and the mark of Plant's clock; the value that the caller has is taken as it is."""
    event, connected = examples()["genesis.agent.rated"], Connected()
    producer, sender = producer_on(connected), [("plant_producer", b"genesis")]
    producer.submit(event, source="/s", sender=sender)
    producer.submit(ClockStamped(event), source="/s", traceparent=TRACE, value=b"encoded")
    plain, stamped = connected.added
    assert plain[1:4] == (codec.key(event), codec.encode(event), codec.headers(event, "/s", sender=sender))
    expected = codec.headers(event, "/s", TRACE, clock_stamped=True)
    assert stamped[1:4] == (codec.key(event), b"encoded", expected)


async def test_a_record_may_have_the_largest_size_and_no_more() -> None:
    """A larger one would be refused by the broker, with all of its batch."""
    connected = Connected()
    producer = producer_on(connected)
    fits = bytes(RECORD_MAX_BYTES - RECORD_OVERHEAD_BYTES)
    producer.submit_record(EVENTS_TOPIC, None, fits, [])
    with pytest.raises(RecordTooLarge, match=f"It has {RECORD_MAX_BYTES + 1} bytes; at most {RECORD_MAX_BYTES}"):
        producer.submit_record(EVENTS_TOPIC, b"k", fits, [])
    assert len(connected.added) == 1


@pytest.mark.parametrize(
    "limits", [{"in_flight_records": 2}, {"in_flight_bytes": 2 * RECORD_OVERHEAD_BYTES + 2}], ids=["records", "bytes"]
)
async def test_what_is_under_way_is_bounded(limits: dict[str, int]) -> None:
    """By records and by bytes, both included; what has its answer makes room."""
    connected = Connected()
    producer = producer_on(connected, **limits)
    for _ in range(2):
        producer.submit_record(EVENTS_TOPIC, None, b"v", [])
    for _ in range(2):
        with pytest.raises(Overloaded, match="2 records wait"):
            producer.submit_record(EVENTS_TOPIC, None, b"v", [])
    connected.release(1, RECORD_OVERHEAD_BYTES + 1)
    producer.submit_record(EVENTS_TOPIC, None, b"v", [])
    with pytest.raises(Overloaded):
        producer.submit_record(EVENTS_TOPIC, None, b"v", [])


async def test_a_stream_of_events_waits_for_room() -> None:
    """And yields positions in its order; an event for which there can never be room is an error."""
    connected = Connected()
    producer, event = producer_on(connected, in_flight_records=1), examples()["genesis.agent.rated"]
    positions: list[RecordPosition] = []

    async def publish() -> None:
        async for acknowledged in producer.publish_each([event] * 3, source="/s"):
            positions.append(acknowledged)

    publishing, answers = asyncio.create_task(publish()), []
    add = connected.add
    connected.add = lambda *record: answers.append(add(*record)) or answers[-1]  # type: ignore[func-returns-value, method-assign]
    for number in range(3):
        await wait_until_async(lambda n=number: len(answers) == n + 1, "the next event is sent")
        connected.release(1, connected.added[-1][4])
        answers[number].answer.set_result(RecordPosition(EVENTS_TOPIC, 0, number))
    await publishing
    assert positions == [RecordPosition(EVENTS_TOPIC, 0, number) for number in range(3)]
    narrow = producer_on(Connected(), in_flight_bytes=1)
    with pytest.raises(Overloaded):
        await narrow.publish_many([event], source="/s")


async def test_without_an_answer_the_outcome_is_unknown() -> None:
    """After the timeout; a sender may come back in two seconds. Others' outcomes are theirs."""
    connected = Connected()
    producer = producer_on(connected, publish_timeout_seconds=0.01)
    event = examples()["genesis.agent.rated"]
    with pytest.raises(OutcomeUnknown) as caught:
        await producer.publish(event, source="/s")
    assert (caught.value.why, caught.value.retry_after_seconds) == ("There was no answer within 0.01 s.", 2)
    first, second, third = (producer.submit(event, source="/s") for _ in range(3))
    second.answer.set_result(RecordPosition(EVENTS_TOPIC, 0, 7))
    third.answer.set_exception(PublishRefused())
    outcomes = await producer.await_each([first, second, third])
    assert isinstance(outcomes[0], OutcomeUnknown)
    assert outcomes[1] == RecordPosition(EVENTS_TOPIC, 0, 7)
    assert isinstance(outcomes[2], PublishRefused)


async def test_a_connection_that_broke_is_no_connection() -> None:
    """Publishes are refused until there is another; one with other partition counts is never used."""
    connected = Connected()
    producer = producer_on(connected)
    assert producer.connected
    await producer.ping()
    assert connected.pinged == 1
    connected.fatal.set()
    assert not producer.connected
    with pytest.raises(KafkaUnavailable):
        producer.submit_record(EVENTS_TOPIC, None, b"v", [])
    grown = Connected(**{EVENTS_TOPIC: 8})
    producer._use(cast(ConnectedProducer, grown))
    assert isinstance(grown.fatal_error, PartitionCountChanged)
    assert not producer.connected


class Connections:
    """Connects as `ConnectedProducer.connect` does: with these connections and errors, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Closing | Exception) -> None:
        self.asked: list[list[str]] = []
        self._answers = list(answers)
        monkeypatch.setattr(ConnectedProducer, "connect", self._connect)

    async def _connect(self, _settings: Settings, topics: Iterable[str]) -> Closing:
        self.asked.append(list(topics))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Closing(Connected):
    """A connection that notes how long its batches may take when it is closed, and closes when it may."""

    def __init__(self, **partition_counts: int) -> None:
        super().__init__(**partition_counts)
        self.graces: list[float] = []
        self.may_close = asyncio.Event()
        self.closed = False
        self.error: Exception | None = None

    async def close(self, grace_seconds: float) -> None:
        self.graces.append(grace_seconds)
        await self.may_close.wait()
        self.closed = True
        if self.error is not None:
            raise self.error


def disconnected_producer() -> EventProducer:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    limits = Limits(reconnect_backoff_seconds=0.001, publish_timeout_seconds=3.0)
    return EventProducer(settings, topics=(EVENTS_TOPIC,), events_topic="generation-2", limits=limits)


async def test_a_producer_connects_as_soon_as_kafka_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tries again after each error, and writes the same error once until it has connected."""
    down, other = KafkaUnavailable(why="down"), OSError()
    broken, last = Closing(), Closing()
    broken.may_close.set()
    last.may_close.set()
    connections = Connections(monkeypatch, down, down, other, down, broken, down, last)
    producer = disconnected_producer()
    with structlog.testing.capture_logs() as lines:
        producer.start_in_background()
        producer.start_in_background()
        await wait_until_async(lambda: producer.connected, "it is connected")
        assert [line["why"] for line in lines] == [str(down), "OSError()", str(down)]
        broken.fatal.set()
        await wait_until_async(lambda: producer._connected is last, "it is connected again")
    assert [line["why"] for line in lines] == [str(down), "OSError()", str(down), str(down)]
    assert connections.asked == [["generation-2"]] * 7
    await producer.stop()


async def connected_again(monkeypatch: pytest.MonkeyPatch, broken: Closing, last: Closing) -> EventProducer:
    """Return a producer whose connection has broken, and that has another one."""
    Connections(monkeypatch, broken, last)
    producer = disconnected_producer()
    producer.start_in_background()
    await wait_until_async(lambda: producer.connected, "it is connected")
    broken.fatal.set()
    await wait_until_async(lambda: producer._connected is last, "it is connected again")
    return producer


async def test_a_connection_that_broke_is_closed_beside_its_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had sent gets no more time, and holds up no publish; a stop awaits its end."""
    broken, last = Closing(), Closing()
    producer = await connected_again(monkeypatch, broken, last)
    producer.submit_record(EVENTS_TOPIC, None, b"v", [])
    assert (len(last.added), broken.graces, broken.closed) == (1, [0], False)
    assert producer._keeper is not None
    names = [task.get_name() for task in (producer._keeper, *producer._closings)]
    assert names == ["producer-connection", "producer-close"]
    last.may_close.set()
    stopping = asyncio.create_task(producer.stop())
    await wait_until_async(lambda: last.closed, "the successor is closed")
    assert not stopping.done()
    broken.may_close.set()
    await stopping
    assert (broken.closed, last.graces, producer.connected) == (True, [3.0], False)
    assert producer._closings == set()


async def test_a_stop_ends_whatever_the_close_of_a_connection_that_broke_fails_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process that stops has done all it can for it."""
    broken, last = Closing(), Closing()
    broken.error = OSError("gone")
    last.may_close.set()
    producer = await connected_again(monkeypatch, broken, last)
    stopping = asyncio.create_task(producer.stop())
    await wait_until_async(lambda: last.closed, "the successor is closed")
    broken.may_close.set()
    await stopping
    assert broken.closed


async def test_other_partition_counts_end_the_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys would go to other partitions: publishes name the reason from then on, and no connection is tried."""
    grown = Closing(**{"generation-2": 8})
    first = Closing()
    for connection in (first, grown):
        connection.may_close.set()
    connections = Connections(monkeypatch, first, grown)
    producer = disconnected_producer()
    producer.start_in_background()
    await wait_until_async(lambda: producer.connected, "it is connected")
    first.fatal.set()
    keeper = producer._keeper
    assert keeper is not None
    await wait_until_async(keeper.done, "no connection is tried")
    with pytest.raises(PartitionCountChanged) as caught:
        producer.check_connected()
    assert caught.value is grown.fatal_error
    assert len(connections.asked) == 2
    await producer.stop()
    assert producer._keeper is None


async def test_what_is_under_way_is_measured_and_a_connection_counted() -> None:
    """The gauges have what is left after each release."""
    connects = metrics.PRODUCER_CONNECTS._value.get()
    connected = Connected()
    producer = producer_on(connected)
    assert metrics.PRODUCER_CONNECTS._value.get() == connects + 1
    for _ in range(3):
        producer.submit_record(EVENTS_TOPIC, None, b"v", [])
    connected.release(1, RECORD_OVERHEAD_BYTES + 1)
    assert metrics.PRODUCER_RECORDS_IN_FLIGHT._value.get() == 2
    assert metrics.PRODUCER_BYTES_IN_FLIGHT._value.get() == 2 * (RECORD_OVERHEAD_BYTES + 1)


async def test_many_events_leave_the_event_loop_its_turns() -> None:
    """One every TURN_EVERY_RECORDS, in which batches leave; it waits for nothing then."""
    event, yielded = examples()["genesis.agent.rated"], 0

    async def read() -> None:
        nonlocal yielded
        async for _ in _each([event] * (2 * TURN_EVERY_RECORDS + 1)):
            yielded += 1

    reading, seen = asyncio.create_task(read()), [0]
    for _ in range(20):
        await asyncio.sleep(0)
        if yielded != seen[-1]:
            seen.append(yielded)
    assert seen == [0, TURN_EVERY_RECORDS, 2 * TURN_EVERY_RECORDS, 2 * TURN_EVERY_RECORDS + 1]
    assert reading.done()

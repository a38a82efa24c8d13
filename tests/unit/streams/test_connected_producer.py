"""A producer's connection without Kafka: what it asks of the client, and what becomes of batches when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaConnectionError, TopicAuthorizationFailedError, UnknownTopicOrPartitionError

from runtime.settings import Settings
from streams import connected_producer
from streams.connected_producer import ConnectedProducer
from streams.errors import KafkaUnavailable, OutcomeUnknown, PartitionCountChanged, PublishRefused, TopicMissing
from streams.kafka.producer import RepairedProducer
from streams.partitioning import partition_of
from streams.pending_publish import PendingPublish
from streams.record_position import RecordPosition

TOPIC = "genesis.events"
SETTINGS = Settings(kafka_bootstrap_servers="127.0.0.1:1")


class Builder:
    """A batch that takes any record."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes | None, bytes | None]] = []
        self.closed = False

    def append(self, *, key: bytes | None, value: bytes | None, **_: Any) -> object:
        self.records.append((key, value))
        return object()

    def close(self) -> None:
        self.closed = True


class Kafka:
    """aiokafka's producer, whose start and answers a test decides."""

    def __init__(self, partitions: int = 4, error: BaseException | None = None) -> None:
        self.options: dict[str, Any] = {}
        self.partitions, self.error = partitions, error
        self.ended: list[str] = []
        self.sent: list[tuple[Builder, str, int]] = []
        self.answers: list[asyncio.Future[Any]] = []
        self.asked: list[str] = []
        cluster = SimpleNamespace(partitions_for_topic=lambda topic: set(range(self.partitions)) or None)
        self.client = SimpleNamespace(cluster=cluster, add_topic=self.add_topic, fetch_all_metadata=self.start)
        self.create_batch = Builder

    async def add_topic(self, topic: str) -> None:
        self.asked.append(topic)

    async def start(self) -> None:
        if self.error is not None:
            raise self.error

    async def stop(self) -> None:
        self.ended.append("stopped")

    async def abandon(self) -> None:
        self.ended.append("abandoned")

    def background_tasks(self) -> list[asyncio.Task[None]]:
        return []

    async def send_batch(self, builder: Builder, topic: str, *, partition: int) -> asyncio.Future[Any]:
        assert builder.closed
        self.sent.append((builder, topic, partition))
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]


def connection(kafka: Kafka) -> ConnectedProducer:
    return ConnectedProducer(cast(RepairedProducer, kafka), {TOPIC: 4})


def connect(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> Coroutine[Any, Any, ConnectedProducer]:
    def make(_settings: Settings, **options: Any) -> Kafka:
        kafka.options = options
        return kafka

    monkeypatch.setattr(connected_producer, "make_producer", make)
    return ConnectedProducer.connect(SETTINGS, [TOPIC])


def add(connected: ConnectedProducer, key: bytes | None = None) -> PendingPublish:
    return connected.add(TOPIC, key, b"v", (), 10)


async def sent() -> None:
    """Let the connection send what was added in this turn of the event loop."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_an_acknowledgement_is_that_of_all_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an idempotent producer: a batch that is sent again is written once, and in order."""
    kafka = Kafka()
    connected = await connect(kafka, monkeypatch)
    assert connected.partition_counts == {TOPIC: 4}
    assert kafka.options == {
        "acks": "all",
        "enable_idempotence": True,
        "compression_type": "lz4",
        "max_batch_size": 512 * 1024,
        "request_timeout_ms": 10_000,
        "metadata_max_age_ms": 5_000,
    }
    assert kafka.ended == []


async def test_a_partition_that_is_named_goes_before_the_keys() -> None:
    """Key or not; where none is named the key decides, and without one it is the first."""
    kafka = Kafka()
    connected = connection(kafka)
    key = b"72d76358-5032-530d-b5a7-ee89ea19f5a4"
    own = partition_of(key, 4)
    for named in ((own + 1) % 4, None):
        connected.add(TOPIC, key, b"v", (), 10, named)
        connected.add(TOPIC, None, b"w", (), 10, named)
    await sent()
    records = {partition: builder.records for builder, _, partition in kafka.sent}
    expected: dict[int, list[tuple[bytes | None, bytes | None]]] = {}
    for partition, record in (((own + 1) % 4, (key, b"v")), ((own + 1) % 4, (None, b"w")), (own, (key, b"v"))):
        expected.setdefault(partition, []).append(record)
    expected.setdefault(0, []).append((None, b"w"))
    assert records == expected


@pytest.mark.parametrize("error", [KafkaConnectionError("no"), TimeoutError()], ids=["refused", "timeout"])
async def test_brokers_that_can_not_be_reached_are_named(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """And the client is given up: it would go on in the background."""
    kafka = Kafka(error=error)
    with pytest.raises(KafkaUnavailable) as caught:
        await connect(kafka, monkeypatch)
    assert caught.value.why == f"{type(error).__name__} from 127.0.0.1:1."
    assert caught.value.next_step == "plant status"
    assert kafka.ended == ["abandoned"]
    with pytest.raises(KafkaUnavailable, match=type(error).__name__):
        await connection(kafka).ping()


async def test_a_defect_while_connecting_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is given up all the same."""
    kafka = Kafka(error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await connect(kafka, monkeypatch)
    assert kafka.ended == ["abandoned"]


async def test_a_topic_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was asked for, and with the command that makes it."""
    kafka = Kafka(partitions=0)
    with pytest.raises(TopicMissing) as caught:
        await connect(kafka, monkeypatch)
    assert TOPIC in caught.value.what
    assert caught.value.next_step == "plant topics apply"
    assert (kafka.asked, kafka.ended) == ([TOPIC], ["abandoned"])


async def test_each_record_of_a_batch_has_its_position() -> None:
    """Counted from the offset that the broker gave the first; the bytes are released with the answer."""
    kafka, released = Kafka(), list[tuple[int, int]]()
    connected = connection(kafka)
    connected.release = lambda records, size_bytes: released.append((records, size_bytes))
    first, second = add(connected), add(connected)
    await sent()
    ((builder, topic, partition),) = kafka.sent
    assert (builder.records, topic, partition) == ([(None, b"v")] * 2, TOPIC, 0)
    assert released == []
    kafka.answers[0].set_result(SimpleNamespace(offset=7))
    assert [await first.answer, await second.answer] == [RecordPosition(TOPIC, 0, 7)] * 2
    assert [first.position(), second.position()] == [RecordPosition(TOPIC, 0, offset) for offset in (7, 8)]
    assert released == [(2, 20)]
    await connected.close(60)
    assert kafka.ended == ["stopped"]


@pytest.mark.parametrize(
    ("error", "expected", "why"),
    [
        (TopicAuthorizationFailedError(), PublishRefused, f"TopicAuthorizationFailedError on {TOPIC}."),
        (UnknownTopicOrPartitionError(), TopicMissing, None),
        (AssertionError(), OutcomeUnknown, f"AssertionError on {TOPIC}."),
    ],
)
async def test_a_batch_that_fails_ends_the_connection(
    error: Exception, expected: type[Exception], why: str | None
) -> None:
    """The sequence is broken: what waits behind it was not sent, and is told so."""
    kafka, released = Kafka(), list[tuple[int, int]]()
    connected = connection(kafka)
    connected.release = lambda records, size_bytes: released.append((records, size_bytes))
    first = add(connected)
    await sent()
    behind = add(connected)
    kafka.answers[0].set_exception(error)
    with pytest.raises(expected) as caught:
        await first.answer
    assert why is None or caught.value.why == why  # type: ignore[attr-defined]
    assert TOPIC in str(caught.value)
    with pytest.raises(KafkaUnavailable):
        await behind.answer
    assert connected.fatal.is_set()
    assert connected.fatal_error is None
    assert sorted(released) == [(1, 10), (1, 10)]
    if expected is OutcomeUnknown:
        assert caught.value.retry_after_seconds == 2  # type: ignore[attr-defined]
    await connected.close(0)
    assert kafka.ended == ["abandoned"]


async def test_an_offset_that_the_broker_no_longer_knows_is_no_position() -> None:
    """It had the batch before: whether it still holds it is unknown."""
    kafka = Kafka()
    connected = connection(kafka)
    publish = add(connected)
    await sent()
    kafka.answers[0].set_result(SimpleNamespace(offset=-1))
    with pytest.raises(OutcomeUnknown):
        await publish.answer


@pytest.mark.parametrize(("partitions", "changed"), [(0, False), (4, False), (5, True), (3, True)])
async def test_another_partition_count_ends_the_producer(partitions: int, changed: bool) -> None:
    """Keys would move to other partitions. No metadata is no other count."""
    kafka = Kafka(partitions=partitions)
    connected = connection(kafka)
    publish = add(connected)
    await sent()
    assert (connected.fatal_error is not None) == connected.fatal.is_set() == changed
    assert bool(kafka.sent) != changed
    if changed:
        with pytest.raises(PartitionCountChanged):
            await publish.answer


async def test_what_is_under_way_at_the_end_has_an_unknown_outcome() -> None:
    """And what was never sent is known not to be written."""
    kafka = Kafka()
    connected = connection(kafka)
    under_way = add(connected)
    await sent()
    never_sent = add(connected)
    await connected.close(0)
    assert under_way.answer.done()
    with pytest.raises(OutcomeUnknown) as caught:
        await under_way.answer
    assert (caught.value.why, caught.value.retry_after_seconds) == ("The connection to Kafka was given up.", 2)
    with pytest.raises(KafkaUnavailable):
        await never_sent.answer
    assert kafka.ended == ["abandoned"]


async def test_the_end_waits_for_what_is_under_way() -> None:
    """As long as its grace allows."""
    kafka = Kafka()
    connected = connection(kafka)
    publish = add(connected)
    await sent()
    closing = asyncio.create_task(connected.close(600))
    await asyncio.sleep(0)
    kafka.answers[0].set_result(SimpleNamespace(offset=3))
    await closing
    assert (await publish.answer).offset == 3
    assert kafka.ended == ["stopped"]


async def test_the_end_waits_no_longer_than_its_grace() -> None:
    """A broker that never answers does not keep the process."""
    kafka = Kafka()
    connected = connection(kafka)
    publish = add(connected)
    await sent()
    await connected.close(0.01)
    with pytest.raises(OutcomeUnknown):
        await publish.answer

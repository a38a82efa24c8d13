"""The dead-letter relay's marks: they end before a partition's first dead letter without an acknowledgement."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from audit.canonical import headers_bytes
from projections.poison_rows import PoisonRow, PoisonRows
from relay import dead_letters
from relay.dead_letters import DEAD_LETTERS_MAX, KEY_MAX_BYTES, DeadLetterRelay
from runtime import metrics
from runtime.settings import Settings
from streams.errors import KafkaUnavailable, OutcomeUnknown, Overloaded, PublishRefused, RecordTooLarge, StreamsError
from streams.pending_publish import PendingPublish
from streams.producer import EventProducer
from streams.record_position import RecordPosition
from streams.topics import RECORD_MAX_BYTES

TOPIC = "genesis.events"


class Rows:
    """Poison rows that note how far they were advanced."""

    def __init__(self) -> None:
        self.advanced: list[tuple[str, int, int]] = []
        self.asked: list[tuple[int, tuple[str, int] | None]] = []

    async def unsent(
        self, _topic: str, rows_max: int, *, first: tuple[str, int] | None = None, **_: int
    ) -> list[PoisonRow]:
        self.asked.append((rows_max, first))
        return []

    async def advance(self, topic: str, partition: int, next_offset: int) -> None:
        self.advanced.append((topic, partition, next_offset))


def submitted(partition: int, offset: int, error: StreamsError | None = None) -> tuple[PoisonRow, PendingPublish]:
    """A dead letter that Kafka has acknowledged, or failed with this error."""
    answer: asyncio.Future[RecordPosition] = asyncio.get_running_loop().create_future()
    if error is None:
        answer.set_result(RecordPosition("genesis.events.dead", 0, 100 * partition + offset))
    else:
        answer.set_exception(error)
    row = PoisonRow(TOPIC, partition, offset, "no event", 1, b"k", b"v", headers_bytes([]))
    return row, PendingPublish(answer, 0)


async def cycle(relay: DeadLetterRelay, *under_way: tuple[PoisonRow, PendingPublish]) -> Rows:
    """Let the relay see what came of these."""
    rows = Rows()
    relay._under_way = list(under_way)
    await relay.run_cycle(cast(PoisonRows, rows))
    return rows


@pytest.fixture
def relay() -> DeadLetterRelay:
    return DeadLetterRelay(Settings(kafka_bootstrap_servers="127.0.0.1:1"), "genesis.events.dead", TOPIC)


async def test_each_partition_is_marked_up_to_its_last(relay: DeadLetterRelay) -> None:
    """Once a partition, with the offset after the last one that was acknowledged."""
    rows = await cycle(relay, submitted(0, 3), submitted(0, 7), submitted(1, 2), submitted(0, 9))
    assert sorted(rows.advanced) == [(TOPIC, 0, 10), (TOPIC, 1, 3)]
    assert relay.sent == 4


@pytest.mark.parametrize("error", [OutcomeUnknown(), PublishRefused()], ids=lambda error: type(error).__name__)
async def test_those_behind_a_failed_one_are_not_marked(relay: DeadLetterRelay, error: StreamsError) -> None:
    """Though Kafka acknowledged them: the failed one would be skipped. Another partition's are marked."""
    rows = Rows()
    relay._under_way = [submitted(0, 3), submitted(0, 5, error), submitted(0, 8), submitted(1, 1), submitted(1, 4)]
    with pytest.raises(type(error)):
        await relay.run_cycle(cast(PoisonRows, rows))
    assert sorted(rows.advanced) == [(TOPIC, 0, 4), (TOPIC, 1, 5)]
    assert relay.sent == 3


async def test_nothing_is_marked_where_the_first_one_failed(relay: DeadLetterRelay) -> None:
    """The partition's checkpoint stays."""
    rows = Rows()
    relay._under_way = [submitted(0, 3, OutcomeUnknown()), submitted(0, 4)]
    with pytest.raises(OutcomeUnknown):
        await relay.run_cycle(cast(PoisonRows, rows))
    assert rows.advanced == []


async def test_after_a_refusal_the_letters_of_that_partition_come_one_by_one(
    relay: DeadLetterRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others before it, a flood of them even, would else be tried alone in its place."""
    monkeypatch.setattr(EventProducer, "connected", True)
    rows = Rows()
    relay._under_way = [submitted(0, 3), submitted(2, 5, PublishRefused()), submitted(1, 1)]
    with pytest.raises(PublishRefused):
        await relay.run_cycle(cast(PoisonRows, rows))

    await relay.run_cycle(cast(PoisonRows, rows))
    await relay.run_cycle(cast(PoisonRows, rows))

    assert rows.asked == [(1, (TOPIC, 2)), (DEAD_LETTERS_MAX, None)]


async def test_after_any_other_failure_the_letters_come_as_they_did(
    relay: DeadLetterRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the partitions, many at a time: none of them is to be found."""
    monkeypatch.setattr(EventProducer, "connected", True)
    rows = Rows()
    relay._under_way = [submitted(2, 5, OutcomeUnknown())]
    with pytest.raises(OutcomeUnknown):
        await relay.run_cycle(cast(PoisonRows, rows))
    await relay.run_cycle(cast(PoisonRows, rows))
    assert rows.asked == [(DEAD_LETTERS_MAX, None)]


async def test_a_cycle_ends_while_kafka_has_not_answered(relay: DeadLetterRelay) -> None:
    """Nothing is marked, and the same dead letters are awaited by the next one."""
    answer: asyncio.Future[RecordPosition] = asyncio.get_running_loop().create_future()
    under_way = (submitted(0, 3)[0], PendingPublish(answer, 0))
    relay._under_way, rows = [under_way], Rows()
    assert not await relay.run_cycle(cast(PoisonRows, rows), timeout_seconds=0.01)
    assert (rows.advanced, relay._under_way) == ([], [under_way])
    answer.set_result(RecordPosition("genesis.events.dead", 0, 1))
    await relay.run_cycle(cast(PoisonRows, rows), timeout_seconds=0.01)
    assert (rows.advanced, relay._under_way) == ([(TOPIC, 0, 4)], [])


class Submitting:
    """The producer's side of one dead letter."""

    def __init__(self, too_large: bool = False) -> None:
        self.submitted: list[tuple[object, ...]] = []
        self._too_large = too_large

    def submit_record(self, *record: object) -> None:
        if self._too_large:
            self._too_large = False
            raise RecordTooLarge
        self.submitted.append(record)


ERROR_HEADERS = [
    ("__connect.errors.topic", b"genesis.events"),
    ("__connect.errors.partition", b"2"),
    ("__connect.errors.offset", b"5"),
    ("__connect.errors.connector.name", b"plant"),
    ("__connect.errors.exception.message", b"no event"),
]


@pytest.mark.parametrize("how", ["whole", "too large", "refused before", "no headers"])
@pytest.mark.parametrize("key", [b"k", None, b"k" * KEY_MAX_BYTES, b"k" * (KEY_MAX_BYTES + 1)])
async def test_a_dead_letter_is_its_record(relay: DeadLetterRelay, how: str, key: bytes | None) -> None:
    """With the headers that name it; without value and headers, and a long key, where it can't be sent whole."""
    producer = Submitting(too_large=how == "too large")
    relay._producer = cast(EventProducer, producer)
    headers = None if how == "no headers" else headers_bytes([("h\udcff", b"1"), ("n", None)])
    row = PoisonRow(TOPIC, 2, 5, "no event", 99, key, b"v", headers)
    if how == "refused before":
        relay._refused = RecordPosition(TOPIC, 2, 5)
    relay._submit(row)
    ((topic, sent_key, value, sent_headers),) = producer.submitted
    assert topic == "genesis.events.dead"
    if how == "whole":
        assert (sent_key, value) == (key, b"v")
        assert sent_headers == [("h\ufffd", b"1"), ("n", None), *ERROR_HEADERS]
    else:
        assert (sent_key, value) == (None if key is None or len(key) > KEY_MAX_BYTES else key, None)
        left_out = b"the value, the headers, and the key if it is long: 99 bytes"
        assert sent_headers == [*ERROR_HEADERS, ("plant.left-out", left_out)]


class Publishing:
    """A producer that is connected, or says why not, and answers each dead letter at once, or never."""

    def __init__(self, *errors: StreamsError | None, answers: bool = True) -> None:
        self.connected = True
        self.error: StreamsError | None = None
        self.taken = 0
        self._errors = list(errors)
        self._answers = answers

    def check_connected(self) -> None:
        if self.error is not None:
            raise self.error

    def submit_record(self, *_record: object) -> PendingPublish:
        if self._errors and (error := self._errors.pop(0)) is not None:
            raise error
        self.taken += 1
        answer: asyncio.Future[RecordPosition] = asyncio.get_running_loop().create_future()
        if self._answers:
            answer.set_result(RecordPosition("genesis.events.dead", 0, self.taken))
        return PendingPublish(answer, 0)


class Unsent(Rows):
    """Poison rows of one partition, as many as are asked for at a time."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = [
            PoisonRow(TOPIC, 0, offset, "no event", 1, b"k", b"v", headers_bytes([])) for offset in range(count)
        ]
        self.bounds: list[dict[str, int]] = []

    async def unsent(
        self, topic: str, rows_max: int, *, first: tuple[str, int] | None = None, **bounds: int
    ) -> list[PoisonRow]:
        assert topic == TOPIC
        self.asked.append((rows_max, first))
        self.bounds.append(bounds)
        return self._left[:rows_max]

    async def advance(self, topic: str, partition: int, next_offset: int) -> None:
        await super().advance(topic, partition, next_offset)
        self._left = [row for row in self._left if row.offset >= next_offset]


async def test_all_dead_letters_are_published_some_at_a_time(
    relay: DeadLetterRelay,
) -> None:
    """As long as a cycle was full there may be more; none is read that is larger than a record may be."""
    producer, rows = Publishing(), Unsent(DEAD_LETTERS_MAX + 1)
    relay._producer = cast(EventProducer, producer)
    published = metrics.RELAY_DEAD_LETTERS._value.get()

    assert await relay.run_cycle(cast(PoisonRows, rows)) is True
    assert await relay.run_cycle(cast(PoisonRows, rows)) is False
    await relay.finish(cast(PoisonRows, rows))

    assert rows.advanced == [(TOPIC, 0, DEAD_LETTERS_MAX), (TOPIC, 0, DEAD_LETTERS_MAX + 1)]
    assert rows.bounds[0] == {"size_max_bytes": RECORD_MAX_BYTES, "key_max_bytes": KEY_MAX_BYTES}
    assert producer.taken == relay.sent == DEAD_LETTERS_MAX + 1
    assert metrics.RELAY_DEAD_LETTERS._value.get() == published + DEAD_LETTERS_MAX + 1


async def test_finishing_publishes_more_than_one_cycle_takes(relay: DeadLetterRelay) -> None:
    """It ends when there is none left."""
    producer, rows = Publishing(), Unsent(2 * DEAD_LETTERS_MAX + 1)
    relay._producer = cast(EventProducer, producer)
    await relay.finish(cast(PoisonRows, rows))
    assert relay.sent == 2 * DEAD_LETTERS_MAX + 1


async def test_finishing_says_that_kafka_has_not_answered(
    relay: DeadLetterRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives up after its timeout; without a connection it does not begin."""
    monkeypatch.setattr(dead_letters, "FINISH_TIMEOUT_SECONDS", 0.01)
    producer = Publishing(answers=False)
    relay._producer = cast(EventProducer, producer)
    with pytest.raises(OutcomeUnknown, match=r"no answer to dead letters within 0\.01 s"):
        await relay.finish(cast(PoisonRows, Unsent(1)))
    producer.error = KafkaUnavailable()
    with pytest.raises(KafkaUnavailable):
        await relay.finish(cast(PoisonRows, Unsent(1)))


async def test_those_before_one_that_could_not_be_submitted_are_noted(relay: DeadLetterRelay) -> None:
    """The error is raised all the same, and nothing behind it is submitted."""
    producer, rows = Publishing(None, None, Overloaded()), Unsent(5)
    relay._producer = cast(EventProducer, producer)
    with pytest.raises(Overloaded):
        await relay.run_cycle(cast(PoisonRows, rows))
    assert rows.advanced == [(TOPIC, 0, 2)]
    assert producer.taken == 2


async def test_nothing_is_read_while_kafka_is_away(relay: DeadLetterRelay) -> None:
    """A cycle then has nothing to do."""
    producer, rows = Publishing(), Unsent(1)
    producer.connected = False
    relay._producer = cast(EventProducer, producer)
    assert await relay.run_cycle(cast(PoisonRows, rows)) is False
    assert (rows.asked, producer.taken) == ([], 0)


async def test_the_one_that_is_refused_alone_goes_without_its_record(relay: DeadLetterRelay) -> None:
    """Its position is kept, and those after it go many at a time once it has its answer."""
    rows = Rows()
    relay._under_way = [submitted(0, 3, PublishRefused()), submitted(0, 4)]
    with pytest.raises(PublishRefused):
        await relay.run_cycle(cast(PoisonRows, rows))
    assert (relay._refused, relay._rows_max) == (None, 1)
    relay._under_way = [submitted(0, 3, PublishRefused())]
    with pytest.raises(PublishRefused):
        await relay.run_cycle(cast(PoisonRows, rows))
    assert (relay._refused, relay._rows_max) == (RecordPosition(TOPIC, 0, 3), 1)
    relay._under_way = [submitted(0, 3)]
    assert await relay.run_cycle(cast(PoisonRows, rows)) is True
    assert relay._rows_max == DEAD_LETTERS_MAX


def test_its_producer_has_the_topic_of_dead_letters_alone(relay: DeadLetterRelay) -> None:
    """An error of another topic can't hold it up."""
    assert list(relay._producer._topic_of) == ["genesis.events.dead"]


async def test_each_cycle_of_finishing_waits_as_long(relay: DeadLetterRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than a cycle of the relay that runs, until none has more."""
    asked: list[tuple[object, ...]] = []
    answers = [True, True, False]

    async def run_cycle(*arguments: object) -> bool:
        asked.append(arguments)
        return answers.pop(0)

    monkeypatch.setattr(relay, "run_cycle", run_cycle)
    monkeypatch.setattr(relay._producer, "check_connected", lambda: None)
    rows = cast(PoisonRows, Unsent(0))
    await relay.finish(rows)
    assert asked == [(rows, dead_letters.FINISH_TIMEOUT_SECONDS)] * 3

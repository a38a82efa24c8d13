"""The dead-letter relay's marks: they end before a partition's first dead letter without an acknowledgement."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from audit.canonical import headers_bytes
from projections.poison_rows import PoisonRow, PoisonRows
from relay.dead_letters import DEAD_LETTERS_MAX, KEY_MAX_BYTES, DeadLetterRelay
from runtime.settings import Settings
from streams.errors import OutcomeUnknown, PublishRefused, RecordTooLarge, StreamsError
from streams.pending_publish import PendingPublish
from streams.producer import EventProducer
from streams.record_position import RecordPosition

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

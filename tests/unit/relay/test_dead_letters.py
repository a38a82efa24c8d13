"""The dead-letter relay's marks: they end before a partition's first dead letter without an acknowledgement."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from audit.canonical import headers_bytes
from projections.poison_rows import PoisonRow, PoisonRows
from relay.dead_letters import DEAD_LETTERS_MAX, DeadLetterRelay
from runtime.settings import Settings
from streams.errors import OutcomeUnknown, PublishRefused, StreamsError
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

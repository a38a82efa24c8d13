"""Publishing control records: in order, few under way at a time, and up to the first that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast
from uuid import UUID

import pytest

from operations.dead_letters.controls import Control
from operations.dead_letters.publishing import PublishedRange, PublishedRanges, publish_controls
from operations.operator_actions import OperatorAction
from schemas.control import RecordSkipped
from streams.errors import Overloaded, PublishRefused
from streams.pending_publish import PendingPublish
from streams.producer import EventProducer
from streams.record_position import RecordPosition

ACTION = OperatorAction(action="dead_letters.skip", target="t", reason="r")


class Producer:
    """A producer that has room for two records, and refuses the one of an offset."""

    def __init__(self, room: int = 2, refused: int | None = None) -> None:
        self.room = room
        self.refused = refused
        self.under_way = self.most = 0
        self.sent: list[tuple[Any, ...]] = []

    def submit_record(
        self, topic: str, key: bytes | None, value: bytes, headers: list[tuple[str, bytes]], *, partition: int
    ) -> PendingPublish:
        if self.under_way >= self.room:
            raise Overloaded
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.sent.append((topic, partition, key, dict(headers)["plant_operation"]))
        answer: asyncio.Future[RecordPosition] = asyncio.get_running_loop().create_future()
        return PendingPublish(answer, len(self.sent) - 1)

    async def await_acknowledgement(self, publish: PendingPublish) -> RecordPosition:
        self.under_way -= 1
        if publish.index == self.refused:
            raise PublishRefused
        return RecordPosition("t", 3, 100 + publish.index)


async def controls(count: int) -> AsyncIterator[Control]:
    for offset in range(count):
        record = RecordSkipped(event_id=UUID(int=offset), poison_offset=offset, reason="r")
        yield Control(RecordPosition("t", 3, offset), b"%d" % offset, record, "no event")


async def published(producer: Producer, count: int) -> list[int]:
    found = publish_controls(cast(EventProducer, producer), controls(count), ACTION)
    return [position.offset async for position in found]


async def test_all_are_published_in_order_on_their_partition() -> None:
    """With their keys and the operator action; never more than there is room for."""
    producer = Producer()
    assert await published(producer, 5) == [100, 101, 102, 103, 104]
    operation = str(ACTION.operation_id).encode()
    assert producer.sent == [("t", 3, b"%d" % offset, operation) for offset in range(5)]
    assert producer.most == 2


async def test_the_first_that_fails_ends_it() -> None:
    """Those before it have been yielded."""
    positions: list[int] = []

    async def collect() -> None:
        async for position in publish_controls(cast(EventProducer, Producer(refused=2)), controls(5), ACTION):
            positions.append(position.offset)

    with pytest.raises(PublishRefused):
        await collect()
    assert positions == [100, 101]


async def test_a_producer_without_room_for_one_is_an_error() -> None:
    """Nothing of its own is under way, so waiting would help nothing."""
    with pytest.raises(Overloaded):
        await published(Producer(room=0), 1)


def test_ranges_hold_the_ends_of_each_partition() -> None:
    """In whatever order acknowledgements come."""
    ranges = PublishedRanges()
    for partition, offset in ((1, 7), (0, 9), (1, 5), (0, 9), (1, 6)):
        ranges.add(RecordPosition("t", partition, offset))
    assert ranges.count == 5
    assert ranges.items() == [(("t", 0), PublishedRange(9, 9)), (("t", 1), PublishedRange(5, 7))]

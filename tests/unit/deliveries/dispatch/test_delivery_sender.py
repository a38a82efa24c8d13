"""Slices on their way to Kafka: nothing later is sent before what is earlier was acknowledged."""

from __future__ import annotations

import asyncio
import doctest
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliveries.dispatch import delivery_sender
from deliveries.dispatch.delivery_sender import DeliverySender, EndOffsets, PendingSlice, slices
from deliveries.dispatch.queued_deliveries import DeliveryRecord
from streams.errors import KafkaUnavailable, Overloaded, StreamsError
from streams.pending_publish import PendingPublish
from streams.producer import EventProducer
from streams.record_position import RecordPosition


def test_documented_examples_hold() -> None:
    """The module's examples do what they say."""
    assert doctest.testmod(delivery_sender).failed == 0


def records(count: int) -> list[DeliveryRecord]:
    return [DeliveryRecord(b"key", b"%d" % number) for number in range(count)]


class RoomFor:
    """A producer that takes so many records until it has acknowledged them, and refuses one of them."""

    def __init__(self, room: int, refused: bytes | None = None) -> None:
        self.room = room
        self.refused = refused
        self.sent: list[bytes] = []
        self.acknowledged = 0

    def submit_record(self, topic: str, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> PendingPublish:
        if len(self.sent) - self.acknowledged >= self.room:
            raise Overloaded(why="a test")
        self.sent.append(value)
        return PendingPublish(asyncio.get_running_loop().create_future(), 0)

    async def await_each(self, publishes: Collection[PendingPublish]) -> list[RecordPosition | StreamsError]:
        await asyncio.sleep(0)
        self.acknowledged += len(publishes)
        outcomes: list[RecordPosition | StreamsError] = [RecordPosition("t", 0, 0)] * len(publishes)
        return [KafkaUnavailable(why="a test")] if self.refused in self.sent else outcomes


async def send(producer: RoomFor, count: int) -> None:
    await asyncio.wrap_future(DeliverySender(cast(EventProducer, producer), "t").send(records(count)))


@pytest.mark.parametrize("room", [1, 3, 10, 20])
async def test_a_slice_is_sent_in_order_in_parts_that_there_is_room_for(room: int) -> None:
    """All of it."""
    producer = RoomFor(room)
    await send(producer, 10)
    assert producer.sent == [b"%d" % number for number in range(10)]


async def test_after_a_failure_nothing_later_is_sent() -> None:
    """What the producer has taken before may be written all the same."""
    producer = RoomFor(3, refused=b"4")
    with pytest.raises(KafkaUnavailable):
        await send(producer, 10)
    assert producer.sent == [b"%d" % number for number in range(6)]


class ByHand:
    """A sender whose answers are given by hand."""

    def __init__(self) -> None:
        self.answers: list[Future[None]] = []

    def send(self, records: Sequence[DeliveryRecord]) -> Future[None]:
        assert all(each.done() for each in self.answers)
        answer: Future[None] = Future()
        self.answers.append(answer)
        if len(self.answers) == 2:
            answer.set_exception(KafkaUnavailable(why="a test"))
        else:
            answer.set_result(None)
        return answer


def test_a_slice_is_not_sent_after_one_that_failed() -> None:
    """The failure comes up where the next one is to be sent."""
    sender = ByHand()
    pending = PendingSlice(cast(DeliverySender, sender))
    pending.send(records(1))
    pending.send(records(1))
    with pytest.raises(KafkaUnavailable):
        pending.send(records(1))
    assert len(sender.answers) == 2
    pending.forget()
    pending.await_acknowledgement()


async def test_a_slice_stays_on_its_way_whatever_becomes_of_who_waits_for_it() -> None:
    """A partition that is given up waits for its answer, and does not take a part of it back."""
    answer: Future[EndOffsets] = Future()
    pending = PendingSlice(cast(DeliverySender, SimpleNamespace(send=lambda _: answer)))
    pending.send(records(1))
    waiting = asyncio.create_task(pending.acknowledged())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not answer.cancelled()
    answer.set_result({0: 5})
    assert pending.await_acknowledgement() == {0: 5}


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 5), st.integers(1, 20))
def test_slices_hold_all_records_within_their_bounds(sizes: list[int], records_max: int, bytes_max: int) -> None:
    """In their order; a bound is passed by its last record alone."""
    made = [DeliveryRecord(b"%d" % number, bytes(size)) for number, size in enumerate(sizes)]
    found = list(slices(made, records_max, bytes_max))
    assert [record for each in found for record in each] == made
    for each in found:
        assert 1 <= len(each) <= records_max
        assert sum(len(record.value) for record in each[:-1]) < bytes_max

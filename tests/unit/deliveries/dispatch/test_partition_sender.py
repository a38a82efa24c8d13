"""What an owner of a partition sends is counted once Kafka has it, and ends where the partition was given up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from audit.canonical import headers_bytes
from deliveries.dispatch import partition_sender
from deliveries.dispatch.delivery_sender import EndOffsets
from deliveries.dispatch.dispatcher_parts import DispatcherParts
from deliveries.dispatch.partition_sender import PartitionSender
from deliveries.dispatch.queued_deliveries import DeliveryRecord, DispatchedStream, Match, MatchAt
from deliveries.endpoints import EndpointId
from projections.effective_events import EffectiveEvent
from runtime import metrics
from schemas import codec
from schemas.examples import examples
from streams.errors import AppliedEventUnreadable, KafkaUnavailable, OwnershipLost, SchemaNewer
from streams.topics import EVENTS_TOPIC
from tests.support.waiting import DEADLINE_SECONDS, wait_until

BY = DispatchedStream(3, 7, "live")
EVENT = examples()["genesis.agent.available"]


class AnsweredByHand:
    """A sender whose slices are acknowledged by hand, or at once."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.slices: list[Sequence[DeliveryRecord]] = []
        self.answers: list[Future[EndOffsets]] = []
        self._at_once = at_once

    def send(self, records: Sequence[DeliveryRecord]) -> Future[EndOffsets]:
        self.slices.append(list(records))
        answer: Future[EndOffsets] = Future()
        if self._at_once:
            answer.set_result({0: sum(map(len, self.slices))})
        self.answers.append(answer)
        return answer


def sender_to(sender: AnsweredByHand, types_in_use: set[str] | None = None) -> PartitionSender:
    directory = SimpleNamespace(types_in_use=set() if types_in_use is None else types_in_use)
    return PartitionSender(cast(DispatcherParts, SimpleNamespace(directory=directory, sender=sender)), EVENTS_TOPIC, 3)


def effective(offset: int, value: bytes | None = None) -> EffectiveEvent:
    return EffectiveEvent(offset, 0, codec.encode(EVENT) if value is None else value, headers_bytes([]))


def endpoints_at(offset: int) -> Match:
    """As many endpoints as the offset says."""
    return lambda *_: [EndpointId(UUID(int=number)) for number in range(offset)]


def counted() -> float:
    return cast(Any, metrics.DISPATCHER_DELIVERIES.labels("live"))._value.get()  # type: ignore[no-any-return]


def test_deliveries_of_events_are_published_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """In slices; matched at the offset at which each event takes effect; their types are in use from then on."""
    monkeypatch.setattr(partition_sender, "SLICE_RECORDS_MAX", 2)
    sender, types, before = AnsweredByHand(), set[str](), counted()
    assert sender_to(sender, types).publish([effective(3), effective(0), effective(2)], endpoints_at, BY) == 5
    assert [len(each) for each in sender.slices] == [2, 2, 1]
    assert [UUID(each.key.decode()).int for records in sender.slices for each in records] == [0, 1, 2, 0, 1]
    assert types == {EVENT.event_type}
    assert counted() == before + 5


def few(events: Sequence[EffectiveEvent], match_at: MatchAt, *, indexed: bool = True) -> int | None:
    """Return how many deliveries the event loop would make of events; None where it makes none."""
    found = sender_to(AnsweredByHand()).few_deliveries(events, match_at, BY, lambda event_type: indexed)
    return None if found is None else len(found)


def test_a_few_deliveries_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where they are many or large, or the part of the index is still to be made."""
    monkeypatch.setattr(partition_sender, "FEW_SECONDS", DEADLINE_SECONDS)
    events = [effective(3), effective(0), effective(2)]
    assert few(events, endpoints_at) == 5
    assert few(events, endpoints_at, indexed=False) is None
    enough = partition_sender.FEW_DELIVERIES
    monkeypatch.setattr(partition_sender, "FEW_DELIVERIES", 5)
    assert few(events, endpoints_at) == 5
    monkeypatch.setattr(partition_sender, "FEW_DELIVERIES", 4)
    assert few(events, endpoints_at) is None
    monkeypatch.setattr(partition_sender, "FEW_DELIVERIES", enough)
    records = sender_to(AnsweredByHand()).few_deliveries(events, endpoints_at, BY, lambda event_type: True)
    assert records is not None
    size_bytes = sum(len(each.value) for each in records)
    monkeypatch.setattr(partition_sender, "SLICE_BYTES_MAX", size_bytes)
    assert few(events, endpoints_at) == 5
    monkeypatch.setattr(partition_sender, "SLICE_BYTES_MAX", size_bytes - 1)
    assert few(events, endpoints_at) is None


def test_the_event_loop_gives_up_on_events_that_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those too that no endpoint gets: a look-up among many filters takes milliseconds."""
    now = [1000.0]
    monkeypatch.setattr(partition_sender, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def nobody_at(offset: int) -> Match:
        now[0] += partition_sender.FEW_SECONDS * 0.75
        return lambda *_: []

    assert few([effective(1), effective(2)], nobody_at) == 0
    assert few([effective(1), effective(2), effective(3)], nobody_at) is None


def test_what_kafka_has_not_acknowledged_is_not_counted() -> None:
    """The failure of the last slice comes up."""
    sender, before = AnsweredByHand(at_once=False), counted()
    publishing = sender_to(sender)
    raised: list[BaseException] = []

    def publish() -> None:
        try:
            publishing.publish([effective(2)], endpoints_at, BY)
        except KafkaUnavailable as error:
            raised.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        wait_until(lambda: sender.answers, "the slice is sent")
        assert thread.is_alive()
        assert counted() == before
    finally:
        sender.answers[0].set_exception(KafkaUnavailable(why="a test"))
        thread.join()
    assert len(raised) == 1
    assert counted() == before


async def test_few_deliveries_are_counted_once_kafka_has_them() -> None:
    """The event loop goes on meanwhile; the failure of the slice comes up."""
    sender, before = AnsweredByHand(at_once=False), counted()
    publishing = sender_to(sender)
    await publishing.publish_few([], BY)
    assert sender.slices == []
    for failure in (None, KafkaUnavailable(why="a test")):
        publish = asyncio.create_task(publishing.publish_few([DeliveryRecord(b"k", b"v")] * 2, BY))
        await asyncio.sleep(0)
        assert not publish.done()
        assert counted() == before + (0 if failure is None else 2)
        if failure is None:
            sender.answers[-1].set_result({})
            await publish
        else:
            sender.answers[-1].set_exception(failure)
            with pytest.raises(KafkaUnavailable):
                await publish
    assert counted() == before + 2


async def test_nothing_more_is_sent_once_the_partition_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two slices too; an owner that comes back sends again."""
    monkeypatch.setattr(partition_sender, "SLICE_RECORDS_MAX", 1)
    sender, interrupted = AnsweredByHand(), threading.Event()
    publishing = sender_to(sender)
    publishing.begin(interrupted)

    def give_up_at_the_second(offset: int) -> Match:
        if offset == 2:
            interrupted.set()
        return lambda *_: [EndpointId(UUID(int=offset))]

    with pytest.raises(OwnershipLost):
        publishing.publish([effective(1), effective(2), effective(3)], give_up_at_the_second, BY)
    assert len(sender.slices) == 1
    with pytest.raises(OwnershipLost):
        publishing.publish_slice([DeliveryRecord(b"k", b"v")])
    assert len(sender.slices) == 1
    with pytest.raises(OwnershipLost):
        await publishing.publish_few([DeliveryRecord(b"k", b"v")], BY)
    assert len(sender.slices) == 1
    publishing.begin(threading.Event())
    assert publishing.publish_slice([DeliveryRecord(b"k", b"v")]) == {0: 2}


def test_an_applied_event_that_can_not_be_read_stops_by_name() -> None:
    """With its offset: of a later release, or of none."""
    publishing = sender_to(AnsweredByHand())
    newer = b"\x00" + (2**31 - 1).to_bytes(4, "big")
    with pytest.raises(SchemaNewer, match=r"\b12\b"):
        publishing.publish([effective(12, newer)], endpoints_at, BY)
    with pytest.raises(AppliedEventUnreadable, match=r"\b13\b"):
        publishing.publish([effective(13, b"no event")], endpoints_at, BY)


def test_a_slice_on_its_way_is_waited_for_as_it_is_forgotten() -> None:
    """Whatever becomes of it."""
    sender = AnsweredByHand()
    publishing = sender_to(sender)
    publishing._in_flight.send([DeliveryRecord(b"k", b"v")])
    publishing.forget()
    assert publishing._in_flight.await_acknowledgement() == {}

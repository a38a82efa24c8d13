"""Live events that wait behind what their endpoint is owed, and what a resumed endpoint is owed."""

from __future__ import annotations

import itertools
import random
from uuid import UUID

import pytest

from deliveries.dispatch import backfill_reader, partition_dispatcher, partition_sender
from deliveries.dispatch.endpoint_directory import EndpointDirectory
from deliveries.dispatch.partition_dispatcher import PartitionDispatcher
from deliveries.endpoints import EndpointId, EndpointStart
from projections.engine import PartitionProjector
from runtime.settings import Settings
from streams.errors import KafkaUnavailable
from tests.support.batches import WATERMARKS, batch_of
from tests.support.dispatching import change_endpoint
from tests.support.partition_dispatching import Know, SentDeliveries, apply, dispatch_all, named, take
from tests.support.waiting import wait_until_async

EVENTS = 60


def offsets_of(sent: SentDeliveries, number: int) -> list[int]:
    """The offsets of what an endpoint was sent, in the order of sending."""
    return [each.source_offset for each in sent.queued if each.endpoint_id.int == number]


def taken_by(sent: SentDeliveries, number: int) -> list[int]:
    """The offsets that a deliverer takes of an endpoint's, in their order: copies are told by their source."""
    highest: dict[str, tuple[int, int, bytes]] = {}
    taken = []
    for each in sent.queued:
        source = str(each.endpoint_id) if each.stream == "backfill" else each.stream
        order = each.source_offset, each.source_rank, each.endpoint_id.bytes
        if source not in highest or order > highest[source]:
            highest[source] = order
            if each.endpoint_id.int == number:
                taken.append(each.source_offset)
    return taken


@pytest.mark.parametrize("seed", range(6))
async def test_live_events_wait_where_order_counts(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know, seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whatever the batches, the slices, the failures of Kafka and the owners: in the order of the log, all of them."""
    chance = random.Random(seed)
    monkeypatch.setattr(backfill_reader, "SLICE_EVENTS_MAX", chance.randrange(1, 8))
    monkeypatch.setattr(partition_dispatcher, "PART_RECORDS_MAX", chance.randrange(1, 20))
    monkeypatch.setattr(partition_sender, "SLICE_RECORDS_MAX", chance.randrange(1, 9))
    monkeypatch.setattr(partition_dispatcher, "IDLE_FEED_SECONDS", 0.02)
    records = [named(number) for number in range(EVENTS)]
    await know(1)
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    apply(projector, records[:30])
    acquired = dispatcher.acquire(WATERMARKS)
    start = take(dispatcher, batch_of(records[:30], token=acquired.token))
    await know(2, ordering="per_entity")
    await know(3)
    apply(projector, records[30:], 30)
    sent.refused = {sent.slices + chance.randrange(1, 40) for _ in range(4)}
    for _ in range(2_000):
        if start == EVENTS and not dispatcher._backfills.has_unfinished:
            break
        try:
            if dispatcher._session is None:
                acquired = dispatcher.acquire(WATERMARKS)
                start = acquired.log_end.next_offset
            if start < EVENTS:
                rest = records[start : start + chance.randrange(1, 9)]
                start = take(dispatcher, batch_of(rest, token=acquired.token, start=start))
            if chance.random() < 0.5 or start == EVENTS:
                dispatcher.idle()
        except KafkaUnavailable:
            continue
    for number in (1, 2):
        assert taken_by(sent, number) == list(range(EVENTS)), number
    assert sorted(taken_by(sent, 3)) == list(range(EVENTS))
    assert taken_by(sent, 3) != list(range(EVENTS))


async def test_one_that_waits_comes_to_its_end_before_the_next(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Where several endpoints' events wait, the one with the fewest left is fed, so that its live events begin."""
    monkeypatch.setattr(backfill_reader, "SLICE_EVENTS_MAX", 2)
    records = [named(number) for number in range(20)]
    await know(1)
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    apply(projector, records)
    dispatch_all(dispatcher, records, itertools.repeat(20))
    await know(2, ordering="per_entity")
    await know(3, ordering="per_entity", starts=(10,))
    for _ in range(100):
        dispatcher.idle()
    backfilled = [(each.endpoint_id.int, each.source_offset) for each in sent.queued if each.stream == "backfill"]
    assert backfilled == [*((3, offset) for offset in range(10, 20)), *((2, offset) for offset in range(20))]


@pytest.mark.parametrize("ordering", ["none", "per_entity"])
async def test_a_resumed_endpoint_gets_what_was_passed_before_dispatchers_heard_of_it(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know,
    settings: Settings, directory: EndpointDirectory, ordering: str,
) -> None:  # fmt: skip
    """From the offsets of the resume on, once; nothing of what was passed while it was paused; by any owner."""
    endpoint_id = EndpointId(UUID(int=2))
    await know(1)
    await know(2, ordering=ordering)
    records = [named(number) for number in range(20)]
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    apply(projector, records)
    token = dispatcher.acquire(WATERMARKS).token
    take(dispatcher, batch_of(records[:4], token=token))
    await change_endpoint(settings, endpoint_id, "pause")
    await wait_until_async(lambda: len(directory.known.active) == 1, "it is paused")
    take(dispatcher, batch_of(records[4:12], token=token, start=4))
    await change_endpoint(settings, endpoint_id, "resume", EndpointStart((7,)))
    await wait_until_async(lambda: len(directory.known.active) == 2, "it is resumed")
    take(dispatcher, batch_of(records[12:15], token=token, start=12))
    for _ in range(3):
        dispatcher.idle()
    token = dispatcher.acquire(WATERMARKS).token
    dispatcher.idle()
    take(dispatcher, batch_of(records[15:], token=token, start=15))
    wanted = [0, 1, 2, 3, *range(7, 20)]
    found = offsets_of(sent, 2)
    assert (found if ordering == "per_entity" else sorted(found)) == wanted
    assert offsets_of(sent, 1) == list(range(20))


@pytest.mark.parametrize("ordering", ["none", "per_entity"])
async def test_what_is_owed_ends_where_the_log_does(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know,
    settings: Settings, directory: EndpointDirectory, ordering: str,
) -> None:  # fmt: skip
    """An endpoint that is owed events is resumed while the log is behind the topic: none of the events between is lost,
    although they were on the topic by then.
    """
    endpoint_id = EndpointId(UUID(int=2))
    await know(1)
    records = [named(number) for number in range(20)]
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    apply(projector, records[:10])
    token = dispatcher.acquire(WATERMARKS).token
    take(dispatcher, batch_of(records[:10], token=token))
    await know(2, ordering=ordering)
    await change_endpoint(settings, endpoint_id, "pause")
    await wait_until_async(lambda: len(directory.known.active) == 1, "it is paused")
    dispatcher.idle()
    await change_endpoint(settings, endpoint_id, "resume", EndpointStart((20,)))
    await wait_until_async(lambda: len(directory.known.active) == 2, "it is resumed")
    dispatcher.idle()
    assert offsets_of(sent, 2) == list(range(10))
    apply(projector, records[10:], 10)
    take(dispatcher, batch_of(records[10:], token=token, start=10))
    for _ in range(3):
        dispatcher.idle()
    assert offsets_of(sent, 2) == list(range(20))

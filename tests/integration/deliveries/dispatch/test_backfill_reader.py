"""What endpoints are given from the log again: what they ask for, within a rate, and beside live events."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from deliveries.dispatch import backfill_reader, partition_dispatcher, partition_sender
from deliveries.dispatch.backfill_reader import BackfillRate
from deliveries.dispatch.partition_dispatcher import PartitionDispatcher
from deliveries.dispatch.queued_deliveries import DispatchedStream, MatchAt
from projections.effective_events import EffectiveEvent
from projections.engine import PartitionProjector
from schemas.events import Event
from streams.errors import AppliedEventUnreadable, SchemaNewer
from tests.support.batches import WATERMARKS, batch_of
from tests.support.partition_dispatching import Know, SentDeliveries, apply, dispatch_all, named, take

EVENTS = 20


def backfilled(sent: SentDeliveries) -> list[tuple[int, int]]:
    """The endpoints and offsets of what was read again, in the order of sending."""
    return [(each.endpoint_id.int, each.source_offset) for each in sent.queued if each.stream == "backfill"]


async def passed(
    dispatcher: PartitionDispatcher, projector: PartitionProjector, know: Know, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let a dispatcher pass events that one endpoint gets. A busy machine ends no turn early from then on."""
    await know(1)
    records = [named(number) for number in range(EVENTS)]
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    apply(projector, records)
    dispatch_all(dispatcher, records, itertools.repeat(EVENTS))
    monkeypatch.setattr(partition_dispatcher, "IDLE_FEED_SECONDS", 5.0)


async def test_an_endpoint_is_given_what_it_asks_for(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By type and by filter, as of live events."""
    await passed(dispatcher, projector, know, monkeypatch)
    await know(2, event_filter={"name": ["name 3", "name 7"]})
    await know(3, event_types=["genesis.agent.rated"])
    dispatcher.idle()
    assert backfilled(sent) == [(2, 3), (2, 7)]


@pytest.mark.parametrize("newer", [True, False])
async def test_what_can_not_be_read_holds_up_its_endpoint_alone(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know,
    monkeypatch: pytest.MonkeyPatch, newer: bool,
) -> None:  # fmt: skip
    """It is told once, others and live events go on, and whoever acquires the partition next tries again."""
    await passed(dispatcher, projector, know, monkeypatch)
    await know(2)
    await know(3, starts=(15,))
    decode = partition_sender.decode_effective

    def unreadable(topic: str, partition: int, effective: EffectiveEvent) -> Event:
        if effective.effective_offset == 4:
            if newer:
                raise SchemaNewer(topic, partition, 4, 99)
            raise AppliedEventUnreadable(topic, partition, 4, "a test")
        return decode(topic, partition, effective)

    live = [named(number) for number in range(EVENTS, EVENTS + 2)]
    apply(projector, live, EVENTS)
    with monkeypatch.context() as patched, capture_logs() as lines:
        patched.setattr(partition_sender, "decode_effective", unreadable)
        for _ in range(3):
            dispatcher.idle()
        token = dispatcher._require_fence().token
        take(dispatcher, batch_of(live, token=token, start=EVENTS))
    assert backfilled(sent) == [(3, offset) for offset in range(15, EVENTS)]
    assert [line["endpoint_id"][-1] for line in lines if line["event"] == "backfill.stopped"] == ["2"]
    assert {each.endpoint_id.int for each in sent.queued if each.source_offset >= EVENTS} == {1, 2, 3}
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    assert [each for each in backfilled(sent) if each[0] == 2] == [(2, offset) for offset in range(EVENTS)]


async def test_backfills_keep_to_their_rate(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Slice by slice, as long as something is left of a second's worth; what was published is counted."""
    await passed(dispatcher, projector, know, monkeypatch)
    monkeypatch.setattr(backfill_reader, "SLICE_EVENTS_MAX", 2)
    now = 100.0
    rate = BackfillRate(5, lambda: now)
    dispatcher._parts = dataclasses.replace(dispatcher._parts, backfill_rate=rate)
    await know(2)
    came = []
    for seconds in (0, 0, 1, 3):
        now += seconds
        dispatcher.idle()
        came.append(len(backfilled(sent)))
    assert came == [6, 6, 10, 16]


async def test_live_events_have_most_of_a_partitions_time(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """While they come, what is read again has a fifth of it: after a slice of a second there is none for four."""
    await passed(dispatcher, projector, know, monkeypatch)
    monkeypatch.setattr(backfill_reader, "SLICE_EVENTS_MAX", 2)
    await know(2)
    live = [named(number) for number in range(EVENTS, EVENTS + 12)]
    apply(projector, live, EVENTS)
    now, token = 100.0, dispatcher._require_fence().token
    publish = dispatcher._sender.publish

    def takes_a_second(events: Sequence[EffectiveEvent], match_at: MatchAt, by: DispatchedStream) -> int:
        nonlocal now
        now += by.stream == "backfill"
        return publish(events, match_at, by)

    monkeypatch.setattr(dispatcher._sender, "publish", takes_a_second)
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=lambda: now)
    monkeypatch.setattr(partition_dispatcher, "time", clock)
    fed = []
    for offset, event in enumerate(live, EVENTS):
        before = len(backfilled(sent))
        take(dispatcher, batch_of([event], token=token, start=offset))
        fed.append(len(backfilled(sent)) - before)
        now += 1
    assert fed == [2, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0]

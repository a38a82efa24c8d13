"""The records of an event's deliveries: encoded once, the ids put in, in the order of the endpoints' ids."""

from __future__ import annotations

import doctest
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.canonical import headers_bytes, read_headers
from deliveries.delivery_id import delivery_id
from deliveries.dispatch import queued_deliveries
from deliveries.dispatch.queued_deliveries import (
    SOURCE_MAX_CHARACTERS,
    DispatchedStream,
    deliveries_of,
    sender_of,
    spliced,
)
from deliveries.endpoints import EndpointId
from projections.effective_events import EffectiveEvent, in_effect_order
from schemas import codec
from schemas.delivery_records import DeliveryQueued
from schemas.events import Event
from schemas.examples import delivery_examples, examples

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BY = DispatchedStream(partition=3, token=7, stream="live")
names = st.sampled_from(["ce_source", "traceparent", "ce_id", "x"])
headers = st.lists(st.tuples(names, st.none() | st.text(max_size=5).map(str.encode)), max_size=6)


def test_documented_examples_hold() -> None:
    """The module's examples do what they say."""
    assert doctest.testmod(queued_deliveries).failed == 0


@given(st.uuids(), st.lists(st.uuids().map(EndpointId), max_size=5))
def test_ids_are_put_in_as_they_would_be_encoded(event_id: UUID, endpoint_ids: list[EndpointId]) -> None:
    """A record is the very bytes of its delivery, encoded by itself."""
    (example,) = [each for each in delivery_examples().values() if isinstance(each, DeliveryQueued)]
    template = msgspec.structs.replace(example, event_id=event_id, endpoint_id=UUID(int=0), delivery_id=UUID(int=1))
    records = list(spliced(codec.encode(template), event_id, endpoint_ids))
    for record, endpoint_id in zip(records, endpoint_ids, strict=True):
        own = UUID(bytes=delivery_id(event_id.bytes, endpoint_id.bytes))
        alone = msgspec.structs.replace(template, delivery_id=own, endpoint_id=endpoint_id)
        assert record == (str(endpoint_id).encode(), codec.encode(alone))


@pytest.mark.parametrize("event", examples().values(), ids=lambda event: event.event_type)
def test_a_delivery_has_all_that_its_event_has(event: Event) -> None:
    """Each type of event; what is checked of a record when it is read holds."""
    sender = headers_bytes([("ce_source", b"ats"), ("traceparent", TRACE.encode())])
    effective = EffectiveEvent(41, 2, codec.encode(event), sender)
    (record,) = deliveries_of(effective, event, lambda *_: [EndpointId(UUID(int=5))], BY)
    queued = codec.decode_record(record.value, "genesis.deliveries")
    assert isinstance(queued, DeliveryQueued)
    assert (queued.event_id, queued.entity_id, queued.occurred_at) == (
        event.event_id,
        event.entity_id,
        event.occurred_at,
    )
    assert (queued.type, queued.source, queued.traceparent) == (event.event_type, "ats", TRACE)
    assert (queued.source_partition, queued.source_offset, queued.source_rank, queued.token) == (3, 41, 2, 7)
    assert (queued.stream, queued.attempt, queued.hop, queued.due_at) == ("live", 1, 0, None)
    fields = [name for name in event.__struct_fields__ if name not in ("event_id", "occurred_at")]
    assert queued.data == msgspec.json.encode({name: getattr(event, name) for name in fields})


def test_endpoints_are_asked_with_the_data_that_they_get() -> None:
    """Filters are about what a subscriber sees."""
    event = examples()["genesis.agent.rated"]
    asked: list[tuple[str, object]] = []
    effective = EffectiveEvent(0, 0, codec.encode(event), headers_bytes([]))
    records = list(deliveries_of(effective, event, lambda *seen: asked.append(seen) or (), BY))  # type: ignore[func-returns-value]
    assert records == []
    ((event_type, data),) = asked
    assert event_type == "genesis.agent.rated"
    assert isinstance(data, dict)
    assert data["agent_id"] == str(event.entity_id)


@given(headers)
def test_the_sender_is_read_as_the_headers_say(pairs: list[tuple[str, bytes | None]]) -> None:
    """The first header of each name counts."""
    canonical = headers_bytes(pairs)
    assert read_headers(canonical) == pairs
    first = dict(reversed(pairs))
    wanted = []
    for name in ("ce_source", "traceparent"):
        text = (first.get(name) or b"").decode()
        wanted.append(text if text.isprintable() else "")
    assert sender_of(canonical) == (wanted[0], wanted[1] or None)


@pytest.mark.parametrize("value", [b"\xff", b"a\0b", b"a\nb", b"a" * (SOURCE_MAX_CHARACTERS + 1)])
def test_a_source_that_no_record_may_have_is_left_out(value: bytes) -> None:
    """Whoever may write to Kafka can write such a header; the event is delivered all the same."""
    assert sender_of(headers_bytes([("ce_source", value), ("traceparent", value)])) == ("", None)


@given(st.sets(st.integers(0, 30)), st.dictionaries(st.integers(0, 30), st.integers(1, 3)))
def test_events_take_effect_by_offset_and_rank(applied: set[int], released: dict[int, int]) -> None:
    """Those that a control record releases stay together and in their order."""
    own = [EffectiveEvent(offset, 0, b"", b"") for offset in sorted(applied - released.keys())]
    others = [EffectiveEvent(at, rank, b"", b"") for at, count in sorted(released.items()) for rank in range(count)]
    found = in_effect_order(own, others)
    assert found == sorted(own + others)
    assert len(found) == len(own) + len(others)

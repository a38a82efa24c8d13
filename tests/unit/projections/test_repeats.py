"""When two records of one event id are the same event."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import pytest

from audit.canonical import headers_bytes
from projections.repeats import EventRecord, event_record, same_event
from schemas import codec
from schemas.codec import WIRE_PREFIX
from schemas.events import AgentAvailable, Event

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
EVENT = AgentAvailable(event_id=UUID(int=1), agent_id=UUID(int=2), occurred_at=NOW, available=True)
LATER = msgspec.structs.replace(EVENT, occurred_at=NOW + timedelta(seconds=1))
OTHER = msgspec.structs.replace(LATER, available=False)
TYPE = EVENT.event_type
NEWER = WIRE_PREFIX.pack(0, 99)


def sent(event: Event, *, clock_stamped: bool) -> EventRecord:
    """The record of an event."""
    headers = codec.headers(event, "t", clock_stamped=clock_stamped)
    return event_record(codec.encode(event), TYPE, headers_bytes(headers))


def test_a_time_from_plants_clock_is_not_compared() -> None:
    """Both records name it in their headers, so the second is the first one, sent again; all else is compared."""
    first = sent(EVENT, clock_stamped=True)
    assert same_event(first, sent(LATER, clock_stamped=True))
    assert not same_event(first, sent(OTHER, clock_stamped=True))


@pytest.mark.parametrize(("first", "second"), [(False, False), (True, False), (False, True)])
def test_a_time_that_the_sender_gave_is_compared(first: bool, second: bool) -> None:
    """One of the two is enough: that is another statement of when it happened."""
    assert not same_event(sent(EVENT, clock_stamped=first), sent(LATER, clock_stamped=second))
    assert same_event(sent(EVENT, clock_stamped=first), sent(EVENT, clock_stamped=second))


@pytest.mark.parametrize("value", [b"", b"event_id", b"occurred_at,agent_id", None])
def test_a_header_can_not_leave_out_more(value: bytes | None) -> None:
    """A foreign program that names other fields has all of them compared."""
    headers = headers_bytes([("plant_clock_fields", value)])
    first, second = (event_record(codec.encode(event), TYPE, headers) for event in (EVENT, LATER))
    assert not same_event(first, second)


def test_another_event_type_is_another_event() -> None:
    """Whatever else the bytes are."""
    first = sent(EVENT, clock_stamped=True)
    assert not same_event(first._replace(event_type="genesis.agent.rated"), sent(EVENT, clock_stamped=True))


def test_another_schema_of_the_type_may_be_the_same_event() -> None:
    """A message that was sent before an update of Plant and again after it is a repeat, though its bytes differ.

    After an update was taken back the first one's schema is not known here: the log says which type it has.
    """
    newer = event_record(NEWER + b"of a later release", TYPE, ())
    assert same_event(newer, sent(EVENT, clock_stamped=False))
    assert same_event(sent(EVENT, clock_stamped=False), newer)
    assert not same_event(newer._replace(event_type="genesis.agent.rated"), sent(EVENT, clock_stamped=False))

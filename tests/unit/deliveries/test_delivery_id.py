"""A delivery's id follows from event and endpoint alone."""

from __future__ import annotations

from hashlib import sha1
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from deliveries.delivery_id import delivery_id
from schemas.event_id import NAMESPACE_PLANT

IDS = st.uuids().map(lambda each: each.bytes)


@given(IDS, IDS)
def test_a_delivery_has_one_id(event_id: bytes, endpoint_id: bytes) -> None:
    """It is the UUIDv5 of both ids under Plant's namespace, each time."""
    digest = sha1(NAMESPACE_PLANT.bytes + b"plant.delivery\n" + event_id + endpoint_id, usedforsecurity=False)
    expected = UUID(bytes=digest.digest()[:16], version=5)
    assert UUID(bytes=delivery_id(event_id, endpoint_id)) == expected
    assert delivery_id(event_id, endpoint_id) == expected.bytes


@given(IDS, IDS, IDS)
def test_other_events_and_endpoints_have_other_ids(event_id: bytes, endpoint_id: bytes, other: bytes) -> None:
    """Neither can be taken for the other."""
    assert (delivery_id(event_id, endpoint_id) == delivery_id(other, endpoint_id)) == (event_id == other)
    assert (delivery_id(event_id, endpoint_id) == delivery_id(event_id, other)) == (endpoint_id == other)
    assert (delivery_id(event_id, endpoint_id) == delivery_id(endpoint_id, event_id)) == (event_id == endpoint_id)

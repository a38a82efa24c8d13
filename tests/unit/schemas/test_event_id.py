"""The deterministic ids of events."""

from __future__ import annotations

import doctest
from uuid import uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import event_id as module
from schemas.event_id import NAMESPACE_PLANT, cloud_event_id, event_id


def test_event_ids_repeat_with_the_message() -> None:
    """The same producer and message give the same id; another of either gives another."""
    assert event_id("genesis", "msg_1") == uuid5(NAMESPACE_PLANT, "genesis\nmsg_1")
    assert len({event_id("a", "1"), event_id("a", "2"), event_id("b", "1"), event_id("a", "1")}) == 3
    with pytest.raises(ValueError, match="newline"):
        event_id("a\nb", "1")
    with pytest.raises(ValueError, match="newline"):
        event_id("a", "b\n1")


@pytest.mark.parametrize("parts", [("a\nb", "c", "d"), ("a", "b\nc", "d"), ("a", "b", "c\nd")])
def test_no_part_of_an_identity_holds_a_newline(parts: tuple[str, str, str]) -> None:
    """Newlines join the parts, so that one inside a part could make two identities equal."""
    with pytest.raises(ValueError, match="newline"):
        cloud_event_id(*parts)


PART = st.text("ab:", min_size=1, max_size=3)
IDENTITY = st.tuples(PART, PART) | st.tuples(PART, PART, PART)


@given(IDENTITY, IDENTITY)
def test_two_identities_have_two_ids(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    """A webhook's producer and id, a CloudEvent's producer, source and id: no other pair or triple has the same id."""
    ids = [event_id(*parts) if len(parts) == 2 else cloud_event_id(*parts) for parts in (one, other)]
    assert (ids[0] == ids[1]) == (one == other)
    assert ids == [uuid5(NAMESPACE_PLANT, "\n".join(parts)) for parts in (one, other)]


def test_event_ids_are_those_of_uuid5() -> None:
    """Version and variant bits are right in every id, as the standard library's own function sets them."""
    for number in range(100):
        assert event_id("p", f"msg_{number}") == uuid5(NAMESPACE_PLANT, f"p\nmsg_{number}")
    assert doctest.testmod(module).failed == 0

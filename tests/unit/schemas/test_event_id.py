"""The deterministic ids of events."""

from __future__ import annotations

import doctest
from uuid import uuid5

import pytest

from schemas import event_id as module
from schemas.event_id import NAMESPACE_PLANT, event_id


def test_event_ids_repeat_with_the_message() -> None:
    """The same producer and message give the same id; another of either gives another."""
    assert event_id("genesis", "msg_1") == uuid5(NAMESPACE_PLANT, "genesis\nmsg_1")
    assert len({event_id("a", "1"), event_id("a", "2"), event_id("b", "1"), event_id("a", "1")}) == 3
    with pytest.raises(ValueError, match="newline"):
        event_id("a\nb", "1")


def test_event_ids_are_those_of_uuid5() -> None:
    """Version and variant bits are right in every id, as the standard library's own function sets them."""
    for number in range(100):
        assert event_id("p", f"msg_{number}") == uuid5(NAMESPACE_PLANT, f"p\nmsg_{number}")
    assert doctest.testmod(module).failed == 0

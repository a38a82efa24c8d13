"""The event structs."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from schemas.events import EVENT_TYPES, Event


def test_unknown_fields_are_refused_in_json() -> None:
    """A misspelt field is an error, not silence."""
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"skil_ids": []}, EVENT_TYPES["genesis.agent.onboarded"])


def test_an_event_that_names_no_type_or_time_says_so() -> None:
    """The parts that every event type must give are not empty."""
    bare = Event(event_id=UUID(int=1))
    with pytest.raises(NotImplementedError):
        _ = bare.entity_type
    with pytest.raises(NotImplementedError):
        _ = bare.occurred_at

"""When two values of one event id are the same event."""

from __future__ import annotations

import pytest

from projections import prepared
from projections.prepared import _same_event, content_fingerprint
from schemas.codec import WIRE_PREFIX
from schemas.events import AgentAvailable, AgentRated
from schemas.registry import bundled

RATED, AVAILABLE = (WIRE_PREFIX.pack(0, bundled().current(kind).id) for kind in (AgentRated, AgentAvailable))


def test_the_same_schema_means_the_same_bytes() -> None:
    """Within a schema an event has one encoding."""
    assert _same_event(content_fingerprint(RATED + b"a"), content_fingerprint(RATED + b"a"))
    assert not _same_event(content_fingerprint(RATED + b"a"), content_fingerprint(RATED + b"b"))


def test_another_event_type_is_another_event() -> None:
    """Whatever else the bytes are."""
    assert not _same_event(content_fingerprint(RATED + b"a"), content_fingerprint(AVAILABLE + b"a"))


def test_another_schema_of_the_type_may_be_the_same_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that was sent before an update of Plant and again after it is a repeat, though its bytes differ."""
    newer = WIRE_PREFIX.pack(0, 99)
    known = prepared.registered
    monkeypatch.setattr(prepared, "registered", lambda value: known(RATED if value == newer else value))
    assert _same_event(content_fingerprint(RATED + b"a"), content_fingerprint(newer + b"a, and a new field"))
    assert not _same_event(content_fingerprint(AVAILABLE + b"a"), content_fingerprint(newer + b"a"))

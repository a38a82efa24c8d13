"""The example of each event type."""

from __future__ import annotations

import json

import msgspec

from schemas.examples import examples, webhook_body


def test_example_bodies_are_events_again() -> None:
    """A page's JSON body, with the two fields that ingress adds, is the example event."""
    for event in examples().values():
        body = json.loads(webhook_body(event))
        fields = {**body["data"], "event_id": str(event.event_id), "occurred_at": body["timestamp"]}
        assert body["type"] == event.event_type
        assert msgspec.convert(fields, type(event)) == event

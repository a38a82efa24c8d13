"""Events as the demo sends them: CloudEvents for ESCO's catalogue, plain webhooks for what agents do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from ingress.intake import CLOUD_EVENTS_ROUTE
from operations.demo.catalogue import DemoCatalogue

CATALOGUE_TIME: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""A fixed time: the catalogue's messages are the same bytes at each run, so a second run's are repeats."""


class Message(msgspec.Struct, frozen=True):
    """A request before it is signed. Its id is permanent: sent again, it is stored once."""

    id: str
    event_type: str
    route: str
    content_type: str
    body: bytes


def cloud_event(message_id: str, event_type: str, time: datetime, data: dict[str, Any]) -> Message:
    """Make a structured CloudEvent."""
    envelope = {
        "specversion": "1.0",
        "id": message_id,
        "source": "urn:plant:demo",
        "type": event_type,
        "time": time,
        "datacontenttype": "application/json",
        "data": data,
    }
    body = msgspec.json.encode(envelope)
    return Message(message_id, event_type, CLOUD_EVENTS_ROUTE, "application/cloudevents+json", body)


def webhook(message_id: str, event_type: str, time: datetime, data: dict[str, Any]) -> Message:
    """Make a Standard Webhooks payload, to the event type's own route."""
    _, entity, what = event_type.split(".")
    body = msgspec.json.encode({"type": event_type, "timestamp": time, "data": data})
    return Message(message_id, event_type, f"/webhook/genesis/{entity}-{what}", "application/json", body)


def catalogue_messages(catalogue: DemoCatalogue) -> Iterator[Message]:
    """Yield a registration of each ESCO skill, and a job role for each ICT occupation."""
    for skill in catalogue.skills:
        data: dict[str, Any] = {
            "skill_id": skill.id,
            "name": skill.name,
            "description": skill.description,
            "category": skill.category,
            "external_id": skill.uri,
        }
        yield cloud_event(f"esco/skill/{skill.id}", "genesis.skill.registered", CATALOGUE_TIME, data)
    for role in catalogue.job_roles:
        data = {
            "job_role_id": role.id,
            "name": role.name,
            "description": role.description,
            "required_skill_ids": role.skill_ids,
            "external_id": role.uri,
        }
        yield cloud_event(f"esco/occupation/{role.id}", "genesis.job_role.defined", CATALOGUE_TIME, data)

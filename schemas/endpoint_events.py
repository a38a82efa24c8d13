"""Events of endpoints: on a topic of their own, kept for 30 days, and never among the events of the log.

There is one a change of state. They name the endpoint by its id alone, for the path of a URL may hold a token.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final
from uuid import UUID

from msgspec import Meta

from schemas.entity_states import NO_NUL, Time
from schemas.events import Event

ENDPOINT_EVENTS_TOPIC: Final = "plant.endpoints"
ENDPOINT_EVENT_PREFIX: Final = "plant.endpoint."

ChangeTime = Annotated[Time, Meta(description="When it changed, by the database's clock.")]
FailingSince = Annotated[Time, Meta(description="The first failed attempt since its last success.")]
StateReason = Annotated[str, Meta(max_length=500, pattern=NO_NUL, description="Why, in words; may be left out.")] | None


class EndpointEvent(Event, frozen=True, kw_only=True):
    """Something changed about an endpoint."""

    topic: ClassVar[str] = ENDPOINT_EVENTS_TOPIC
    entity_type: ClassVar[str] = "endpoint"
    entity_field: ClassVar[str] = "endpoint_id"

    endpoint_id: Annotated[UUID, Meta(description="The endpoint.")]
    occurred_at: ChangeTime


class EndpointWarned(EndpointEvent, frozen=True, kw_only=True):
    """All attempts of an endpoint have failed for some time: it has come so far on the way to its disabling."""

    event_type: ClassVar[str] = "plant.endpoint.warned"

    percent: Annotated[int, Meta(ge=1, le=100, description="How far: 50, 70, 90, or 100, where it is disabled.")]
    failing_since: FailingSince


class EndpointRecovered(EndpointEvent, frozen=True, kw_only=True):
    """An endpoint that had been warned took a delivery."""

    event_type: ClassVar[str] = "plant.endpoint.recovered"

    failing_since: FailingSince


class EndpointDisabled(EndpointEvent, frozen=True, kw_only=True):
    """An endpoint gets nothing until it is enabled: its attempts failed for too long, it is gone, or by an operator."""

    event_type: ClassVar[str] = "plant.endpoint.disabled"

    reason: StateReason = None


class EndpointEnabled(EndpointEvent, frozen=True, kw_only=True):
    """An endpoint that was disabled gets events again."""

    event_type: ClassVar[str] = "plant.endpoint.enabled"

    reason: StateReason = None


class EndpointPaused(EndpointEvent, frozen=True, kw_only=True):
    """An endpoint gets nothing until it is resumed."""

    event_type: ClassVar[str] = "plant.endpoint.paused"

    reason: StateReason = None


class EndpointResumed(EndpointEvent, frozen=True, kw_only=True):
    """An endpoint that was paused gets events again."""

    event_type: ClassVar[str] = "plant.endpoint.resumed"

    reason: StateReason = None


class EndpointRemoved(EndpointEvent, frozen=True, kw_only=True):
    """An endpoint is gone permanently."""

    event_type: ClassVar[str] = "plant.endpoint.removed"

    reason: StateReason = None


ENDPOINT_EVENT_TYPES: Final[dict[str, type[EndpointEvent]]] = {
    event.event_type: event
    for event in (
        EndpointWarned,
        EndpointRecovered,
        EndpointDisabled,
        EndpointEnabled,
        EndpointPaused,
        EndpointResumed,
        EndpointRemoved,
    )
}
"""Type of an endpoint's event to its struct."""

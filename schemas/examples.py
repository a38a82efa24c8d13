"""One made-up event of each type, for the reference page and the tests. Ids are UUIDv5 of what they stand for."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid5

import msgspec

from schemas.delivery_records import DeliveryAttempted, DeliveryQueued
from schemas.endpoint_events import (
    EndpointDisabled,
    EndpointEnabled,
    EndpointEvent,
    EndpointPaused,
    EndpointRecovered,
    EndpointRemoved,
    EndpointResumed,
    EndpointWarned,
)
from schemas.entity_states import AgentState, IndustryState
from schemas.event_id import NAMESPACE_PLANT, event_id
from schemas.events import (
    AgentAvailable,
    AgentOnboarded,
    AgentRated,
    EntityAmended,
    EntityRetired,
    Event,
    IndustryDefined,
    JobRoleDefined,
    OperationRecorded,
    RecordValue,
    SkillRegistered,
    SkillValidated,
    TeamFormed,
)

OCCURRED_AT = datetime(2026, 1, 15, 9, 30, 0, 250_000, tzinfo=UTC)


def webhook_body(event: Event) -> str:
    """Return the JSON body of a webhook with this event: type, timestamp, and the other fields as data."""
    fields = msgspec.to_builtins(event)
    data = {name: fields[name] for name in event.__struct_fields__ if name not in ("event_id", "occurred_at")}
    body = {"type": event.event_type, "timestamp": fields["occurred_at"], "data": data}
    return msgspec.json.format(msgspec.json.encode(body), indent=2).decode()


def examples() -> dict[str, Event]:
    """Return an example of each event type, by its name."""
    return {event.event_type: event for event in (*_of_agents(), *_of_the_catalogue(), *_of_any_entity())}


def delivery_examples() -> dict[str, RecordValue]:
    """Return an example of each record of deliveries, by its type's name."""
    event = examples()["genesis.agent.available"]
    ids = {"event_id": event.event_id, "delivery_id": _id("delivery 1"), "endpoint_id": _id("endpoint 1")}
    source = {"type": event.event_type, "occurred_at": OCCURRED_AT, "entity_id": event.entity_id, "stream": "live",
              "source_partition": 3, "source_offset": 1_204, "source_rank": 0, "attempt": 1, "hop": 0,
              "token": 7}  # fmt: skip
    data = msgspec.json.encode(msgspec.json.decode(webhook_body(event))["data"])
    queued = {**ids, **source, "source": "plant/ingress", "data": data}
    ended = {
        **ids, **source, "attempted_at": OCCURRED_AT, "duration_us": 12_500, "outcome": "throttled", "state": "waiting",
        "status_code": 503, "why": "", "next_attempt_at": OCCURRED_AT, "request": data, "answer": b"busy",
    }  # fmt: skip
    records = (msgspec.convert(queued, DeliveryQueued), msgspec.convert(ended, DeliveryAttempted))
    return {record.event_type: record for record in records}


def endpoint_examples() -> dict[str, EndpointEvent]:
    """Return an example of each event of endpoints, by its type's name."""
    about = {"event_id": _id("change 1"), "endpoint_id": _id("endpoint 1"), "occurred_at": OCCURRED_AT}
    since = {"failing_since": datetime(2026, 1, 10, 9, 30, tzinfo=UTC)}
    events = (
        EndpointWarned(**about, **since, percent=50),  # type: ignore[arg-type]  # fields of several types
        EndpointRecovered(**about, **since),  # type: ignore[arg-type]  # the same
        *(
            kind(**about, reason=reason)  # type: ignore[arg-type]  # the same
            for kind, reason in (
                (EndpointDisabled, "It answered 410 Gone."),
                (EndpointEnabled, "It moved, and answers again."),
                (EndpointPaused, "Maintenance until noon."),
                (EndpointResumed, "The maintenance is over."),
                (EndpointRemoved, "Nobody reads it any more."),
            )
        ),
    )
    return {event.event_type: event for event in events}


def _id(what: str) -> UUID:
    return uuid5(NAMESPACE_PLANT, what)


def _of_agents() -> tuple[Event, ...]:
    agent = _id("agent 1")
    return (
        AgentOnboarded(
            event_id=event_id("genesis", "msg_1"),
            agent_id=agent,
            occurred_at=OCCURRED_AT,
            name="Night-shift planner",
            industry_id=_id("industry 1"),
            job_role_id=_id("job role 1"),
            skill_ids=(_id("skill 1"), _id("skill 2")),
        ),
        AgentAvailable(
            event_id=event_id("genesis", "msg_2"),
            agent_id=agent,
            occurred_at=OCCURRED_AT,
            available=False,
            available_from=datetime(2026, 2, 1, tzinfo=UTC),
        ),
        AgentRated(
            event_id=event_id("genesis", "msg_3"),
            agent_id=agent,
            occurred_at=OCCURRED_AT,
            rater_id=_id("rater 1"),
            rating=4,
            skill_id=_id("skill 1"),
        ),
        SkillValidated(
            event_id=event_id("genesis", "msg_4"),
            skill_id=_id("skill 1"),
            occurred_at=OCCURRED_AT,
            agent_id=agent,
            validator_id=_id("validator 1"),
            score=87,
        ),
    )


def _of_the_catalogue() -> tuple[Event, ...]:
    return (
        SkillRegistered(
            event_id=event_id("genesis", "msg_5"),
            skill_id=_id("skill 1"),
            occurred_at=OCCURRED_AT,
            name="Database design",
            description="Models data and chooses keys and indexes.",
            category="technical",
            external_id="http://data.europa.eu/esco/skill/example",
        ),
        JobRoleDefined(
            event_id=event_id("genesis", "msg_6"),
            job_role_id=_id("job role 1"),
            occurred_at=OCCURRED_AT,
            name="Database administrator",
            description="Keeps databases running, safe and quick.",
            seniority="mid",
            industry_id=_id("industry 1"),
            required_skill_ids=(_id("skill 1"),),
        ),
        IndustryDefined(
            event_id=event_id("genesis", "msg_7"),
            industry_id=_id("industry 1"),
            occurred_at=OCCURRED_AT,
            name="Information technology",
            description="Makes and runs software.",
        ),
        TeamFormed(
            event_id=event_id("genesis", "msg_8"),
            team_id=_id("team 1"),
            occurred_at=OCCURRED_AT,
            name="Migration team",
            description="Moves the archive to the new database.",
            job_role_id=_id("job role 1"),
            member_ids=(_id("agent 1"), _id("agent 2")),
        ),
    )


def _of_any_entity() -> tuple[Event, ...]:
    return (
        EntityAmended(
            event_id=event_id("genesis", "msg_9"),
            entity_id=_id("agent 1"),
            occurred_at=OCCURRED_AT,
            entity_type="agent",
            agent=AgentState(
                name="Night-shift planner",
                team_id=_id("team 1"),
                skill_ids=(_id("skill 1"),),
                status="onboarded",
                available=True,
            ),
        ),
        EntityRetired(
            event_id=event_id("genesis", "msg_10"),
            entity_id=_id("industry 1"),
            occurred_at=OCCURRED_AT,
            entity_type="industry",
            industry=IndustryState(name="Information technology", description="Makes and runs software."),
        ),
        OperationRecorded(
            event_id=event_id("plant/operations", "keys.add 1"),
            operation_id=_id("operation 1"),
            occurred_at=OCCURRED_AT,
            actor="operations",
            action="keys.add",
            target="genesis",
            reason="The producer's first key.",
        ),
    )

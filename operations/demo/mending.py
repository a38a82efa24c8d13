"""A poison record found, repaired and redriven, by the commands that an operator has."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
import uvloop

from database.connector import connect
from operations.demo.errors import NotAsPromised
from operations.demo.services import DemoServices
from projections.agents.queries import agents
from projections.checkpoint_waiter import ReadModels
from runtime.settings import Settings
from schemas import codec
from schemas.events import AgentAvailable, AgentRated
from streams.producer import EventProducer
from streams.record_position import RecordPosition
from streams.topics import EVENTS_TOPIC

SOURCE: Final = "another-program"
WRITTEN, MEANT = 10, 5
"""Stars: another program counts up to ten, and Plant's events up to five."""
WAIT_TIMEOUT_SECONDS: Final = 30.0


class MendedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record that could not be applied, the event that waited behind it, and what became of both."""

    position: str
    entity: str
    reason: str
    parked: int
    written_rating: int
    repaired_rating: int
    available_before: bool
    available_while_parked: bool
    available_after: bool
    control_record: str
    actor: str


async def spoil(settings: Settings, agent_id: UUID) -> tuple[RecordPosition, bool]:
    """Write a rating past Plant's limits, and a change of availability behind it; return its position, and what was.

    Returns once the worker has seen both.
    """
    available = await _available(settings, agent_id)
    now = datetime.now(UTC)
    bad = AgentRated(event_id=uuid4(), agent_id=agent_id, occurred_at=now, rater_id=uuid4(), rating=WRITTEN)
    later = AgentAvailable(event_id=uuid4(), agent_id=agent_id, occurred_at=now, available=not available)
    async with EventProducer(settings, topics=(EVENTS_TOPIC,)) as producer:
        # What `submit` checks is left out: so does a program that writes to the topic itself.
        value, headers = codec.encode_checked(bad), codec.headers(bad, SOURCE)
        position = await producer.await_acknowledgement(
            producer.submit_record(EVENTS_TOPIC, codec.key(bad), value, headers)
        )
        behind = await producer.publish(later, source=SOURCE)
    read_models = ReadModels(settings)
    try:
        await read_models.wait_for(behind, WAIT_TIMEOUT_SECONDS, "agents")
    finally:
        await read_models.close()
    return position, available


def mend(settings: Settings, own: DemoServices, agent_id: UUID) -> MendedRecord:
    """Let another program write a bad record, and repair it with `plant dead-letters`."""
    position, before = uvloop.run(spoil(settings, agent_id))
    found: dict[str, Any] = msgspec.json.decode(
        own.call("dead-letters", "list", "--entity", str(agent_id), "--output", "jsonl")
    )
    while_parked = uvloop.run(_available(settings, agent_id))
    found["event"]["data"]["rating"] = MEANT
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        Path(file.name).write_bytes(msgspec.json.encode(found))
        recorded = ("--actor", "demo", "--reason", "Another program counts stars up to ten.")
        own.call("dead-letters", "redrive", "--repaired", file.name, "--execute", "--wait", *recorded)
    named = f"{position.topic}/{position.partition}/{position.offset}"
    (shown,) = msgspec.json.decode(own.call("dead-letters", "show", named, "--output", "json"))
    after = uvloop.run(_available(settings, agent_id))
    if (while_parked, after, found["parked"]) != (before, not before, 1):
        raise NotAsPromised(
            "The event behind the dead letter was not parked, or did not take effect.",
            why=f"Available before {before}, meanwhile {while_parked}, after {after}; {found['parked']} events waited.",
            next_step=f"plant dead-letters show {named}",
        )
    return MendedRecord(
        position=named,
        entity=str(agent_id),
        reason=found["reason"],
        parked=found["parked"],
        written_rating=WRITTEN,
        repaired_rating=MEANT,
        available_before=before,
        available_while_parked=while_parked,
        available_after=after,
        control_record=f"{position.topic}/{position.partition}/{shown['resolved_at']}",
        actor="demo",
    )


async def _available(settings: Settings, agent_id: UUID) -> bool:
    """Return whether readers see the agent as available."""
    database = connect(settings, "api")
    try:
        (row,) = await agents(database, [agent_id])
    finally:
        await database.close()
    return bool(row.available)

"""The read model `agents`: every kind of event, however the sequence is cut into batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projections.engine import PartitionProjector
from projections.session import Session
from schemas.events import AgentAvailable, AgentOnboarded, EntityAmended, EntityRetired, Event
from tests.support.batches import WATERMARKS, batch_of, events_of_agents_and_teams
from tests.support.made_models import AGENTS

pytestmark = pytest.mark.usefixtures("inline_records_max")

ROWS = """
SELECT agent_id::text, name, industry_id::text, job_role_id::text, team_id::text, skill_ids::text, status,
       profile_offset, available, available_from::text, availability_offset
FROM agents_v1.agents ORDER BY agent_id
"""
COLUMNS = ("name", "industry_id", "job_role_id", "team_id", "skill_ids")


@pytest.mark.parametrize("size", [7, 60])
def test_every_kind_of_event_is_folded(projector: PartitionProjector, superuser: Session, size: int) -> None:
    """Onboarded, available, amended and retired agents count; teams with an agent's id don't."""
    events = events_of_agents_and_teams(60, seed=1)
    pieces = [events[start : start + size] for start in range(0, len(events), size)]

    rows, _ = _projected(projector, superuser, pieces)

    assert rows == plain_fold(events)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.sets(st.integers(1, 119), max_size=30), seed=st.integers(1, 1000))
def test_any_split_into_batches_gives_the_tables_of_a_plain_fold(
    projector: PartitionProjector, superuser: Session, cuts: set[int], seed: int
) -> None:
    """A fold is a function of the sequence alone: amended and retired agents count, other entities don't."""
    events = events_of_agents_and_teams(120, seed=seed)
    edges = [0, *sorted(cuts), len(events)]
    whole, chain_head = _projected(projector, superuser, [events])

    pieces = [events[start:stop] for start, stop in itertools.pairwise(edges)]

    assert _projected(projector, superuser, pieces) == (whole, chain_head)
    assert whole == plain_fold(events)


def plain_fold(events: Iterable[Event]) -> list[tuple[Any, ...]]:
    """Return the rows that the events make, one event after another."""
    agents: dict[UUID, dict[str, Any]] = {}
    for offset, event in enumerate(events):
        profile: Any = None
        available: bool | None = None
        match event:
            case AgentOnboarded():
                profile, status = event, "onboarded"
            case EntityAmended(agent=agent) if agent is not None:
                profile, status, available = agent, agent.status, agent.available
            case EntityRetired(agent=agent) if agent is not None:
                profile, status, available = agent, "retired", False
            case AgentAvailable():
                available = event.available
            case _:
                continue
        row = agents.setdefault(event.entity_id, {})
        if profile is not None:
            row |= {column: getattr(profile, column) for column in COLUMNS}
            row |= {"status": status, "profile_offset": offset}
        if available is not None:
            since = event.available_from if isinstance(event, AgentAvailable) else None
            row |= {"available": available, "available_from": since, "availability_offset": offset}
    return [_row(agent_id, agents[agent_id]) for agent_id in sorted(agents, key=str)]


def _row(agent_id: UUID, row: dict[str, Any]) -> tuple[Any, ...]:
    ids = [None if (each := row.get(column)) is None else str(each) for column in COLUMNS[1:4]]
    skills = "{" + ",".join(str(skill) for skill in row.get("skill_ids", ())) + "}"
    since = None if (time := row.get("available_from")) is None else f"{time:%Y-%m-%d %H:%M:%S}+00"
    profile = (row.get("name"), *ids, skills, row.get("status"), row.get("profile_offset"))
    return (str(agent_id), *profile, row.get("available"), since, row.get("availability_offset"))


def _projected(
    projector: PartitionProjector, superuser: Session, pieces: Sequence[Sequence[Event]]
) -> tuple[list[tuple[Any, ...]], bytes]:
    """Return the rows and the chain's head after projecting the pieces into an emptied database."""
    projector.close()
    superuser.script("SET session_replication_role = replica", "SET timezone = 'UTC'")
    offsets = ("partition_owners", "checkpoints", "model_checkpoints")
    for table in ("event_stream", "audit_log", *offsets, f"{AGENTS.schema}.agents"):
        superuser.execute(f"DELETE FROM {table}")
    token = projector.acquire(WATERMARKS).token
    start = 0
    for piece in pieces:
        projector.project(batch_of(piece, token=token, start=start))
        start += len(piece)
    ((head,),) = superuser.query('SELECT hash FROM audit_log ORDER BY "offset" DESC LIMIT 1')
    return superuser.query(ROWS), head

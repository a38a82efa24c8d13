"""A fold of the log in Postgres: how much of what control records release comes in one slice."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from projections.engine import PartitionProjector
from projections.fold import fold_slice
from projections.install import install
from projections.session import Session
from projections.staging import Staging
from schemas.events import AgentOnboarded, Event
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, Record, batch_of
from tests.support.made_models import AGENTS
from tests.support.poison_records import key_of, skip, unreadable
from tests.support.projectors import AGENT_ROWS

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def onboarded(number: int, agent_id: UUID) -> AgentOnboarded:
    return AgentOnboarded(
        event_id=UUID(int=1000 + number), agent_id=agent_id, occurred_at=NOON, name=f"name {number}", skill_ids=()
    )


def test_a_slice_ends_where_control_records_have_released_as_much_as_it_may_hold(
    database: Database, projector: PartitionProjector, superuser: Session
) -> None:
    """At a control record's place; so a slice that Postgres gives up can be halved, whatever waited."""
    agents = [UUID(int=number) for number in (1, 2, 3)]
    records: list[Event | Record] = [unreadable(agent) for agent in agents]
    records += [onboarded(number, agents[number // 2]) for number in range(6)]
    records += [skip(key_of(agents[0]), 0), onboarded(6, agents[0]), skip(key_of(agents[1]), 1)]
    records += [skip(key_of(agents[2]), 2), onboarded(7, agents[1])]
    projector.project(batch_of(records, token=projector.acquire(WATERMARKS).token))
    followed = superuser.query(AGENT_ROWS)
    install(database.owner_url)
    superuser.script("TRUNCATE agents_v1.agents")
    staging = Staging((AGENTS,))
    staging.open(superuser)

    ends = [0]
    while ends[-1] < len(records):
        superuser.begin()
        offsets = (ends[-1], len(records))
        ends.append(fold_slice(superuser, staging, AGENTS, AGENTS.schema, TOPIC, 0, offsets, 2))
        superuser.commit()

    assert ends == [0, 10, 12, 14]
    assert superuser.query(AGENT_ROWS) == followed

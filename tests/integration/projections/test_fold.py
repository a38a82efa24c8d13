"""A fold of the log in Postgres, slice by slice: what control records release, and how much of it a slice has."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest

from projections.engine import PartitionProjector
from projections.fold import fold_slice
from projections.install import install
from projections.read_model import READ_MODELS
from projections.session import Session
from projections.staging import Staging
from schemas.events import AgentOnboarded, Event
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, Record, batch_of
from tests.support.poison_records import key_of, redrive, skip, unreadable
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

    ends = fold_from_zero(database, superuser, len(records), 2)
    assert ends == [0, 10, 12, 14]
    assert superuser.query(AGENT_ROWS) == followed
    assert superuser.query("SELECT sum(events)::bigint AS events FROM activity_v1.activity") == [(8,)]


@pytest.mark.parametrize("records_max", [1, 2, 100])
def test_a_fold_does_what_control_records_did(
    database: Database, projector: PartitionProjector, superuser: Session, records_max: int
) -> None:
    """A redriven event that was applied before is not applied again, one of a record that parked nothing is applied,
    and neither comes back with a later slice.
    """
    agent, other, third = UUID(int=1), UUID(int=2), UUID(int=3)
    forged = msgspec.structs.replace(onboarded(7, third), name="forged")
    records: list[Event | Record] = [onboarded(1, agent), onboarded(2, agent), unreadable(agent)]
    records += [redrive(key_of(agent), 2, onboarded(1, agent)), onboarded(7, third), forged]
    records += [redrive(key_of(third), 5, onboarded(4, third)), unreadable(other), onboarded(5, other)]
    records += [redrive(key_of(other), 7, onboarded(6, other))]
    projector.project(batch_of(records, token=projector.acquire(WATERMARKS).token))
    followed = superuser.query(AGENT_ROWS)
    assert [re.findall(r"name \d", row) for (row,) in followed] == [["name 2"], ["name 5"], ["name 4"]]

    fold_from_zero(database, superuser, len(records), records_max)
    assert superuser.query(AGENT_ROWS) == followed


def fold_from_zero(database: Database, superuser: Session, until: int, records_max: int) -> list[int]:
    """Fold the log into emptied tables; returns where the slices begin and end."""
    install(database.owner_url)
    superuser.script("TRUNCATE agents_v1.agents, activity_v1.activity")
    models = [model for model in READ_MODELS if model.name in ("agents", "activity")]
    staging = Staging(models)
    staging.open(superuser)
    ends = [0]
    while ends[-1] < until:
        superuser.begin()
        offsets = (ends[-1], until)
        for model in models:
            end = fold_slice(superuser, staging, [model], TOPIC, 0, offsets, records_max)
            superuser.commit()
            superuser.begin()
        superuser.rollback()
        ends.append(end)
    return ends

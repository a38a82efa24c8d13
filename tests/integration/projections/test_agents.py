"""The read model `agents`: every kind of event, however the sequence is cut into batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projections.engine import PartitionProjector
from projections.session import Session
from schemas.events import Event
from tests.support.batches import WATERMARKS, batch_of, events_of_agents_and_teams
from tests.support.long_form import sized
from tests.support.made_models import AGENTS
from tests.support.read_model_folds import Applied, Row, agents

pytestmark = pytest.mark.usefixtures("inline_records_max")

ROWS = "SELECT to_json(a)::text AS row FROM agents_v1.agents AS a ORDER BY agent_id"


@pytest.mark.parametrize("size", [7, 60])
def test_every_kind_of_event_is_folded(projector: PartitionProjector, superuser: Session, size: int) -> None:
    """Onboarded, available, amended and retired agents count; teams with an agent's id don't."""
    events = events_of_agents_and_teams(60, seed=1)
    pieces = [events[start : start + size] for start in range(0, len(events), size)]

    rows, _ = _projected(projector, superuser, pieces)

    assert rows == plain_fold(events)


@settings(max_examples=sized(15, 40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def plain_fold(events: Iterable[Event]) -> list[Row]:
    """Return the rows that the events make, one event after another."""
    return agents(Applied(0, offset, event) for offset, event in enumerate(events))["agents"]


def _projected(
    projector: PartitionProjector, superuser: Session, pieces: Sequence[Sequence[Event]]
) -> tuple[list[Row], bytes]:
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
    return [msgspec.json.decode(row) for (row,) in superuser.query(ROWS)], head

"""What an order takes is what a filter in Python takes, in the order of the log, and what its plan has counted."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from deliveries.errors import NothingToRedrive
from deliveries.redrive.selection import RedriveSelection
from deliveries.state.delivery_rows import DeliveryFilter
from devstack import sql
from runtime.settings import Settings
from schemas.delivery_records import DeliveryAttempted
from tests.conftest import Database
from tests.support.long_form import sized
from tests.support.made_attempts import BEGAN_AT, ENDPOINT, attempted
from tests.support.recorded_attempts import ADD_ENDPOINT, OTHER_ENDPOINT, record
from tests.support.redriving import open_redrives, redrive_order

EMPTY = [
    "TRUNCATE webhook_deliveries, webhook_attempts, redrives, redrive_slots, redrive_partitions, missing_searches,"
    " delivery_owners, delivery_checkpoints"
]
SLOTS = """
SELECT number::text || ' ' || source_partition || ' ' || slot || ' ' || delivery_id AS line FROM redrive_slots
"""
TYPES = ("genesis.agent.rated", "genesis.skill.validated")
OUTCOMES = (("delivered", "delivered"), ("failed", "dead"), ("failed", "waiting"), ("cancelled", "cancelled"))

RECORDS = st.lists(
    st.builds(
        lambda endpoint, outcome, event_type, minutes, code, partition, offset, rank: {
            "endpoint_id": endpoint, "outcome": outcome[0], "state": outcome[1], "type": event_type,
            "occurred_at": BEGAN_AT + timedelta(minutes=minutes), "status_code": code,
            "error_class": "timeout" if code is None else None, "source_partition": partition,
            "source_offset": offset, "source_rank": rank,
            "attempted_at": BEGAN_AT + timedelta(minutes=minutes + offset),
        },
        st.sampled_from([ENDPOINT, OTHER_ENDPOINT]), st.sampled_from(OUTCOMES), st.sampled_from(TYPES),
        st.integers(0, 5), st.sampled_from([None, 500, 503]), st.integers(0, 2), st.integers(0, 4), st.integers(0, 1),
    ),
    max_size=25,
)  # fmt: skip
SELECTIONS = st.builds(
    lambda endpoint, event_type, since, before, code, timed_out, states, state_since, number: (
        RedriveSelection(
            filter=DeliveryFilter(
                endpoint_id=endpoint, type=event_type, since=since, before=before,
                status_code=None if timed_out else code, error_class="timeout" if timed_out else None,
                event_id=None if number is None else UUID(int=number),
            ),
            states=tuple(sorted(states)),
            state_since=state_since,
        )
    ),
    st.sampled_from([None, None, ENDPOINT]),
    st.sampled_from([None, None, TYPES[0]]),
    st.sampled_from([None, None, BEGAN_AT + timedelta(minutes=2)]),
    st.sampled_from([None, None, BEGAN_AT + timedelta(minutes=4)]),
    st.sampled_from([None, None, 503]),
    st.sampled_from([False, False, True]),
    st.sets(st.sampled_from(["dead", "cancelled", "delivered"]), min_size=1),
    st.sampled_from([None, None, BEGAN_AT + timedelta(minutes=3)]),
    st.sampled_from([None, None, None, 3]),
)  # fmt: skip


@pytest.fixture
def with_endpoints(database: Database) -> Database:
    """Two endpoints, to which deliveries are recorded."""
    sql.execute(database.owner_url, [ADD_ENDPOINT.format(each) for each in (ENDPOINT, OTHER_ENDPOINT)])
    return database


def passes(selection: RedriveSelection, each: DeliveryAttempted) -> bool:
    """Return whether a delivery is one that is asked for."""
    asked = selection.filter
    pairs: list[tuple[Any, Any]] = [
        (asked.endpoint_id, each.endpoint_id), (asked.type, each.type), (asked.event_id, each.event_id),
        (asked.status_code, each.status_code), (asked.error_class, each.error_class),
    ]  # fmt: skip
    return (
        all(wanted is None or wanted == found for wanted, found in pairs)
        and each.state in selection.states
        and (asked.since is None or each.occurred_at >= asked.since)
        and (asked.before is None or each.occurred_at < asked.before)
        and (selection.state_since is None or each.attempted_at >= selection.state_since)
    )


async def plan_and_order(
    settings: Settings, selection: RedriveSelection
) -> tuple[Counter[tuple[Any, ...]], int | None]:
    """Return the counts of a plan, and the number of its order; None where there is nothing to order."""
    async with open_redrives(settings) as redrives:
        plan = await redrives.plan(selection)
        counts: Counter[tuple[Any, ...]] = Counter()
        for each in plan.groups:
            counts[each.endpoint_id, each.state, each.type] += each.deliveries
        try:
            return counts, await redrives.order(redrive_order(), selection)
        except NothingToRedrive:
            return counts, None


@given(records=RECORDS, first=SELECTIONS, second=SELECTIONS)
@hypothesis_settings(max_examples=sized(25, 50), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_order_takes_what_a_plain_filter_takes(
    settings: Settings, with_endpoints: Database, records: list[dict[str, Any]], first: RedriveSelection,
    second: RedriveSelection,
) -> None:  # fmt: skip
    """A second order leaves out what the first one has, and both number their slots in the order of the log."""
    sql.execute(with_endpoints.superuser_url, EMPTY)
    made = [attempted(number, **fields) for number, fields in enumerate(records, 1)]
    if made:
        record(with_endpoints, *made)
    taken: set[UUID] = set()
    wanted: dict[tuple[int, int], list[UUID]] = defaultdict(list)
    for selection in (first, second):
        chosen = [each for each in made if passes(selection, each) and each.delivery_id not in taken]
        counts, number = asyncio.run(plan_and_order(settings, selection))
        assert counts == Counter((each.endpoint_id, each.state, each.type) for each in chosen)
        assert (number is None) == (not chosen)
        for each in sorted(chosen, key=lambda each: (each.source_offset, each.source_rank, each.endpoint_id.bytes,
                                                     each.delivery_id.bytes)):  # fmt: skip
            assert number is not None
            wanted[number, each.source_partition].append(each.delivery_id)
        taken |= {each.delivery_id for each in chosen}
    lines = sql.value(with_endpoints.superuser_url, f"SELECT coalesce(string_agg(line, ',' ), '') FROM ({SLOTS}) AS s")
    found = {line for line in lines.split(",") if line}
    assert found == {
        f"{number} {partition} {slot} {delivery}"
        for (number, partition), ids in wanted.items()
        for slot, delivery in enumerate(ids)
    }

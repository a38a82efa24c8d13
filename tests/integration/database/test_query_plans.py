"""Every query on the log and on read models has a good plan, whatever Postgres knows about the tables."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from tests.support import log_rows, query_plans
from tests.support.query_plans import planned_queries
from tests.support.services import Services

SMALL, LARGE = 10, 20_000
STATES = ("small, never analysed", "large, never analysed", "analysed when small", "large, analysed")

Plans = dict[tuple[str, str, bool], dict[str, Any]]


@pytest.fixture(scope="module")
def plans(stack: Services, template_database: str) -> Plans:
    """The plan of each query in each state of the tables, for its arguments and generic."""
    found: Plans = {}

    async def note(connection: asyncpg.Connection[Any], state: str, rows: int) -> None:
        plans_of = await query_plans.plans_of(connection, planned_queries(rows))
        found.update({(state, *key): plan for key, plan in plans_of.items()})

    async def grow(connection: asyncpg.Connection[Any]) -> None:
        await query_plans.fill(connection, SMALL)
        await note(connection, STATES[0], SMALL)
        await connection.execute("ANALYZE")
        await query_plans.fill(connection, LARGE - SMALL, start=SMALL)
        await note(connection, STATES[2], LARGE)
        await connection.execute("ANALYZE")
        await note(connection, STATES[3], LARGE)

    async def load(connection: asyncpg.Connection[Any]) -> None:
        await query_plans.fill(connection, LARGE)
        await note(connection, STATES[1], LARGE)

    for work in (grow, load):
        with log_rows.migrated_database(stack, template_database) as made:
            log_rows.on_connection(made.superuser_url, work)
    return found


def test_every_query_on_a_table_that_grows_is_here() -> None:
    """SQL on the log or a read model that this file does not know has no test of its plan."""
    planned = {name.partition(" (")[0] for name in planned_queries(LARGE)}
    assert (
        query_plans.statements_on_big_tables()
        == planned | query_plans.REFUSED | query_plans.COPIED | query_plans.SUMMED
    )


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", planned_queries(LARGE))
def test_a_query_reads_what_it_needs(plans: Plans, name: str, state: str) -> None:
    """By an index, and without comparing every row with every other one; a small table may be read as a whole."""
    for generic in (False, True):
        whole_tables = state == STATES[0] or name in query_plans.READ_ONCE | query_plans.COMPARED
        whole_tables |= state != STATES[3] and name in query_plans.LISTED
        faults = query_plans.faults(plans[state, name, generic], whole_tables=whole_tables)
        assert list(faults) == [], f"generic: {generic}"

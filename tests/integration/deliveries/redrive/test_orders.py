"""Orders that are given at once, and what is counted as recorded of one."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import msgspec
import pytest
from sqlalchemy import text

from database.connector import connect
from database.errors import StatementTimedOut
from deliveries.errors import NothingToRedrive
from deliveries.hops import first_hop
from deliveries.redrive import orders
from deliveries.redrive.orders import NewOrder, Redrives
from deliveries.redrive.selection import RedriveSelection
from devstack import sql
from runtime.settings import Settings
from tests.conftest import Database
from tests.support.made_attempts import BEGAN_AT, ENDPOINT, attempted
from tests.support.recorded_attempts import ADD_ENDPOINT, record
from tests.support.redriving import open_redrives, redrive_order
from tests.support.waiting import wait_until_async

WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'advisory'
"""


@pytest.fixture
def recorded(database: Database) -> Database:
    """Three dead letters of an endpoint, and a delivery that it took."""
    sql.execute(database.owner_url, [ADD_ENDPOINT.format(ENDPOINT)])
    dead = [attempted(number, outcome="failed", state="dead", attempt=6, hop=5) for number in (1, 2, 3)]
    record(database, *dead, attempted(4))
    return database


async def test_orders_that_are_given_at_once_take_no_delivery_twice(
    settings: Settings, recorded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other: the second sees what the first one has taken, and finds nothing."""
    add_selected, added = NewOrder.add_selected, 0

    async def until_the_other_has_added(new: NewOrder, selection: RedriveSelection) -> None:
        nonlocal added
        await add_selected(new, selection)
        added += 1
        await wait_until_async(
            lambda: added == 2 or sql.value(recorded.superuser_url, WAITING), "the other one has added, or waits"
        )

    monkeypatch.setattr(NewOrder, "add_selected", until_the_other_has_added)
    async with open_redrives(settings) as redrives:
        given = await asyncio.gather(
            *(redrives.order(redrive_order(), RedriveSelection()) for _ in range(2)), return_exceptions=True
        )
    assert [type(each) for each in given if not isinstance(each, int)] == [NothingToRedrive]
    assert sql.value(recorded.superuser_url, "SELECT count(*) FROM redrive_slots") == 3


async def test_what_was_recorded_before_an_order_is_nothing_of_it(settings: Settings, recorded: Database) -> None:
    """A delivery that was delivered, or dead, when it was ordered is in no count until its redrive is recorded."""
    async with open_redrives(settings) as redrives:
        number = await redrives.order(redrive_order(), RedriveSelection(states=("dead", "delivered")))
        before = await redrives.recorded(number)
        record(
            recorded,
            attempted(2, stream="redrive", hop=first_hop(number), attempted_at=BEGAN_AT + timedelta(days=1), token=2),
        )
        after = await redrives.recorded(number)
    assert (before, after) == ({}, {"delivered": 1})


async def test_an_operators_order_is_of_any_size(
    settings: Settings, recorded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request waits for its statements, nor for those of its plan: they may take longer than others."""
    impatient = msgspec.structs.replace(settings, database_statement_timeout_seconds=1)
    slow = orders._GROUPS.replace("count(*)", "count(*) + (SELECT length(pg_sleep(1.1)::text))")
    monkeypatch.setattr(orders, "_GROUPS", slow)
    asked = text("SHOW statement_timeout")
    async with open_redrives(impatient) as redrives:
        assert (await redrives.plan(RedriveSelection())).deliveries == 3
        async with redrives.open_order(redrive_order()) as new:
            await new.add_selected(RedriveSelection())
            assert (await new.connection.execute(asked)).scalar_one() == "10min"
    tenants = connect(impatient, "endpoints")
    try:
        with pytest.raises(StatementTimedOut):
            await Redrives(tenants, "genesis").plan(RedriveSelection())
    finally:
        await tenants.close()

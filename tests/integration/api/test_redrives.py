"""Redrives over HTTP: planned first, ordered once, recorded, looked up and stopped; of one's own tenant alone."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from deliveries.redrive.orders import Redrives, StoredRedrive
from deliveries.redrive.redrive_plan import RedrivePlan
from deliveries.redrive.selection import RedriveSelection
from devstack import sql
from tests.conftest import Database
from tests.support.command_line import operations
from tests.support.endpoint_api import EndpointApi, errors, token_of
from tests.support.made_attempts import BEGAN_AT, attempted
from tests.support.reading import problem
from tests.support.recorded_attempts import record
from tests.support.redriving import open_redrives, redrive_order

DEAD: dict[str, Any] = {"outcome": "failed", "state": "dead", "status_code": 503, "attempt": 6, "hop": 5}
ORDERS = "SELECT count(*) FROM redrives"
SLOTS = "SELECT count(*) FROM redrive_slots"


async def with_dead_letters(endpoint_api: EndpointApi, database: Database, count: int = 3) -> str:
    """An endpoint with dead letters, and a delivery that was accepted before them."""
    endpoint = (await endpoint_api.add())["id"]
    dead = [attempted(number, endpoint_id=UUID(endpoint), **DEAD) for number in range(2, 2 + count)]
    record(database, attempted(1, endpoint_id=UUID(endpoint)), *dead)
    return str(endpoint)


async def test_a_plan_comes_first(endpoint_api: EndpointApi, database: Database) -> None:
    """Without `execute` what would be sent is told, and nothing is ordered or recorded."""
    endpoint = await with_dead_letters(endpoint_api, database)
    for body in ({"kind": "retry", "endpoint": endpoint}, {"kind": "recover", "endpoint": endpoint}):
        answer = await endpoint_api.send("POST", "/redrives", body)
        plan = answer.json()
        assert (answer.status_code, plan["deliveries"], plan["redrive"]) == (200, 3, None)
        assert plan["groups"] == [
            {"endpoint_id": endpoint, "endpoint_state": "active", "state": "dead", "type": "genesis.agent.rated",
             "deliveries": 3}
        ]  # fmt: skip
    assert sql.value(database.operator_url, ORDERS) == 0


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        ({"deliveries": [str(attempted(2, endpoint_id=UUID(int=0)).delivery_id)]}, None),
        ({"event": str(UUID(int=3))}, 1),
        ({"type": "genesis.agent.rated"}, 3),
        ({"type": "genesis.skill.validated"}, 0),
        ({"error": "503"}, 3),
        ({"error": "timeout"}, 0),
        ({"from": (BEGAN_AT + timedelta(seconds=3)).isoformat()}, 2),
        ({"to": (BEGAN_AT + timedelta(seconds=3)).isoformat()}, 1),
        ({"states": ["delivered"], "error": "200"}, 1),
        ({"states": ["delivered", "dead"], "type": "genesis.agent.rated"}, 4),
    ],
)
async def test_deliveries_are_chosen(
    endpoint_api: EndpointApi, database: Database, chosen: dict[str, Any], count: int | None
) -> None:
    """By event, type, time, error and state; an id of no delivery is an answer of its own."""
    await with_dead_letters(endpoint_api, database)
    answer = await endpoint_api.send("POST", "/redrives", {"kind": "retry", **chosen})
    if count is None:
        assert problem(answer) == (404, "no-delivery")
    else:
        assert (answer.status_code, answer.json()["deliveries"]) == (200, count)


async def test_an_order_is_given_once(endpoint_api: EndpointApi, database: Database) -> None:
    """A request that comes again finds its order, also while the first is under way; another one is refused."""
    endpoint = await with_dead_letters(endpoint_api, database)
    body = {"kind": "retry", "endpoint": endpoint, "execute": True, "rate_per_second": 50, "reason": "They are back."}
    first, second = await asyncio.gather(
        *(endpoint_api.send("POST", "/redrives", body, idempotency_key="a") for _ in range(2))
    )
    assert sorted(answer.status_code for answer in (first, second)) == [200, 201]
    third = await endpoint_api.send("POST", "/redrives", body | {"reason": "Again."}, idempotency_key="a")
    orders = [answer.json()["redrive"] for answer in (first, second, third)]
    assert [order["number"] for order in orders] == [orders[0]["number"]] * 3
    assert (orders[0]["deliveries"], orders[0]["rate_per_second"], orders[0]["reason"]) == (3, 50, "They are back.")
    assert orders[0]["ordered_by"].startswith("token tests/")
    other = await endpoint_api.send("POST", "/redrives", body | {"rate_per_second": 51}, idempotency_key="a")
    assert problem(other) == (409, "id-reused")
    assert sql.value(database.operator_url, ORDERS) == 1
    assert sql.value(database.operator_url, SLOTS) == 3
    actions = await operations(endpoint_api.settings, endpoint)
    retries = [each for each in actions if each.action == "deliveries.retry"]
    assert {str(each.operation_id) for each in retries} == {orders[0]["operation_id"]}
    assert {(each.actor, each.reason) for each in retries} == {
        (orders[0]["ordered_by"], "They are back. [3 deliveries; 50 a second]")
    }


async def test_what_died_after_the_plan_is_in_the_order_and_in_its_action(
    endpoint_api: EndpointApi, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is answered as it was; what was ordered is counted in the order."""
    endpoint = await with_dead_letters(endpoint_api, database, 2)
    plan = Redrives.plan

    async def as_more_die(redrives: Redrives, selection: RedriveSelection) -> RedrivePlan:
        made = await plan(redrives, selection)
        more = [attempted(number, endpoint_id=UUID(endpoint), **DEAD) for number in range(10, 15)]
        await asyncio.to_thread(record, database, *more)
        return made

    monkeypatch.setattr(Redrives, "plan", as_more_die)
    body = {"kind": "retry", "endpoint": endpoint, "execute": True, "rate_per_second": 50, "reason": "They are back."}
    answer = (await endpoint_api.send("POST", "/redrives", body)).json()
    assert (answer["deliveries"], answer["redrive"]["deliveries"]) == (2, 7)
    assert await retries(endpoint_api, endpoint) == ["They are back. [7 deliveries; 50 a second]"]


async def test_what_others_have_ordered_by_then_is_no_action(
    endpoint_api: EndpointApi, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to order, so nothing is recorded, and the answer is what a plan says now."""
    endpoint = await with_dead_letters(endpoint_api, database)
    plan, planned = Redrives.plan, 0

    async def as_others_order(redrives: Redrives, selection: RedriveSelection) -> RedrivePlan:
        nonlocal planned
        made, planned = await plan(redrives, selection), planned + 1
        if planned == 1:
            await redrives.order(redrive_order(), selection)
        return made

    monkeypatch.setattr(Redrives, "plan", as_others_order)
    answer = await endpoint_api.send("POST", "/redrives", {"kind": "retry", "endpoint": endpoint, "execute": True})
    assert (answer.status_code, answer.json()["redrive"], answer.json()["left_out"]) == (200, None, {"ordered": 3})
    assert await retries(endpoint_api, endpoint) == []


async def retries(endpoint_api: EndpointApi, endpoint: str) -> list[str]:
    """Return what was recorded of orders to retry an endpoint's deliveries."""
    actions = await operations(endpoint_api.settings, endpoint)
    return [each.reason for each in actions if each.action == "deliveries.retry"]


async def test_orders_that_are_asked_for_at_once_are_no_more_than_may_run(
    endpoint_api: EndpointApi, database: Database
) -> None:
    """Requests that all looked before the first one was stored, each for a delivery of its own."""
    endpoint = await with_dead_letters(endpoint_api, database, 4)
    sql.execute(database.owner_url, [
        "INSERT INTO redrives (operation_id, kind, selection, reason, ordered_by, rate_per_second, governance_agent_id)"
        " SELECT gen_random_uuid(), 'retry', '{}', 'r', 'o', 1, 'genesis' FROM generate_series(1, 18)"
    ])  # fmt: skip
    dead = [str(attempted(number, endpoint_id=UUID(endpoint)).delivery_id) for number in range(2, 6)]
    answers = await asyncio.gather(
        *(endpoint_api.send("POST", "/redrives", {"kind": "retry", "deliveries": [each], "execute": True})
          for each in dead)
    )  # fmt: skip
    assert sorted(each.status_code for each in answers) == [201, 201, 409, 409]
    assert {problem(each) for each in answers if each.status_code == 409} == {(409, "too-many-redrives")}
    assert sql.value(database.operator_url, SLOTS) == 2


async def test_a_request_that_comes_while_its_order_is_stored_finds_it(
    endpoint_api: EndpointApi, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look was a moment too early, and of its deliveries none are left to order: the answer is the order."""
    body = {"kind": "retry", "endpoint": await with_dead_letters(endpoint_api, database), "execute": True}
    first = await endpoint_api.send("POST", "/redrives", body, idempotency_key="a")
    looks = 0
    find = Redrives.find_operation

    async def find_later(redrives: Redrives, operation_id: UUID) -> StoredRedrive | None:
        nonlocal looks
        looks += 1
        return None if looks == 1 else await find(redrives, operation_id)

    monkeypatch.setattr(Redrives, "find_operation", find_later)
    second = await endpoint_api.send("POST", "/redrives", body, idempotency_key="a")
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json()["redrive"]["number"] == first.json()["redrive"]["number"]
    assert second.json()["deliveries"] == 3


async def test_what_is_ordered_is_left_out(endpoint_api: EndpointApi, database: Database) -> None:
    """Without a key a second order finds nothing to send, whoever gave the first one."""
    endpoint = await with_dead_letters(endpoint_api, database)
    body = {"kind": "recover", "endpoint": endpoint, "execute": True}
    assert (await endpoint_api.send("POST", "/redrives", body)).status_code == 201
    again = await endpoint_api.send("POST", "/redrives", body)
    assert (again.status_code, again.json()["deliveries"], again.json()["left_out"]) == (200, 0, {"ordered": 3})
    assert again.json()["redrive"] is None
    assert sql.value(database.operator_url, ORDERS) == 1


async def test_an_order_is_looked_up_and_stopped(endpoint_api: EndpointApi, database: Database) -> None:
    """How far it is, what was recorded of its deliveries since, page by page; stopping it twice does the same."""
    endpoint = await with_dead_letters(endpoint_api, database)
    numbers = []
    for event in (2, 3, 4):
        body = {"kind": "retry", "endpoint": endpoint, "event": str(UUID(int=event)), "execute": True}
        made = await endpoint_api.send("POST", "/redrives", body)
        numbers.append(made.json()["redrive"]["number"])
        assert made.headers["location"] == f"/redrives/{numbers[-1]}"
    page = (await endpoint_api.send("GET", "/redrives?limit=2")).json()
    rest = (await endpoint_api.send("GET", f"/redrives?limit=2&cursor={page['next']}")).json()
    assert [each["number"] for each in (*page["items"], *rest["items"])] == numbers[::-1]
    record(database, attempted(2, endpoint_id=UUID(endpoint), stream="redrive", hop=numbers[0] << 32, token=2,
                               attempted_at=BEGAN_AT + timedelta(days=1)))  # fmt: skip
    path = f"/redrives/{numbers[0]}"
    found = (await endpoint_api.send("GET", path)).json()
    assert (found["state"], found["deliveries"], found["queued"]) == ("running", 1, 0)
    assert found["recorded"] == {"delivered": 1}
    for _ in range(2):
        stopped = await endpoint_api.send("POST", f"{path}/stop")
        assert (stopped.status_code, stopped.json()["state"]) == (200, "stopped")
    states = "SELECT string_agg(state, ' ' ORDER BY number) FROM redrives"
    assert sql.value(database.operator_url, states) == "stopped running running"


async def test_another_tenants_orders_are_as_none(
    endpoint_api: EndpointApi, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its endpoints nor deliveries nor orders are seen, planned or stopped; nor are those of operators."""
    endpoint = await with_dead_letters(endpoint_api, database)
    body = {"kind": "retry", "endpoint": endpoint, "execute": True}
    number = (await endpoint_api.send("POST", "/redrives", body, idempotency_key="k")).json()["redrive"]["number"]
    theirs = await token_of(endpoint_api, "acme", monkeypatch)
    delivery = str(attempted(2, endpoint_id=UUID(endpoint)).delivery_id)
    for asked, expected in (
        ({"kind": "retry", "endpoint": endpoint}, "no-endpoint"),
        ({"kind": "recover", "endpoint": endpoint}, "no-endpoint"),
        ({"kind": "retry", "deliveries": [delivery]}, "no-delivery"),
    ):
        refused = await endpoint_api.send("POST", "/redrives", asked | {"execute": True}, token=theirs)
        assert problem(refused) == (404, expected)
    everything = {"kind": "retry", "error": "503", "states": ["dead", "delivered"], "execute": True}
    nothing = await endpoint_api.send("POST", "/redrives", everything, token=theirs, idempotency_key="k")
    assert (nothing.status_code, nothing.json()["deliveries"], nothing.json()["left_out"]) == (200, 0, {})
    assert (await endpoint_api.send("GET", "/redrives", token=theirs)).json() == {"items": [], "next": None}
    for method, path in (("GET", f"/redrives/{number}"), ("POST", f"/redrives/{number}/stop")):
        assert problem(await endpoint_api.send(method, path, token=theirs)) == (404, "no-redrive")
    assert sql.value(database.operator_url, "SELECT state FROM redrives") == "running"
    async with open_redrives(endpoint_api.settings) as redrives:
        assert [each.number for each in await redrives.newest()] == [number]
    sql.execute(database.owner_url, ["UPDATE redrives SET governance_agent_id = NULL"])
    assert (await endpoint_api.send("GET", "/redrives")).json()["items"] == []


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, {"#/kind"}),
        ({"kind": "replay_missing"}, {"#/kind"}),
        ({"kind": "retry"}, {"#/deliveries"}),
        ({"kind": "retry", "states": ["dead"]}, {"#/deliveries"}),
        ({"kind": "recover"}, {"#/endpoint"}),
        ({"kind": "recover", "endpoint": str(UUID(int=1)), "error": "503"}, {"#/error"}),
        ({"kind": "retry", "deliveries": []}, {"#/deliveries"}),
        ({"kind": "retry", "deliveries": ["x"]}, {"#/deliveries"}),
        ({"kind": "retry", "endpoint": 1, "event": None, "x": 1}, {"#/endpoint", "#/event", "#/x"}),
        ({"kind": "retry", "error": "1x3"}, {"#/error"}),
        ({"kind": "retry", "states": ["waiting"]}, {"#/states"}),
        ({"kind": "retry", "states": [[]]}, {"#/states"}),
        ({"kind": "retry", "type": "x", "rate_per_second": 0}, {"#/rate_per_second"}),
        ({"kind": "retry", "type": "x", "execute": "yes"}, {"#/execute"}),
        ({"kind": "retry", "from": "3000-01-01T00:00:00Z"}, {"#/from"}),
    ],
)
async def test_each_mistake_is_told(endpoint_api: EndpointApi, body: dict[str, Any], pointers: set[str]) -> None:
    """With the field that it is in."""
    answer = await endpoint_api.send("POST", "/redrives", body)
    assert problem(answer) == (422, "redrive")
    assert errors(answer).keys() == pointers


async def test_paths_that_are_none(endpoint_api: EndpointApi) -> None:
    """Numbers that are none, methods and parameters that are not known, and scopes that do not cover it."""
    for method, path, expected in (
        ("GET", "/redrives/x", (400, "parameter")),
        ("GET", "/redrives/0", (400, "parameter")),
        ("GET", "/redrives/2147483648", (400, "parameter")),
        ("GET", "/redrives/7", (404, "no-redrive")),
        ("POST", "/redrives/7/stop", (404, "no-redrive")),
        ("GET", "/redrives/7/stop", (405, "method")),
        ("DELETE", "/redrives/7", (405, "method")),
        ("GET", "/redrives/7/start", (404, "not-found")),
        ("GET", "/redrives?x=1", (400, "parameter")),
        ("GET", "/redrives?cursor=x", (400, "cursor")),
    ):
        assert problem(await endpoint_api.send(method, path)) == expected, (method, path)
    key = await endpoint_api.send(
        "POST", "/redrives", {"kind": "retry", "type": "x", "execute": True}, idempotency_key="a b"
    )
    assert problem(key) == (400, "parameter")
    reader = endpoint_api.reading.token.text
    assert problem(await endpoint_api.send("POST", "/redrives", {}, token=reader)) == (403, "scope")


async def test_a_tenant_has_so_many_orders_at_a_time(endpoint_api: EndpointApi, database: Database) -> None:
    """One more than it may have under way is refused, and is not recorded."""
    endpoint = await with_dead_letters(endpoint_api, database)
    sql.execute(database.owner_url, [
        "INSERT INTO redrives (operation_id, kind, selection, reason, ordered_by, rate_per_second, governance_agent_id)"
        " SELECT gen_random_uuid(), 'retry', '{}', 'r', 'o', 1, 'genesis' FROM generate_series(1, 20)"
    ])  # fmt: skip
    body = {"kind": "retry", "endpoint": endpoint, "execute": True}
    assert problem(await endpoint_api.send("POST", "/redrives", body)) == (409, "too-many-redrives")
    assert sql.value(database.operator_url, SLOTS) == 0


async def test_the_role_orders_for_its_own_alone(endpoint_api: EndpointApi, database: Database) -> None:
    """Rows of another tenant's order or endpoint are refused, and an order is given to no other tenant."""
    endpoint = await with_dead_letters(endpoint_api, database)
    body = {"kind": "retry", "endpoint": endpoint, "execute": True}
    number = (await endpoint_api.send("POST", "/redrives", body)).json()["redrive"]["number"]
    slot = f"INSERT INTO redrive_slots VALUES ({number}, 7, 0, 0, 0, '{{endpoint}}', '{uuid4()}', '{uuid4()}', now())"
    order = "INSERT INTO redrives (operation_id, kind, selection, reason, ordered_by, rate_per_second"
    connection = await asyncpg.connect(database.endpoints_url)
    try:
        for tenant, statement in (
            ("acme", slot.format(endpoint=endpoint)),
            ("genesis", slot.format(endpoint=uuid4())),
            ("acme", f"INSERT INTO redrive_partitions (number, source_partition, slots) VALUES ({number}, 7, 1)"),
            ("acme", f"{order}, governance_agent_id) VALUES ('{uuid4()}', 'retry', '{{}}', '', '', 1, 'genesis')"),
            ("genesis", f"{order}) VALUES ('{uuid4()}', 'retry', '{{}}', '', '', 1)"),
            ("genesis", "DELETE FROM redrive_slots"),
            ("genesis", "UPDATE redrives SET governance_agent_id = NULL"),
        ):
            await connection.execute("SELECT set_config('plant.governance_agent_id', $1, false)", tenant)
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        await connection.execute("SELECT set_config('plant.governance_agent_id', 'acme', false)")
        for table in ("redrives", "redrive_partitions", "redrive_slots"):
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0
        assert await connection.execute("UPDATE redrives SET state = 'stopped', ended_at = now()") == "UPDATE 0"
    finally:
        await connection.close()

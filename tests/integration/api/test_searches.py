"""Searches over HTTP for what an endpoint was not sent: asked for once, bounded, recorded, of one's own tenant alone.

What comes of them is in `tests/integration/deliveries/dispatch/test_missing_finder.py`.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from deliveries.redrive.missing_searches import MissingSearches, StoredSearch
from devstack import sql
from tests.conftest import Database
from tests.support.command_line import operations
from tests.support.endpoint_api import EndpointApi, errors, token_of
from tests.support.reading import problem

SINCE, LATER = ((datetime.now(UTC) - timedelta(days=days)).isoformat() for days in (2, 1))
SEARCHES = "SELECT count(*) FROM missing_searches"
END = (
    "UPDATE missing_searches SET state = 'ended', ended_at = now(), compared = 9,"
    ' plan = \'{"groups": [], "examples": []}\''
)


async def search_of(endpoint_api: EndpointApi, **fields: Any) -> dict[str, Any]:
    """A body for an endpoint of its own."""
    return {"endpoint": (await endpoint_api.add())["id"], "from": SINCE, **fields}


async def test_a_search_is_asked_for_once(endpoint_api: EndpointApi, database: Database) -> None:
    """A request that comes again finds it, also while the first is under way; another one is refused."""
    body = await search_of(endpoint_api, execute=True, rate_per_second=50, reason="It was paused.")
    both = await asyncio.gather(*(endpoint_api.send("POST", "/searches", body, idempotency_key="a") for _ in range(2)))
    third = await endpoint_api.send("POST", "/searches", body | {"reason": "Again."}, idempotency_key="a")
    assert sorted(each.status_code for each in both) == [200, 202]
    assert third.status_code == 200
    found = third.json()
    assert {each.json()["number"] for each in both} == {found["number"]}
    (location,) = {each.headers["location"] for each in both if each.status_code == 202}
    assert (await endpoint_api.send("GET", location)).json() == found
    assert (found["state"], found["plan"], found["redrive"], found["reason"]) == (
        "waiting", None, None, "It was paused."
    )  # fmt: skip
    assert found.keys().isdisjoint({"tenant", "request_digest"})
    for change in ({"rate_per_second": 51}, {"execute": False}, {"from": LATER}):
        other = await endpoint_api.send("POST", "/searches", body | change, idempotency_key="a")
        assert problem(other) == (409, "id-reused"), change
    assert sql.value(database.owner_url, SEARCHES) == 1
    actions = await operations(endpoint_api.settings, body["endpoint"])
    asked = [each for each in actions if each.action == "deliveries.replay_missing"]
    assert {str(each.operation_id) for each in asked} == {found["operation_id"]}
    assert {each.actor for each in asked} == {found["asked_by"]}
    assert all(each.reason.startswith("It was paused. [since ") for each in asked)


async def test_a_request_that_comes_while_its_search_is_stored_finds_it(
    endpoint_api: EndpointApi, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look was a moment too early: the answer is the search that is stored by then."""
    body = await search_of(endpoint_api)
    first = await endpoint_api.send("POST", "/searches", body, idempotency_key="a")
    looks = 0
    find = MissingSearches.find_operation

    async def find_later(searches: MissingSearches, operation_id: UUID) -> StoredSearch | None:
        nonlocal looks
        looks += 1
        return None if looks == 1 else await find(searches, operation_id)

    monkeypatch.setattr(MissingSearches, "find_operation", find_later)
    second = await endpoint_api.send("POST", "/searches", body, idempotency_key="a")
    looks = 0
    other = await endpoint_api.send("POST", "/searches", body | {"rate_per_second": 7}, idempotency_key="a")
    assert (first.status_code, second.status_code) == (202, 200)
    assert second.json()["number"] == first.json()["number"]
    assert problem(other) == (409, "id-reused")
    assert sql.value(database.owner_url, SEARCHES) == 1


async def test_a_plan_alone_is_no_action(endpoint_api: EndpointApi) -> None:
    """Without `execute` nothing is recorded; without a key each request is a search of its own."""
    body = await search_of(endpoint_api)
    numbers = [(await endpoint_api.send("POST", "/searches", body)).json()["number"] for _ in range(2)]
    assert numbers[0] < numbers[1]
    actions = await operations(endpoint_api.settings, body["endpoint"])
    assert [each for each in actions if each.action.startswith("deliveries.")] == []


async def test_a_tenant_has_so_many_searches_at_a_time(endpoint_api: EndpointApi, database: Database) -> None:
    """One more is refused until some have ended; so is one that orders, while as many orders run as may."""
    body = await search_of(endpoint_api)
    for _ in range(3):
        assert (await endpoint_api.send("POST", "/searches", body)).status_code == 202
    assert problem(await endpoint_api.send("POST", "/searches", body)) == (409, "too-many-searches")
    sql.execute(database.owner_url, [END])
    sql.execute(database.owner_url, [
        "INSERT INTO redrives (operation_id, kind, selection, reason, ordered_by, rate_per_second, governance_agent_id)"
        " SELECT gen_random_uuid(), 'retry', '{}', 'r', 'o', 1, 'genesis' FROM generate_series(1, 20)"
    ])  # fmt: skip
    assert (await endpoint_api.send("POST", "/searches", body)).status_code == 202
    ordering = await endpoint_api.send("POST", "/searches", body | {"execute": True})
    assert problem(ordering) == (409, "too-many-redrives")
    assert sql.value(database.owner_url, SEARCHES) == 4


async def test_searches_that_are_asked_for_at_once_are_no_more(
    endpoint_api: EndpointApi, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that all looked before the first one was stored, with and without keys."""
    body = await search_of(endpoint_api, execute=True)
    for _ in range(2):
        assert (await endpoint_api.send("POST", "/searches", body)).status_code == 202
    waiting, looked = MissingSearches.waiting, asyncio.Barrier(4)

    async def look_together(searches: MissingSearches) -> int:
        found = await waiting(searches)
        await looked.wait()
        return found

    monkeypatch.setattr(MissingSearches, "waiting", look_together)
    answers = await asyncio.gather(
        *(endpoint_api.send("POST", "/searches", body, idempotency_key=key) for key in ("a", "b")),
        *(endpoint_api.send("POST", "/searches", body) for _ in range(2)),
    )
    assert sorted(each.status_code for each in answers) == [202, 409, 409, 409]
    assert {problem(each) for each in answers if each.status_code == 409} == {(409, "too-many-searches")}
    assert sql.value(database.owner_url, SEARCHES) == 3


async def test_searches_are_listed(endpoint_api: EndpointApi, database: Database) -> None:
    """Newest first, page by page, with what was found."""
    body = await search_of(endpoint_api)
    numbers = [(await endpoint_api.send("POST", "/searches", body)).json()["number"] for _ in range(3)]
    sql.execute(database.owner_url, [END])
    page = (await endpoint_api.send("GET", "/searches?limit=2")).json()
    rest = (await endpoint_api.send("GET", f"/searches?limit=2&cursor={page['next']}")).json()
    found = [*page["items"], *rest["items"]]
    assert [each["number"] for each in found] == numbers[::-1]
    assert found[0]["compared"] == 9
    assert found[0]["plan"] == {
        "deliveries": 0, "rate_per_second": 200, "seconds": 0.0, "groups": [], "left_out": {}, "examples": [],
        "undispatched": None,
    }  # fmt: skip


async def test_another_tenants_searches_are_as_none(
    endpoint_api: EndpointApi, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its endpoints nor its searches are seen, whatever key is sent."""
    body = await search_of(endpoint_api)
    number = (await endpoint_api.send("POST", "/searches", body, idempotency_key="k")).json()["number"]
    theirs = await token_of(endpoint_api, "acme", monkeypatch)
    for key in ("k", "l"):
        refused = await endpoint_api.send("POST", "/searches", body, token=theirs, idempotency_key=key)
        assert problem(refused) == (404, "no-endpoint")
    assert problem(await endpoint_api.send("GET", f"/searches/{number}", token=theirs)) == (404, "no-search")
    assert (await endpoint_api.send("GET", "/searches", token=theirs)).json() == {"items": [], "next": None}
    assert sql.value(database.owner_url, SEARCHES) == 1


async def test_the_role_asks_for_its_own_alone(endpoint_api: EndpointApi, database: Database) -> None:
    """Rows of another tenant, or of an endpoint that it does not have, are refused; none is changed or deleted."""
    body = await search_of(endpoint_api)
    number = (await endpoint_api.send("POST", "/searches", body)).json()["number"]
    row = (
        "INSERT INTO missing_searches (operation_id, governance_agent_id, endpoint_id, since, rate_per_second, execute,"
        f" reason, asked_by) VALUES ('{uuid4()}', 'genesis', '{{}}', now(), 1, true, '', '')"
    )
    connection = await asyncpg.connect(database.endpoints_url)
    try:
        for tenant, statement in (
            ("acme", row.format(body["endpoint"])),
            ("genesis", row.format(uuid4())),
            ("genesis", "UPDATE missing_searches SET execute = true"),
            ("genesis", f"UPDATE missing_searches SET redrive = 1 WHERE number = {number}"),
            ("genesis", "DELETE FROM missing_searches"),
        ):
            await connection.execute("SELECT set_config('plant.governance_agent_id', $1, false)", tenant)
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        await connection.execute("SELECT set_config('plant.governance_agent_id', 'acme', false)")
        assert await connection.fetchval(SEARCHES) == 0
    finally:
        await connection.close()
    writer = await asyncpg.connect(database.writer_url)
    try:
        for statement in (
            "UPDATE missing_searches SET execute = true",
            "SELECT error_class FROM webhook_deliveries",
            "UPDATE redrives SET ordered_by = ''",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await writer.execute(statement)
    finally:
        await writer.close()


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, {"#/endpoint", "#/from"}),
        ({"endpoint": 1, "from": None, "x": 1}, {"#/endpoint", "#/from", "#/x"}),
        ({"endpoint": str(UUID(int=1)).replace("-", ""), "from": "yesterday"}, {"#/endpoint", "#/from"}),
        ({"endpoint": str(UUID(int=1)), "from": "3000-01-01T00:00:00Z"}, {"#/from"}),
        ({"endpoint": str(UUID(int=1)), "from": "2020-01-01T00:00:00Z"}, {"#/from"}),
        ({"endpoint": str(UUID(int=1)), "from": "2020-01-01T00:00:00"}, {"#/from"}),
        ({"endpoint": str(UUID(int=1)), "from": "0001-01-01T00:00:00+14:00"}, {"#/from"}),
        ({"endpoint": str(UUID(int=1)), "from": "9999-12-31T23:59:59-14:00"}, {"#/from"}),
        ({"endpoint": str(UUID(int=1)), "from": "\u0662026-01-01T00:00:00Z"}, {"#/from"}),
        ({"endpoint": [str(UUID(int=1))], "from": {"$gt": ""}}, {"#/endpoint", "#/from"}),
        ({"endpoint": "\x00", "from": SINCE, "rate_per_second": True}, {"#/endpoint", "#/rate_per_second"}),
        ({"endpoint": str(UUID(int=1)), "from": SINCE, "rate_per_second": 1.5}, {"#/rate_per_second"}),
        ({"endpoint": str(UUID(int=1)), "from": SINCE, "rate_per_second": 10**30}, {"#/rate_per_second"}),
        ({"endpoint": str(UUID(int=1)), "from": SINCE, "rate_per_second": 1_001}, {"#/rate_per_second"}),
        ({"endpoint": str(UUID(int=1)), "from": SINCE, "execute": "yes"}, {"#/execute"}),
        ({"endpoint": str(UUID(int=1)), "from": SINCE, "reason": "a\x00b"}, {"#/reason"}),
        ({"endpoint": str(UUID(int=1)), "from": SINCE, "tenant": "acme"}, {"#/tenant"}),
        ({"endpoint": str(UUID(int=1)), "from": SINCE, "to": SINCE}, {"#/to"}),
    ],
)
async def test_each_mistake_is_told(endpoint_api: EndpointApi, body: dict[str, Any], pointers: set[str]) -> None:
    """With the field that it is in."""
    answer = await endpoint_api.send("POST", "/searches", body)
    assert problem(answer) == (422, "search")
    assert errors(answer).keys() == pointers


async def test_paths_that_are_none(endpoint_api: EndpointApi) -> None:
    """Numbers that are none, methods and parameters that are not known, and scopes that do not cover it."""
    unknown = {"endpoint": str(UUID(int=1)), "from": SINCE}
    for method, path, body, expected in (
        ("GET", "/searches/x", None, (400, "parameter")),
        ("GET", "/searches/0", None, (400, "parameter")),
        ("GET", "/searches/2147483648", None, (400, "parameter")),
        ("GET", "/searches/7", None, (404, "no-search")),
        ("GET", "/searches/7/stop", None, (404, "not-found")),
        ("POST", "/searches/7", {}, (405, "method")),
        ("DELETE", "/searches/7", None, (405, "method")),
        ("GET", "/searches?x=1", None, (400, "parameter")),
        ("POST", "/searches?execute=true", unknown, (400, "parameter")),
        ("GET", "/searches?cursor=x", None, (400, "cursor")),
        ("POST", "/searches", unknown, (404, "no-endpoint")),
    ):
        assert problem(await endpoint_api.send(method, path, body)) == expected, (method, path)
    assert problem(await endpoint_api.send("POST", "/searches", unknown, idempotency_key="a b")) == (400, "parameter")
    reader = endpoint_api.reading.token.text
    assert problem(await endpoint_api.send("POST", "/searches", {}, token=reader)) == (403, "scope")

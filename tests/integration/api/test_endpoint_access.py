"""Who may change endpoints, within which bounds: scopes, tenants, bodies, requests under way, logs."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from api.access_tokens import new_token
from api.endpoint_fields import ADDED
from api.endpoint_requests import POSTED
from api.redrive_bodies import REDRIVEN, SEARCHED
from deliveries.endpoint_store import EndpointStore
from devstack import sql
from tests.conftest import Database
from tests.support.endpoint_api import URL, EndpointApi, token_of
from tests.support.reading import problem
from tests.support.receivers import receiver

FUZZED = 500
CHANGES = (("PATCH", ""), ("DELETE", ""), *(("POST", f"/{each}") for each in POSTED))


async def test_a_scope_of_its_own(endpoint_api: EndpointApi) -> None:
    """A token that reads everything changes no endpoint, and one for endpoints reads nothing else."""
    made = await endpoint_api.add()
    reader = endpoint_api.reading.token.text
    for method, path in (("GET", "/endpoints"), ("POST", "/endpoints"), ("GET", "/deliveries"),
                         ("DELETE", f"/endpoints/{made['id']}")):  # fmt: skip
        answer = await endpoint_api.send(method, path, token=reader)
        assert problem(answer) == (403, "scope")
        assert 'scope="endpoints"' in answer.headers["www-authenticate"]
        assert problem(await endpoint_api.send(method, path, token=new_token().text)) == (401, "unauthorized")
    assert problem(await endpoint_api.send("GET", "/agents")) == (403, "scope")


async def test_another_tenants_endpoints_are_as_none(
    endpoint_api: EndpointApi, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked with another tenant's token, the answer is that of an id that nobody has."""
    made = await endpoint_api.add()
    keyed = await endpoint_api.send("POST", "/endpoints", {"url": URL, "event_types": ["*"]}, idempotency_key="guessed")
    theirs = await token_of(endpoint_api, "acme", monkeypatch)
    assert (await endpoint_api.send("GET", "/endpoints", token=theirs)).json() == {"items": [], "next": None}
    for known in (made["id"], keyed.json()["id"], str(uuid4())):
        for method, under in (("GET", ""), *CHANGES):
            answer = await endpoint_api.send(method, f"/endpoints/{known}{under}", token=theirs)
            assert (problem(answer), answer.json().get("detail")) == ((404, "no-endpoint"), None), (method, under)
        asked = await endpoint_api.send("GET", f"/deliveries?endpoint={known}", token=theirs)
        assert problem(asked) == (404, "no-endpoint")
    again = await endpoint_api.send(
        "POST", "/endpoints", {"url": URL, "event_types": ["*"]}, token=theirs, idempotency_key="guessed"
    )
    assert problem(again) == (422, "endpoint")
    assert again.json()["errors"][0]["pointer"] == "#/tenant"
    assert sql.value(database.operator_url, "SELECT string_agg(DISTINCT state, ' ') FROM endpoints") == "active"
    assert sql.value(database.operator_url, "SELECT count(*) FROM endpoint_secrets") == 2


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b"{", {"content-type": "application/json"}, (400, "malformed-body")),
        (b"[]", {"content-type": "application/json"}, (400, "malformed-body")),
        (b"[" * 60_000, {"content-type": "application/json"}, (400, "malformed-body")),
        (b'{"a":' * 10_000, {"content-type": "application/json"}, (400, "malformed-body")),
        (b"\xff", {"content-type": "application/json; charset=utf-8"}, (400, "malformed-body")),
        (b'{"reason": "a", "reason": "b"}', {"content-type": "application/json"}, (400, "malformed-body")),
        (b'{"filter": {"a": 1, "\\u0061": 2}}', {"content-type": "application/json"}, (400, "malformed-body")),
        (b"{}", {}, (415, "media-type")),
        (b"{}", {"content-type": "text/plain"}, (415, "media-type")),
        (b" " * 70_000, {"content-type": "application/json"}, (413, "body-too-large")),
        (b"{}", {"content-type": "application/json", "idempotency-key": "a b"}, (422, "endpoint")),
    ],
)
async def test_a_body_is_bounded(
    endpoint_api: EndpointApi, body: bytes, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    """What is no JSON object within 64 KiB is refused, and the connection closes behind what was not read alone."""
    bearer = {"authorization": f"Bearer {endpoint_api.token}"}
    answer = await endpoint_api.reading.client.post("/endpoints", content=body, headers={**bearer, **headers})
    assert problem(answer) == expected
    assert (answer.headers.get("connection") == "close") == (expected[0] in (413, 415))


async def test_paths_methods_and_keys_that_are_none(endpoint_api: EndpointApi) -> None:
    """404, 405 with what is allowed, 400 by the parameter's name; reads have no body."""
    made = await endpoint_api.add()
    path = f"/endpoints/{made['id']}"
    for wrong in (f"{path}/pause/x", f"{path}/explode", "/deliveries/x/y/z", f"{path}/attempts"):
        assert problem(await endpoint_api.send("GET", wrong))[0] in (400, 404)
    for method, where, allowed in (("PUT", path, ""), ("POST", path, "GET, HEAD, PATCH, DELETE"),
                                   ("GET", f"{path}/pause", "POST"), ("DELETE", "/endpoints", "GET, HEAD, POST"),
                                   ("POST", "/deliveries", "GET, HEAD")):  # fmt: skip
        answer = await endpoint_api.send(method, where)
        assert problem(answer) == (405, "method")
        assert allowed in answer.headers["allow"]
    assert problem(await endpoint_api.send("GET", "/endpoints/7")) == (400, "parameter")
    assert problem(await endpoint_api.send("GET", "/endpoints", {"x": 1})) == (413, "body-too-large")
    assert problem(await endpoint_api.send("POST", f"{path}/pause?x=1")) == (400, "parameter")
    for key in ("a b", "a" * 201, "é"):
        body = {"url": URL, "event_types": ["*"]}
        sent = await endpoint_api.reading.client.post(
            "/endpoints", json=body,
            headers=[("authorization", f"Bearer {endpoint_api.token}"), ("idempotency-key", key.encode())],
        )  # fmt: skip
        assert problem(sent) == (400, "parameter")
        assert sent.json()["errors"][0]["parameter"] == "Idempotency-Key"


async def test_requests_that_wait_for_receivers_keep_nobody_else_from_it(endpoint_api: EndpointApi) -> None:
    """A token has a few changes and tests under way; one more is 429 at once, and others go on, as do reads."""
    other = (await endpoint_api.reading.add_token("endpoints", name="other")).text
    limit, released = endpoint_api.settings.api_changes_per_token, asyncio.Event()
    async with receiver() as served:

        async def answer(_request: web.Request) -> web.Response:
            await released.wait()
            return web.Response()

        served.replace_handler(answer)
        made = await endpoint_api.add(f"http://127.0.0.1:{served.port}/")
        test = f"/endpoints/{made['id']}/test"
        under_way = [asyncio.create_task(endpoint_api.send("POST", test)) for _ in range(limit + 1)]
        (refused,), _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        try:
            assert problem(refused.result()) == (429, "too-many-requests")
            assert (await endpoint_api.send("GET", "/endpoints")).status_code == 200
            added = await endpoint_api.send("POST", "/endpoints", {"url": URL, "event_types": ["*"]}, token=other)
            assert added.status_code == 201
        finally:
            released.set()
            answers = await asyncio.gather(*under_way)
    assert sorted(each.status_code for each in answers) == [200] * limit + [429]


async def test_a_tenant_has_so_many_endpoints_at_most(endpoint_api: EndpointApi) -> None:
    """One more is refused by name, and room is made by removing one."""
    requests = endpoint_api.reading.api.app.endpoints
    assert requests is not None
    assert requests._parts is not None
    bounded = msgspec.structs.replace(endpoint_api.settings, api_endpoints_max=1)
    requests.start(requests._parts._replace(settings=bounded))
    made = await endpoint_api.add()
    body = {"url": URL, "event_types": ["*"]}
    assert problem(await endpoint_api.send("POST", "/endpoints", body)) == (409, "too-many-endpoints")
    await endpoint_api.send("DELETE", f"/endpoints/{made['id']}")
    await endpoint_api.add()


async def test_endpoints_that_are_asked_for_at_once_are_no_more(
    endpoint_api: EndpointApi, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that all looked before the first one was stored; of one that comes twice the other is its repeat."""
    requests = endpoint_api.reading.api.app.endpoints
    assert requests is not None
    assert requests._parts is not None
    bounded = msgspec.structs.replace(endpoint_api.settings, api_endpoints_max=2)
    requests.start(requests._parts._replace(settings=bounded))
    await endpoint_api.add()
    count, looked = EndpointStore.count, asyncio.Barrier(4)

    async def look_together(store: EndpointStore) -> int:
        found = await count(store)
        await looked.wait()
        return found

    monkeypatch.setattr(EndpointStore, "count", look_together)
    body = {"url": URL, "event_types": ["*"]}
    answers = await asyncio.gather(
        *(endpoint_api.send("POST", "/endpoints", body, idempotency_key="a") for _ in range(2)),
        *(endpoint_api.send("POST", "/endpoints", body) for _ in range(2)),
    )
    codes = [each.status_code for each in answers]
    assert (codes.count(201), set(codes) <= {200, 201, 409}) == (1, True)
    assert sorted(codes[:2]) in ([200, 201], [409, 409])
    assert {problem(each) for each in answers if each.status_code == 409} == {(409, "too-many-endpoints")}
    assert sql.value(database.operator_url, "SELECT count(*) FROM endpoints") == 2


async def test_no_secret_is_logged(endpoint_api: EndpointApi) -> None:
    """Neither a signing secret, nor a header, nor a token, whatever the answer is."""
    headers = {"x-key": "hush-hush"}
    with capture_logs() as lines:
        made = await endpoint_api.add(headers=headers)
        path = f"/endpoints/{made['id']}"
        rotated = (await endpoint_api.send("POST", f"{path}/rotate-key")).json()
        await endpoint_api.send("POST", f"{path}/test")
        await endpoint_api.send("POST", "/endpoints", {"url": "http://10.0.0.1/?hush-hush", "headers": headers})
        await endpoint_api.send("PATCH", path, {"headers": {"host": "hush-hush"}})
    told = repr(lines)
    assert "endpoint.changed" in told
    assert "endpoints.refused" in told
    for secret in (made["secret"], rotated["secret"], "hush-hush", endpoint_api.token):
        assert secret not in told


async def test_no_request_is_a_fault_of_ours(endpoint_api: EndpointApi) -> None:
    """Any method, path, query and body, with a good token: the status is below 500."""
    made = (await endpoint_api.add())["id"]
    chance, now = random.Random(16), datetime.now(UTC).isoformat()
    values: list[Any] = [
        None, True, 0, -1, 1, 2**70, 1.5, "", "x", "\x00", "\u2028", "*", made, [], ["*"], [None], {}, {"a": 1},
        {"a.b": [1, None, "x"]}, "http://127.0.0.1:9/", "http://[::1]/", "https://xn--a/", "a" * 5000,
        "2020-01-01T00:00:00Z", ["genesis.agent.*"] * 70, {"x": "y"}, {"": ""}, "v1", "none",
    ]  # fmt: skip
    names = [*ADDED, *REDRIVEN, *SEARCHED, "overlap_seconds", "event_type", "nothing", "", "\u2028", "a/b~c"]
    statuses = set()
    for _ in range(FUZZED):
        segments = [chance.choice(["endpoints", "endpoints", "endpoints", "deliveries", "redrives", "searches"])]
        if chance.random() < 0.6:
            segments.append(chance.choice([made, made, str(uuid4()), "x", "1", "%00", "%ff"]))
            if chance.random() < 0.6:
                segments.append(chance.choice([*POSTED, "attempts", "stop", "x"]))
        query = chance.choice(["", "", "", "?limit=1", "?cursor=AAAA", "?state=active", "?event=x", "?%ff", "?from=x"])
        method = chance.choice(["GET", "POST", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"])
        body = None
        if method in ("POST", "PATCH", "DELETE") and chance.random() < 0.8:
            body = {chance.choice(names): chance.choice(values) for _ in range(chance.choice([0, 1, 2, 5]))}
            if chance.random() < 0.5:
                body |= {
                    "redrives": {"kind": "retry"}, "searches": {"endpoint": made, "from": now},
                }.get(segments[0], {"url": URL, "event_types": ["*"]})  # fmt: skip
        if chance.random() < 0.05:  # a good one between them
            method, segments, query, body = "POST", ["endpoints"], "", {"url": URL, "event_types": ["*"]}
        answer: httpx.Response = await endpoint_api.send(method, "/" + "/".join(segments) + query, body)
        assert answer.status_code < 500, (method, segments, query, body, answer.text)
        statuses.add(answer.status_code)
    assert {200, 201, 400, 404, 405, 422} <= statuses

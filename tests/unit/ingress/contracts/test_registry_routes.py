"""The registry's routes, without a process around them: refusals in Confluent's words, and what may be cached."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest_asyncio

from ingress.addresses import TrustedProxies
from ingress.admin import make_admin_app
from ingress.contracts.registry_routes import REGISTRY_TYPE
from schemas.registry import bundled

SUBJECT = "genesis.events-genesis.AgentRated"
OURS = next(version for version in bundled().versions if version.subject == SUBJECT)


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = make_admin_app(bundled(), TrustedProxies(""))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://plant") as found:
        yield found


REFUSED = [
    ("GET", "/subjects/nobody/versions", None, 404, 40401),
    ("GET", "/subjects/a%2Fb/versions", None, 404, 40401),
    ("GET", "/subjects/a%2fb%20c/versions/1", None, 404, 40401),
    ("GET", "/config/nobody", None, 404, 40401),
    ("GET", f"/subjects/{SUBJECT}/versions/99", None, 404, 40402),
    ("GET", f"/subjects/{SUBJECT}/versions/0", None, 422, 42202),
    ("GET", f"/subjects/{SUBJECT}/versions/first", None, 422, 42202),
    ("GET", f"/subjects/{SUBJECT}/versions/99999999999", None, 422, 42202),
    ("GET", "/schemas/ids/99", None, 404, 40403),
    ("GET", "/schemas/ids/x", None, 404, 40403),
    ("GET", "/schemas/ids/٣", None, 404, 40403),
    ("POST", "/subjects/nobody", {"schema": '"string"'}, 404, 40401),
    ("POST", f"/subjects/{SUBJECT}", {"schema": '"string"'}, 404, 40403),
    ("POST", f"/subjects/{SUBJECT}", {"schema": '"string"', "schemaType": "JSON"}, 404, 40403),
    ("POST", f"/subjects/{SUBJECT}", {"schema": "{broken"}, 422, 42201),
    ("POST", f"/subjects/{SUBJECT}", {"schema": "[" * 90_000}, 422, 42201),
    ("POST", f"/subjects/{SUBJECT}", {"schema": '{"doc":' * 900 + "1" + "}" * 900}, 404, 40403),
    ("POST", f"/subjects/{SUBJECT}", {}, 400, 400),
    ("POST", f"/subjects/{SUBJECT}/versions", {"schema": '"string"'}, 422, 42205),
    ("DELETE", f"/subjects/{SUBJECT}", None, 422, 42205),
    ("DELETE", f"/subjects/{SUBJECT}/versions/1", None, 422, 42205),
    ("PUT", "/config", {"compatibility": "NONE"}, 422, 42205),
    ("DELETE", f"/config/{SUBJECT}", None, 422, 42205),
    ("PUT", "/mode", {"mode": "READWRITE"}, 422, 42205),
]


async def test_what_is_not_there_is_said_in_confluents_words(client: httpx.AsyncClient) -> None:
    """Each refusal has Confluent's status, code and content type, and is cached by nobody."""
    for method, path, body, status, code in REFUSED:
        answer = await client.request(method, path, json=body)
        assert (answer.status_code, answer.json()["error_code"]) == (status, code), (method, path)
        assert answer.headers["content-type"] == REGISTRY_TYPE
        assert answer.headers["cache-control"] == "no-store"


async def test_answers_can_be_cached(client: httpx.AsyncClient) -> None:
    """A schema by id is immutable and known again by its ETag; what a release may add to is kept for a minute."""
    by_id = await client.get(f"/schemas/ids/{OURS.id}")
    assert json.loads(by_id.json()["schema"]) == OURS.schema
    assert "immutable" in by_id.headers["cache-control"]
    again = await client.get(f"/schemas/ids/{OURS.id}", headers={"if-none-match": f'"x", {by_id.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert "immutable" not in (await client.get("/subjects")).headers["cache-control"]
    for path in (f"/schemas/ids/{OURS.id}/schema", f"/subjects/{SUBJECT}/versions/latest/schema"):
        assert (await client.get(path)).json() == OURS.schema
    assert (await client.get(f"/schemas/ids/{OURS.id}/subjects")).json() == [SUBJECT]
    assert (await client.get("/subjects", params={"subjectPrefix": "plant.o"})).json() == [
        "plant.operations-plant.OperationRecorded"
    ]


async def test_a_large_lookup_is_refused(client: httpx.AsyncClient) -> None:
    """A body beyond the limit is answered 4xx."""
    answer = await client.post(f"/subjects/{SUBJECT}", content=b'{"schema": "' + b"x" * 1_000_000 + b'"}')
    assert answer.status_code in (400, 413)

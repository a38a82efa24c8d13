"""The application of the admin listener, without a network: bounds of bodies, peers that leave, short look-ups."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest

from ingress import admin
from ingress.addresses import TrustedProxies
from ingress.admin import AdminApp, make_admin_app
from ingress.contracts.registry_routes import LOOKUP_MAX_BYTES, RegistryRefusal, SubjectCatalogue
from schemas.registry import bundled
from server import metrics_route
from server.metrics_route import SharedMetrics
from tests.support.asgi_peers import Answered, peer

SUBJECT = "genesis.events-genesis.AgentRated"
LOOKUP = f"/subjects/{SUBJECT}"
STEP_MAX_SECONDS = 0.05


def application() -> AdminApp:
    return make_admin_app(bundled(), TrustedProxies(""))


def lookup_scope(address: str = "192.0.2.1", **headers: str) -> Any:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {
        "type": "http", "method": "POST", "path": LOOKUP, "raw_path": LOOKUP.encode(), "query_string": b"",
        "headers": raw, "client": (address, 1), "server": ("127.0.0.1", 1), "scheme": "http", "root_path": "",
        "http_version": "1.1", "state": {}, "extensions": {},
    }  # fmt: skip


async def test_a_peer_that_leaves_is_no_error(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A look-up whose connection closes halfway is not answered and not logged, and holds nothing."""
    app = application()
    with caplog.at_level(logging.DEBUG):
        for pieces in ((), (b'{"schema"',)):
            answered = Answered()
            await app(lookup_scope(), peer(*pieces, gone=True), answered)
            assert answered.status == 0
    assert "raceback" not in caplog.text + "".join(capsys.readouterr())
    assert app.arrivals.size_bytes == 0


async def test_bodies_that_arrive_have_one_budget() -> None:
    """However many look-ups trickle in, all hold no more than the budget; one that is whole at once is answered."""
    app, receiving = application(), [asyncio.Event() for _ in range(200)]

    async def trickle(number: int) -> None:
        parts = [{"type": "http.request", "body": b" " * 200_000, "more_body": True}]

        async def receive() -> Any:
            if parts:
                return parts.pop()
            receiving[number].set()
            return await asyncio.get_running_loop().create_future()

        await app(lookup_scope(f"198.51.100.{number}"), receive, answers[number])

    answers = [Answered() for _ in range(200)]
    tasks = [asyncio.create_task(trickle(number)) for number in range(200)]
    await asyncio.gather(*(event.wait() for event in receiving))
    assert app.arrivals.size_bytes <= admin.LOOKUPS_MAX_BYTES
    answered = Answered()
    await app(lookup_scope(), peer(json.dumps({"schema": '"string"'}).encode()), answered)
    assert (answered.status, json.loads(answered.body)["error_code"]) == (404, 40403)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [each.status for each in answers].count(503) >= 100


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_beyond_the_limit_is_413(declared: bool) -> None:
    """By its declared length, before a byte is read, or at the first byte too many."""
    answered = Answered()
    headers = {"content_length": str(LOOKUP_MAX_BYTES + 1)} if declared else {}
    await application()(lookup_scope(**headers), peer(bytes(LOOKUP_MAX_BYTES), b"x"), answered)
    assert (answered.status, answered.kind) == (413, "body-too-large")


async def test_a_webhook_at_the_admin_address_is_404() -> None:
    """The problem says where webhooks go."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application()), base_url="http://plant") as client:
        answer = await client.post("/webhook/genesis/agent-rated", content=b"{}")
    assert (answer.status_code, answer.json()["detail"]) == (404, admin.AT_INGRESS_ADDRESS)


def many(piece: str, opening: str = "[", closing: str = "]") -> str:
    return opening + ",".join([piece] * (240_000 // (len(piece) + 1))) + closing


WIDE = ["[]", "{}", "[[[]]]", "1", '""', "null", "1e5", '{"a":1}']


@pytest.mark.parametrize(
    "schema",
    [
        *map(many, WIDE),
        "[" * 120_000,
        "[" * 120_000 + "]" * 120_000,
        '{"a":' * 900 + "1" + "}" * 900,
        "{" + ",".join(f'"{number}":0' for number in range(24_000)) + "}",
        '{"doc":' + many("[]") + "}",
        json.dumps({**bundled().versions[0].schema, "doc": "x" * 200_000}),
        json.dumps({**bundled().versions[0].schema, "fields": [{}] * 60_000}),
    ],
    ids=lambda schema: schema[:12],
)
@pytest.mark.parametrize("field", ["schema", "references"])
def test_a_lookup_of_any_shape_is_short(schema: str, field: str) -> None:
    """The largest bodies, deep or wide, are compared within one step of the event loop.

    The best of three counts: a collection of all garbage of the tests before it may fall into one.
    """
    catalogue = SubjectCatalogue(bundled())
    body = json.dumps({"schema": schema}).encode()
    if field == "references":
        body = b'{"schema":"1","references":%b}' % schema.encode()
    seconds = []
    for _ in range(3):
        started = time.thread_time()
        with contextlib.suppress(RegistryRefusal):
            catalogue.find(bundled().versions[0].subject, body)
        seconds.append(time.thread_time() - started)
    assert min(seconds) < STEP_MAX_SECONDS


async def test_waiting_requests_for_metrics_share_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred at once cost two texts; an error is that of one request, and the next makes its own."""
    texts = 0

    def count() -> bytes:
        nonlocal texts
        texts += 1
        if texts == 1:
            raise ZeroDivisionError
        return generate_latest()

    monkeypatch.setattr(metrics_route, "generate_latest", count)
    metrics = SharedMetrics()
    outcomes = await asyncio.gather(*(metrics.make() for _ in range(100)), return_exceptions=True)
    assert sum(isinstance(each, ZeroDivisionError) for each in outcomes) == 1
    assert texts <= 3
    assert all(b"plant_ingress" in each for each in outcomes if isinstance(each, bytes))

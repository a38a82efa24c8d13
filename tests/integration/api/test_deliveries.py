"""Deliveries and their attempts over HTTP: by endpoint, event, state, time and reason, in pages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from deliveries.state.recorder import AttemptRecorder
from deliveries.state.retention import DeliveryRetention
from schemas.delivery_records import ATTEMPTS_TOPIC, DeliveryAttempted
from tests.conftest import Database
from tests.support.endpoint_api import EndpointApi
from tests.support.made_attempts import BEGAN_AT, WATERMARKS, attempt_batch, attempted
from tests.support.reading import problem


def record(database: Database, *records: DeliveryAttempted) -> None:
    recorder = AttemptRecorder(database.deliverer_url, ATTEMPTS_TOPIC, 1, DeliveryRetention(30))
    acquired = recorder.acquire(WATERMARKS)
    recorder.project(attempt_batch(records, token=acquired.token, start=acquired.log_end.next_offset, partition=1))
    recorder.close()


async def pages_of(endpoint_api: EndpointApi, path: str) -> list[dict[str, object]]:
    """All rows of a listing, page by page."""
    rows: list[dict[str, object]] = []
    cursor = ""
    while True:
        answer = await endpoint_api.send("GET", path + cursor)
        assert answer.status_code == 200, answer.text
        rows += answer.json()["items"]
        if answer.json()["next"] is None:
            return rows
        cursor = f"&cursor={answer.json()['next']}"


@pytest.mark.parametrize("limit", [1, 2, 500])
async def test_deliveries_are_found(endpoint_api: EndpointApi, database: Database, limit: int) -> None:
    """Those of the newest events first; filters hold together, whatever the size of a page."""
    mine, other = [UUID((await endpoint_api.add())["id"]) for _ in range(2)]
    failed = {"outcome": "failed", "state": "dead", "status_code": 503, "attempt": 6, "hop": 5}
    record(
        database, attempted(1, endpoint_id=mine), attempted(2, endpoint_id=mine, type="genesis.skill.validated"),
        attempted(3, endpoint_id=mine, **failed), attempted(2, endpoint_id=other),
    )  # fmt: skip
    day = (BEGAN_AT + timedelta(seconds=2)).isoformat().replace("+00:00", "Z")
    for query, found in (
        ("", [3, 2, 2, 1]),
        (f"&endpoint={mine}", [3, 2, 1]),
        (f"&event={UUID(int=2)}", [2, 2]),
        (f"&event={UUID(int=2)}&endpoint={mine}", [2]),
        ("&state=dead", [3]),
        ("&state=waiting", []),
        ("&type=genesis.skill.validated", [2]),
        ("&reason=503", [3]),
        ("&reason=timeout", []),
        (f"&from={day}", [3, 2, 2]),
        (f"&to={day}", [1]),
    ):
        rows = await pages_of(endpoint_api, f"/deliveries?limit={limit}{query}")
        assert [row["source_offset"] for row in rows] == found, query
    for query in ("reason=12", "reason=x", "state=x", "from=x", "endpoint=x", "event=1"):
        assert problem(await endpoint_api.send("GET", f"/deliveries?{query}")) == (400, "parameter")
    unknown = await endpoint_api.send("GET", f"/deliveries?endpoint={uuid4()}")
    assert problem(unknown) == (404, "no-endpoint")


async def test_a_delivery_has_its_attempts(endpoint_api: EndpointApi, database: Database) -> None:
    """Oldest first, in pages, with what was sent and what came back; another delivery's cursor is refused."""
    mine = UUID((await endpoint_api.add())["id"])
    first = attempted(
        1, endpoint_id=mine, outcome="failed", state="waiting", status_code=None, error_class="timeout",
        why="No whole answer came in time.", next_attempt_at=BEGAN_AT + timedelta(minutes=1), answer=b"\xff\x00",
    )  # fmt: skip
    second = attempted(1, endpoint_id=mine, attempt=2, hop=1, attempted_at=first.attempted_at + timedelta(seconds=1))
    record(database, first, second, attempted(2, endpoint_id=mine))
    path = f"/deliveries/{first.delivery_id}"
    delivery = (await endpoint_api.send("GET", path)).json()
    assert (delivery["state"], delivery["attempts"], delivery["endpoint_id"]) == ("delivered", 2, str(mine))
    rows = await pages_of(endpoint_api, f"{path}/attempts?limit=1")
    assert [(row["attempt"], row["outcome"], row["error_class"]) for row in rows] == [
        (1, "failed", "timeout"),
        (2, "delivered", None),
    ]
    assert (rows[0]["answer"], rows[1]["request"]) == ("\ufffd\x00", '{"type":"genesis.agent.rated"}')
    cursor = (await endpoint_api.send("GET", f"{path}/attempts?limit=1")).json()["next"]
    elsewhere = attempted(2, endpoint_id=mine).delivery_id
    refused = await endpoint_api.send("GET", f"/deliveries/{elsewhere}/attempts?cursor={cursor}")
    assert problem(refused) == (400, "cursor")
    for missing in (f"/deliveries/{uuid4()}", f"/deliveries/{uuid4()}/attempts"):
        assert problem(await endpoint_api.send("GET", missing)) == (404, "no-delivery")


@pytest.mark.parametrize("limit", [1, 2, 4, 500])
async def test_a_page_goes_on_to_older_deliveries(endpoint_api: EndpointApi, database: Database, limit: int) -> None:
    """It is looked for in the last minute first, then in an hour, a day and so on, until it is full."""
    mine = UUID((await endpoint_api.add())["id"])
    now = datetime.now(UTC)
    ages = [timedelta(seconds=10), timedelta(minutes=9), timedelta(hours=7), timedelta(days=3), timedelta(days=20)]
    made = [
        attempted(number, endpoint_id=mine, occurred_at=now - age, attempted_at=now)
        for number, age in enumerate([*ages, timedelta(days=60), timedelta(days=900)], 1)
    ]
    record(database, *made)
    found = await pages_of(endpoint_api, f"/deliveries?limit={limit}")
    assert [each["event_id"] for each in found] == [str(each.event_id) for each in made]

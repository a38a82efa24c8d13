"""What operators ask for is read by an index, in each table of a day."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg
import pytest

from deliveries.state.delivery_rows import DeliveryCursor, DeliveryFilter, narrowings, page_statement
from devstack import sql
from tests.conftest import Database
from tests.support import log_rows
from tests.support.services import Services

ROWS: Final = 20_000
ENDPOINTS: Final = tuple(UUID(int=number) for number in range(1, 51))
NOW: Final = datetime.now(UTC).replace(hour=3, minute=0, second=0, microsecond=0)
"""So that two days have many deliveries each, whenever the test runs: a table of a few is read as a whole."""
FILL: Final = f"""
INSERT INTO webhook_deliveries (occurred_at, id, endpoint_id, event_id, type, entity_id, source_partition,
    source_offset, source_rank, stream, state, state_at, attempts, hop, token, why, status_code)
SELECT '{NOW.isoformat()}'::timestamptz - make_interval(secs => n), md5('d' || n)::uuid,
    lpad(to_hex(1 + n % {len(ENDPOINTS)}), 32, '0')::uuid, md5('e' || n)::uuid, 'genesis.agent.rated', md5('n')::uuid,
    0, n, 0, 'live',
    CASE WHEN n % 100 = 0 THEN 'dead' ELSE 'delivered' END, now(), 1, 0, 1, '', 200
FROM generate_series(1, {ROWS}) AS n
"""
ADD_ENDPOINTS = """
INSERT INTO endpoints (id, governance_agent_id, url, event_types, payload_form, ordering, after_dead_letter,
    retry_schedule, timeout_seconds, start_offsets)
SELECT id, 'genesis', 'https://example.com/', '{*}', 'standard', 'none', 'proceed', 'short', 15, '{0}'
FROM (SELECT DISTINCT endpoint_id AS id FROM webhook_deliveries) AS e
"""


@pytest.fixture(scope="module")
def filled(stack: Services, template_database: str) -> Iterator[Database]:
    """Tables of days with many deliveries, and none among the others."""
    with log_rows.migrated_database(stack, template_database) as made:
        sql.value(made.deliverer_url, "SELECT add_delivery_days(1)")
        sql.execute(made.owner_url, [FILL, ADD_ENDPOINTS, "ANALYZE webhook_deliveries", "ANALYZE endpoints"])
        yield made


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        (DeliveryFilter(), "occurred_at"),
        (DeliveryFilter(since=NOW - timedelta(hours=1)), "occurred_at"),
        (DeliveryFilter(endpoint_id=ENDPOINTS[3]), "endpoint_id_occurred_at"),
        (DeliveryFilter(state="dead"), "state_occurred_at"),
        (DeliveryFilter(state="waiting", since=NOW - timedelta(hours=1)), "state_occurred_at"),
        (DeliveryFilter(event_id=UUID(int=5)), "pkey"),
    ],
    ids=["all", "since", "endpoint", "dead", "waiting since", "event"],
)
@pytest.mark.parametrize(
    "after", [None, DeliveryCursor(NOW - timedelta(minutes=30), UUID(int=5))], ids=["first", "next"]
)
@pytest.mark.parametrize("tenant", [None, "genesis"], ids=["operator", "tenant"])
def test_a_page_is_read_by_an_index(
    filled: Database, asked: DeliveryFilter, index: str, after: DeliveryCursor | None, tenant: str | None
) -> None:
    """No table of a day is read as a whole, and the index is the one that was made for the question.

    So it is through the view with a barrier that a tenant's deliveries are read by.
    """
    deliveries = "webhook_deliveries" if tenant is None else "tenant_deliveries"
    if tenant is not None:
        asked = narrowings(asked, after, NOW)[0]
    statement, values = page_statement(asked, ENDPOINTS, after, deliveries)
    nodes = [
        each for each in scans(plan(filled, statement, values, tenant)) if each.get("Relation Name") != "endpoints"
    ]
    assert [node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan" and node["Plan Rows"] > 1] == []
    assert any(name.endswith(f"_{index}_idx") or name.endswith(f"_{index}") for name in map(index_of, nodes))


def plan(database: Database, statement: str, values: dict[str, Any], tenant: str | None = None) -> dict[str, Any]:
    """Explain a statement with its values, as asyncpg gets them from SQLAlchemy."""
    names = list(dict.fromkeys(re.findall(r"(?<!:):(\w+)", statement)))
    numbered = re.sub(r"(?<!:):(\w+)", lambda match: f"${names.index(match[1]) + 1}", statement)

    async def explain(connection: asyncpg.Connection[Any]) -> str:
        await connection.execute("SELECT set_config('plant.governance_agent_id', $1, false)", tenant or "")
        return str(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {numbered}", *(values[name] for name in names)))

    (found,) = json.loads(sql.run_on(database.operator_url if tenant is None else database.endpoints_url, explain))
    return dict(found["Plan"])


def scans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "Scan" in node["Node Type"]:
        yield node
    for below in node.get("Plans", ()):
        yield from scans(below)


def index_of(node: dict[str, Any]) -> str:
    return str(node.get("Index Name", ""))

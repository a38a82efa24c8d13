"""A topic of deliveries that lost records stops its partition by name, and goes on as the runbook says."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from aiohttp import web
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from deliveries.deliverer.delivery_process import DeliveryTopics
from deliveries.deliverer.wait_rows import WaitRow, wait_statements
from devstack import sql
from projections.session import Session
from runtime.settings import Settings
from schemas.delivery_records import DeliveryQueued
from streams import ownership
from streams.topics import RETRY_TOPICS
from tests.conftest import Database
from tests.support import ROOT
from tests.support.delivering import add_endpoint, delivering, publish, queued
from tests.support.receivers import Receiver, receiver
from tests.support.waiting import wait_until_async

STOPPED = "SELECT stop_reason FROM delivery_owners WHERE consumer = 'deliverer' AND stop_reason IS NOT NULL"
WAITING = "SELECT partition FROM delivery_waits WHERE record IS NULL"
AGE = "UPDATE delivery_waits SET due_at = now() - interval '11 minutes' WHERE record IS NULL"


def runbook_statements(topic: str, partition: int) -> list[str]:
    """Return what the runbook has operators do, for a topic's partition."""
    page = (ROOT / "docs" / "runbooks" / "deliveries.md").read_text("utf-8")
    section = page.partition("### Begin a topic of deliveries again")[2]
    blocks = re.findall(r"```sql\n(.*?)```", section, re.DOTALL)
    return [
        each.replace(RETRY_TOPICS[0], topic).replace("partition = 0", f"partition = {partition}") for each in blocks
    ]


async def delete_records(settings: Settings, topic: str, partition: int, before: int) -> None:
    """Delete the first records of a topic's partition, as retention does."""
    client = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await client.start()
    try:
        await client.delete_records({TopicPartition(topic, partition): RecordsToDelete(before_offset=before)})
    finally:
        await client.close()


@asynccontextmanager
async def giving_up_the_first(
    local: Settings, topics: DeliveryTopics, database: Database, there: Receiver, deliveries: Sequence[DeliveryQueued]
) -> AsyncIterator[int]:
    """Let the first of some deliveries fail and lose its retry; give it up as the runbook says while a deliverer runs.

    Yields how many requests had been made.
    """
    url, waits_for_retry = database.superuser_url, f"{WAITING} AND delivery_id = '{deliveries[0].delivery_id}'"
    there.answer = lambda: web.Response(status=500)  # type: ignore[assignment]
    await publish(local, topics.deliveries, deliveries)
    async with delivering(local, topics):
        await wait_until_async(lambda: len(there.requests) >= 1, "it is attempted")

        async def waits() -> bool:
            waiting = sql.value(url, "SELECT count(*) FROM webhook_deliveries WHERE state = 'waiting'")
            return sql.value(url, waits_for_retry) is not None and waiting == len(deliveries)

        await wait_until_async(waits, "it waits in a retry topic, and the others behind it")
    partition = sql.value(url, WAITING)
    retry = topics.retries[len(there.requests) - 1]
    await delete_records(local, retry, partition, 1)
    checkpoint, lost = runbook_statements(retry, partition)
    async with delivering(local, topics):

        async def stopped() -> bool:
            reason = str(sql.value(url, STOPPED))
            return reason.startswith("CheckpointOutOfLog") and retry in reason

        await wait_until_async(stopped, "its topic is stopped")
        sql.execute(database.owner_url, [checkpoint])

        async def goes_on() -> bool:
            return sql.value(url, STOPPED) is None

        await wait_until_async(goes_on, "its topic goes on")
        there.answer, made = web.Response, len(there.requests)
        sql.execute(url, [AGE])
        sql.execute(database.owner_url, [lost])
        state = f"SELECT state FROM webhook_deliveries WHERE id = '{deliveries[0].delivery_id}'"
        assert (sql.value(url, state), sql.value(url, WAITING)) == ("cancelled", None)
        yield made


@pytest.fixture(autouse=True)
def looks_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition that is stopped is looked at again soon."""
    monkeypatch.setattr(ownership, "STOPPED_DELAYS_SECONDS", (0.2,))


async def test_a_retry_that_was_deleted_is_given_up_and_others_go_on(
    local: Settings, topics: DeliveryTopics, database: Database
) -> None:
    """The partition is stopped until its topic is begun again; the lost delivery can be ordered then."""
    async with receiver() as there:
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        async with giving_up_the_first(local, topics, database, there, [queued(endpoint_id, 0)]) as made:
            answers = iter([500])
            there.answer = lambda: web.Response(status=next(answers, 204))  # type: ignore[assignment]
            await publish(local, topics.deliveries, [queued(endpoint_id, 1)])
            await wait_until_async(lambda: len(there.requests) == made + 2, "others are sent, and sent again")


async def test_what_waits_behind_a_retry_that_is_given_up_goes_on(
    local: Settings, topics: DeliveryTopics, database: Database
) -> None:
    """Once the deliverer is started again: in its order, and although no other event of its entity comes."""
    async with receiver() as there:
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/", ordering="per_entity")
        entity = uuid4()
        first, *behind = [queued(endpoint_id, offset, entity_id=entity) for offset in range(3)]
        async with giving_up_the_first(local, topics, database, there, [first, *behind]) as made:
            pass
        async with delivering(local, topics):

            def sent() -> list[str]:
                return [headers["webhook-id"] for _, _, headers, _ in there.requests]

            await wait_until_async(lambda: len(sent()) == made + 2, "those behind it are sent")
    assert sent()[made:] == [str(each.delivery_id) for each in behind]


def test_giving_up_releases_the_next_of_each_entity_alone(local: Settings, database: Database) -> None:
    """None overtakes a dead letter that others wait for, and what waits behind other retries goes on waiting."""
    old, later = (datetime.now(UTC) + timedelta(minutes=minutes) for minutes in (-11, 11))
    lost, dead, topic = (old, None), (None, None), (later, None)
    behind = (None, b"its record")
    waiting = [[lost, behind, behind], [lost, dead, behind], [topic, behind], [lost, lost, behind], [lost]]
    session = Session(local.database_address("deliverer"))
    try:
        for entity, kinds in enumerate(waiting):
            rows = [
                WaitRow(
                    delivery_id=bytes([entity, 9 - offset]) + bytes(14), endpoint_id=bytes(16), hop=1, due_at=due_at,
                    record=record, entity_id=bytes([entity] * 16), source_partition=0, source_offset=offset,
                    source_rank=0,
                )
                for offset, (due_at, record) in enumerate(kinds)
            ]  # fmt: skip
            session.script(*wait_statements(0, rows, ()))
    finally:
        session.close()
    sql.execute(database.owner_url, [runbook_statements(RETRY_TOPICS[0], 0)[1]])
    left = "SELECT string_agg(left(entity_id::text, 2) || source_offset, ' ' ORDER BY entity_id, source_offset)"
    of_due = f"{left} FROM delivery_waits WHERE due_at <= now()"
    assert sql.value(database.superuser_url, f"{left} FROM delivery_waits") == "001 002 011 012 020 021 032"
    assert sql.value(database.superuser_url, of_due) == "001 032"

"""A topic of deliveries that lost records stops its partition by name, and goes on as the runbook says."""

from __future__ import annotations

import re

import pytest
from aiohttp import web
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from deliveries.deliverer.delivery_process import DeliveryTopics
from devstack import sql
from runtime.settings import Settings
from streams import ownership
from streams.topics import RETRY_TOPICS
from tests.conftest import Database
from tests.support import ROOT
from tests.support.delivering import add_endpoint, delivering, publish, queued
from tests.support.receivers import receiver
from tests.support.waiting import wait_until_async

STOPPED = "SELECT stop_reason FROM delivery_owners WHERE consumer = 'deliverer' AND stop_reason IS NOT NULL"
WAITING = "SELECT partition FROM delivery_waits WHERE record IS NULL"
STATE = "SELECT state FROM webhook_deliveries"
AGE = "UPDATE delivery_waits SET due_at = now() - interval '11 minutes'"


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


async def test_a_retry_that_was_deleted_is_given_up_and_others_go_on(
    local: Settings, topics: DeliveryTopics, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partition is stopped until its topic is begun again; the lost delivery can be ordered then."""
    url = database.superuser_url
    monkeypatch.setattr(ownership, "STOPPED_DELAYS_SECONDS", (0.2,))
    async with receiver() as there:
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        there.answer = lambda: web.Response(status=500)  # type: ignore[assignment]
        await publish(local, topics.deliveries, [queued(endpoint_id, 0)])
        async with delivering(local, topics):
            await wait_until_async(lambda: len(there.requests) >= 1, "it is attempted")

            async def waits() -> bool:
                return sql.value(url, WAITING) is not None and sql.value(url, STATE) == "waiting"

            await wait_until_async(waits, "it waits in a retry topic")
        made = len(there.requests)
        partition = sql.value(url, WAITING)
        retry = topics.retries[made - 1]
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
            sql.execute(url, [AGE])
            sql.execute(database.owner_url, [lost])
            assert (sql.value(url, STATE), sql.value(url, WAITING)) == ("cancelled", None)
            answers = iter([500])
            there.answer = lambda: web.Response(status=next(answers, 204))  # type: ignore[assignment]
            await publish(local, topics.deliveries, [queued(endpoint_id, 1)])
            await wait_until_async(lambda: len(there.requests) == made + 2, "others are sent, and sent again")

"""What waits behind a dead letter of its entity, and how it goes on."""

from __future__ import annotations

from uuid import uuid4

import msgspec
from aiohttp import web

from database.connector import connect
from deliveries.deliverer.delivery_process import DeliveryTopics
from deliveries.delivery_progress import BlockedEntity, DeliveryPartition, delivery_partitions, endpoint_progress
from deliveries.hops import first_hop
from devstack import sql
from runtime.settings import Settings
from tests.conftest import Database
from tests.support.delivering import add_endpoint, delivering, publish, queued
from tests.support.receivers import receiver
from tests.support.waiting import wait_until_async


async def test_a_redrive_of_the_dead_letter_lets_its_entity_go_on(
    local: Settings, topics: DeliveryTopics, database: Database
) -> None:
    """In the order of its events; other entities never waited."""
    async with receiver() as there:
        url = f"http://127.0.0.1:{there.port}/"
        endpoint_id = await add_endpoint(local, url, ordering="per_entity", after_dead_letter="block")
        entity = uuid4()
        first, *later = [queued(endpoint_id, offset, entity_id=entity, attempt=6, hop=0) for offset in range(1, 4)]
        answers = iter([500])
        there.answer = lambda: web.Response(status=next(answers, 204))  # type: ignore[assignment]
        await publish(local, topics.deliveries, [first, *later, other := queued(endpoint_id, 4)])
        async with delivering(local, topics):
            await wait_until_async(lambda: len(there.requests) == 2, "one is dead and another entity's is delivered")
            waits = "SELECT count(*) FROM delivery_waits"
            await wait_until_async(lambda: sql.value(database.superuser_url, waits) == 3, "the others wait")
        operator = connect(local, "operator")

        async def partition_that_waits() -> DeliveryPartition:
            (found,) = [each for each in (await delivery_partitions(operator))[0] if each.waiting]
            return found

        async def is_left() -> bool:
            return not (await partition_that_waits()).connected

        try:
            await wait_until_async(is_left, "the server has ended the session of the one that stopped")
            progress, partition = await endpoint_progress(operator, endpoint_id), await partition_that_waits()
        finally:
            await operator.close()
        blocked = BlockedEntity(entity_id=entity, delivery_id=first.delivery_id, behind=2)
        assert (progress.blocked, progress.waiting, progress.next_at) == ((blocked,), 2, None)
        assert (partition.consumer, partition.waiting, partition.due, partition.blocking) == ("deliverer", 3, 0, 1)
        again = msgspec.structs.replace(first, stream="redrive", hop=first_hop(1), attempt=1)
        async with delivering(local, topics):
            await publish(local, topics.deliveries, [again])
            await wait_until_async(lambda: len(there.requests) == 5, "all are delivered")
            await wait_until_async(lambda: sql.value(database.superuser_url, waits) == 0, "nothing waits")
    sent = [headers["webhook-id"] for _, _, headers, _ in there.requests]
    assert sent[2:] == [str(each.delivery_id) for each in (first, *later)]
    assert sorted(sent[:2]) == sorted([str(first.delivery_id), str(other.delivery_id)])

"""What is redriven is sent once for each redrive, whatever its delivery has been through."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Final
from uuid import UUID

import msgspec
from aiohttp import web

from deliveries.deliverer.delivery_process import DeliveryTopics
from deliveries.hops import first_hop
from devstack import sql
from runtime.settings import Settings
from schemas.delivery_records import DeliveryQueued
from tests.conftest import Database
from tests.support.delivering import add_endpoint, attempts_of, delivering, publish, queued
from tests.support.receivers import Receiver, receiver
from tests.support.waiting import wait_until_async

READ_TO: Final = "SELECT max(next_offset) FROM delivery_checkpoints WHERE topic LIKE 'genesis.deliveries-%'"
WAITING: Final = "SELECT count(*) FROM delivery_waits"


def redriven(records: Iterable[DeliveryQueued], number: int) -> list[DeliveryQueued]:
    """Return the records of a redrive of deliveries, in the order of their events."""
    in_order = sorted(records, key=lambda each: (each.source_offset, each.source_rank, each.endpoint_id.bytes))
    return [msgspec.structs.replace(each, stream="redrive", hop=first_hop(number)) for each in in_order]


def requests_of(there: Receiver) -> Counter[str]:
    """Return how often each delivery was sent."""
    return Counter(headers["webhook-id"] for _, _, headers, _ in there.requests)


async def value(database: Database, query: str) -> int | None:
    """Return a number that is asked for."""
    found: int | None = await asyncio.to_thread(sql.value, database.superuser_url, query)
    return found


async def test_each_redrive_is_sent_once(local: Settings, topics: DeliveryTopics, database: Database) -> None:
    """Copies of a redrive's records are known, in the same process and in the next; another redrive is no copy."""
    async with receiver() as there:
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        records = [queued(endpoint_id, offset) for offset in range(20)]
        first, second = redriven(records, 1), redriven(records[:10], 2)
        await publish(local, topics.deliveries, records)
        async with delivering(local, topics):
            await wait_until_async(lambda: len(there.requests) >= 20, "all are sent")

            async def are_written() -> bool:
                return await value(database, READ_TO) == 20

            await wait_until_async(are_written, "what came of them is written down")
            await publish(local, topics.deliveries, [*first, *first[:7], *records[3:9]])
            await wait_until_async(lambda: len(there.requests) >= 40, "all are sent twice")
        await publish(local, topics.deliveries, [*first, *second, *records, *second[5:]])
        async with delivering(local, topics):
            await wait_until_async(lambda: len(there.requests) >= 50, "the second redrive is sent")
            last = queued(endpoint_id, 100)
            await publish(local, topics.deliveries, [*second, last])
            await wait_until_async(lambda: str(last.delivery_id) in requests_of(there), "what follows is sent")
    ids = {str(each.delivery_id): 3 if each in records[:10] else 2 for each in records}
    assert requests_of(there) == {**ids, str(last.delivery_id): 1}


async def test_a_delivery_that_waits_keeps_its_one_chain(
    local: Settings, topics: DeliveryTopics, database: Database
) -> None:
    """What is redriven while it waits, in a retry topic or under way, is attempted six times and not twelve."""
    async with receiver() as there:
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        there.answer = lambda: web.Response(status=500)  # type: ignore[assignment]
        record = queued(endpoint_id, 1)
        await publish(local, topics.deliveries, [record, *redriven([record], 1)])
        async with delivering(local, topics):
            await wait_until_async(lambda: len(there.requests) >= 2, "it is sent again")
        await publish(local, topics.deliveries, redriven([record], 2))
        async with delivering(local, topics):

            async def is_dead() -> bool:
                return any(each.state == "dead" for each in await attempts_of(local, topics))

            await wait_until_async(is_dead, "it is dead")
            there.answer = lambda: web.Response(status=204)  # type: ignore[assignment]
            await publish(local, topics.deliveries, redriven([record], 3))

            async def is_delivered() -> bool:
                return any(each.state == "delivered" for each in await attempts_of(local, topics))

            await wait_until_async(is_delivered, "it is delivered")
    attempts = await attempts_of(local, topics)
    assert [each.attempt for each in attempts] == [1, 2, 3, 4, 5, 6, 1]
    assert [each.hop for each in attempts] == [0, 1, 2, 3, 4, 5, first_hop(3)]
    assert await value(database, WAITING) == 0


async def test_a_redriven_dead_letter_lets_its_entity_go_on(
    local: Settings, topics: DeliveryTopics, database: Database
) -> None:
    """Where later events wait for a dead letter, its redrive comes first, and then they do, in the order of the log."""
    entity = UUID(int=7)
    async with receiver() as there:
        endpoint_id = await add_endpoint(
            local, f"http://127.0.0.1:{there.port}/", ordering="per_entity", after_dead_letter="block"
        )
        there.answer = lambda: web.Response(status=500)  # type: ignore[assignment]
        records = [queued(endpoint_id, offset, entity_id=entity) for offset in range(4)]
        await publish(local, topics.deliveries, records)
        async with delivering(local, topics):

            async def is_dead() -> bool:
                return any(each.state == "dead" for each in await attempts_of(local, topics))

            await wait_until_async(is_dead, "the first one is dead")
            there.answer = lambda: web.Response(status=204)  # type: ignore[assignment]
            there.requests.clear()
            await publish(local, topics.deliveries, redriven(records[:1], 1))
            await wait_until_async(lambda: len(there.requests) >= 4, "all are sent")

            async def none_waits() -> bool:
                return await value(database, WAITING) == 0

            await wait_until_async(none_waits, "no row is left")
    sent = [headers["webhook-id"] for _, _, headers, _ in there.requests]
    assert sent == [str(each.delivery_id) for each in records]


async def test_redriven_events_of_an_entity_keep_the_order_of_the_log(local: Settings, topics: DeliveryTopics) -> None:
    """The first one fails at first, and those behind it wait."""
    entity = UUID(int=7)
    async with receiver() as there:
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/", ordering="per_entity")
        records = [queued(endpoint_id, offset, entity_id=entity) for offset in range(6)]
        answers = iter([503, 503])
        there.answer = lambda: web.Response(status=next(answers, 204))  # type: ignore[assignment]
        await publish(local, topics.deliveries, redriven(records, 1))
        async with delivering(local, topics):
            await wait_until_async(lambda: len(there.requests) >= 8, "all are sent")
    sent = [headers["webhook-id"] for _, _, headers, _ in there.requests]
    expected = [str(each.delivery_id) for each in records]
    assert sent == [expected[0], expected[0], *expected]

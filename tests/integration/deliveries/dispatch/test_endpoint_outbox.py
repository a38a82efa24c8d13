"""The rows of what changed about endpoints: who is told of them, in which order, and how long they stay."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from deliveries.dispatch import changed_endpoints
from deliveries.dispatch.delivery_sender import DeliverySender, EndOffsets
from deliveries.dispatch.endpoint_outbox import EndpointOutbox
from deliveries.dispatch.queued_deliveries import DeliveryRecord
from devstack import sql
from runtime.settings import Settings
from schemas import codec
from schemas.delivery_records import DeliveryQueued
from streams.errors import KafkaUnavailable
from tests.conftest import Database, MakeTopic
from tests.support.dispatching import add_endpoint, change_endpoint

PATTERN = ("plant.endpoint.*",)
POSITIONS = "SELECT string_agg(coalesce(position::text, '-'), ' ' ORDER BY id) FROM endpoint_events"
MARKED = "SELECT count(*) FROM endpoint_events WHERE sent_at IS NOT NULL"


class Taken:
    """A sender that takes deliveries, or refuses them."""

    def __init__(self) -> None:
        self.records: list[DeliveryRecord] = []
        self.away = False

    def send(self, records: Sequence[DeliveryRecord]) -> Future[EndOffsets]:
        answer: Future[EndOffsets] = Future()
        if self.away:
            answer.set_exception(KafkaUnavailable(why="a test"))
        else:
            self.records += records
            answer.set_result({})
        return answer

    @property
    def told(self) -> list[tuple[int, int, str]]:
        """Who was told, the number of the row, and the type."""
        queued = [cast(DeliveryQueued, codec.decode_record(each.value)) for each in self.records]
        return [
            (each.endpoint_id.int, each.source_offset, each.type.removeprefix("plant.endpoint.")) for each in queued
        ]


@pytest.fixture
def taken() -> Taken:
    return Taken()


@pytest_asyncio.fixture
async def outbox(settings: Settings, make_topic: MakeTopic, taken: Taken) -> AsyncIterator[EndpointOutbox]:
    """One that publishes page by page, when a test says so."""
    topic = await make_topic(1, family="plant.endpoints")
    made = EndpointOutbox(settings, cast(DeliverySender, taken), topic)
    await made._producer.start()
    yield made
    await made._producer.stop()


@pytest_asyncio.fixture
async def writer(database: Database) -> AsyncIterator[Any]:
    """A session as a dispatcher has it."""
    connection = await asyncpg.connect(database.writer_url)
    yield connection
    await connection.close()


async def test_who_takes_nothing_now_is_not_told(
    settings: Settings, database: Database, outbox: EndpointOutbox, writer: Any, taken: Taken
) -> None:
    """Nor who asks for something that can't be read, nor who came later; the others are, in their order."""
    subject = await add_endpoint(settings, 1)
    for number in (2, 3, 4):
        await add_endpoint(settings, number, event_types=PATTERN)
    sql.execute(database.superuser_url, [
        "ALTER TABLE endpoints DISABLE TRIGGER keep_rows",
        f"UPDATE endpoints SET event_types = '{{plant.endpoint.*,no}}' WHERE id = '{UUID(int=3)}'",
    ])  # fmt: skip
    await change_endpoint(settings, subject, "pause")
    await change_endpoint(settings, subject, "resume")
    sql.execute(database.superuser_url, [f"UPDATE endpoints SET state = 'paused' WHERE id = '{UUID(int=4)}'"])
    await add_endpoint(settings, 5, event_types=PATTERN)
    assert not await outbox.publish_page(writer)
    assert taken.told == [(2, 0, "paused"), (2, 1, "resumed"), (2, 2, "paused")]


async def test_what_kafka_did_not_take_is_published_again_under_its_number(
    settings: Settings, database: Database, outbox: EndpointOutbox, writer: Any, taken: Taken
) -> None:
    """It is marked once Kafka has all of it, and who gets it stays as it was written down with the number."""
    subject = await add_endpoint(settings, 1)
    await add_endpoint(settings, 2, event_types=PATTERN)
    await change_endpoint(settings, subject, "pause")
    taken.away = True
    with pytest.raises(KafkaUnavailable):
        await outbox.publish_page(writer)
    assert (sql.value(database.superuser_url, POSITIONS), sql.value(database.superuser_url, MARKED)) == ("0", 0)
    await change_endpoint(settings, subject, "resume")
    taken.away = False
    assert not await outbox.publish_page(writer)
    assert taken.told == [(2, 0, "paused"), (2, 1, "resumed")]
    assert (sql.value(database.superuser_url, POSITIONS), sql.value(database.superuser_url, MARKED)) == ("0 1", 2)


async def test_a_row_is_numbered_once(settings: Settings, database: Database, writer: Any) -> None:
    """By two processes at once too: the second finds that it has its number, or that another row has it."""
    subject = await add_endpoint(settings, 1)
    await change_endpoint(settings, subject, "pause")
    row = sql.value(database.superuser_url, "SELECT id FROM endpoint_events")
    assert await writer.fetchval(changed_endpoints.NUMBER, row, []) == 0
    assert await writer.fetchval(changed_endpoints.NUMBER, row, [UUID(int=9)]) is None
    assert sql.value(database.superuser_url, "SELECT subscribers::text FROM endpoint_events") == "{}"


async def test_rows_go_when_their_records_have_gone_from_the_topic(
    settings: Settings, database: Database, writer: Any
) -> None:
    """Never one that was not sent, nor the last number, which the next one is above."""
    subject = await add_endpoint(settings, 1)
    for _ in range(3):
        await change_endpoint(settings, subject, "pause")
        await change_endpoint(settings, subject, "resume")
    ages = {0: 31, 1: 29, 2: None, 4: 31}
    sql.execute(database.superuser_url, [
        "UPDATE endpoint_events AS e SET position = n, subscribers = '{}' FROM"
        " (SELECT id, row_number() OVER (ORDER BY id) - 1 AS n FROM endpoint_events) AS r WHERE r.id = e.id AND n < 5",
        *(f"UPDATE endpoint_events SET sent_at = now() - interval '{days} days' WHERE position = {position}"
          for position, days in ages.items() if days is not None),
    ])  # fmt: skip
    await writer.execute(changed_endpoints.PURGE, 30)
    assert sql.value(database.superuser_url, POSITIONS) == "1 2 3 4 -"

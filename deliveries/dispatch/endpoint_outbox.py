"""Publishes what changed about endpoints: each on a topic of its own, and as deliveries to those who ask for it.

One dispatcher does, by a lock of its session in Postgres; the others stand by. In order of their numbers, again and
again until Kafka has acknowledged them:

    number the rows that have none, and write down who gets each
    publish their events, and then their deliveries
    mark them as sent

**Nothing is lost.** The row is there exactly if the change is, and is marked once Kafka has all that follows from it.

**Copies are told.** An event's id is the row's. A delivery's copy is known by its order (`source_marks.py`): rows have
numbers that ascend, who gets each never changes, and nobody sends a number before those below it were acknowledged or
were sent again before it. So that holds for a process that was frozen and goes on next to its successor, too: it
publishes the same records, in the same order.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from deliveries.dispatch import changed_endpoints
from deliveries.dispatch.changed_endpoints import SOURCE, EndpointEventRow, records_of_rows, row_of, subscribers_of
from deliveries.dispatch.delivery_sender import SLICE_BYTES_MAX, SLICE_RECORDS_MAX, DeliverySender, slices
from deliveries.dispatch.endpoint_directory import CHANNEL
from deliveries.dispatch.kept_session import KeptSession, stand_by
from runtime import metrics
from runtime.logging import get_logger
from runtime.settings import Settings
from schemas import codec
from schemas.endpoint_events import ENDPOINT_EVENTS_TOPIC
from schemas.sender_headers import sender_headers
from streams.errors import StreamsError
from streams.producer import EventProducer, Limits

log = get_logger(__name__)

PRODUCER_NAME: Final = "plant.dispatcher"
PAGE_ROWS: Final = 200
POLL_SECONDS: Final = 1.0
KEEP_DAYS: Final = 30
"""As long as the topic keeps its records."""
PURGE_SECONDS: Final = 3600.0
PUBLISH_TIMEOUT_SECONDS: Final = 15.0

LOCK_NAME: Final = "plant.endpoint_events"


class EndpointOutbox:
    """The outbox of one process. Make it on the event loop that it runs on."""

    def __init__(
        self,
        settings: Settings,
        sender: DeliverySender,
        topic: str = ENDPOINT_EVENTS_TOPIC,
        *,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """`topic` is where the events go; deliveries go where the sender sends them."""
        self._sender = sender
        self._topic = topic
        self._poll_seconds = poll_seconds
        # One of its own: while the topic is missing, deliveries of all other events go on.
        limits = Limits(publish_timeout_seconds=PUBLISH_TIMEOUT_SECONDS)
        self._producer = EventProducer(settings, topics=(topic,), limits=limits)
        self._hinted = asyncio.Event()
        self._purge_at = 0.0
        self._session = KeptSession(settings, self._publish_all, "endpoint_events.not_published")

    def start(self) -> None:
        """Publish until :meth:`stop`, whenever Postgres, Kafka and the topic are there."""
        self._producer.start_in_background()
        self._session.start()

    async def stop(self) -> None:
        """Publish no more. What was not marked is published again by whoever is next."""
        await self._session.stop()
        await self._producer.stop()

    async def _publish_all(self, connection: Any) -> None:
        connection.add_termination_listener(lambda _: self._hinted.set())
        await stand_by(connection, LOCK_NAME, self._poll_seconds)
        await connection.add_listener(CHANNEL, lambda *_: self._hinted.set())
        while True:
            self._hinted.clear()
            more = await self.publish_page(connection)
            self._session.note_success()
            if not more:
                await self._purge(connection)
                await self._wait()

    async def publish_page(self, connection: Any) -> bool:
        """Publish the next rows and mark them; return whether there may be more. Raises StreamsError."""
        found = [row_of(each) for each in await connection.fetch(changed_endpoints.UNSENT, PAGE_ROWS)]
        if not found:
            return False
        rows = sorted(await self._numbered(connection, found), key=lambda row: row.position or 0)
        await self._publish_events(rows)
        for part in slices(records_of_rows(rows), SLICE_RECORDS_MAX, SLICE_BYTES_MAX):
            await asyncio.wrap_future(self._sender.send(part))
            metrics.DISPATCHER_DELIVERIES.labels("endpoints").inc(len(part))
        await connection.execute(changed_endpoints.MARK_SENT, [row.id for row in rows])
        metrics.DISPATCHER_ENDPOINT_EVENTS.inc(len(rows))
        for row in rows:
            log.info(
                "endpoint.changed", type=row.event.event_type, endpoint=str(row.event.endpoint_id),
                event_id=str(row.event.event_id), position=row.position, deliveries=len(row.subscribers),
            )  # fmt: skip
        return len(found) == PAGE_ROWS

    async def _numbered(self, connection: Any, rows: Sequence[EndpointEventRow]) -> list[EndpointEventRow]:
        """Return rows with a number and those who get them, which are committed before anything is published."""
        numbered = [row for row in rows if row.position is not None]
        if len(numbered) == len(rows):
            return numbered
        async with connection.transaction():
            asking = list(changed_endpoints.asking_endpoints(await connection.fetch(changed_endpoints.ASKING)))
            for row in rows:
                if row.position is None:
                    who = subscribers_of(row.event, asking)
                    position = await connection.fetchval(changed_endpoints.NUMBER, row.id, who)
                    numbered.append(msgspec.structs.replace(row, position=position, subscribers=tuple(who)))
        return numbered

    async def _publish_events(self, rows: Sequence[EndpointEventRow]) -> None:
        """Publish the events of rows, an endpoint's one after the other."""
        self._producer.check_connected()
        left = list(rows)
        while left:
            first = {row.event.endpoint_id: row for row in reversed(left)}
            publishes = [
                self._producer.submit_record(
                    self._topic, codec.key(row.event), codec.encode(row.event),
                    codec.headers(row.event, SOURCE, sender=sender_headers(PRODUCER_NAME)),
                )
                for row in first.values()
            ]  # fmt: skip
            for outcome in await self._producer.await_each(publishes):
                if isinstance(outcome, StreamsError):
                    raise outcome
            sent = {row.id for row in first.values()}
            left = [row for row in left if row.id not in sent]

    async def _purge(self, connection: Any) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._purge_at:
            self._purge_at = now + PURGE_SECONDS
            await connection.execute(changed_endpoints.PURGE, KEEP_DAYS)

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._poll_seconds):
                await self._hinted.wait()

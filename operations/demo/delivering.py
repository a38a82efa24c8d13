"""An event delivered to a subscriber that fails at first: its attempts, one retry topic after the other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from aiohttp import web

from database.connector import Database
from deliveries.state.delivery_rows import DeliveryFilter, DeliveryRows, RecordedAttempt, RecordedDelivery
from operations.demo.errors import DemoFailed, NotAsPromised
from operations.demo.services import DemoServices
from signing.hmac_secrets import decode_secret
from signing.signatures import HmacKey, Verified, verify_signature

FAILURES: Final = 2
"""Requests that the subscriber answers with 500 before it recovers."""
STATUS_CODES: Final = (500,) * FAILURES + (204,)
WAIT_TIMEOUT_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.1


class DemoAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt: how long after the first one, what came back, and what follows."""

    attempt: int
    after_seconds: float
    status_code: int | None
    outcome: str
    next_after_seconds: float | None
    """Until the next attempt was due, from this one's begin; None: there is none."""


class DeliveryPart(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery, and the requests that the subscriber got for it: one id, and a signature each."""

    event_type: str
    delivery_id: UUID
    state: str
    attempts: list[DemoAttempt]
    requests: int
    signatures_verified: int


class FailingSubscriber:
    """A server of its own thread that answers 500 at first. It keeps ids of requests, and whose signature is right."""

    def __init__(self) -> None:
        self.port = 0
        self.secret: bytes | None = None
        self.ids: list[str] = []
        self.verified = 0

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Answer a request by its number."""
        body = await request.read()
        self.ids.append(request.headers["webhook-id"])
        self.verified += self._is_verified(request, body)
        return web.Response(status=STATUS_CODES[min(len(self.ids), len(STATUS_CODES)) - 1])

    def _is_verified(self, request: web.BaseRequest, body: bytes) -> bool:
        assert self.secret is not None
        names = ("webhook-id", "webhook-timestamp", "webhook-signature")
        message_id, timestamp, signatures = (request.headers[name].encode() for name in names)
        key = HmacKey(id="demo", owner="demo", secret=self.secret)
        return isinstance(verify_signature([key], message_id, timestamp, signatures, body, time.time()), Verified)


@contextlib.contextmanager
def failing_subscriber() -> Iterator[FailingSubscriber]:
    """Serve on any port of the loopback interface until the block ends."""
    subscriber, loop = FailingSubscriber(), asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        runner = web.ServerRunner(web.Server(subscriber.handle))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        subscriber.port = runner.addresses[0][1]
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="subscriber", daemon=True)
    thread.start()
    ready.wait()
    try:
        yield subscriber
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@contextlib.contextmanager
def subscription(own: DemoServices, subscriber: FailingSubscriber, event_type: str) -> Iterator[UUID]:
    """Yield an endpoint of the subscriber, which is removed when the block ends."""
    recorded = ("--actor", "demo", "--reason", "The demo delivers an event.")
    url = f"http://127.0.0.1:{subscriber.port}/hooks"
    added: dict[str, Any] = msgspec.json.decode(
        own.call("endpoints", "add", url, "--event-type", event_type, "--output", "json", *recorded)
    )
    subscriber.secret = decode_secret(added["secret"])
    try:
        yield UUID(added["id"])
    finally:
        own.call("endpoints", "remove", added["id"], "--execute", *recorded)


async def wait_for_delivery(
    database: Database, alive: Callable[[], None], endpoint_id: UUID
) -> tuple[RecordedDelivery, list[RecordedAttempt]]:
    """Return the one delivery of an endpoint once it has ended, with its attempts. Raises DemoFailed."""
    rows, deadline = DeliveryRows(database), time.monotonic() + WAIT_TIMEOUT_SECONDS
    while True:
        alive()
        for found in await rows.page(DeliveryFilter(endpoint_id=endpoint_id)):
            if found.state != "waiting":
                return found, await rows.attempts(found)
        if time.monotonic() > deadline:
            raise DemoFailed(
                "The event was not delivered in time.",
                why=f"It took longer than {WAIT_TIMEOUT_SECONDS:.0f} s.",
                next_step=f"plant deliveries list --endpoint {endpoint_id}",
            )
        await asyncio.sleep(POLL_SECONDS)


def delivery_part(
    delivery: RecordedDelivery, attempts: list[RecordedAttempt], subscriber: FailingSubscriber
) -> DeliveryPart:
    """Return what is shown of a delivery. Raises NotAsPromised."""
    first_at = attempts[0].attempted_at if attempts else delivery.state_at
    part = DeliveryPart(
        event_type=delivery.type,
        delivery_id=delivery.id,
        state=delivery.state,
        attempts=[_shown(each, first_at) for each in attempts],
        requests=len(subscriber.ids),
        signatures_verified=subscriber.verified,
    )
    codes = tuple(each.status_code for each in part.attempts)
    as_promised = (
        part.state == "delivered"
        and codes == STATUS_CODES
        and subscriber.ids == [str(part.delivery_id)] * len(STATUS_CODES)
        and part.signatures_verified == part.requests
    )
    if not as_promised:
        raise NotAsPromised(
            "The event was not delivered as promised.",
            why=f"It is {part.state}; answers {codes}, {part.signatures_verified} of {part.requests} verified.",
            next_step=f"plant deliveries show {part.delivery_id}",
        )
    return part


def _shown(attempt: RecordedAttempt, first_at: datetime) -> DemoAttempt:
    due = None if attempt.next_attempt_at is None else attempt.next_attempt_at - attempt.attempted_at
    return DemoAttempt(
        attempt=attempt.attempt,
        after_seconds=round((attempt.attempted_at - first_at).total_seconds(), 3),
        status_code=attempt.status_code,
        outcome=attempt.outcome,
        next_after_seconds=None if due is None else round(due.total_seconds(), 3),
    )

"""A webhook's way from request to Kafka's acknowledgement: the one path every event from outside takes."""

from __future__ import annotations

import asyncio
import logging
import time
from hashlib import sha256
from typing import Final

import structlog
from litestar.types import Receive, Scope, Send
from prometheus_client import Counter

from ingress.headers import RequestHeaders, read_headers
from ingress.keys import Keyring
from ingress.limits import BodyReader, PeerGone, drain
from ingress.log_budget import LogBudget
from ingress.payloads import Incoming, read_cloud_event, read_webhook, valid_traceparent
from ingress.problems import CLOSE, Problem, retry_after
from ingress.repeats import IdReused, Window
from ingress.verification import Key, Rejected, explain, verify
from runtime import metrics
from runtime.clock import Clock
from runtime.settings import Settings
from schemas.errors import Unencodable
from streams.errors import KafkaUnavailable, Overloaded, RecordTooLarge, StreamsError
from streams.position import Position
from streams.producer import EventProducer

log = structlog.get_logger(__name__)

CLOUD_EVENTS_ROUTE: Final = "/webhook/genesis/events"
UNAVAILABLE_RETRY_SECONDS: Final = 5
_DEBUG, _WARNING = logging.DEBUG, logging.WARNING
_JSON: Final = (b"content-type", b"application/json")


class Intake:
    """Takes webhooks in. One a process; holds no request's state between requests but the window of repeats."""

    def __init__(self, settings: Settings, keyring: Keyring, producer: EventProducer, clock: Clock) -> None:
        self._keyring = keyring
        self._producer = producer
        self._clock = clock
        self._source = settings.ingress_source
        self._bodies = BodyReader(settings.ingress_body_max_bytes)
        self._window: Window[Position] = Window()
        self._log_budget = LogBudget()
        self._counters: dict[tuple[str, int], Counter] = {}
        self._log_accepted = settings.log_level == "debug"

    async def __call__(self, scope: Scope, receive: Receive, send: Send, route: str, event_type: str | None) -> None:
        """Answer one request. `event_type` None: the type is said by the CloudEvent in the body."""
        started = time.perf_counter()
        try:
            event_id, position = await self._take_in(scope, receive, event_type)
        except PeerGone:
            return
        except Problem as problem:
            await self._refuse(problem, route, receive, send, started)
            return
        except Exception as error:
            log.exception("webhook.failed", route=route, error=type(error).__name__)
            await self._refuse(Problem("unexpected"), route, receive, send, started)
            return
        body = b'{"event_id":"%b","topic":"%b","partition":%d,"offset":%d}' % (
            event_id.encode(),
            position.topic.encode(),
            position.partition,
            position.offset,
        )
        await _answer(send, 200, [_JSON, (b"content-length", b"%d" % len(body))], body)
        self._count(route, 200, started)
        if self._log_accepted:
            log.debug(
                "webhook.accepted",
                route=route,
                event_id=event_id,
                position=str(position),
                duration_ms=_milliseconds_since(started),
            )

    async def _take_in(self, scope: Scope, receive: Receive, event_type: str | None) -> tuple[str, Position]:
        if scope["method"] != "POST":  # type: ignore[typeddict-item]  # a websocket scope has none, and no route here
            raise Problem("method", headers=((b"allow", b"POST"), CLOSE))
        headers = read_headers(scope["headers"], cloud_event=event_type is None)
        body = await self._bodies.read(receive, headers.content_length)
        key = self._verified(headers, body)
        if event_type is None:
            incoming = read_cloud_event(body, key.producer)
        else:
            message_id = headers.message_id.decode("ascii")
            incoming = read_webhook(body, event_type, key.producer, message_id, self._source)
        outcome = self._submit(incoming, headers, sha256(body).digest(), event_type)
        try:
            position = await self._producer.settle(outcome)
        except StreamsError as error:
            raise _unavailable(error) from error
        return str(incoming.event.event_id), position

    def _verified(self, headers: RequestHeaders, body: bytes) -> Key:
        if not self._keyring.loaded:
            raise Problem("starting", "The signing keys are not loaded yet.", headers=(retry_after(1),))
        verdict = verify(
            self._keyring.keys,
            headers.message_id,
            headers.timestamp,
            headers.signatures,
            body,
            self._clock.now().timestamp(),
        )
        if isinstance(verdict, Rejected):
            metrics.INGRESS_SIGNATURES_REJECTED.labels(reason=verdict.reason).inc()
            raise Problem("signature", reason=explain(verdict.reason))
        return verdict.key

    def _submit(
        self, incoming: Incoming, headers: RequestHeaders, body_digest: bytes, event_type: str | None
    ) -> asyncio.Future[Position]:
        """The event's publish: a new one, or that of the same message before."""
        event_id, digest = incoming.event.event_id.bytes, body_digest + (event_type or "").encode()
        now_seconds = self._clock.monotonic_seconds()
        try:
            seen = self._window.claim(event_id, digest, now_seconds)
        except IdReused:
            metrics.INGRESS_REPEATS.labels(outcome="refused").inc()
            raise Problem("id-reused", "An id names one message for ever; a changed message needs a new id.") from None
        if seen is not None:
            metrics.INGRESS_REPEATS.labels(outcome="answered" if seen.done() else "joined").inc()
            return seen
        traceparent = incoming.traceparent or valid_traceparent(headers.traceparent)
        try:
            outcome = self._producer.submit(incoming.event, source=incoming.source, traceparent=traceparent)
        except Unencodable as error:
            raise Problem("event", error.reason) from error
        except StreamsError as error:
            raise _unavailable(error) from error
        self._window.hold(event_id, digest, outcome, now_seconds)
        return outcome

    async def _refuse(self, problem: Problem, route: str, receive: Receive, send: Send, started: float) -> None:
        closing = CLOSE in problem.headers
        await _answer(send, problem.status, problem.header_list(), problem.body(), more=closing)
        if closing:
            await drain(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        self._count(route, problem.status, started)
        level = _level(problem)
        left_out = self._log_budget.take(self._clock.monotonic_seconds()) if level > _DEBUG else 0
        if left_out is None:
            return
        log.log(
            level,
            "webhook.refused",
            route=route,
            status=problem.status,
            problem=problem.kind,
            reason=problem.reason,
            left_out=left_out,
            duration_ms=_milliseconds_since(started),
        )

    def _count(self, route: str, status: int, started: float) -> None:
        counter = self._counters.get((route, status))
        if counter is None:
            counter = self._counters[route, status] = metrics.INGRESS_REQUESTS.labels(route=route, status=status)
        counter.inc()
        metrics.INGRESS_REQUEST_SECONDS.observe(time.perf_counter() - started)

    def forget_old_repeats(self) -> None:
        """Free what the window no longer needs; called now and then."""
        self._window.forget_old(self._clock.monotonic_seconds())


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes, more: bool = False) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _unavailable(error: StreamsError) -> Problem:
    if isinstance(error, RecordTooLarge):
        return Problem("body-too-large", error.why)
    kind = "overloaded" if isinstance(error, Overloaded) else "kafka-unavailable"
    seconds = error.retry_after_seconds if isinstance(error, KafkaUnavailable) else UNAVAILABLE_RETRY_SECONDS
    return Problem(
        kind,
        "Send it again with the same id: it is stored once.",
        headers=(retry_after(seconds),),
        reason=f"{type(error).__name__}: {error}",
    )


def _level(problem: Problem) -> int:
    """Warning for what an operator should see, debug for what a sender can do any time."""
    return _WARNING if problem.status >= 500 or problem.status == 401 else _DEBUG


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)

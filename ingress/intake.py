"""The intake of webhooks, from request to answer: the one path of every event from outside."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from litestar.types import Message, Receive, Scope, Send
from prometheus_client import Counter

from ingress.addresses import TrustedProxies
from ingress.arrivals import Arrivals, BodyReader
from ingress.batches import answer_of, await_results, read_items, submit_each, unpaid
from ingress.bulk import PRODUCER_MISSING, BulkIntake
from ingress.bulk_load import CurrentPolicy
from ingress.headers import RequestHeaders, read_request_headers, require_one_reading
from ingress.keys import Keyring
from ingress.limits import BODIES_MAX_BYTES, Admission
from ingress.payloads import Incoming, read_binary, read_cloud_event, read_webhook, valid_traceparent
from ingress.producers import ProducerPolicy
from ingress.publishing import HttpAnswer, IngressPublisher, accepted
from ingress.refusals import Origin, Refusals
from ingress.verification import NAME_PRODUCER, THREAD_MIN_BYTES, Verification
from runtime import metrics
from runtime.clock import Clock
from runtime.log_budget import LogBudget
from runtime.logging import get_logger
from runtime.settings import Settings
from server.bodies import PeerGone, answer_problem
from server.peers import peer_of
from server.problems import CLOSE, Problem, retry_after
from signing.signatures import Key, SignatureRejected, Verified, explain
from streams.producer import EventProducer

log = get_logger(__name__)

CLOUD_EVENTS_ROUTE: Final = "/webhook/genesis/events"
_NO_BINARY_MODE: Final = (
    "This producer may not send binary CloudEvents, since no signature covers their ce- headers. Send"
    " application/cloudevents+json, or ask an operator for `plant producers set NAME --binary-mode`."
)
_JSON: Final = (b"content-type", b"application/json")


class Intake:
    """Receiver of webhooks. One a process; between requests only its publisher keeps state."""

    def __init__(self, settings: Settings, keyring: Keyring, producer: EventProducer, clock: Clock) -> None:
        self._keyring = keyring
        self._publisher = IngressPublisher(producer, clock)
        self._clock = clock
        self._source = settings.ingress_source
        self._verification = Verification(keyring)
        self._proxies = TrustedProxies(settings.ingress_trusted_proxies)
        body_bytes, batch_bytes = settings.ingress_body_max_bytes, settings.ingress_batch_max_bytes
        self._admission = Admission(settings.ingress_requests_max, max(BODIES_MAX_BYTES, 4 * batch_bytes))
        self._arrivals, self._batch_arrivals = Arrivals(body_bytes), Arrivals(batch_bytes)
        self._bodies = BodyReader(body_bytes, self._arrivals)
        self._batches = BodyReader(batch_bytes, self._batch_arrivals)
        self._bulk = BulkIntake(
            self._publisher,
            clock,
            body_max_bytes=settings.ingress_stream_max_bytes,
            line_max_bytes=settings.ingress_body_max_bytes,
            streams_max=settings.ingress_streams_max,
            load_timeout_seconds=settings.ingress_stream_timeout_seconds,
        )
        self._event_max_bytes = settings.ingress_body_max_bytes
        self._refusals = Refusals(clock, keyring.knows)
        self._counters: dict[tuple[str, int], Counter] = {}
        self._log_every = 1 if settings.log_level == "debug" else settings.ingress_log_every
        self._accepted_log_budget = LogBudget()
        self._accepted_until_logged = 1  # the first one is logged
        self._accepted_left_out = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send, route: str, event_type: str | None) -> None:
        """Answer one request. `event_type` None: each CloudEvent names its own."""
        started = time.perf_counter()
        state = _RequestState()
        try:
            status = await self._receive(scope, receive, send, route, event_type, state)
        except PeerGone:
            return
        except Exception as error:
            if isinstance(error, Problem) and not state.answering:
                await self._refuse(error, route, state, receive, send, started)
                return
            self._refusals.unexpected(error, state.origin(route))
            if state.answering:
                self._break_off(scope, route, started)
            else:
                await self._refuse(Problem("unexpected"), route, state, receive, send, started)
            return
        finally:
            if state.entered:
                self._admission.leave(state.body_bytes, batch=state.batch)
        self._count(route, status, started)
        self._log_accepted(route, status, state, started)

    def stop(self) -> None:
        """End bulk loads at their next chunk."""
        self._bulk.stopping = True

    async def _receive(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        route: str,
        event_type: str | None,
        state: _RequestState,
    ) -> int:
        if scope["method"] != "POST":  # type: ignore[typeddict-item]  # a websocket scope has none, and no route here
            raise Problem("method", headers=((b"allow", b"POST"), CLOSE))
        headers = read_request_headers(scope["headers"], cloud_event=event_type is None)
        state.message_id, state.producer = headers.message_id.decode("ascii"), headers.producer or ""
        if headers.mode == "lines":
            return await self._receive_load(scope, headers, receive, send, route, state)
        if headers.mode == "batch" and headers.producer is None:
            raise Problem("malformed-headers", PRODUCER_MISSING, headers=(CLOSE,))
        body, policy = await self._read_signed(scope, headers, receive)
        state.producer, state.verified = policy.name, True
        state.batch, state.body_bytes = headers.mode == "batch", len(body)
        self._publisher.check(policy)
        self._admission.enter(len(body), batch=state.batch)
        state.entered = True
        if headers.mode == "batch":
            answer = await self._publish_batch(headers, body, policy, state.origin(route))
        else:
            answer = await self._publish_one(self._read(headers, body, policy, event_type), headers, policy)
        response_headers = [_JSON, (b"content-length", b"%d" % len(answer.body)), *answer.headers]
        peer = peer_of(scope)
        if peer is None or not peer.answer(scope, answer.status, response_headers, answer.body):
            await _answer(send, answer.status, response_headers, answer.body)
        return answer.status

    async def _receive_load(
        self,
        scope: Scope,
        headers: RequestHeaders,
        receive: Receive,
        send: Send,
        route: str,
        state: _RequestState,
    ) -> int:
        def verify(headers: RequestHeaders, body: bytes) -> CurrentPolicy:
            current_policy = self._load_signer(headers, body)
            state.verified = True
            return current_policy

        def refused(lines: Sequence[tuple[int, Problem]]) -> None:
            self._refusals.events(lines, state.origin(route))

        async def sending(message: Message) -> None:
            state.answering = True
            await send(message)

        self._refuse_unread(headers)
        return await self._bulk(headers, receive, sending, verify, refused, self._proxies.address_of(scope))

    async def _read_signed(
        self, scope: Scope, headers: RequestHeaders, receive: Receive
    ) -> tuple[bytes, ProducerPolicy]:
        """Return the body, and the policy of the producer that signed it.

        A body that is not there yet costs memory while it arrives. So what can be refused without it is refused before,
        and its bytes count among those that nobody has signed until its signature was checked.
        """
        reader, arrivals = self._bodies, self._arrivals
        if headers.mode == "batch":
            reader, arrivals = self._batches, self._batch_arrivals
        reader.require_length(headers.content_length)
        peer = peer_of(scope)
        body = None if peer is None else peer.take_body(scope)
        if body is not None:
            reader.require_size(body)
        if body is not None and len(body) <= THREAD_MIN_BYTES:
            policy = await self._signer(headers, body)
        else:  # it waits for its end, or for a thread that hashes it
            self._refuse_unread(headers)
            arrival = arrivals.begin(self._proxies.address_of(scope))
            try:
                if body is None:
                    body = await reader.read(receive, arrival)
                else:
                    arrivals.add(arrival, len(body))
                    arrivals.whole(arrival)
                policy = await self._signer(headers, body)
            finally:
                arrivals.end(arrival)
        if peer is not None and not peer.proved:
            peer.prove()
        return body, policy

    def _refuse_unread(self, headers: RequestHeaders) -> None:
        """Raise Problem (401, 503) where no body could make the headers acceptable."""
        self._require_keys()
        rejected = self._keyring.refuse_unread(headers.timestamp, headers.signatures, headers.producer)
        if rejected is not None:
            raise _not_accepted(rejected)

    async def _signer(self, headers: RequestHeaders, body: bytes) -> ProducerPolicy:
        """Return the policy of the producer that signed.

        Raises Problem: starting or overloaded (503), signature (401), malformed-body (400).
        """
        self._require_keys()
        return self._keyring.policy_of(_key_of(await self._verification.verify(headers, body), body, headers))

    def _load_signer(self, headers: RequestHeaders, body: bytes) -> CurrentPolicy:
        """Return the policy of a bulk load's producer, as of each time that it is called. Call it in a thread.

        Raises as `_signer`. The policy raises Problem where the key was revoked or has expired (401), or the producer
        was disabled (403).
        """
        self._require_keys()
        key = _key_of(self._verification.verify_now(headers, body), body, headers)

        def current_policy() -> ProducerPolicy:
            if not self._keyring.is_usable(key):
                raise Problem("signature", "The key was revoked or has expired.")
            policy = self._keyring.policy_of(key)
            self._publisher.require_enabled(policy)
            return policy

        return current_policy

    def _require_keys(self) -> None:
        if not self._keyring.loaded:
            raise Problem("starting", "The signing keys are not loaded yet.", headers=(retry_after(1),))

    def _read(self, headers: RequestHeaders, body: bytes, policy: ProducerPolicy, event_type: str | None) -> Incoming:
        if event_type is not None:
            return read_webhook(body, event_type, policy.name, headers.message_id.decode("ascii"), self._source)
        if headers.attributes is not None:
            if not policy.binary_mode:
                raise Problem("forbidden", _NO_BINARY_MODE)
            return read_binary(body, headers.attributes, policy.name)
        return read_cloud_event(body, policy.name)

    async def _publish_one(self, incoming: Incoming, headers: RequestHeaders, policy: ProducerPolicy) -> HttpAnswer:
        position = await self._publisher.publish(incoming, policy, valid_traceparent(headers.traceparent))
        return HttpAnswer(200, accepted(incoming.event.event_id, position))

    async def _publish_batch(
        self, headers: RequestHeaders, body: bytes, policy: ProducerPolicy, origin: Origin
    ) -> HttpAnswer:
        items = read_items(body)
        self._publisher.consume(policy, len(items))
        submitted = await submit_each(
            self._publisher, items, policy, headers.traceparent, item_max_bytes=self._event_max_bytes
        )
        results = await await_results(self._publisher, submitted)
        self._publisher.restore(policy, unpaid(results))
        self._refusals.events(
            [(index, result.problem) for index, result in enumerate(results) if result.problem is not None], origin
        )
        return answer_of(results)

    async def _refuse(
        self, problem: Problem, route: str, state: _RequestState, receive: Receive, send: Send, started: float
    ) -> None:
        await answer_problem(problem, receive, send)
        self._count(route, problem.status, started)
        self._refusals.request(problem, state.origin(route), _milliseconds_since(started))

    def _break_off(self, scope: Scope, route: str, started: float) -> None:
        """End an answer that has begun and can't go on: a second one would be read as a part of it."""
        peer = peer_of(scope)
        if peer is not None:
            peer.break_off()
        self._count(route, 500, started)

    def _log_accepted(self, route: str, status: int, state: _RequestState, started: float) -> None:
        """Log one in so many webhooks, if the budget allows it, with the number of those left out before it."""
        if not self._log_every:
            return
        self._accepted_until_logged -= 1
        if self._accepted_until_logged > 0 or not self._may_log_accepted():
            self._accepted_left_out += 1
            return
        self._accepted_until_logged = self._log_every
        left_out, self._accepted_left_out = self._accepted_left_out, 0
        log.info(
            "webhook.accepted",
            route=route,
            status=status,
            producer=state.producer,
            body_bytes=state.body_bytes,
            left_out=left_out,
            duration_ms=_milliseconds_since(started),
        )

    def _may_log_accepted(self) -> bool:
        """Return whether the budget has a line left; every webhook is logged where that is wanted."""
        if self._log_every == 1:
            return True
        return self._accepted_log_budget.consume(self._clock.monotonic_seconds()) is not None

    def _count(self, route: str, status: int, started: float) -> None:
        counter = self._counters.get((route, status))
        if counter is None:
            counter = self._counters[route, status] = metrics.INGRESS_REQUESTS.labels(route=route, status=status)
        counter.inc()
        metrics.INGRESS_REQUEST_SECONDS.observe(time.perf_counter() - started)

    def evict_expired(self) -> bool:
        """Drop entries of the deduplication cache that are past their age; return whether some are left."""
        return self._publisher.evict_expired()

    def update_gauges(self) -> None:
        """Set the gauges of the requests that arrive or are under way."""
        arriving = (self._arrivals, self._batch_arrivals)
        metrics.INGRESS_REQUESTS_IN_FLIGHT.set(self._admission.requests + sum(map(len, arriving)))
        body_bytes = sum(each.body_bytes for each in arriving)
        metrics.INGRESS_BODY_BYTES_HELD.set(self._admission.size_bytes + body_bytes)


class _RequestState:
    """The state of one request: what it has reserved of the admission, and who signed it."""

    __slots__ = ("answering", "batch", "body_bytes", "entered", "message_id", "producer", "verified")

    def __init__(self) -> None:
        self.answering = False
        self.entered = False
        self.batch = False
        self.body_bytes = 0
        self.message_id = ""
        self.producer = ""
        self.verified = False

    def origin(self, route: str) -> Origin:
        """Return where the request comes from, as far as it is known."""
        return Origin(route, self.message_id, self.producer, self.verified)


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _key_of(verdict: Verified | SignatureRejected, body: bytes, headers: RequestHeaders) -> Key:
    """Return the key that signed. Raises Problem: signature (401), malformed-body (400)."""
    if isinstance(verdict, SignatureRejected):
        raise _not_accepted(verdict)
    require_one_reading(body, gzipped=headers.gzipped)
    return verdict.key


def _not_accepted(rejected: SignatureRejected) -> Problem:
    metrics.INGRESS_SIGNATURES_REJECTED.labels(reason=rejected.reason).inc()
    detail = NAME_PRODUCER if rejected.reason == "too_many_tries" else ""
    return Problem("signature", detail, reason=explain(rejected.reason))


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)

"""The intake without Kafka and Postgres: what a request reserves, releases, counts and logs, however it ends."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import structlog
from litestar.types import HTTPScope, Receive
from prometheus_client import REGISTRY

from database.connector import connect
from ingress import intake as intake_module
from ingress.bulk import PRODUCER_MISSING
from ingress.headers import read_request_headers
from ingress.intake import Intake, _milliseconds_since, _not_accepted
from ingress.keys import Keyring, KeyStore
from ingress.limits import BODIES_MAX_BYTES
from ingress.producers import default_policy
from ingress.publishing import HttpAnswer, accepted
from ingress.verification import NAME_PRODUCER, THREAD_MIN_BYTES
from runtime.clock import FixedClock
from runtime.settings import Settings
from server.peers import keep_peer
from server.problems import CLOSE, Problem, retry_after
from signing.master_key import MasterKeys
from signing.signatures import HmacKey, SignatureRejected, explain
from streams.producer import EventProducer
from streams.record_position import RecordPosition
from streams.topics import EVENTS_TOPIC
from tests.support.asgi_peers import Answered, peer, post_scope
from tests.support.waiting import DEADLINE_SECONDS
from tests.support.webhooks import CLOUD_EVENTS, RATED, Sender, rated

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
SECRET = bytes(range(32))
SENDER = Sender(SECRET)


def intake_of(loaded: bool = True, **changes: Any) -> Intake:
    """An intake that knows one key, on a producer and a database that are not there."""
    settings = Settings(
        kafka_bootstrap_servers="127.0.0.1:1",
        database_url="postgresql://plant_ingress:x@127.0.0.1:1/plant",
        master_key=base64.b64encode(bytes(32)).decode(),
        **changes,
    )
    clock = FixedClock(NOW)
    keyring = Keyring(KeyStore(connect(settings, "ingress"), MasterKeys(settings)), clock, default_policy(settings))
    keyring.keys, keyring.loaded = [HmacKey(id="k", owner="genesis", secret=SECRET)], loaded
    return Intake(settings, keyring, EventProducer(settings, topics=(EVENTS_TOPIC,)), clock)


async def post(intake: Intake, body: bytes, receive: Receive | None = None) -> Answered:
    """Send a signed rating to the intake."""
    answered = Answered()
    headers = SENDER.headers(body, timestamp=int(NOW.timestamp()))
    await intake(post_scope(headers), receive or peer(body), answered, RATED, "genesis.agent.rated")
    return answered


def gauges(intake: Intake) -> tuple[float | None, float | None]:
    """Requests in flight, and bytes of their bodies."""
    intake.update_gauges()
    names = ("plant_ingress_requests_in_flight", "plant_ingress_held_body_bytes")
    requests, body_bytes = (REGISTRY.get_sample_value(name) for name in names)
    return requests, body_bytes


@pytest.mark.parametrize("loaded", [True, False])
async def test_an_answered_request_releases_its_body(loaded: bool) -> None:
    """Many times the memory of all bodies together passes through, and each is answered as the first one was."""
    intake = intake_of(loaded)
    body = b'["' + b"x" * 256_000 + b'"]'
    for _ in range(600):
        assert (await post(intake, body)).kind == ("event" if loaded else "starting")
    assert gauges(intake) == (0, 0)


async def test_a_peer_that_closes_halfway_leaves_nothing_reserved() -> None:
    """While its body arrives it is counted; when the connection is closed nothing is, and no answer was sent."""
    intake = intake_of()
    arriving = asyncio.create_task(post(intake, b"", peer(b"x" * 500, b"x" * 500, endless=True)))
    await asyncio.sleep(0)
    assert gauges(intake) == (1, 1_000)
    arriving.cancel()
    await asyncio.gather(arriving, return_exceptions=True)
    assert gauges(intake) == (0, 0)
    for _ in range(10):
        assert (await post(intake, b"", peer(b"x" * 500, gone=True))).status == 0
    assert gauges(intake) == (0, 0)


async def test_refused_requests_leave_the_count_of_those_under_way() -> None:
    """With room for one, a thousand that are refused one after another keep none from the next."""
    intake = intake_of(ingress_requests_max=1)
    wrong = {"content-type": "application/json"}
    for _ in range(1_000):
        answered = Answered()
        await intake(post_scope(wrong), peer(b""), answered, RATED, "genesis.agent.rated")
        assert answered.status == 400
    assert (await post(intake, b"{}")).status == 422


async def test_a_request_beyond_the_bound_is_not_counted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is refused for the bound on requests frees no place: the bound holds for those that follow."""
    intake = intake_of(ingress_requests_max=1)
    acknowledged = asyncio.Event()

    async def wait(*_: object) -> HttpAnswer:
        await acknowledged.wait()
        return HttpAnswer(200, b"{}")

    monkeypatch.setattr(intake, "_publish_one", wait)
    first = asyncio.create_task(post(intake, rated()))
    await asyncio.sleep(0)
    assert [(await post(intake, rated())).kind for _ in range(3)] == ["overloaded"] * 3
    assert gauges(intake)[0] == 1
    acknowledged.set()
    assert ((await first).status, gauges(intake)) == (200, (0, 0))
    assert (await post(intake, rated())).status == 200


def stranger_scope(kind: str, **changes: str) -> HTTPScope:
    """The head of a request of the right form, signed by nobody we know."""
    headers = Sender(bytes(32)).headers(b"", timestamp=int(NOW.timestamp()), content_type=kind)
    return post_scope({**headers, "plant-producer": "genesis", **changes})


async def attacked(intake: Intake, scopes: list[HTTPScope], route: str, *pieces: bytes) -> list[asyncio.Task[None]]:
    """Strangers whose bodies stall after these pieces."""
    event_type = None if route == CLOUD_EVENTS else "genesis.agent.rated"
    answers = [Answered() for _ in scopes]
    tasks = [
        asyncio.create_task(intake(scope, peer(*pieces, endless=True), answered, route, event_type))
        for scope, answered in zip(scopes, answers, strict=True)
    ]
    for _ in range(4 + len(pieces)):
        await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize(
    ("route", "kind", "pieces", "count"),
    [
        (CLOUD_EVENTS, "application/cloudevents-batch+json", [bytes(1024 * 1024)] * 2, 64),
        (RATED, "application/json", [bytes(128 * 1024), bytes(100 * 1024)], 400),
        (RATED, "application/json", [], 4_000),
        (CLOUD_EVENTS, "application/x-ndjson", [], 4_000),
    ],
)
async def test_bodies_that_nobody_signed_keep_no_webhook_out(
    route: str, kind: str, pieces: list[bytes], count: int
) -> None:
    """Many stalled bodies, large or without a byte, leave a signed webhook its answer, in one piece or in two."""
    intake = intake_of()
    tasks = await attacked(intake, [stranger_scope(kind) for _ in range(count)], route, *pieces)
    body = b'["' + b"x" * 200_000 + b'"]'
    for receive in (peer(body), peer(body[:100_000], body[100_000:])):
        assert (await post(intake, body, receive)).kind == "event"
    held_bytes = gauges(intake)[1]
    assert held_bytes is not None
    assert held_bytes <= 64 * 1024 * 1024
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert gauges(intake) == (0, 0)


async def test_whole_bodies_that_wait_to_be_hashed_have_the_budget_of_those_that_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many large ones come in one piece, faster than threads hash them, no more than that is held."""
    intake, hashed = intake_of(), asyncio.Event()

    async def verify(*_: object) -> SignatureRejected:
        await hashed.wait()
        return SignatureRejected("no_match")

    monkeypatch.setattr(intake._verification, "verify", verify)
    answers = [Answered() for _ in range(400)]
    tasks = []
    for answered in answers:
        scope = stranger_scope("application/json")
        keep_peer(scope, Connection(b" " * 200_000))
        tasks.append(asyncio.create_task(intake(scope, peer(), answered, RATED, "genesis.agent.rated")))
    await asyncio.sleep(0)
    held_bytes = gauges(intake)[1]
    assert held_bytes is not None
    assert 16 * 1024 * 1024 < held_bytes <= 32 * 1024 * 1024
    hashed.set()
    await asyncio.gather(*tasks)
    assert {answered.status for answered in answers} == {401, 503}
    assert gauges(intake) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"webhook-timestamp": "1000000000"}, 401),
        ({"webhook-signature": "v9,abc"}, 401),
        ({"webhook-signature": " ".join(["v1,AAAA"] * 17)}, 401),
        ({"plant-producer": "nobody"}, 401),
        ({"plant-producer": ""}, 401),
        ({"webhook-id": "a b"}, 400),
        ({"content-length": "10000000"}, 413),
    ],
)
async def test_what_the_head_gives_away_is_refused_before_the_body(changes: dict[str, str], status: int) -> None:
    """Form, timestamp, number of signatures and the named producer, though not a byte of the body has come."""
    answered = Answered()
    scope = stranger_scope("application/json", **changes)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await intake_of()(scope, peer(gone=True), answered, RATED, "genesis.agent.rated")
    assert answered.status == status


async def test_a_batch_names_its_producer() -> None:
    """400 before its body is read: a large body is not hashed with everybody's keys."""
    answered = Answered()
    headers = SENDER.headers(b"[]", timestamp=int(NOW.timestamp()), content_type="application/cloudevents-batch+json")
    await intake_of()(post_scope(headers), peer(gone=True), answered, CLOUD_EVENTS, None)
    assert (answered.status, answered.kind) == (400, "malformed-headers")


async def test_a_signature_is_checked_before_anything_is_parsed() -> None:
    """A body that is no JSON, with another one's signature, is 401 and not 400."""
    answered = Answered()
    headers = SENDER.headers(b"{}", timestamp=int(NOW.timestamp()))
    await intake_of()(post_scope(headers), peer(b"["), answered, RATED, "genesis.agent.rated")
    assert answered.status == 401


async def test_a_producer_is_refused_before_its_body_is_parsed() -> None:
    """Beyond its burst a producer is 429, whatever it sends; what does not fit its schema is not counted, nor 503."""
    intake = intake_of(ingress_producer_rate_per_second=1.0, ingress_producer_burst=2)
    bodies = (b"{}", b"{}", b"{}", rated(), rated(), rated(), b"{}")
    assert [(await post(intake, body)).status for body in bodies] == [422, 422, 422, 503, 503, 503, 422]
    producer = intake._keyring.policy("genesis")
    intake._publisher.consume(producer, 2)
    assert [(await post(intake, body)).status for body in (b"{}", rated())] == [429, 429]


async def test_an_answer_is_whole_and_counted(monkeypatch: pytest.MonkeyPatch, log_lines: list[dict[str, Any]]) -> None:
    """Its length and its end are told, and its route, status and duration are counted and logged."""
    intake, begun = intake_of(), time.perf_counter()

    async def publish(*_: object) -> HttpAnswer:
        return HttpAnswer(200, b'{"position": 1}', headers=((b"more", b"1"),))

    def counted() -> tuple[float, float]:
        seconds = REGISTRY.get_sample_value("plant_ingress_request_duration_seconds_sum")
        requests = REGISTRY.get_sample_value("plant_ingress_requests_total", {"route": RATED, "status": "200"})
        return seconds or 0.0, requests or 0.0

    monkeypatch.setattr(intake, "_publish_one", publish)
    seconds, requests = counted()
    for _ in range(2):
        answered = await post(intake, rated())
        assert (answered.status, answered.body, answered.ended) == (200, b'{"position": 1}', True)
        expected = {b"content-type": b"application/json", b"content-length": b"15", b"more": b"1"}
        assert answered.headers == expected
    assert counted()[1] == requests + 2
    assert 0 <= counted()[0] - seconds < begun  # and not the sum of two times of a clock
    assert 0 <= log_lines[0]["duration_ms"] / 1000 < begun


@pytest.mark.parametrize("bulk", [False, True])
async def test_without_keys_a_sender_is_told_to_come_back(bulk: bool) -> None:
    """In a second: it is not the sender's mistake."""
    intake, answered, body = intake_of(loaded=False), Answered(), rated()
    kind = "application/x-ndjson" if bulk else "application/json"
    headers = SENDER.headers(body, timestamp=int(NOW.timestamp()), content_type=kind)
    scope = post_scope({**headers, "plant-producer": "genesis"})
    route, event_type = (CLOUD_EVENTS, None) if bulk else (RATED, "genesis.agent.rated")
    await intake(scope, peer(body), answered, route, event_type)
    assert (answered.status, answered.kind, answered.headers[b"retry-after"]) == (503, "starting", b"1")


async def test_rejected_signatures_are_counted_by_reason() -> None:
    """The name in the metric is the one that the reference has."""

    def counted(reason: str) -> float:
        return REGISTRY.get_sample_value("plant_ingress_signatures_rejected_total", {"reason": reason}) or 0.0

    before = counted("too_old"), counted("no_match")
    intake = intake_of()
    old = SENDER.headers(b"{}", timestamp=int(NOW.timestamp()) - 301)
    other = {**SENDER.headers(b"{}", timestamp=int(NOW.timestamp())), "webhook-signature": "v1,AAAA"}
    for headers in (old, other):
        await intake(post_scope(headers), peer(b"{}"), Answered(), RATED, "genesis.agent.rated")
    assert (counted("too_old"), counted("no_match")) == (before[0] + 1, before[1] + 1)


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What is logged by the intake."""
    with structlog.testing.capture_logs() as lines:
        for module in ("intake", "refusals"):
            monkeypatch.setattr(f"ingress.{module}.log", structlog.get_logger())
        yield lines  # type: ignore[misc]


def accept(intake: Intake, count: int) -> None:
    """Log so many accepted webhooks, at one moment."""
    from ingress.intake import _RequestState

    state = _RequestState()
    state.producer, state.body_bytes = "genesis", 17
    for _ in range(count):
        intake._log_accepted(RATED, 200, state, 0.0)


def test_one_in_so_many_accepted_webhooks_is_logged(log_lines: list[dict[str, Any]]) -> None:
    """The first, and then one in ten, with who sent it, its size, and how many were left out before it."""
    accept(intake_of(ingress_log_every=10), 25)
    assert [line["left_out"] for line in log_lines] == [0, 9, 9]
    first = log_lines[0]
    assert (first["event"], first["log_level"]) == ("webhook.accepted", "info")
    assert (first["route"], first["status"], first["producer"], first["body_bytes"]) == (RATED, 200, "genesis", 17)


@pytest.mark.parametrize(("every", "level", "lines"), [(0, "info", 0), (1, "info", 200), (1000, "debug", 200)])
def test_none_or_all_accepted_webhooks_are_logged(
    log_lines: list[dict[str, Any]], every: int, level: str, lines: int
) -> None:
    """None where the setting is 0; all where it is 1, and at level debug."""
    accept(intake_of(ingress_log_every=every, log_level=level), 200)
    assert len(log_lines) == lines


def test_sampled_lines_keep_to_the_log_budget(log_lines: list[dict[str, Any]]) -> None:
    """At one moment no more than a second's budget is written, and none left out is forgotten."""
    intake = intake_of(ingress_log_every=2)
    accept(intake, 1_000)
    assert len(log_lines) == 20
    assert sum(line["left_out"] + 1 for line in log_lines) + intake._accepted_left_out == 1_000


@pytest.mark.parametrize(
    ("route", "kind"),
    [(RATED, "application/json")]
    + [(CLOUD_EVENTS, f"application/{kind}") for kind in ("cloudevents+json", "cloudevents-batch+json", "x-ndjson")],
)
async def test_a_signature_covers_one_message(route: str, kind: str) -> None:
    """The end of a long id, moved to the beginning of the body, is refused though the signed bytes are the same."""
    old = int(NOW.timestamp())
    body = b"%d.{}\n{}" % (old + 1)
    headers = SENDER.headers(body, message_id="a", timestamp=old, content_type=kind)
    answered = Answered()
    scope = post_scope({**headers, "plant-producer": "genesis"})
    await intake_of()(scope, peer(body), answered, route, "genesis.agent.rated" if route == RATED else None)
    assert (answered.status, answered.kind) == (400, "malformed-body")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_only_posts_are_webhooks(method: str) -> None:
    """405 for any other method, with the one that is allowed."""
    scope: Any = {**post_scope(SENDER.headers(b"{}")), "method": method}
    answered = Answered()
    await intake_of()(scope, peer(b"{}"), answered, RATED, "genesis.agent.rated")
    assert (answered.status, answered.headers[b"allow"]) == (405, b"POST")
    assert answered.headers[b"connection"] == b"close"
    assert answered.kind == "method"


async def test_a_single_event_has_its_own_size_limit() -> None:
    """It is that of one event and not that of a batch; a batch has its own."""
    intake = intake_of(ingress_body_max_bytes=100, ingress_batch_max_bytes=200)
    assert [(await post(intake, b"{" + b" " * (size - 1))).status for size in (100, 101)] == [400, 413]
    statuses = []
    for size in (200, 201):
        body, answered = b"[" + b" " * (size - 1), Answered()
        kind = "application/cloudevents-batch+json"
        headers = SENDER.headers(body, timestamp=int(NOW.timestamp()), content_type=kind)
        scope = post_scope({**headers, "plant-producer": "genesis"})
        await intake(scope, peer(body), answered, CLOUD_EVENTS, None)
        statuses.append(answered.status)
    assert statuses == [400, 413]


def refusals(producer: str, status: int) -> float:
    """The count of refusals so far."""
    labels = {"producer": producer, "status": str(status)}
    return REGISTRY.get_sample_value("plant_ingress_refusals_total", labels) or 0.0


async def test_a_refusal_says_who_sent_what(log_lines: list[dict[str, Any]]) -> None:
    """Producer and message id, counted by producer; a 401 has the name that it claims, if that one is known."""
    intake, stamp = intake_of(), int(NOW.timestamp())
    before = [refusals("genesis", 422), refusals("genesis", 401), refusals("", 401), refusals("nobody", 401)]
    for name, signature in (("", ""), ("genesis", "v1,AAAA"), ("nobody", "v1,AAAA")):
        headers = SENDER.headers(b"{}", message_id="msg_7", timestamp=stamp)
        headers |= {"webhook-signature": signature or headers["webhook-signature"]}
        scope = post_scope({**headers, **({"plant-producer": name} if name else {})})
        await intake(scope, peer(b"{}"), Answered(), RATED, "genesis.agent.rated")
    names = ("log_level", "status", "producer", "verified", "message_id")
    assert [tuple(line[name] for name in names) for line in log_lines] == [
        ("info", 422, "genesis", True, "msg_7"),
        ("warning", 401, "genesis", False, "msg_7"),
        ("warning", 401, "", False, "msg_7"),
    ]
    after = [refusals("genesis", 422), refusals("genesis", 401), refusals("", 401), refusals("nobody", 401)]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1, 0]


async def test_a_refusal_without_headers_names_nobody(log_lines: list[dict[str, Any]]) -> None:
    """Nothing is made up for what was not sent."""
    await intake_of()(post_scope({}), peer(b"{}"), Answered(), RATED, "genesis.agent.rated")
    (line,) = log_lines
    assert (line["message_id"], line["producer"], line["verified"]) == ("", "", False)


async def test_binary_mode_needs_a_producer_that_is_set_so() -> None:
    """The answer says why, and what to send instead."""
    body, answered = b"{}", Answered()
    attributes = {"ce-id": "m", "ce-source": "/s", "ce-type": "genesis.agent.rated", "ce-specversion": "1.0"}
    attributes["ce-time"] = "2026-11-23T08:00:00Z"
    headers = {**SENDER.headers(body, message_id="m", timestamp=int(NOW.timestamp())), **attributes}
    await intake_of()(post_scope(headers), peer(body), answered, CLOUD_EVENTS, None)
    assert (answered.status, answered.kind) == (403, "forbidden"), answered.body
    assert b"--binary-mode" in answered.body


async def test_refused_events_of_a_batch_are_one_line(log_lines: list[dict[str, Any]]) -> None:
    """With their numbers, within the batch that its message id names."""
    intake, body = intake_of(), b"[{}, {}, 7]"
    kind, before = "application/cloudevents-batch+json", refusals("genesis", 422)
    headers = SENDER.headers(body, message_id="batch_1", timestamp=int(NOW.timestamp()), content_type=kind)
    scope = post_scope({**headers, "plant-producer": "genesis"})
    await intake(scope, peer(body), Answered(), CLOUD_EVENTS, None)
    (line,) = [line for line in log_lines if line["event"] == "events.refused"]
    assert (line["log_level"], line["producer"], line["message_id"]) == ("info", "genesis", "batch_1")
    assert (line["refused"], line["numbers"], line["status"]) == (3, [0, 1, 2], 422)
    assert refusals("genesis", 422) - before == 3


async def test_strangers_keep_no_error_of_ours_from_the_log(log_lines: list[dict[str, Any]]) -> None:
    """A thousand bad signatures and a thousand bad events have their own budgets; a failure is logged after them."""
    intake, stamp = intake_of(), int(NOW.timestamp())
    bad = {**SENDER.headers(b"{}", timestamp=stamp), "webhook-signature": "v1,AAAA"}
    for _ in range(1_000):
        await intake(post_scope(bad), peer(b"{}"), Answered(), RATED, "genesis.agent.rated")
        assert (await post(intake, b"{}")).status == 422
    assert (await post(intake, rated())).status == 503
    statuses = [line["status"] for line in log_lines]
    assert (statuses.count(401), statuses.count(422), statuses.count(503)) == (20, 20, 1)


class Connection:
    """A peer whose body has arrived, or none; it is answered as ASGI has it, and counts broken answers."""

    def __init__(self, body: bytes | None = None) -> None:
        self.body = body
        self.proved = True
        self.times = 0

    def take_body(self, _scope: object) -> bytes | None:
        """Return the body."""
        return self.body

    def answer(self, *_: object) -> bool:
        """Do nothing."""
        return False

    def prove(self) -> None:
        """Do nothing."""

    def break_off(self) -> None:
        """Count."""
        self.times += 1


@pytest.mark.parametrize("error", [ZeroDivisionError(), Problem("overloaded")])
async def test_an_answer_that_can_t_go_on_is_broken_off(
    log_lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A defect in a bulk load that is being answered closes the connection; no second answer comes into the first."""

    async def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("ingress.bulk_load.await_results", broken)
    starts: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            starts.append(message["status"])

    intake, connection, body = intake_of(), Connection(), b"{}"
    signed = SENDER.headers(body, timestamp=int(NOW.timestamp()), content_type="application/x-ndjson")
    scope = post_scope({**signed, "plant-producer": "genesis"})
    keep_peer(scope, connection)
    labels = {"route": CLOUD_EVENTS, "status": "500"}
    before = REGISTRY.get_sample_value("plant_ingress_requests_total", labels) or 0.0
    await intake(scope, peer(body), send, CLOUD_EVENTS, None)
    assert REGISTRY.get_sample_value("plant_ingress_requests_total", labels) == before + 1
    assert (starts, connection.times) == ([200], 1)
    assert [line["event"] for line in log_lines] == ["webhook.failed"]
    assert gauges(intake) == (0, 0)


@pytest.mark.parametrize(("reason", "detail"), [("too_many_tries", NAME_PRODUCER), ("no_match", "")])
def test_who_can_do_something_about_a_refusal_is_told_what(reason: Any, detail: str) -> None:
    """Only a producer that has not named itself; of other reasons the answer says nothing."""
    problem = _not_accepted(SignatureRejected(reason))
    assert (problem.kind, problem.detail) == ("signature", detail)


def test_times_in_log_lines_are_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the microsecond."""
    monkeypatch.setattr(intake_module.time, "perf_counter", lambda: 12.0123456)
    assert _milliseconds_since(12.0) == 12.346


def test_an_intake_is_made_of_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each limit goes where it belongs: those of one event, of a batch, of a load and of all requests."""
    made: dict[str, list[tuple[Any, dict[str, Any]]]] = {}

    def record(name: str) -> None:
        real = getattr(intake_module, name)

        def make(*args: Any, **more: Any) -> Any:
            made.setdefault(name, []).append((args, more))
            return real(*args, **more)

        monkeypatch.setattr(intake_module, name, make)

    for name in ("Admission", "Arrivals", "BodyReader", "BulkIntake", "Refusals", "TrustedProxies", "Verification"):
        record(name)
    large = 20 * 1024 * 1024
    intake = intake_of(
        ingress_body_max_bytes=1_001, ingress_batch_max_bytes=large, ingress_stream_max_bytes=3_003,
        ingress_streams_max=4, ingress_stream_timeout_seconds=5.5, ingress_requests_max=6,
        ingress_trusted_proxies="192.0.2.0/24", ingress_source="source", ingress_log_every=7,
    )  # fmt: skip
    assert made["Admission"] == [((6, 4 * large), {})]
    assert made["Arrivals"] == [((1_001,), {}), ((large,), {})]
    assert made["BodyReader"] == [((1_001, intake._arrivals), {}), ((large, intake._batch_arrivals), {})]
    load = {"body_max_bytes": 3_003, "line_max_bytes": 1_001, "streams_max": 4, "load_timeout_seconds": 5.5}
    assert made["BulkIntake"] == [((intake._publisher, intake._clock), load)]
    assert made["Refusals"] == [((intake._clock, intake._keyring.knows), {})]
    assert made["TrustedProxies"] == [(("192.0.2.0/24",), {})]
    assert made["Verification"] == [((intake._keyring,), {})]
    assert (intake._source, intake._event_max_bytes, intake._log_every) == ("source", 1_001, 7)
    assert (intake._publisher._clock, intake._bulk.stopping) == (intake._clock, False)
    intake.stop()
    assert intake._bulk.stopping is True
    intake_of(ingress_batch_max_bytes=1_000)
    assert made["Admission"][1] == ((2_000, BODIES_MAX_BYTES), {})


async def publish_nothing(*_: object) -> HttpAnswer:
    return HttpAnswer(200, b"{}")


async def test_an_accepted_webhook_is_one_line(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[dict[str, Any]]
) -> None:
    """With who sent what, and how long it took."""
    intake, body = intake_of(), rated()
    monkeypatch.setattr(intake, "_publish_one", publish_nothing)
    monkeypatch.setattr(intake_module, "_milliseconds_since", lambda started: 12.5)
    await post(intake, body)
    assert log_lines == [
        {
            "event": "webhook.accepted", "log_level": "info", "route": RATED, "status": 200, "producer": "genesis",
            "body_bytes": len(body), "left_out": 0, "duration_ms": 12.5,
        }
    ]  # fmt: skip


class Proving(Connection):
    """A connection that can answer at once, and keeps how it is used."""

    def __init__(self, body: bytes | None, *, proved: bool, answers: bool) -> None:
        super().__init__(body)
        self.proved, self.answers = proved, answers
        self.used: list[object] = []

    def answer(self, *answer: Any) -> bool:
        self.used.append(answer[1:])
        return self.answers

    def prove(self) -> None:
        self.used.append("proved")


@pytest.mark.parametrize("proved", [False, True])
@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.parametrize("arrived", [False, True])
async def test_a_peer_is_proved_once_and_answered_once(
    monkeypatch: pytest.MonkeyPatch, proved: bool, answers: bool, arrived: bool
) -> None:
    """By the connection where it can, else as ASGI has it; whether the body was there already or not."""
    intake, body, answered = intake_of(), rated(), Answered()
    monkeypatch.setattr(intake, "_publish_one", publish_nothing)
    connection = Proving(body if arrived else None, proved=proved, answers=answers)
    scope = post_scope(SENDER.headers(body, timestamp=int(NOW.timestamp())))
    keep_peer(scope, connection)
    await intake(scope, peer(body), answered, RATED, "genesis.agent.rated")
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    assert connection.used == [*([] if proved else ["proved"]), (200, headers, b"{}")]
    assert (answered.status, answered.body) == ((0, b"") if answers else (200, b"{}"))


@pytest.mark.parametrize(("size", "waits"), [(THREAD_MIN_BYTES, False), (THREAD_MIN_BYTES + 1, True)])
async def test_only_a_body_that_a_thread_hashes_counts_as_arriving(
    monkeypatch: pytest.MonkeyPatch, size: int, waits: bool
) -> None:
    """Until its signature was checked, and it is refused for no other one meanwhile; what no body could mend is 401."""
    intake = intake_of()
    held: list[tuple[int, int]] = []
    whole: list[bool] = []

    async def verify(_headers: object, body: bytes) -> SignatureRejected:
        held.append((len(intake._arrivals), intake._arrivals.body_bytes))
        whole.extend(each.task is None for each in intake._arrivals._by_address.get(None, {}))
        return SignatureRejected("no_match")

    monkeypatch.setattr(intake._verification, "verify", verify)
    for changes in ({}, {"plant-producer": "nobody"}):
        scope = stranger_scope("application/json", **changes)
        keep_peer(scope, Connection(b" " * size))
        answered = Answered()
        await intake(scope, peer(), answered, RATED, "genesis.agent.rated")
        assert answered.status == 401
    assert held == ([(1, size)] if waits else [(0, 0), (0, 0)])
    assert whole == [True] * waits
    assert len(intake._arrivals) == 0


async def test_a_batchs_body_counts_among_batches() -> None:
    """Whatever webhooks hold, and the other way round."""
    intake = intake_of()
    kind = "application/cloudevents-batch+json"
    scope = stranger_scope(kind)
    tasks = await attacked(intake, [scope], CLOUD_EVENTS, b"x" * 500)
    assert (intake._arrivals.body_bytes, intake._batch_arrivals.body_bytes, gauges(intake)) == (0, 500, (1, 500))
    tasks += await attacked(intake, [stranger_scope("application/json")], RATED, b"x" * 70)
    assert (intake._arrivals.body_bytes, intake._batch_arrivals.body_bytes, gauges(intake)) == (70, 500, (2, 570))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_batch_consumes_what_it_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its events at first, and what is unpaid is restored; each has the size of one event and the trace."""
    intake, body = intake_of(ingress_body_max_bytes=40), b"[{}, 7]"
    done: list[tuple[Any, ...]] = []
    publisher = intake._publisher
    monkeypatch.setattr(publisher, "consume", lambda policy, events: done.append(("consume", policy.name, events)))
    monkeypatch.setattr(publisher, "restore", lambda policy, events: done.append(("restore", policy.name, events)))
    submit = intake_module.submit_each

    async def submit_each(*args: Any, item_max_bytes: int) -> Any:
        assert args[0] is publisher
        done.append(("submit", [bytes(item) for item in args[1]], args[2].name, args[3], item_max_bytes))
        return await submit(*args, item_max_bytes=item_max_bytes)

    monkeypatch.setattr(intake_module, "submit_each", submit_each)
    monkeypatch.setattr(intake_module, "unpaid", len)
    headers = SENDER.headers(body, timestamp=int(NOW.timestamp()), content_type="application/cloudevents-batch+json")
    scope = post_scope({**headers, "plant-producer": "genesis", "traceparent": "a trace"})
    answered = Answered()
    await intake(scope, peer(body), answered, CLOUD_EVENTS, None)
    assert done == [
        ("consume", "genesis", 2), ("submit", [b"{}", b"7"], "genesis", "a trace", 40), ("restore", "genesis", 2),
    ]  # fmt: skip
    assert answered.status == 207


async def test_a_webhook_is_published_under_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is a valid one; the answer has the event's id and position."""
    intake = intake_of()
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    published: list[tuple[Any, ...]] = []

    async def publish(incoming: Any, policy: Any, traceparent: str | None) -> RecordPosition:
        published.append((incoming.event.event_id, incoming.source, incoming.message_id, policy.name, traceparent))
        return RecordPosition(EVENTS_TOPIC, 3, 7)

    monkeypatch.setattr(intake._publisher, "publish", publish)
    for given, kept in ((trace, trace), ("no trace", None)):
        body, answered = rated(), Answered()
        headers = SENDER.headers(body, message_id="msg_7", timestamp=int(NOW.timestamp()))
        await intake(post_scope({**headers, "traceparent": given}), peer(body), answered, RATED, "genesis.agent.rated")
        ((event_id, source, message_id, name, traceparent),) = published
        published.clear()
        assert (source, message_id, name, traceparent) == (intake._source, "msg_7", "genesis", kept)
        assert (answered.status, answered.body) == (200, accepted(event_id, RecordPosition(EVENTS_TOPIC, 3, 7)))


async def test_a_defect_is_500_and_told_as_ours(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[dict[str, Any]]
) -> None:
    """Nothing stays reserved, and the answer says no more."""
    intake = intake_of()

    async def fail(*_: object) -> HttpAnswer:
        raise ZeroDivisionError

    monkeypatch.setattr(intake, "_publish_one", fail)
    labels = {"route": RATED, "status": "500"}
    before = REGISTRY.get_sample_value("plant_ingress_requests_total", labels) or 0.0
    answered = await post(intake, rated())
    assert (answered.status, answered.kind, gauges(intake)) == (500, "unexpected", (0, 0))
    assert REGISTRY.get_sample_value("plant_ingress_requests_total", labels) == before + 1
    assert [(line["event"], line["route"], line.get("producer")) for line in log_lines] == [
        ("webhook.failed", RATED, None), ("webhook.refused", RATED, "genesis"),
    ]  # fmt: skip


def load_scope(body: bytes) -> HTTPScope:
    """The head of a signed bulk load."""
    stamp, kind = int(NOW.timestamp()), "application/x-ndjson"
    headers = SENDER.headers(body, message_id="load_1", timestamp=stamp, content_type=kind)
    return post_scope({**headers, "plant-producer": "genesis"})


async def test_a_load_goes_on_as_long_as_its_key_and_its_producer_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy is that of the moment; 401 for the key, 403 for the producer, each with its reason."""
    intake, body = intake_of(), b"{}\n"
    headers = read_request_headers(load_scope(body)["headers"], cloud_event=True)
    current_policy = intake._load_signer(headers, body)
    policy = current_policy()
    assert (policy.name, policy.disabled) == ("genesis", False)
    disabled = msgspec.structs.replace(policy, disabled=True)
    monkeypatch.setattr(intake._keyring, "policy_of", lambda key: disabled if key.id == "k" else policy)
    with pytest.raises(Problem) as refused:
        current_policy()
    assert (refused.value.kind, refused.value.detail) == ("forbidden", "This producer is disabled.")
    monkeypatch.setattr(intake._keyring, "is_usable", lambda key: key.id != "k")
    with pytest.raises(Problem) as revoked:
        current_policy()
    assert (revoked.value.kind, revoked.value.detail) == ("signature", "The key was revoked or has expired.")


async def test_a_load_is_read_for_its_address_and_its_refused_lines_are_told(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[dict[str, Any]]
) -> None:
    """By its message id and its producer, who has signed; where nobody has, the answer is one problem."""
    intake, body = intake_of(), b"{}\n7\n"
    addresses: list[str | None] = []
    begin = intake._bulk._arrivals.begin
    monkeypatch.setattr(intake._proxies, "address_of", lambda scope: "192.0.2.7")
    monkeypatch.setattr(intake._bulk._arrivals, "begin", lambda at: addresses.append(at) or begin(at))
    answered = Answered()
    await intake(load_scope(body), peer(body), answered, CLOUD_EVENTS, None)
    assert (answered.status, addresses) == (200, ["192.0.2.7"])
    told = [line for line in log_lines if line["event"] == "events.refused"]
    assert [(line["route"], line["producer"], line["message_id"], line["numbers"]) for line in told] == [
        (CLOUD_EVENTS, "genesis", "load_1", [1, 2])
    ]
    assert [line["log_level"] for line in told] == ["info"]
    forged = Answered()
    await intake(load_scope(b"other"), peer(body), forged, CLOUD_EVENTS, None)
    assert (forged.status, forged.kind) == (401, "signature")
    (line,) = [line for line in log_lines if line["event"] == "webhook.refused"]
    assert (line["verified"], line["producer"], line["message_id"]) == (False, "genesis", "load_1")


def test_a_request_begins_with_nothing() -> None:
    """Nothing reserved, nobody known."""
    state = intake_module._RequestState()
    assert {name: getattr(state, name) for name in state.__slots__} == {
        "answering": False, "batch": False, "body_bytes": 0, "entered": False, "message_id": "", "producer": "",
        "verified": False,
    }  # fmt: skip
    state.message_id, state.producer, state.verified = "m", "p", True
    assert state.origin(RATED) == (RATED, "m", "p", True)


@pytest.mark.parametrize(
    ("loaded", "changes", "problem"),
    [
        (False, {}, Problem("starting", "The signing keys are not loaded yet.", headers=(retry_after(1),))),
        (True, {"webhook-timestamp": "1000000000"}, Problem("signature", reason=explain("too_old"))),
        (True, {"plant-producer": "nobody"}, Problem("signature", reason=explain("unknown_producer"))),
        (True, {}, None),
    ],
    ids=["no keys", "too old", "no key of that name", "good"],
)
def test_what_can_be_refused_unread_is(loaded: bool, changes: dict[str, str], problem: Problem | None) -> None:
    """With the whole answer."""
    scope = stranger_scope("application/json", **changes)
    headers = read_request_headers(scope["headers"], cloud_event=False)
    intake = intake_of(loaded)
    if problem is None:
        intake._refuse_unread(headers)
        return
    with pytest.raises(Problem) as refused:
        intake._refuse_unread(headers)
    assert told_of(refused.value) == told_of(problem)


def told_of(problem: Problem) -> tuple[object, ...]:
    """Return all that a problem tells its sender and the log."""
    return problem.kind, problem.detail, problem.status, problem.headers, problem.reason


async def test_a_refusal_tells_its_sender_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with all of its parts: what was asked by another method, by nobody, or in binary mode."""
    intake = intake_of()
    refused: list[Problem] = []

    async def refuse(problem: Problem, *_: object) -> None:
        refused.append(problem)

    monkeypatch.setattr(intake, "_refuse", refuse)
    body = b"{}"
    signed = SENDER.headers(body, timestamp=int(NOW.timestamp()))
    got: Any = {**post_scope(signed), "method": "GET"}
    await intake(got, peer(body), Answered(), RATED, "genesis.agent.rated")
    batch = SENDER.headers(b"[]", timestamp=int(NOW.timestamp()), content_type="application/cloudevents-batch+json")
    await intake(post_scope(batch), peer(b"[]"), Answered(), CLOUD_EVENTS, None)
    attributes = {"ce-id": "m", "ce-source": "/s", "ce-type": "genesis.agent.rated", "ce-specversion": "1.0"}
    attributes["ce-time"] = "2026-11-23T08:00:00Z"
    binary = {**SENDER.headers(body, message_id="m", timestamp=int(NOW.timestamp())), **attributes}
    await intake(post_scope(binary), peer(body), Answered(), CLOUD_EVENTS, None)
    assert list(map(told_of, refused)) == [
        told_of(Problem("method", headers=((b"allow", b"POST"), CLOSE))),
        told_of(Problem("malformed-headers", PRODUCER_MISSING, headers=(CLOSE,))),
        told_of(Problem("forbidden", intake_module._NO_BINARY_MODE)),
    ]

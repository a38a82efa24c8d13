"""The webhook routes, in process, against real Kafka and Postgres."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from database.connector import connect
from ingress.keys import KeyStore
from operations.services.ingress import build_ingress
from runtime.settings import Settings
from schemas.event_id import cloud_event_id, event_id
from schemas.events import AgentRated
from schemas.sender_headers import sender_headers
from signing.master_key import MasterKeys
from streams.producer import EventProducer, Limits
from streams.topics import EVENTS_TOPIC
from tests.support.long_form import sized
from tests.support.serving import Serving, position_of, served
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async
from tests.support.webhooks import (
    AVAILABLE,
    CLOUD_EVENTS,
    EVENT_TYPES,
    RATED,
    Sender,
    add_key,
    payload,
    rated,
    read_all,
    read_at,
)

AGENT = str(uuid4())
DATA: dict[str, dict[str, object]] = {
    "genesis.agent.onboarded": {"agent_id": AGENT, "name": "A", "skill_ids": [AGENT]},
    "genesis.skill.validated": {"skill_id": AGENT, "validator_id": AGENT, "score": 90},
    "genesis.agent.available": {"agent_id": AGENT, "available": False},
    "genesis.agent.rated": {"agent_id": AGENT, "rater_id": AGENT, "rating": 5},
}


@pytest.mark.parametrize("path", EVENT_TYPES)
async def test_a_signed_webhook_is_stored_where_the_answer_says(serving: Serving, path: str) -> None:
    """Each route answers 200 with the event's id and position, and the event is there."""
    event_type = EVENT_TYPES[path]
    answer = await serving.post(path, payload(DATA[event_type], type=event_type), message_id="msg_1")
    assert answer.status_code == 200, answer.text
    received = await read_at(serving.settings, position_of(answer))
    assert received.event.event_type == event_type
    assert received.event.event_id == UUID(answer.json()["event_id"]) == event_id("genesis", "msg_1")
    headers = dict(received.headers)
    assert (headers["ce_source"], headers["ce_type"]) == (b"plant/ingress", event_type.encode())
    sender = (headers["plant_producer"], headers["plant_key"], headers["plant_message_id"])
    assert sender == (b"genesis", str(serving.key_id).encode(), b"msg_1")


async def test_nobody_says_another_sender_than_the_one_that_signed(serving: Serving) -> None:
    """Headers of a request that have the names of a record's headers are left out of the record."""
    forged = {"plant_producer": "other", "plant_key": "other", "plant_message_id": "other", "plant-key": "other"}
    forged |= {"plant_tenant": "other", "plant_version": "9", "ce_plant_tenant": "other", "ce-plant_version": "9"}
    path = "/webhook/genesis/agent-rated"
    body = payload(DATA["genesis.agent.rated"])
    answer = await serving.post(path, body, message_id="msg_2", **forged)
    assert answer.status_code == 200, answer.text
    received = await read_at(serving.settings, position_of(answer))
    of_plant = [(name, value) for name, value in received.headers if name.startswith("plant_")]
    assert of_plant == list(sender_headers("genesis", "msg_2", key_id=str(serving.key_id)))


async def test_a_cloud_event_of_any_type_comes_in(serving: Serving) -> None:
    """The general route takes event types that have no route of their own, and keeps source and trace."""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    event = {
        "specversion": "1.0",
        "id": "e1",
        "source": "urn:test",
        "type": "genesis.industry.defined",
        "time": "2026-11-23T08:00:00Z",
        "data": {"industry_id": AGENT, "name": "Forestry", "description": ""},
    }
    answer = await serving.post(CLOUD_EVENTS, json.dumps(event).encode(), traceparent=traceparent)
    assert answer.status_code == 200, answer.text
    received = await read_at(serving.settings, position_of(answer))
    assert received.event.event_id == cloud_event_id("genesis", "urn:test", "e1")
    headers = dict(received.headers)
    assert (headers["ce_source"], headers["traceparent"]) == (b"urn:test", traceparent.encode())


async def test_a_repeat_gets_the_same_answer_and_is_stored_once(serving: Serving) -> None:
    """The same message again, later and signed again, is answered with the first one's position."""
    body = rated()
    first = await serving.post(RATED, body, message_id="msg_again")
    again = await serving.post(RATED, body, message_id="msg_again")
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json() == again.json()
    assert len(await read_all(serving.settings, serving.topic)) == 1


async def test_copies_at_the_same_time_share_one_publish(serving: Serving) -> None:
    """Fifty copies at once are one record."""
    body = rated()
    answers = await asyncio.gather(*(serving.post(RATED, body, message_id="msg_at_once") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert len(await read_all(serving.settings, serving.topic)) == 1


async def test_an_id_with_another_body_or_route_is_refused(serving: Serving) -> None:
    """409: an id names one message."""
    assert (await serving.post(RATED, rated(), message_id="msg_2")).status_code == 200
    changed = await serving.post(RATED, rated(), message_id="msg_2")
    elsewhere = await serving.post(AVAILABLE, payload(DATA["genesis.agent.available"]), message_id="msg_2")
    assert (changed.status_code, elsewhere.status_code) == (409, 409)
    assert changed.json()["type"] == "urn:plant:problem:id-reused"


async def test_two_producers_may_use_the_same_id(serving: Serving) -> None:
    """Ids are each producer's own."""
    _, other = await add_key(serving.settings, "other")
    await wait_until_async(lambda: len(serving.ingress.keyring.keys) == 2, "the second key is loaded")
    mine = await serving.post(RATED, rated(), message_id="msg_3")
    body = rated()
    theirs = await serving.client.post(RATED, content=body, headers=other.headers(body, message_id="msg_3"))
    assert (mine.status_code, theirs.status_code) == (200, 200)
    assert mine.json()["event_id"] != theirs.json()["event_id"]


async def test_every_bad_signature_gets_the_same_answer(serving: Serving) -> None:
    """Unknown key, changed body, old and future timestamps: one 401 that tells nothing."""
    body = rated()
    good = serving.sender.headers(body)
    now = int(time.time())
    attempts = [
        await serving.client.post(RATED, content=body, headers=Sender(bytes(32)).headers(body)),
        await serving.client.post(RATED, content=body + b" ", headers=good),
        await serving.client.post(RATED, content=body, headers=serving.sender.headers(body, timestamp=now - 400)),
        await serving.client.post(RATED, content=body, headers=serving.sender.headers(body, timestamp=now + 400)),
        await serving.client.post(RATED, content=body, headers={**good, "webhook-signature": "v1,"}),
        await serving.client.post(RATED, content=b"not even json", headers=good),
    ]
    assert {attempt.status_code for attempt in attempts} == {401}
    assert len({attempt.text for attempt in attempts}) == 1
    assert await read_all(serving.settings, serving.topic) == []


async def test_a_revoked_key_is_refused_within_seconds(serving: Serving) -> None:
    """Revoking reaches a running process."""
    assert (await serving.post(RATED, rated())).status_code == 200
    database = connect(serving.settings, "operator")
    await KeyStore(database, MasterKeys(serving.settings)).revoke(serving.key_id)
    await database.close()

    async def refused() -> bool:
        return (await serving.post(RATED, rated())).status_code == 401

    await wait_until_async(refused, "the revoked key is refused")


async def test_what_does_not_fit_its_schema_is_422_with_the_field(serving: Serving) -> None:
    """The answer points at the field, and nothing is stored."""
    answer = await serving.post(RATED, rated(rating=6))
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"] == [{"detail": "Expected `int` <= 5", "pointer": "#/data/rating"}]
    assert await read_all(serving.settings, serving.topic) == []


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", RATED, 405, "method"),
        ("PUT", CLOUD_EVENTS, 405, "method"),
        ("POST", "/livez", 405, "method"),
        ("POST", "/webhook/genesis/unknown", 404, "not-found"),
        ("GET", "/", 404, "not-found"),
        ("POST", RATED, 415, "media-type"),
    ],
)
async def test_other_requests_are_answered_with_problems(
    serving: Serving, method: str, path: str, status: int, kind: str
) -> None:
    """Wrong methods, paths and content types get problem documents too."""
    answer = await serving.client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:plant:problem:{kind}"
    assert ("allow" in answer.headers) == (status == 405)


async def test_bodies_beyond_the_limit_are_413(serving: Serving) -> None:
    """Declared or not, more than the limit is refused."""
    limit = serving.settings.ingress_body_max_bytes
    declared = await serving.post(RATED, b"x" * (limit + 1))

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(limit // 1000 + 2):
            yield b"x" * 1000

    headers = serving.sender.headers(b"")
    undeclared = await serving.client.post(RATED, content=pieces(), headers=headers)
    assert (declared.status_code, undeclared.status_code) == (413, 413)


async def test_malformed_headers_and_bodies_are_400(serving: Serving) -> None:
    """A doubled id, a missing timestamp, and a signed body that is not JSON."""
    body = rated()
    good = serving.sender.headers(body)
    doubled = [*good.items(), ("webhook-id", "another")]
    missing = {name: value for name, value in good.items() if name != "webhook-timestamp"}
    answers = [
        await serving.client.post(RATED, content=body, headers=doubled),
        await serving.client.post(RATED, content=body, headers=missing),
        await serving.post(RATED, b"{"),
        await serving.post(RATED, b'{"x":' + b"[" * 100_000),
        await serving.post(RATED, b"\xff\xff"),
    ]
    assert [answer.status_code for answer in answers] == [400] * 5


async def test_more_than_kafka_takes_is_503(settings: Settings, topic: str) -> None:
    """When too much waits for Kafka, the answer is 503 with Retry-After, and the sender's retry succeeds."""
    async with served(settings, topic, Limits(in_flight_records=1)) as serving:
        bodies = [rated() for _ in range(30)]
        answers = await asyncio.gather(*(serving.post(RATED, body) for body in bodies))
        refused = [answer for answer in answers if answer.status_code == 503]
        assert refused
        assert {answer.status_code for answer in answers} == {200, 503}
        assert refused[0].json()["type"] == "urn:plant:problem:overloaded"
        assert int(refused[0].headers["retry-after"]) >= 1
        assert (await serving.post(RATED, bodies[0])).status_code == 200


async def test_watchers_see_life_readiness_and_metrics(serving: Serving) -> None:
    """The three watch routes answer, and a webhook is counted."""
    await serving.post(RATED, rated())
    assert (await serving.client.get("/livez")).json() == {"status": "alive"}
    assert (await serving.client.get("/readyz")).json() == {"status": "ready"}
    text = (await serving.admin.get("/metrics")).text
    assert f'plant_ingress_requests_total{{route="{RATED}",status="200"}}' in text
    assert "plant_producer_batch_records_bucket" in text


async def test_without_kafka_and_keys_it_is_alive_but_not_ready(settings: Settings) -> None:
    """Before Kafka and Postgres have answered, webhooks get 503 and the process stays."""
    import msgspec

    away = msgspec.structs.replace(
        settings,
        kafka_bootstrap_servers="127.0.0.1:1",
        database_ingress_url="postgresql://plant_ingress:x@127.0.0.1:1/plant",
    )
    app = build_ingress(away).app
    async with app.lifespan(), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://i") as client:
        body = rated()
        webhook = await client.post(RATED, content=body, headers=Sender(bytes(32)).headers(body))
        ready = await client.get("/readyz")
        alive = await client.get("/livez")
    assert (webhook.status_code, ready.status_code, alive.status_code) == (503, 503, 200)
    assert "kafka" in ready.json()["detail"]
    assert "keys" in ready.json()["detail"]


async def test_a_start_waits_no_longer_than_until_it_is_ready(settings: Settings, topic: str) -> None:
    """With Kafka and Postgres there the lifespan begins as soon as both have answered, long before its timeout."""
    producer = EventProducer(settings, topics=(EVENTS_TOPIC,), events_topic=topic)
    ingress = build_ingress(settings, producer=producer, ready_timeout_seconds=3600)
    async with asyncio.timeout(DEADLINE_SECONDS), ingress.app.lifespan():
        assert await ingress.readiness.faults() == {}


async def test_a_fault_of_our_own_is_500_and_tells_nothing(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unforeseen error in either kind of route is a bare problem."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("ingress.intake.read_webhook", broken)
    monkeypatch.setattr("server.metrics_route.generate_latest", broken)
    webhook = await serving.post(RATED, rated())
    watched = await serving.admin.get("/metrics")
    assert (webhook.status_code, watched.status_code) == (500, 500)
    assert "secret" not in webhook.text + watched.text


async def test_nothing_signed_is_ever_a_500(serving: Serving) -> None:
    """Signed random bytes and JSON give 200 or a client error on every route."""
    loop = asyncio.get_running_loop()
    found: set[int] = set()

    async def send(path: str, body: bytes) -> None:
        found.add((await serving.post(path, body)).status_code)

    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
    fields = st.fixed_dictionaries(
        {"timestamp": st.just("2026-11-23T08:00:00Z") | anything},
        optional={"data": anything | st.just(DATA["genesis.agent.rated"]), "type": anything, "id": anything},
    )
    bodies: list[tuple[str, bytes]] = []

    @hypothesis_settings(max_examples=sized(150, 300), suppress_health_check=list(HealthCheck), database=None)
    @given(
        st.sampled_from([*EVENT_TYPES, CLOUD_EVENTS]),
        st.binary(max_size=100) | fields.map(lambda v: json.dumps(v).encode()),
    )
    def collect(path: str, body: bytes) -> None:
        bodies.append((path, body))

    await loop.run_in_executor(None, collect)
    for path, body in bodies:
        await send(path, body)
    assert found <= {200, 400, 422}


async def test_an_event_that_was_accepted_is_what_was_sent(serving: Serving) -> None:
    """What is read back equals what was sent, to the microsecond."""
    agent = uuid4()
    body = payload(
        {"agent_id": str(agent), "rater_id": AGENT, "rating": 3}, timestamp="2026-11-23T09:00:00.000001+01:00"
    )
    answer = await serving.post(RATED, body)
    event = (await read_at(serving.settings, position_of(answer))).event
    assert isinstance(event, AgentRated)
    assert (event.agent_id, event.rating) == (agent, 3)
    assert event.occurred_at.isoformat() == "2026-11-23T08:00:00.000001+00:00"

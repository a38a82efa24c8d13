"""CloudEvents of every mode: one by one, in batches, a line each; what producers may send; copies of a request."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest
from prometheus_client import REGISTRY

from database.connector import connect
from ingress import bulk
from ingress.keys import KeyStore
from ingress.producers import PolicyChanges, ProducerPolicy, ProducerStore
from ingress.rates import Rates
from runtime.settings import Settings
from schemas.control import CONTROL_TYPES
from schemas.event_id import cloud_event_id
from signing.master_key import MasterKeys
from streams.producer import Limits
from tests.support.raw_records import read_records
from tests.support.serving import Serving, position_of, served
from tests.support.waiting import wait_until_async
from tests.support.webhooks import CLOUD_EVENTS, RATED, rated, read_all, read_at

BATCH = "application/cloudevents-batch+json"
AS_BATCH = {"content-type": BATCH, "plant-producer": "genesis"}
LINES = "application/x-ndjson"


def sample(name: str) -> float | None:
    return REGISTRY.get_sample_value(name)


def cloud_event(**changes: object) -> dict[str, object]:
    """A rating as a structured CloudEvent."""
    return {
        "specversion": "1.0",
        "id": uuid4().hex,
        "source": "urn:test",
        "type": "genesis.agent.rated",
        "time": "2026-11-23T08:00:00Z",
        "data": {"agent_id": str(uuid4()), "rater_id": str(uuid4()), "rating": 4},
        **changes,
    }


def lines_of(events: list[Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


async def post_batch(serving: Serving, events: object, **headers: str) -> httpx.Response:
    return await serving.post(CLOUD_EVENTS, json.dumps(events).encode(), **{**AS_BATCH, **headers})


async def post_lines(serving: Serving, body: bytes, **headers: str) -> tuple[httpx.Response, list[Any]]:
    answer = await serving.post(CLOUD_EVENTS, body, **{"content-type": LINES, "plant-producer": "genesis", **headers})
    is_lines = answer.headers["content-type"] == LINES
    return answer, [json.loads(line) for line in answer.content.splitlines()] if is_lines else []


async def post_binary(serving: Serving, event: dict[str, Any], **headers: str) -> httpx.Response:
    attributes = {f"ce-{name}": value for name, value in event.items() if name not in ("data", "extra")}
    body = json.dumps(event["data"]).encode()
    kind = {"content-type": "application/json"}
    return await serving.post(CLOUD_EVENTS, body, message_id=event["id"], **{**kind, **attributes, **headers})


async def assert_senders(serving: Serving, ids: set[str]) -> None:
    """Each record has the producer, the key, and an id of its own from these: not that of the request."""
    senders = [dict(received.headers) for received in await read_all(serving.settings, serving.topic)]
    found = [(sender["plant_producer"], sender["plant_key"]) for sender in senders]
    assert found == [(b"genesis", str(serving.key_id).encode())] * len(senders)
    message_ids = {(sender["plant_message_id"] or b"").decode() for sender in senders}
    assert len(message_ids) == len(senders)
    assert len(message_ids - ids) <= 1  # a test may send one more


async def test_the_three_modes_make_the_same_event(serving: Serving) -> None:
    """Structured, binary, batched or a line: one source and id, one content; whichever comes later is a repeat."""
    await set_policy(serving, binary_mode=True)
    event = cloud_event()
    structured = await serving.post(CLOUD_EVENTS, json.dumps(event).encode())
    binary = await post_binary(serving, event)
    batched = await post_batch(serving, [event])
    _, lines = await post_lines(serving, lines_of([event]))
    assert structured.status_code == binary.status_code == batched.status_code == 200, binary.text
    found = structured.json()
    assert [binary.json(), batched.json()["results"][0], lines[0]] == [found] * 3
    received = await read_at(serving.settings, position_of(structured))
    assert received.event.event_id == cloud_event_id("genesis", "urn:test", str(event["id"]))
    assert len(await read_all(serving.settings, serving.topic)) == 1


async def test_the_id_of_a_binary_event_is_what_was_signed(serving: Serving) -> None:
    """A request seen by somebody can't be sent again as another event."""
    answer = await post_binary(serving, cloud_event(), **{"ce-id": "another"})
    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        "ce-id must be equal to webhook-id, which is what was signed",
    )


async def test_a_binary_event_needs_leave(serving: Serving) -> None:
    """403 unless an operator allowed the mode, so that nobody in between turns an amendment into a retirement."""
    event = cloud_event()
    refused = await post_binary(serving, event)
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:plant:problem:forbidden")
    assert await read_all(serving.settings, serving.topic) == []
    assert (await serving.post(CLOUD_EVENTS, json.dumps(event).encode())).status_code == 200
    await set_policy(serving, binary_mode=True)
    assert (await post_binary(serving, cloud_event())).status_code == 200
    await set_policy(serving, binary_mode=False)
    assert (await post_binary(serving, cloud_event())).status_code == 403


@pytest.mark.parametrize(
    ("changes", "status", "detail"),
    [
        ({"ce-time": "yesterday"}, 400, "ce-time: Invalid RFC3339 encoded datetime"),
        ({"ce-specversion": "0.3"}, 400, "ce-specversion: Invalid enum value '0.3'"),
        ({"ce-type": "genesis.unknown"}, 422, "ce-type: this event type is not known"),
    ],
)
async def test_attributes_of_binary_events_are_checked(
    serving: Serving, changes: dict[str, str], status: int, detail: str
) -> None:
    """A problem with a header names the header."""
    await set_policy(serving, binary_mode=True)
    answer = await post_binary(serving, cloud_event(), **changes)
    assert (answer.status_code, answer.json()["detail"]) == (status, detail)


@pytest.mark.parametrize("control_type", sorted(CONTROL_TYPES))
async def test_control_records_come_in_by_no_way(serving: Serving, control_type: str) -> None:
    """By name, though the data fit, and from a producer that may send every type: operators alone publish them."""
    await set_policy(serving, binary_mode=True)
    data = {"poison_offset": 0, "reason": "mine", "event_id": str(uuid4()), "version": 2}
    event = cloud_event(type=control_type, data=data)
    told = f"{control_type} is a control record, which operators alone publish"
    structured = await serving.post(CLOUD_EVENTS, json.dumps(event).encode())
    assert (structured.status_code, structured.json()["errors"]) == (422, [{"detail": told, "pointer": "#/type"}])
    binary = await post_binary(serving, event)
    assert (binary.status_code, binary.json()["detail"]) == (422, f"ce-type: {told}")
    batch = await post_batch(serving, [event])
    assert (batch.status_code, told in batch.text) == (207, True)
    _, (line, *_) = await post_lines(serving, lines_of([event]))
    assert (line["problem"]["status"], told in json.dumps(line)) == (422, True)
    body = {**json.loads(rated()), "type": control_type}
    webhook = await serving.post(RATED, json.dumps(body).encode())
    assert (webhook.status_code, webhook.json()["errors"][0]["pointer"]) == (422, "#/type")
    assert (await serving.post(f"/webhook/{control_type}", json.dumps(body).encode())).status_code == 404
    assert await read_records(serving.settings, serving.topic) == []


async def test_a_field_of_a_binary_event_is_pointed_at_in_the_body(serving: Serving) -> None:
    """The body is the data, so the pointer has no `data`."""
    await set_policy(serving, binary_mode=True)
    answer = await post_binary(
        serving, cloud_event(data={"agent_id": str(uuid4()), "rater_id": str(uuid4()), "rating": 9})
    )
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/rating")


async def test_each_event_of_a_batch_has_its_result_in_order(serving: Serving) -> None:
    """Good events are stored though others are bad, each with its result in order; the status is 207."""
    events = [cloud_event() for _ in range(40)]
    events[3] = cloud_event(type="genesis.unknown")
    events[7] = {**events[6], "data": {"agent_id": str(uuid4()), "rater_id": str(uuid4()), "rating": 1}}
    events[9] = events[8]
    batch: list[object] = [*events, 17]
    answer = await post_batch(serving, batch)
    results = answer.json()["results"]
    assert (answer.status_code, len(results)) == (207, 41)
    problems = {at: result["problem"]["status"] for at, result in enumerate(results) if "problem" in result}
    assert problems == {3: 422, 7: 409, 40: 422}
    assert results[9] == results[8]
    stored = {str(received.event.event_id) for received in await read_all(serving.settings, serving.topic)}
    assert stored == {result["event_id"] for result in results if "event_id" in result}
    assert len(stored) == 37
    await assert_senders(serving, {str(event["id"]) for event in events})


async def test_a_thousand_events_go_in_one_request(serving: Serving) -> None:
    """1,000 are taken, each where its result says; 1,001 are refused whole."""
    events = [cloud_event() for _ in range(1_001)]
    too_many = await post_batch(serving, events)
    assert (too_many.status_code, too_many.json()["type"]) == (413, "urn:plant:problem:body-too-large")
    answer = await post_batch(serving, events[:1_000])
    assert answer.status_code == 200
    stored = await read_all(serving.settings, serving.topic)
    said = {result["event_id"]: (result["partition"], result["offset"]) for result in answer.json()["results"]}
    assert {str(r.event.event_id): (r.position.partition, r.position.offset) for r in stored} == said
    assert len(said) == 1_000


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"[]", 422), (b"{}", 422), (b"[1", 400), (b"", 400), (b"[" * 100_000, 400), (b"null", 400)],
)
async def test_what_is_no_batch_is_refused_whole(serving: Serving, body: bytes, status: int) -> None:
    """An array with at least one element, or nothing is looked at."""
    answer = await serving.post(CLOUD_EVENTS, body, **AS_BATCH)
    assert answer.status_code == status
    assert await read_all(serving.settings, serving.topic) == []


async def test_a_hundred_copies_make_one_event_each(serving: Serving) -> None:
    """Copies of a webhook, and of a batch, at the same time: one event on the topic for each event."""
    body, batch = rated(), [cloud_event() for _ in range(5)]
    singles = [serving.post(RATED, body, message_id="copied") for _ in range(100)]
    batches = [post_batch(serving, batch) for _ in range(20)]
    answers = await asyncio.gather(*singles, *batches)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 2
    assert len(await read_all(serving.settings, serving.topic)) == 6


async def test_bytes_that_are_no_text_spoil_their_own_event_alone(serving: Serving) -> None:
    """Also in a field that nobody reads; the rest of the batch, and of a bulk load, is stored."""
    malformed = json.dumps(cloud_event(extra="??")).encode().replace(b"??", b"\xff\xfe")
    good = json.dumps(cloud_event()).encode()
    batch = await serving.post(CLOUD_EVENTS, b"[%b,%b]" % (malformed, good), **AS_BATCH)
    assert batch.status_code == 207
    assert [result.get("problem", {}).get("status") for result in batch.json()["results"]] == [400, None]
    _, lines = await post_lines(serving, b"%b\n%b" % (malformed, json.dumps(cloud_event()).encode()))
    assert lines[-1] == {"accepted": 1, "refused": 1, "complete": True}
    assert len(await read_all(serving.settings, serving.topic)) == 2


async def test_a_batch_that_is_not_stored_is_to_be_sent_again(settings: Settings, topic: str) -> None:
    """Where Kafka has no room for all, the answer is 503 with Retry-After, and the repeat stores the rest once."""
    async with served(settings, topic, Limits(in_flight_records=10)) as serving:
        batch = [cloud_event() for _ in range(25)]
        first = await post_batch(serving, batch)
        assert (first.status_code, "retry-after" in first.headers) == (503, True)
        stored = sum("event_id" in result for result in first.json()["results"])
        assert 0 < stored < 25
        for _ in range(5):
            answer = await post_batch(serving, batch)
        assert answer.status_code == 200
        assert len(await read_all(serving.settings, serving.topic)) == 25


async def test_a_bulk_load_is_answered_line_by_line(serving: Serving) -> None:
    """Every line has a result in its order, bad lines keep none from the topic, and the last line counts."""
    events: list[Any] = [cloud_event() for _ in range(1_200)]
    events[500] = {"specversion": "1.0"}
    body = lines_of(events).replace(b"\n", b"\r\n", 10) + b"\n\n" + b"not json\n" + json.dumps(cloud_event()).encode()
    answer, lines = await post_lines(serving, body)
    assert answer.status_code == 200, answer.text
    end = lines.pop()
    assert end == {"accepted": 1_200, "refused": 2, "complete": True}
    assert [at for at, line in enumerate(lines) if "problem" in line] == [500, 1_200]
    stored = {str(received.event.event_id) for received in await read_all(serving.settings, serving.topic)}
    assert stored == {line["event_id"] for line in lines if "event_id" in line}
    await assert_senders(serving, {str(event["id"]) for event in events if "id" in event})


async def test_a_bulk_load_waits_for_room(settings: Settings, topic: str) -> None:
    """A producer that takes few records at a time slows the load down; nothing is refused."""
    async with served(settings, topic, Limits(in_flight_records=50)) as serving:
        answer, lines = await post_lines(serving, lines_of([cloud_event() for _ in range(600)]))
        assert (answer.status_code, lines[-1]) == (200, {"accepted": 600, "refused": 0, "complete": True})
        assert len(await read_all(serving.settings, serving.topic)) == 600


async def test_a_compressed_bulk_load_is_stored(serving: Serving) -> None:
    """Each line has its result; one that is cut off stores nothing, and a batch is never opened."""
    events = [cloud_event() for _ in range(300)]
    packed = gzip.compress(lines_of(events))
    answer, lines = await post_lines(serving, packed, **{"content-encoding": "gzip"})
    assert (answer.status_code, lines[-1]) == (200, {"accepted": 300, "refused": 0, "complete": True})
    assert len(lines) == 301

    cut, _ = await post_lines(serving, gzip.compress(lines_of([cloud_event()]))[:-1], **{"content-encoding": "gzip"})
    batch = await serving.post(CLOUD_EVENTS, packed, **{**AS_BATCH, "content-encoding": "gzip"})
    stripped, _ = await post_lines(serving, packed)

    assert [each.status_code for each in (cut, batch, stripped)] == [400, 415, 400]
    assert "is cut off in line 2; nothing was stored" in cut.json()["detail"]
    assert len(await read_all(serving.settings, serving.topic)) == 300


async def test_a_bulk_load_keeps_the_order_of_its_lines(settings: Settings, topic: str) -> None:
    """A small event does not overtake a large one of the same entity for which the producer has no room yet."""
    skill_id = str(uuid4())
    texts = ["x" * 2_000 if number % 3 else "" for number in range(30)]
    events = [
        cloud_event(
            type="genesis.skill.registered",
            data={"skill_id": skill_id, "name": "A skill", "description": text, "category": "technical"},
        )
        for text in texts
    ]
    async with served(settings, topic, Limits(in_flight_bytes=3_500)) as serving:
        _, lines = await post_lines(serving, lines_of(events))
        assert lines[-1] == {"accepted": 30, "refused": 0, "complete": True}
        offsets = [line["offset"] for line in lines[:-1]]
        assert offsets == sorted(offsets)


def recorded_waits(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record how long the rate makes producers wait, each time that it is asked."""
    publisher, waits = serving.ingress.intake._publisher, []
    ask = publisher.wait_seconds

    def recorded(policy: ProducerPolicy) -> float:
        waits.append(ask(policy))
        return waits[-1]

    monkeypatch.setattr(publisher, "wait_seconds", recorded)
    return waits


async def test_a_slow_producer_is_slowed_down_and_not_refused(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bulk load of one that is in debt waits for its rate, with answers all the while."""
    clock = RateClock(monkeypatch)
    await set_policy(serving, rate_per_second=40.0, burst=1)
    assert (await post_batch(serving, [cloud_event() for _ in range(20)])).status_code == 200
    assert (await post_batch(serving, [cloud_event()])).status_code == 429
    waits = recorded_waits(serving, monkeypatch)
    clock.run()
    answer, lines = await post_lines(serving, lines_of([cloud_event() for _ in range(60)]))
    assert (answer.status_code, lines[-1]) == (200, {"accepted": 60, "refused": 0, "complete": True})
    assert max(waits) > 0
    clock.stop()
    assert (await post_batch(serving, [cloud_event()])).status_code == 429


async def test_a_bulk_load_ends_when_the_process_does(serving: Serving) -> None:
    """Between two chunks, with a last line that says so; what was answered before is stored."""
    await set_policy(serving, rate_per_second=50.0, burst=1)
    body = lines_of([cloud_event() for _ in range(3_000)])
    load = asyncio.create_task(post_lines(serving, body))
    await wait_until_async(lambda: sample("plant_ingress_streams") == 1, "it is under way")
    serving.ingress.intake.stop()
    answer, lines = await load
    end = lines.pop()
    assert (answer.status_code, end["complete"]) == (200, False)
    assert end["problem"]["type"] == "urn:plant:problem:starting"
    assert end["accepted"] == len(lines) < 3_000
    assert len(await read_all(serving.settings, serving.topic)) == len(lines)


async def revoke_key(serving: Serving) -> None:
    database = connect(serving.settings, "operator")
    try:
        await KeyStore(database, MasterKeys(serving.settings)).revoke(serving.key_id)
    finally:
        await database.close()


async def disable_producer(serving: Serving) -> None:
    database = connect(serving.settings, "operator")
    try:
        await ProducerStore(database).disable("genesis")
    finally:
        await database.close()


@pytest.mark.parametrize(("stop", "kind"), [(revoke_key, "signature"), (disable_producer, "forbidden")])
async def test_an_operator_ends_a_bulk_load_under_way(
    serving: Serving, stop: Callable[[Serving], Awaitable[None]], kind: str
) -> None:
    """A revoked key and a disabled producer publish nothing after the keys were read again; the rest can go on."""
    await set_policy(serving, rate_per_second=50.0, burst=1)
    events = [cloud_event() for _ in range(3_000)]
    load = asyncio.create_task(post_lines(serving, lines_of(events)))
    await wait_until_async(lambda: sample("plant_ingress_streams") == 1, "it is under way")
    await stop(serving)
    _, lines = await load
    end = lines.pop()
    assert (end["complete"], end["problem"]["type"]) == (False, f"urn:plant:problem:{kind}")
    assert end["next_line"] == end["accepted"] + 1 == len(lines) + 1 < 3_000
    assert len(await read_all(serving.settings, serving.topic)) == len(lines)


async def test_a_bulk_load_has_a_longest_time(settings: Settings, topic: str) -> None:
    """It stops at a line that it names, and the lines from there on complete it."""
    async with served(msgspec.structs.replace(settings, ingress_stream_timeout_seconds=1), topic) as serving:
        await set_policy(serving, rate_per_second=50.0, burst=1)
        body = lines_of([cloud_event() for _ in range(120)])
        sent, going_on = 0, True
        while going_on:
            _, lines = await post_lines(serving, body)
            end = lines[-1]
            sent, going_on = sent + end["accepted"], not end["complete"]
            if going_on:
                assert end["problem"]["type"] == "urn:plant:problem:overloaded"
                body = b"".join(body.splitlines(keepends=True)[end["next_line"] - 1 :])
        assert sent == len(await read_all(serving.settings, serving.topic)) == 120


class RateClock:
    """The clock of all buckets, which stands still: a slow machine would fill them between two requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._at, self._behind, self._runs = 0.0, 0.0, False
        wait_seconds = Rates.wait_seconds

        def by_this(rates: Rates, producer: str, rate_per_second: float, burst: int, now_seconds: float) -> float:
            if self._runs:
                self._at = now_seconds - self._behind
            return wait_seconds(rates, producer, rate_per_second, burst, self._at)

        monkeypatch.setattr(Rates, "wait_seconds", by_this)

    def advance(self, seconds: float) -> None:
        """Move it."""
        assert not self._runs
        self._at += seconds

    def run(self) -> None:
        """Let it run on as the machine's own does."""
        self._runs, self._behind = True, time.monotonic() - self._at

    def stop(self) -> None:
        """Let it stand still at the time at which a producer's rate was asked for last."""
        self._runs = False


async def test_only_so_many_bulk_loads_at_a_time(
    settings: Settings, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is 503 with Retry-After before its body is read; there is room again when one has ended."""
    async with served(msgspec.structs.replace(settings, ingress_streams_max=1), topic) as serving:
        await set_policy(serving, rate_per_second=50.0, burst=1)
        clock = RateClock(monkeypatch)
        body = lines_of([cloud_event() for _ in range(60)])
        first = asyncio.create_task(post_lines(serving, body))
        await wait_until_async(lambda: sample("plant_ingress_streams") == 1, "the first is under way")
        second, _ = await post_lines(serving, lines_of([cloud_event()]))
        assert (second.status_code, "retry-after" in second.headers) == (503, True)
        clock.run()
        assert (await first)[1][-1]["complete"]
        assert (await post_lines(serving, lines_of([cloud_event()])))[0].status_code == 200


async def test_a_bulk_load_has_to_arrive_while_its_signature_is_good(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that trickles in is cut off with 408, and nothing of it is stored."""
    monkeypatch.setattr(bulk, "ARRIVAL_TIMEOUT_SECONDS", 0.2)
    body = lines_of([cloud_event()])

    async def trickle() -> AsyncIterator[bytes]:
        for byte in body:
            yield bytes([byte])
            await asyncio.sleep(0.05)

    signed = serving.sender.headers(body, content_type=LINES)
    answer = await serving.client.post(CLOUD_EVENTS, content=trickle(), headers={**signed, "plant-producer": "genesis"})
    assert (answer.status_code, answer.json()["type"]) == (408, "urn:plant:problem:slow-request")
    assert sample("plant_ingress_streams") == 0


async def test_nothing_of_an_unsigned_bulk_load_is_read(serving: Serving) -> None:
    """Signature and size are checked before the first line is published."""
    body = lines_of([cloud_event()])
    unsigned, _ = await post_lines(serving, body, **{"webhook-signature": "v1,AAAA"})
    nameless = await serving.post(CLOUD_EVENTS, body, **{"content-type": LINES})
    other, _ = await post_lines(serving, body, **{"plant-producer": "somebody"})
    empty, lines = await post_lines(serving, b"")
    assert (unsigned.status_code, nameless.status_code, other.status_code) == (401, 400, 401)
    assert (empty.status_code, lines) == (200, [{"accepted": 0, "refused": 0, "complete": True}])
    assert await read_all(serving.settings, serving.topic) == []


async def test_large_lines_and_bodies_are_refused(settings: Settings, topic: str) -> None:
    """A line beyond the limit of an event is refused alone, a body beyond its own whole."""
    small = msgspec.structs.replace(settings, ingress_body_max_bytes=2_000, ingress_stream_max_bytes=10_000)
    async with served(small, topic) as serving:
        events = [cloud_event(), cloud_event(extra="x" * 3_000), cloud_event()]
        _, lines = await post_lines(serving, lines_of(events))
        assert lines[1]["problem"]["status"] == 413
        assert lines[-1] == {"accepted": 2, "refused": 1, "complete": True}
        answer, _ = await post_lines(serving, lines_of([cloud_event() for _ in range(60)]))
        assert answer.status_code == 413


async def set_policy(serving: Serving, **policy: Any) -> None:
    """Change what `genesis` may do, and wait until the process knows."""
    database = connect(serving.settings, "operator")
    try:
        await ProducerStore(database).set("genesis", PolicyChanges(**policy))
    finally:
        await database.close()

    def loaded() -> bool:
        found = serving.ingress.keyring.policy("genesis")
        return all(getattr(found, name) == value for name, value in policy.items())

    await wait_until_async(loaded, f"the policy is loaded: {policy}")


async def test_a_producer_sends_only_what_it_may(serving: Serving) -> None:
    """403 for an event type that the producer is not allowed, alone, in a batch, or in a line."""
    await set_policy(serving, event_types=frozenset({"genesis.skill.validated"}))
    alone = await serving.post(RATED, rated())
    batch = await post_batch(serving, [cloud_event()])
    _, lines = await post_lines(serving, lines_of([cloud_event()]))
    assert (alone.status_code, batch.status_code) == (403, 207)
    assert batch.json()["results"][0]["problem"]["type"] == "urn:plant:problem:forbidden"
    assert lines[0]["problem"]["detail"] == "This producer may not send genesis.agent.rated."
    assert await read_all(serving.settings, serving.topic) == []


async def test_a_producer_is_held_to_its_rate(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the burst 429 with Retry-After, for batches too; after that time it may go on."""
    clock = RateClock(monkeypatch)
    await set_policy(serving, rate_per_second=20.0, burst=5)
    answers = [await serving.post(RATED, rated()) for _ in range(12)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 7
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    clock.advance(0.2)
    assert (await post_batch(serving, [cloud_event() for _ in range(30)])).status_code == 200
    in_debt = await post_batch(serving, [cloud_event()])
    assert (in_debt.status_code, int(in_debt.headers["retry-after"]) in (1, 2)) == (429, True)


async def test_more_requests_at_once_than_allowed_are_503(settings: Settings, topic: str) -> None:
    """The bound on requests under way is for all together; who is refused may come again."""
    few = msgspec.structs.replace(settings, ingress_requests_max=3)
    async with served(few, topic) as serving:
        answers = await asyncio.gather(*(serving.post(RATED, rated()) for _ in range(30)))
        assert {answer.status_code for answer in answers} == {200, 503}
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert (refused.json()["type"], "retry-after" in refused.headers) == ("urn:plant:problem:overloaded", True)
        assert (await serving.post(RATED, rated())).status_code == 200


async def test_other_content_types_are_told_what_to_send(serving: Serving) -> None:
    """415 names the content types; plain JSON without attributes is none."""
    answer = await serving.post(CLOUD_EVENTS, rated(), **{"content-type": "application/json"})
    assert answer.status_code == 415
    assert "application/cloudevents-batch+json" in answer.json()["detail"]

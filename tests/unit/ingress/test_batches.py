"""Batches of CloudEvents without Kafka: which are read, which events hold up others, and how the whole is answered."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from ingress import batches
from ingress.batches import EVENTS_MAX, SubmittedEvent, answer_of, await_results, is_overloaded, read_items, submit_each
from ingress.producers import ProducerPolicy
from ingress.publishing import HttpAnswer, IngressPublisher
from runtime.clock import FixedClock
from server.problems import Problem
from streams.errors import KafkaUnavailable, Overloaded
from tests.support.scripted_producer import ScriptedProducer

POLICY = ProducerPolicy(name="genesis", event_types=None, rate_per_second=10, burst=5, disabled=False)


def item(**changes: object) -> bytes:
    """A rating as a structured CloudEvent."""
    event = {
        "specversion": "1.0",
        "id": uuid4().hex,
        "source": "urn:test",
        "type": "genesis.agent.rated",
        "time": "2026-11-23T08:00:00Z",
        "data": {"agent_id": str(uuid4()), "rater_id": str(uuid4()), "rating": 4},
        **changes,
    }
    return json.dumps(event).encode()


async def submitted(producer: ScriptedProducer, items: list[bytes]) -> tuple[IngressPublisher, list[SubmittedEvent]]:
    publisher = IngressPublisher(producer, FixedClock(datetime(2026, 11, 23, tzinfo=UTC)))
    return publisher, await submit_each(publisher, items, POLICY, None, item_max_bytes=1_000)


async def answered(producer: ScriptedProducer, items: list[bytes]) -> HttpAnswer:
    publisher, events = await submitted(producer, items)
    return answer_of(await await_results(publisher, events))


@pytest.mark.parametrize(("count", "status"), [(0, 422), (EVENTS_MAX + 1, 413)])
def test_a_batch_has_a_bounded_number_of_events(count: int, status: int) -> None:
    """At least one, and no more than the bound; the bound itself is read."""
    with pytest.raises(Problem) as raised:
        read_items(b"[" + b",".join([b"1"] * count) + b"]")
    assert raised.value.status == status
    assert len(read_items(b"[" + b",".join([b"1"] * EVENTS_MAX) + b"]")) == EVENTS_MAX


@pytest.mark.parametrize("piece", [b"0", b"[]", b'{"a":1}'])
def test_items_beyond_the_bound_are_skipped(piece: bytes) -> None:
    """A body of a million items is refused after those that tell; their rest has to be JSON all the same."""
    body = b"[" + b",".join([piece] * (2_000_000 // (len(piece) + 1))) + b"]"
    for wrong, kind in ((body, "body-too-large"), (body[:-1], "malformed-body")):
        started = time.thread_time()
        with pytest.raises(Problem) as raised:
            read_items(wrong)
        assert (raised.value.kind, time.thread_time() - started < 0.05) == (kind, True)


async def test_others_are_served_while_a_batch_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are submitted in steps, in order; between them the event loop turns."""
    monkeypatch.setattr(batches, "STEP_SECONDS", 0.0)
    turns, producer = 0, ScriptedProducer()

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(others())
    items = [item() for _ in range(50)]
    _, events = await submitted(producer, items)
    turning.cancel()
    assert (len(events), turns >= 25) == (50, True)


async def test_all_stored_is_200() -> None:
    """Each result is the event's position, in order."""
    answer = await answered(ScriptedProducer(), [item(), item()])
    assert (answer.status, answer.headers) == (200, ())
    assert [result["offset"] for result in json.loads(answer.body)["results"]] == [0, 1]


async def test_a_bad_event_stops_no_other() -> None:
    """207: what fits no schema, or is too large, is refused alone."""
    producer = ScriptedProducer()
    answer = await answered(producer, [item(), b"{}", item(extra="x" * 1_000), item()])
    results = json.loads(answer.body)["results"]
    assert (answer.status, len(producer.submitted)) == (207, 2)
    assert [result.get("problem", {}).get("status") for result in results] == [None, 422, 413, None]


async def test_an_event_without_room_stops_those_after_it() -> None:
    """So that none of the same entity overtakes it: 503 for all of them, though there is room again."""
    producer = ScriptedProducer()
    producer.script.extend([None, Overloaded(retry_after_seconds=2), None])
    answer = await answered(producer, [item(), item(), item(), b"{}"])
    results = json.loads(answer.body)["results"]
    assert (answer.status, answer.headers) == (503, ((b"retry-after", b"2"),))
    assert [result.get("problem", {}).get("status") for result in results] == [None, 503, 503, 503]
    assert len(producer.submitted) == 1


async def test_an_unreachable_kafka_stops_no_other() -> None:
    """Only a lack of room does; the answer is 503 all the same, since a repeat stores the rest."""
    producer = ScriptedProducer()
    producer.script.extend([KafkaUnavailable(), None])
    _, events = await submitted(producer, [item(), item()])
    assert [is_overloaded(event) for event in events] == [False, False]
    assert len(producer.submitted) == 1
    producer.refused.append(KafkaUnavailable())
    assert (await answered(producer, [b"{}", item()])).status == 503

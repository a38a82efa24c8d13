"""Publishing an event from outside, without Kafka: who may, how fast, copies, and what a failure is answered with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import msgspec
import pytest

from ingress.payloads import Incoming, read_cloud_event, read_webhook
from ingress.producers import ProducerPolicy
from ingress.publishing import IngressPublisher
from runtime.clock import FixedClock
from server.problems import Problem
from streams.errors import KafkaUnavailable, Overloaded, RecordTooLarge, StreamsError
from tests.support.scripted_producer import ScriptedProducer
from tests.support.webhooks import rated

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
POLICY = ProducerPolicy(name="genesis", event_types=None, rate_per_second=10, burst=5, disabled=False)
changed = msgspec.structs.replace


def publisher() -> tuple[IngressPublisher, ScriptedProducer, FixedClock]:
    producer, clock = ScriptedProducer(), FixedClock(NOW)
    return IngressPublisher(producer, clock), producer, clock


def rating(message_id: str = "msg_1", agent_id: UUID | None = None, stars: int = 4) -> Incoming:
    return read_webhook(rated(agent_id, stars), "genesis.agent.rated", "genesis", message_id, "plant/ingress")


def problem_of(error: StreamsError) -> Problem:
    """The answer to an event that `submit` refused."""
    publishing, producer, _ = publisher()
    producer.script.append(error)
    with pytest.raises(Problem) as raised:
        publishing.submit(rating(), POLICY, None)
    return raised.value


async def test_a_disabled_producer_is_refused() -> None:
    """403, whatever its rate; a bulk load too."""
    publishing, _, _ = publisher()
    for check in (publishing.check, publishing.require_enabled):
        with pytest.raises(Problem) as raised:
            check(changed(POLICY, disabled=True))
        assert raised.value.kind == "forbidden"


async def test_a_producer_over_its_rate_hears_when_to_come_again() -> None:
    """429 with the seconds until its debt is gone; then it may send."""
    publishing, _, clock = publisher()
    publishing.check(POLICY)
    publishing.consume(POLICY, 45)
    with pytest.raises(Problem) as raised:
        publishing.check(POLICY)
    assert (raised.value.kind, raised.value.headers) == ("rate-limited", ((b"retry-after", b"5"),))
    clock.set(NOW + timedelta(seconds=5))
    publishing.check(POLICY)


async def test_an_event_type_that_is_not_allowed_is_not_published() -> None:
    """403; an allowed one is published."""
    publishing, producer, _ = publisher()
    with pytest.raises(Problem) as raised:
        publishing.submit(rating(), changed(POLICY, event_types=frozenset({"genesis.skill.validated"})), None)
    assert (raised.value.kind, producer.submitted) == ("forbidden", [])
    publishing.submit(rating(), changed(POLICY, event_types=frozenset({"genesis.agent.rated"})), None)
    assert len(producer.submitted) == 1


async def test_a_record_says_who_sent_it() -> None:
    """Producer, key and the sender's own message id; of a CloudEvent that is its own id and not the request's."""
    publishing, producer, _ = publisher()
    signed = changed(POLICY, key_id="a key")
    publishing.submit(rating("msg_7"), signed, None)
    body = msgspec.json.encode(
        {
            "specversion": "1.0",
            "id": "event-7",
            "source": "urn:test",
            "type": "genesis.agent.rated",
            "time": "2026-11-23T08:00:00Z",
            "data": msgspec.json.decode(rated(None, 4))["data"],
        }
    )
    publishing.submit(read_cloud_event(body, "genesis"), signed, None)
    of_key = {"plant_producer": b"genesis", "plant_key": b"a key"}
    assert producer.senders == [
        {**of_key, "plant_message_id": b"msg_7"},
        {**of_key, "plant_message_id": b"event-7"},
    ]


async def test_copies_share_a_publish_and_another_body_is_refused() -> None:
    """Only the first copy reaches Kafka; another body with its id is 409, and after the cache's age a new event."""
    publishing, producer, clock = publisher()
    agent_id = uuid4()
    raters = rating(agent_id=agent_id)
    first = publishing.submit(raters, POLICY, None)
    again = publishing.submit(raters, POLICY, None)
    assert (again.publish is first.publish, first.repeated, again.repeated) == (True, False, True)
    with pytest.raises(Problem) as raised:
        publishing.submit(rating(agent_id=agent_id, stars=1), POLICY, None)
    assert (raised.value.kind, len(producer.submitted)) == ("id-reused", 1)
    clock.set(NOW + timedelta(minutes=11))
    publishing.evict_expired()
    assert publishing.submit(raters, POLICY, None).publish is not first.publish


async def test_what_kafka_did_not_take_is_tried_again() -> None:
    """Neither a refused submit nor a failed publish answers the copy that follows it."""
    publishing, producer, _ = publisher()
    event = rating()
    producer.script.append(Overloaded())
    with pytest.raises(Problem):
        publishing.submit(event, POLICY, None)
    producer.refused.append(KafkaUnavailable())
    failed = publishing.submit(event, POLICY, None).publish
    with pytest.raises(Problem) as raised:
        await publishing.await_acknowledgement(failed)
    assert raised.value.kind == "kafka-unavailable"
    again = publishing.submit(event, POLICY, None).publish
    assert again is not failed
    assert (await publishing.await_acknowledgement(again)).offset == 1


def test_a_failed_publish_is_answered_by_its_cause() -> None:
    """503 with the error's seconds where a repeat helps, 413 where none does."""
    full, away = problem_of(Overloaded(retry_after_seconds=3)), problem_of(KafkaUnavailable(retry_after_seconds=7))
    assert (full.kind, full.headers) == ("overloaded", ((b"retry-after", b"3"),))
    assert (away.kind, away.headers) == ("kafka-unavailable", ((b"retry-after", b"7"),))
    assert problem_of(RecordTooLarge(why="It has many bytes.")).kind == "body-too-large"
    assert problem_of(StreamsError()).headers == ((b"retry-after", b"5"),)


async def test_many_are_awaited_in_order() -> None:
    """Each publish has its own position or problem."""
    publishing, producer, _ = publisher()
    producer.refused.extend([None, KafkaUnavailable(), None])
    publishes = [publishing.submit(rating(f"msg_{number}"), POLICY, None).publish for number in range(3)]
    first, second, third = await publishing.await_each(publishes)
    assert isinstance(second, Problem)
    assert not isinstance(first, Problem)
    assert not isinstance(third, Problem)
    assert (first.offset, second.kind, third.offset) == (0, "kafka-unavailable", 2)


async def test_only_what_was_stored_consumes_the_rate() -> None:
    """Neither repeats nor 503 do; a refused event does, since its sender has to mend it."""
    publishing, producer, _ = publisher()
    events_left = POLICY.burst

    async def outcome(event: Incoming) -> str:
        publishing.check(POLICY)
        try:
            await publishing.publish(event, POLICY, None)
        except Problem as problem:
            return problem.kind
        return "stored"

    repeated = rating("repeated")
    assert {await outcome(repeated) for _ in range(3 * events_left)} == {"stored"}
    for number in range(2 * events_left):
        producer.script.append(Overloaded())
        assert await outcome(rating(f"no room {number}")) == "overloaded"
        producer.refused.append(KafkaUnavailable())
        assert await outcome(rating(f"not taken {number}")) == "kafka-unavailable"
    for number in range(events_left - 1):
        assert await outcome(rating(f"new {number}")) == "stored"
    with pytest.raises(Problem) as raised:
        publishing.check(POLICY)
    assert raised.value.kind == "rate-limited"

"""Records that no producer of ours writes, straight onto the topic among good ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from runtime.settings import Settings
from schemas import codec
from schemas.events import AgentOnboarded
from streams.topics import DEAD_EVENTS_TOPIC
from tests.conftest import Database, MakeTopic
from tests.support.dead_letters import DeadLetter, error_header, offset_of, read_dead_letters
from tests.support.faults.evidence import assert_exactly_once, wait_until_caught_up
from tests.support.faults.scene import Scene, scene_of
from tests.support.load import events, fill
from tests.support.raw_records import RawRecord, append_raw
from tests.support.serving import served
from tests.support.waiting import wait_until
from tests.support.webhooks import AVAILABLE, payload

GOOD = 600
AGENT_ID = "0f7f6b0e-3a55-4c07-9a61-3c1b8c0de001"


@pytest.fixture
def scene(settings: Settings, database: Database, topic: str, tmp_path: Path) -> Iterator[Scene]:
    with scene_of(settings, database.superuser_url, topic, tmp_path) as made:
        yield made


def onboarded(number: int) -> AgentOnboarded:
    (first, *_) = (each for each in events(40, seed=1000 + number) if isinstance(each, AgentOnboarded))
    return first


def poison() -> dict[str, RawRecord]:
    """Records that no consumer can use, by what is wrong with them."""
    event, other = onboarded(1), onboarded(2)
    key, value = codec.key(event), codec.encode(event)
    body = value[5:]
    return {
        "no value": RawRecord(key, None),
        "no bytes": RawRecord(key, b""),
        "not Avro": RawRecord(key, b"\x00\x00\x00\x00\x01not avro at all"),
        "no schema of ours": RawRecord(key, b"\x00\x00\x00\x27\x0f" + body),
        "another format": RawRecord(key, b'{"type": "genesis.agent.onboarded"}'),
        "trailing byte": RawRecord(key, value + b"\x00"),
        # As one Avro block, the next three would have as many records as there are values, each at the wrong place.
        "a forged record inside a record": RawRecord(key, value + codec.encode(other)[5:]),
        "nothing but a schema id": RawRecord(key, value[:5]),
        "a record cut in two": RawRecord(key, value[:-9]),
        "the other half": RawRecord(key, value[:5] + value[-9:]),
        "a NUL character": RawRecord(key, value.replace(event.name.encode(), b"\x00" * len(event.name))),
        "not UTF-8": RawRecord(key, value.replace(event.name.encode(), b"\xff" * len(event.name))),
        "no key": RawRecord(None, value),
        "another entity's key": RawRecord(codec.key(other), value),
        "a key that is no id": RawRecord(b"\xff\x00", value),
    }


async def test_poison_costs_nothing_but_itself(scene: Scene, make_topic: MakeTopic) -> None:
    """Each unusable record is logged as poison with its own bytes and a reason, and becomes a dead letter; every good
    one around it is applied.
    """
    bad = poison()
    fill(scene.settings, scene.topic, events(GOOD))
    first = {
        partition: await append_raw(scene.settings, scene.topic, partition, list(bad.values())) for partition in (0, 1)
    }
    fill(scene.settings, scene.topic, events(GOOD, seed=2))

    worker = scene.worker()
    wait_until_caught_up(scene)

    assert assert_exactly_once(scene, []) == {"applied": 2 * GOOD, "poison": 2 * len(bad)}
    for partition, start in first.items():
        rows = scene.query(
            'SELECT "offset", key, value, reason FROM event_stream'
            " WHERE topic = $1 AND partition = $2 AND disposition = 'poison' ORDER BY 1",
            (scene.topic, partition),
        )
        sent = [(start + number, record.key, record.value) for number, record in enumerate(bad.values())]
        assert [row[:3] for row in rows] == sent
        assert all(row[3] for row in rows)
    assert worker.stop() == 0

    dead = await relayed(scene, await make_topic(family=DEAD_EVENTS_TOPIC))
    assert sorted(repr(letter[:2]) for letter in dead) == sorted(2 * [repr((r.key, r.value)) for r in bad.values()])
    assert {error_header(letter, "topic") for letter in dead} == {scene.topic.encode()}


async def test_an_id_that_comes_again_with_another_body_is_a_dead_letter(
    scene: Scene, settings: Settings, make_topic: MakeTopic
) -> None:
    """In an ingress's window it is refused. One that knows nothing of the first takes it; it is not applied."""
    first, other = (payload({"agent_id": AGENT_ID, "available": available}) for available in (True, False))
    async with served(settings, scene.topic) as serving:
        accepted = await serving.post(AVAILABLE, first, message_id="msg_1")
        refused = await serving.post(AVAILABLE, other, message_id="msg_1")
    async with served(settings, scene.topic) as serving:
        taken = await serving.post(AVAILABLE, other, message_id="msg_1")
        repeated = await serving.post(AVAILABLE, first, message_id="msg_1")
    assert [answer.status_code for answer in (accepted, refused, taken, repeated)] == [200, 409, 200, 409]
    assert taken.json()["event_id"] == accepted.json()["event_id"]

    worker = scene.worker()
    wait_until_caught_up(scene)
    assert worker.stop() == 0

    assert assert_exactly_once(scene, [accepted.json()["event_id"]]) == {"applied": 1, "poison": 1}
    assert scene.query("SELECT available FROM agents_v1.agents") == [(True,)]
    (letter,) = await relayed(scene, await make_topic(family=DEAD_EVENTS_TOPIC))
    assert offset_of(letter) == taken.json()["offset"]
    assert b"used it before" in (error_header(letter, "exception.message") or b"")


async def relayed(scene: Scene, dead_topic: str) -> list[DeadLetter]:
    """What one pass of the relay puts on the topic."""
    relay = scene.relay("--once", "--dead-topic", dead_topic)
    await asyncio.to_thread(wait_until, lambda: not relay.alive, "the relay is done")
    assert relay.exit_code == 0, relay.log.read_text()
    return await read_dead_letters(scene.settings, dead_topic)


async def test_odd_headers_are_kept_and_chained_byte_for_byte(scene: Scene) -> None:
    """Names that are not UTF-8, null values, doubles, a megabyte of them, unknown attribute bits: still events."""
    malformed: list[tuple[list[tuple[bytes, bytes | None]], int]] = [
        ([(b"caf\xe9", b"1"), (b"\xff\xfe", None)], 0),
        ([(b"", b""), (b"twice", b"1"), (b"twice", b"2")], 0),
        ([(b"large-%d" % number, bytes(9_000)) for number in range(100)], 0),
        ([(b"n%d" % number, b"") for number in range(20_000)], 0),
        ([], 0x80),
        ([(b"caf\xe9", b"1")], 0xFF),
    ]
    fill(scene.settings, scene.topic, events(GOOD))
    for number, (headers, attributes) in enumerate(malformed):
        event = onboarded(number)
        before, after = onboarded(100 + number), onboarded(200 + number)
        records = [
            RawRecord(codec.key(before), codec.encode(before)),
            RawRecord(codec.key(event), codec.encode(event), headers, attributes),
            RawRecord(codec.key(after), codec.encode(after)),
        ]
        await append_raw(scene.settings, scene.topic, 2, records)
    fill(scene.settings, scene.topic, events(GOOD, seed=2))

    worker = scene.worker()
    wait_until_caught_up(scene)

    wanted = [str(onboarded(number + extra).event_id) for number in range(len(malformed)) for extra in (0, 100, 200)]
    assert assert_exactly_once(scene, wanted) == {"applied": 2 * GOOD + 3 * len(malformed)}
    for number, (headers, _) in enumerate(malformed):
        ((stored,),) = scene.query("SELECT headers FROM event_stream WHERE event_id = $1::uuid", (wanted[3 * number],))
        assert stored == canonical(headers)
    assert worker.stop() == 0


async def test_records_are_where_the_broker_counts_them(scene: Scene) -> None:
    """Not where they say: twice at one offset, backwards, or where other records are. None of either is lost."""
    fill(scene.settings, scene.topic, events(GOOD))
    said = ((0, 0, 1), (2, 1, 0), (0, 1, -1), (20, 21, 22))
    for partition, deltas in enumerate(said):
        strange = [onboarded(10 * partition + number) for number in range(len(deltas))]
        records = [
            RawRecord(codec.key(event), codec.encode(event), offset_delta=delta)
            for event, delta in zip(strange, deltas, strict=True)
        ]
        await append_raw(scene.settings, scene.topic, partition, records)
    fill(scene.settings, scene.topic, events(GOOD, seed=2))

    worker = scene.worker()
    wait_until_caught_up(scene)

    wanted = [str(onboarded(10 * partition + number).event_id) for partition in range(4) for number in range(3)]
    assert assert_exactly_once(scene, wanted) == {"applied": 2 * GOOD + len(wanted)}
    assert worker.logged("partition.stopped") == []
    assert worker.stop() == 0


def canonical(headers: list[tuple[bytes, bytes | None]]) -> bytes:
    """What the audit format says of these headers, written out again."""
    parts = [len(headers).to_bytes(4, "big")]
    for name, value in headers:
        parts += [len(name).to_bytes(4, "big"), name]
        parts += [b"\xff\xff\xff\xff"] if value is None else [len(value).to_bytes(4, "big"), value]
    return b"".join(parts)


async def test_committed_offsets_are_only_a_hint(scene: Scene) -> None:
    """Offsets that somebody committed for the group, beyond the log's end and before the checkpoint, move nothing."""
    fill(scene.settings, scene.topic, events(GOOD))
    worker = scene.worker()
    wait_until_caught_up(scene)
    worker.stop()
    await commit(scene, dict(enumerate((10_000_000, 0, 1, 10_000_000))))
    fill(scene.settings, scene.topic, events(GOOD, seed=2))

    worker = scene.worker()
    wait_until_caught_up(scene)

    assert assert_exactly_once(scene, []) == {"applied": 2 * GOOD}
    assert worker.logged("partition.stopped") == []


async def commit(scene: Scene, offsets: dict[int, int]) -> None:
    """Commit for the workers' group, which must be empty."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=scene.settings.kafka_address(),
        group_id=scene.settings.consumer_group,
        enable_auto_commit=False,
    )
    consumer.assign([TopicPartition(scene.topic, partition) for partition in offsets])
    await consumer.start()
    try:
        await consumer.commit({TopicPartition(scene.topic, partition): offset for partition, offset in offsets.items()})
    finally:
        await consumer.stop()

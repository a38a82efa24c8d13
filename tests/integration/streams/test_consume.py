"""Reading events back: starts, ends, filters, groups, the command line, and `plant publish`."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from uuid import uuid4

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from runtime.settings import Settings
from schemas import codec
from schemas.control import RecordSkipped, chain_version_raised
from schemas.events import AgentAvailable, AgentRated, Event
from streams.consume import Received, ReceivedControl, consume
from streams.errors import CheckpointOutOfLog, KafkaUnavailable, SchemaNewer, TopicMissing, UnknownStart
from streams.kafka.consumer import RepairedConsumer
from streams.producer import EventProducer
from streams.record_position import RecordPosition
from streams.start import LastOffsets, Start
from streams.topics import EVENTS_TOPIC, apply
from tests.support.at_home import PLANT
from tests.support.command_line import plant
from tests.support.fetch_faults import fail_fetches
from tests.support.raw_records import RawRecord, append_raw
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async
from tests.support.webhooks import read_all

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)


def available() -> AgentAvailable:
    return AgentAvailable(event_id=uuid4(), agent_id=uuid4(), occurred_at=NOW, available=True)


def rated() -> AgentRated:
    return AgentRated(event_id=uuid4(), agent_id=uuid4(), occurred_at=NOW, rater_id=uuid4(), rating=3)


async def publish(settings: Settings, topic: str, events: Sequence[Event]) -> list[RecordPosition]:
    async with EventProducer(settings, topics=(EVENTS_TOPIC,), events_topic=topic) as producer:
        return await producer.publish_many(events, source="t")


async def read(settings: Settings, topic: str, start: Start = "earliest", group: str | None = None) -> list[Received]:
    return [received async for received in consume(settings, topic=topic, start=start, group=group)]


async def test_it_reads_to_the_end_and_stops(settings: Settings, topic: str) -> None:
    """Without follow it ends by itself, an empty topic at once; every event is typed and placed."""
    assert await read(settings, topic) == []
    events = [available() for _ in range(300)]
    positions = await publish(settings, topic, events)
    found = {received.position: received.event for received in await read(settings, topic)}
    assert found == dict(zip(positions, events, strict=True))


async def test_it_starts_where_it_is_told(settings: Settings, topic: str) -> None:
    """latest, an offset, a time before, between and after."""
    before = await publish(settings, topic, [available() for _ in range(20)])
    last = max([received.timestamp for received in await read(settings, topic)])
    after = await publish(settings, topic, [available() for _ in range(20)])
    assert await read(settings, topic, "latest") == []
    assert {r.position for r in await read(settings, topic, 2)} == {p for p in before + after if p.offset >= 2}
    assert {r.position for r in await read(settings, topic, 10**12)} == set()
    between = {r.position for r in await read(settings, topic, last + timedelta(milliseconds=1))}
    assert between <= set(after)
    assert {r.position for r in await read(settings, topic, datetime(2020, 1, 1, tzinfo=UTC))} == set(before + after)
    assert await read(settings, topic, datetime(2100, 1, 1, tzinfo=UTC)) == []


async def test_it_ends_where_it_is_given(settings: Settings, topic: str) -> None:
    """An offset, a time, the last so many, and both ends at once, in each partition; the end is not read."""
    before = await publish(settings, topic, [available() for _ in range(20)])
    last = max([received.timestamp for received in await read(settings, topic)])
    await wait_until_async(lambda: datetime.now(UTC) > last + timedelta(milliseconds=1), "a later time")
    after = await publish(settings, topic, [available() for _ in range(20)])
    both = before + after
    ends = {number: 1 + max(p.offset for p in both if p.partition == number) for number in range(4)}

    async def between(start: Start, end: Start) -> set[RecordPosition]:
        events = consume(settings, topic=topic, start=start, end=end)
        return {received.position async for received in events}

    assert await between("earliest", "latest") == set(both)
    assert await between("earliest", "earliest") == set()
    assert await between(1, 3) == {p for p in both if 1 <= p.offset < 3}
    assert await between("earliest", last + timedelta(milliseconds=1)) == set(before)
    assert await between(last + timedelta(milliseconds=1), "latest") == set(after)
    assert await between(LastOffsets(2), "latest") == {p for p in both if p.offset >= ends[p.partition] - 2}
    assert await between("earliest", LastOffsets(2)) == {p for p in both if p.offset < ends[p.partition] - 2}
    assert await between(3, LastOffsets(10**6)) == set()


async def test_an_entitys_events_are_read_from_its_partition_alone(
    settings: Settings, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other partition is asked, and no other entity's record is read; a partition that is named is asked instead."""
    events = [available() for _ in range(40)]
    positions = dict(zip(events, await publish(settings, topic, events), strict=True))
    wanted = events[7]
    foreign = (positions[wanted].partition + 1) % 4
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap_servers)
    await producer.start()
    await producer.send_and_wait(topic, codec.encode(wanted), key=codec.key(wanted), partition=foreign)
    await producer.send_and_wait(topic, b"junk", key=b"another's", partition=positions[wanted].partition)
    await producer.stop()
    asked: list[TopicPartition] = []
    assign = RepairedConsumer.assign
    monkeypatch.setattr(
        RepairedConsumer, "assign", lambda self, partitions: (asked.extend(partitions), assign(self, partitions))
    )
    undecodable: list[RecordPosition] = []

    async def events_of(partition: int | None) -> list[Received]:
        found = consume(
            settings,
            topic=topic,
            entity_id=wanted.agent_id,
            partitions=None if partition is None else [partition],
            on_undecodable=lambda position, _: undecodable.append(position),
        )
        return [received async for received in found]

    assert [(each.event, each.position) for each in await events_of(None)] == [(wanted, positions[wanted])]
    assert [partition.partition for partition in asked] == [positions[wanted].partition]
    assert [each.position.partition for each in await events_of(foreign)] == [foreign]
    assert undecodable == []


async def test_it_follows_and_filters(settings: Settings, topic: str) -> None:
    """With follow it goes on; only the wanted types are passed."""
    await publish(settings, topic, [available(), rated()])
    events = consume(settings, topic=topic, types=["genesis.agent.rated"], follow=True)
    async with aclosing(events), asyncio.timeout(DEADLINE_SECONDS):
        first = await anext(events)
        later = rated()
        await publish(settings, topic, [available(), later])
        second = await anext(events)
    assert isinstance(first.event, AgentRated)
    assert second.event == later


async def test_following_goes_on_where_fetching_has_ended(
    settings: Settings, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that aiokafka does not expect ends its fetcher; what is published afterwards comes all the same."""
    await publish(settings, topic, [rated()])
    events = consume(settings, topic=topic, follow=True)
    async with aclosing(events), asyncio.timeout(DEADLINE_SECONDS):
        await anext(events)
        failed = fail_fetches(monkeypatch, 1)
        later = rated()
        await publish(settings, topic, [later])
        assert (await anext(events)).event == later
    assert failed()


async def test_what_is_no_event_is_told_and_passed_over(settings: Settings, topic: str) -> None:
    """Undecodable records are given to the callback, or logged, and the rest is read."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap_servers)
    await producer.start()
    await producer.send_and_wait(topic, b"junk", partition=0)
    await producer.stop()
    await publish(settings, topic, [available()])
    undecodable: list[tuple[RecordPosition, str]] = []

    def tell(position: RecordPosition, reason: str) -> None:
        undecodable.append((position, reason))

    events = consume(settings, topic=topic, on_undecodable=tell)
    assert len([received async for received in events]) == 1
    assert undecodable == [(RecordPosition(topic, 0, 0), "too short for a schema id")]
    assert len(await read(settings, topic)) == 1


async def test_control_records_are_no_events(settings: Settings, topic: str) -> None:
    """They are about the log: a consumer of events is not told of them, and a group goes on behind them."""
    value = codec.encode(chain_version_raised(topic, 0))
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap_servers)
    await producer.start()
    for partition in range(4):
        await producer.send_and_wait(topic, value, partition=partition)
    await producer.stop()
    event = available()
    await publish(settings, topic, [event])
    told: list[str] = []
    events = consume(settings, topic=topic, on_undecodable=lambda _, reason: told.append(reason))
    assert [received.event async for received in events] == [event]
    assert [received.event for received in await read(settings, topic, group=f"g-{uuid4().hex}")] == [event]
    assert told == []
    controls: list[ReceivedControl] = []
    events = consume(settings, topic=topic, types=["plant.chain.version_raised"], on_control=controls.append)
    assert [received async for received in events] == []
    assert sorted(each.position.partition for each in controls) == [0, 1, 2, 3]
    assert {each.control for each in controls} == {chain_version_raised(topic, 0)}
    others = consume(settings, topic=topic, types=["genesis.agent.rated"], on_control=controls.append)
    assert [received async for received in others] == []
    assert len(controls) == 4


async def test_control_records_are_printed_by_name(settings: Settings, topic: str) -> None:
    """On stderr with what they name, and on stdout where their type is asked for; none is called malformed."""
    key = b"72d76358-5032-530d-b5a7-ee89ea19f5a4"
    skipped = RecordSkipped(event_id=uuid4(), poison_offset=7, reason="sent by mistake")
    await append_raw(settings, topic, 1, [RawRecord(key, codec.encode(skipped)), RawRecord(None, b"junk")])
    event = available()
    await publish(settings, topic, [event])

    async def printed(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(plant, settings, "consume", "--topic", topic, *arguments)

    shown = await printed("--output", "jsonl")
    assert [json.loads(line)["event"]["event_id"] for line in shown.stdout.splitlines()] == [str(event.event_id)]
    assert sorted(shown.stderr.splitlines()) == [
        f"{topic}/1@0: a control record and no event: plant.record.skipped, about the record at offset 7",
        f"{topic}/1@1: not an event: too short for a schema id",
    ]
    asked = await printed("--type", "plant.record.skipped", "--output", "json")
    (row,) = json.loads(asked.stdout)
    assert (row["type"], row["event"]["poison_offset"], row["event"]["reason"]) == (
        "plant.record.skipped", 7, "sent by mistake",
    )  # fmt: skip
    table = await printed("--type", "plant.record.skipped")
    assert f"plant.record.skipped        {key.decode()}  {skipped.event_id}" in table.stdout
    nothing = await printed("--type", "plant.record.skipped", "--to", "0")
    assert "has no such event" in nothing.stderr


async def test_a_group_stops_at_a_schema_of_a_later_release(settings: Settings, topic: str) -> None:
    """It would skip the event permanently; who reads without a group is told of it, and goes on."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap_servers)
    await producer.start()
    await producer.send_and_wait(topic, codec.WIRE_PREFIX.pack(0, 99) + b"what it wrote", partition=0)
    await producer.stop()
    await publish(settings, topic, [available()])
    with pytest.raises(SchemaNewer) as stopped:
        await read(settings, topic, group=f"group of {topic}")
    assert (stopped.value.offset, stopped.value.schema_id) == (0, 99)
    assert len(await read(settings, topic)) == 1


async def test_odd_headers_are_read_and_printed(settings: Settings) -> None:
    """A header without a value and one that is not UTF-8 stop neither reading nor printing."""
    await apply(settings)
    event = available()
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap_servers)
    await producer.start()
    await producer.send_and_wait(
        EVENTS_TOPIC, codec.encode(event), key=codec.key(event), headers=[("a", None), ("b", b"\xff")]
    )
    await producer.stop()
    rows = [row for row in consumed(settings, "--output", "jsonl") if row["event"]["event_id"] == str(event.event_id)]  # type: ignore[index]
    assert [row["headers"] for row in rows] == [[["a", None], ["b", "\\xff"]]]


async def test_a_group_goes_on_where_it_was(settings: Settings, topic: str) -> None:
    """What one run has worked through the next does not see; what it had not, it does."""
    group = f"test-{uuid4().hex}"
    await publish(settings, topic, [available() for _ in range(10)])
    async with asyncio.timeout(DEADLINE_SECONDS):
        first = [received async for received in consume(settings, topic=topic, group=group)]
        more = await publish(settings, topic, [available() for _ in range(5)])
        second = [received async for received in consume(settings, topic=topic, group=group)]
    assert (len(first), {received.position for received in second}) == (10, set(more))


@pytest.mark.parametrize("start", ["earliest", "latest"])
async def test_a_group_whose_place_is_outside_the_log_is_not_moved(
    settings: Settings, topic: str, start: Literal["earliest", "latest"]
) -> None:
    """Where the log does not hold what is to be read next, going on elsewhere would skip events or repeat them."""
    group = f"test-{uuid4().hex}"
    (position,) = await publish(settings, topic, [rated()])
    place = TopicPartition(topic, position.partition)
    # Not by itself too: when it stops, it would commit where it reads.
    member = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka_bootstrap_servers, group_id=group, enable_auto_commit=False
    )
    await member.start()
    member.assign([place])
    await member.commit({place: 1_000})
    await member.stop()

    with pytest.raises(CheckpointOutOfLog, match=f"{topic}/{place.partition}") as raised:
        async with asyncio.timeout(DEADLINE_SECONDS):
            [_ async for _ in consume(settings, topic=topic, group=group, start=start, follow=True)]

    assert "Offset 1000 is to be read next" in raised.value.why


async def test_a_group_shares_its_partitions_and_loses_none(settings: Settings, topic: str) -> None:
    """A second member joins while the first is at work: both go on, and between them every event is read."""
    group = f"test-{uuid4().hex}"
    positions = await publish(settings, topic, [available() for _ in range(3000)])
    seen: list[set[RecordPosition]] = [set(), set()]

    async def member(number: int) -> None:
        events = consume(settings, topic=topic, group=group, follow=True)
        async with aclosing(events):
            async for received in events:
                seen[number].add(received.position)
                await asyncio.sleep(0.002)

    members = [asyncio.create_task(member(0))]
    try:
        await wait_until_async(lambda: len(seen[0]) >= 20, "the first member has read some")
        members.append(asyncio.create_task(member(1)))
        await wait_until_async(
            lambda: any(task.done() for task in members) or (seen[1] and seen[0] | seen[1] == set(positions)),
            "the two have read every event between them",
        )
        assert not any(task.done() for task in members), "a member has ended"
    finally:
        for task in members:
            task.cancel()
        await asyncio.gather(*members, return_exceptions=True)


async def test_impossible_reads_are_named(settings: Settings, topic: str) -> None:
    """A group from an offset, a partition or topic that is not there, no broker."""
    with pytest.raises(UnknownStart):
        [_ async for _ in consume(settings, topic=topic, group="g", start=3)]
    with pytest.raises(UnknownStart, match="no end and no key"):
        [_ async for _ in consume(settings, topic=topic, group="g", end=3)]
    with pytest.raises(UnknownStart, match="no end and no key"):
        [_ async for _ in consume(settings, topic=topic, group="g", entity_id=uuid4())]
    with pytest.raises(UnknownStart, match="has no end"):
        [_ async for _ in consume(settings, topic=topic, end=3, follow=True)]
    with pytest.raises(UnknownStart, match="before the start"):
        [_ async for _ in consume(settings, topic=topic, start=4, end=3)]
    with pytest.raises(UnknownStart, match="has no partition 99"):
        [_ async for _ in consume(settings, topic=topic, partitions=[99])]
    with pytest.raises(TopicMissing):
        [_ async for _ in consume(settings, topic="genesis.events-nowhere")]
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(TopicMissing):
            [_ async for _ in consume(settings, topic="genesis.events-nowhere", group="g", follow=True)]
    away = msgspec.structs.replace(settings, kafka_bootstrap_servers="127.0.0.1:1")
    with pytest.raises(KafkaUnavailable):
        [_ async for _ in consume(away, topic=topic)]


def lines(*events: dict[str, object]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def line(**changes: object) -> dict[str, object]:
    return {
        "type": "genesis.agent.available",
        "data": {"agent_id": str(uuid4()), "available": True},
        "timestamp": "2026-11-23T08:00:00Z",
        **changes,
    }


def consumed(settings: Settings, *arguments: str) -> list[dict[str, object]]:
    done = plant(settings, "consume", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(row) for row in done.stdout.split("\n") if row]  # texts may hold other ends of lines


async def test_a_file_is_published_and_consumed(settings: Settings, tmp_path: Path) -> None:
    """Every line arrives; publishing the file again gives the same event ids."""
    await apply(settings)
    file = tmp_path / "events.jsonl"
    file.write_bytes(lines(line(id=uuid4().hex), line(), line()) + b"\n")
    first = plant(settings, "publish", str(file), "--output", "json")
    assert first.returncode == 0, first.stderr
    assert "published 3 events" in first.stderr
    plant(settings, "publish", str(file))
    agents = [json.loads(row)["data"]["agent_id"] for row in file.read_text().splitlines() if row]
    # Other tests publish on this topic too, events of other entities among them.
    rows = [row for row in consumed(settings, "--output", "jsonl") if row["event"].get("agent_id") in agents]  # type: ignore[attr-defined]
    assert len(rows) == 6
    assert len({row["event"]["event_id"] for row in rows}) == 3  # type: ignore[index]
    ids = {row["event"]["event_id"] for row in rows}  # type: ignore[index]
    senders = [dict(each.headers) for each in await read_all(settings, EVENTS_TOPIC) if str(each.event.event_id) in ids]
    assert {sender["plant_producer"] for sender in senders} == {b"cli"}
    assert len({sender["plant_message_id"] for sender in senders}) == 3


async def test_bad_lines_stop_everything_or_are_left_out(settings: Settings) -> None:
    """One bad line sends nothing and is named by number; --skip-invalid sends the rest. From stdin too."""
    await apply(settings)
    content = lines(line(), {"type": "genesis.agent.available"}, line(data={"x": 1}), line(type="no.such"), line())
    given = {f"PLANT_{name.upper()}": str(value) for name, value in msgspec.structs.asdict(settings).items()}

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [PLANT, "publish", "-", *arguments]
        return subprocess.run(
            command, input=content, env=given, capture_output=True, timeout=DEADLINE_SECONDS, check=False
        )

    refused = run()
    assert refused.returncode == 3
    assert [word in refused.stderr.decode() for word in ("line 2", "line 3", "line 4", "Nothing was sent")] == [
        True
    ] * 4
    assert b"published 2 events" in run("--skip-invalid").stderr


async def test_events_are_printed_for_people_and_programs(settings: Settings) -> None:
    """A table, a JSON array, a limit; impossible combinations are usage errors."""
    await apply(settings)
    async with EventProducer(settings) as producer:
        await producer.publish_many([available(), available()], source="t")
    table = plant(settings, "consume", "--limit", "1", "--type", "genesis.agent.available")
    assert len(table.stdout.splitlines()) == 2
    array = json.loads(plant(settings, "consume", "--output", "json", "--limit", "2", "--follow").stdout)
    assert {"topic", "partition", "offset", "timestamp", "type", "event", "headers"} == set(array[0])
    assert plant(settings, "consume", "--follow", "--output", "json").returncode == 2
    assert plant(settings, "consume", "--type", "nope").returncode == 2
    assert plant(settings, "consume", "--from", "soon").returncode == 2


async def test_topics_are_listed_and_applied(settings: Settings) -> None:
    """The command line tells what is there, makes what is missing, and refuses another count with exit code 3."""
    assert plant(settings, "topics", "apply").returncode == 0
    again = plant(settings, "topics", "apply", "--dry-run")
    assert "0 to create" in again.stderr
    listed = json.loads(plant(settings, "topics", "list", "--topic", EVENTS_TOPIC, "--output", "json").stdout)
    assert [(row["topic"], row["state"], row["partitions"]) for row in listed] == [(EVENTS_TOPIC, "present", 4)]
    other = msgspec.structs.replace(settings, topic_partitions=5)
    assert plant(other, "topics", "apply").returncode == 3

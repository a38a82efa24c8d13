"""The topic catalogue against a real broker."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio
from aiokafka.admin import NewPartitions

from runtime.settings import Settings
from streams.errors import KafkaUnavailable, PartitionCountChanged, TooFewReplicas, TopicRefused
from streams.topics import (
    CATALOGUE,
    DEAD_EVENTS_TOPIC,
    EVENTS_TOPIC,
    OPERATIONS_TOPIC,
    Step,
    Topic,
    admin,
    apply,
    describe,
)
from tests.support.waiting import wait_until_async


@pytest_asyncio.fixture
async def catalogue(settings: Settings) -> AsyncIterator[list[Topic]]:
    """Two topics with names of this test's own."""
    mark = secrets.token_hex(4)
    made = [
        Topic(f"test.{mark}.many", "x", key="x"),
        Topic(f"test.{mark}.one", "x", key="x", partitions=1, retention_ms=1000),
    ]
    yield made
    async with admin(settings) as client:
        await client.delete_topics([topic.name for topic in made])


async def test_apply_creates_what_is_missing_and_nothing_twice(settings: Settings, catalogue: list[Topic]) -> None:
    """The first run creates, the second keeps, and both say what they do."""
    names = [topic.name for topic in catalogue]
    first = await apply(settings, catalogue=catalogue)
    assert first == [Step(names[0], "create", 4), Step(names[1], "create", 1)]
    assert await apply(settings, catalogue=catalogue) == [Step(names[0], "keep", 4), Step(names[1], "keep", 1)]
    found = await describe(settings, names)
    assert [found[name].partitions for name in names] == [4, 1]


async def test_a_new_topic_takes_records_at_once(settings: Settings) -> None:
    """A broker makes the logs of a topic after it has named itself as their leader: apply waits for each of them."""
    topic = Topic(f"test.{secrets.token_hex(4)}.wide", "x", key="x", partitions=300)
    await apply(settings, catalogue=[topic])
    async with admin(settings) as client:
        assert await client.without_leader([topic.name]) == []
        await client.delete_topics([topic.name])


async def test_a_dry_run_creates_nothing(settings: Settings, catalogue: list[Topic]) -> None:
    """The plan is the same, and the topics are still missing."""
    steps = await apply(settings, catalogue=catalogue, dry_run=True)
    assert [step.action for step in steps] == ["create", "create"]
    assert await describe(settings, [topic.name for topic in catalogue]) == {}


async def test_another_partition_count_is_refused_before_anything_is_made(
    settings: Settings, catalogue: list[Topic]
) -> None:
    """Growth is refused by name, though another topic is missing, which then stays missing."""
    await apply(settings, catalogue=catalogue[:1])
    with pytest.raises(PartitionCountChanged, match="has 4 partitions, not 5"):
        await apply(msgspec.structs.replace(settings, topic_partitions=5), catalogue=catalogue)
    assert list(await describe(settings, [topic.name for topic in catalogue])) == [catalogue[0].name]


async def test_growth_behind_our_back_is_refused(settings: Settings, catalogue: list[Topic]) -> None:
    """Partitions that someone else added are seen."""
    await apply(settings, catalogue=catalogue)
    async with admin(settings) as client:
        await client.create_partitions({catalogue[0].name: NewPartitions(total_count=6)})

    async def grown() -> bool:
        return (await describe(settings, [catalogue[0].name]))[catalogue[0].name].partitions == 6

    await wait_until_async(grown, "the topic has six partitions")
    with pytest.raises(PartitionCountChanged, match="has 6 partitions, not 4"):
        await apply(settings, catalogue=catalogue)


async def test_other_settings_are_told_and_left_alone(settings: Settings, catalogue: list[Topic]) -> None:
    """A topic kept for less than the catalogue says is pointed out."""
    await apply(settings, catalogue=catalogue)
    wanted = [msgspec.structs.replace(topic, retention_ms=-1) for topic in catalogue]
    steps = await apply(settings, catalogue=wanted)
    assert steps[0].differences == ()
    assert steps[1].differences == ("retention.ms is 1000, the catalogue says -1",)


async def test_a_topic_with_fewer_replicas_than_asked_for_is_refused(
    settings: Settings, catalogue: list[Topic]
) -> None:
    """It is named before anything is made; without a number in the settings there are as many as brokers, up to 3."""
    await apply(settings, catalogue=catalogue[:1])
    assert settings.topic_replication_factor == 0
    assert (await describe(settings, [catalogue[0].name]))[catalogue[0].name].replicas == 1
    with pytest.raises(TooFewReplicas, match="has 1 replicas, not 3"):
        await apply(msgspec.structs.replace(settings, topic_replication_factor=3), catalogue=catalogue)
    assert list(await describe(settings, [topic.name for topic in catalogue])) == [catalogue[0].name]


async def test_a_topic_made_again_has_another_id(settings: Settings, catalogue: list[Topic]) -> None:
    """Kafka's topic id tells a topic from its successor of the same name."""
    name = catalogue[1].name
    await apply(settings, catalogue=catalogue)
    before = await describe(settings, [name])
    async with admin(settings) as client:
        await client.delete_topics([name])

    async def gone() -> bool:
        return not await describe(settings, [name])

    await wait_until_async(gone, "the topic is deleted")
    await apply(settings, catalogue=catalogue)
    after = await describe(settings, [name])
    assert before[name].topic_id != after[name].topic_id


async def test_a_refusal_by_the_broker_is_named(settings: Settings) -> None:
    """More replicas than brokers: the broker's reason is passed on."""
    too_many = msgspec.structs.replace(settings, topic_replication_factor=9)
    with pytest.raises(TopicRefused, match="InvalidReplicationFactor"):
        await apply(too_many, catalogue=[Topic("test.too.many.replicas", "x", key="x")])


async def test_no_broker_is_unreachable(settings: Settings) -> None:
    """Without a broker the error says so, exit code 4."""
    with pytest.raises(KafkaUnavailable) as raised:
        await describe(msgspec.structs.replace(settings, kafka_bootstrap_servers="127.0.0.1:1"))
    assert raised.value.exit_code == 4


def test_the_catalogue_keeps_what_must_be_kept() -> None:
    """Events and operations are kept permanently, operations in one partition; losing a replica loses nothing."""
    permanent = {topic.name for topic in CATALOGUE if topic.retention_ms == -1}
    assert permanent == {EVENTS_TOPIC, DEAD_EVENTS_TOPIC, OPERATIONS_TOPIC}
    assert {topic.name: topic.partitions for topic in CATALOGUE}[OPERATIONS_TOPIC] == 1
    config = CATALOGUE[0].config(Settings(topic_replication_factor=3))
    assert (config["min.insync.replicas"], config["unclean.leader.election.enable"]) == ("2", "false")

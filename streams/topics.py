"""The topic catalogue: which topics exist, how they are made, and the function that makes them.

A topic's partition count is chosen when it is made and never changes: growth would send a key's next events to
another partition, out of order and past the repeat check. Growing means a new generation of the topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal
from uuid import UUID

import msgspec
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from runtime.settings import Settings
from schemas.delivery_records import ATTEMPTS_TOPIC, DELIVERIES_TOPIC
from schemas.endpoint_events import ENDPOINT_EVENTS_TOPIC
from streams.errors import KafkaUnavailable, PartitionCountChanged, TooFewReplicas, TopicRefused
from streams.kafka.admin import RepairedAdmin
from streams.kafka.clients import make_admin

EVENTS_TOPIC = "genesis.events"
DEAD_EVENTS_TOPIC = "genesis.events.dead"
OPERATIONS_TOPIC = "plant.operations"
DEAD_DELIVERIES_TOPIC = "genesis.deliveries.dead"
RETRY_TOPIC_DELAYS_SECONDS = (1, 2, 4, 8, 16)
RETRY_TOPICS = tuple(f"genesis.deliveries.retry.{seconds}s" for seconds in RETRY_TOPIC_DELAYS_SECONDS)
"""The retry topics in the order of their delays."""


def logical_topic(topic: str) -> str:
    """Return the topic whose events a topic carries: a dash begins a generation's number; dead letters are events.

    Deliveries that wait or are dead are deliveries.

    >>> logical_topic("genesis.events-2"), logical_topic("genesis.events.dead"), logical_topic("plant.operations")
    ('genesis.events', 'genesis.events', 'plant.operations')
    >>> logical_topic("genesis.deliveries.retry.4s-2")
    'genesis.deliveries'
    """
    name = topic.partition("-")[0]
    if name in (*RETRY_TOPICS, DEAD_DELIVERIES_TOPIC):
        return DELIVERIES_TOPIC
    return EVENTS_TOPIC if name == DEAD_EVENTS_TOPIC else name


RETENTION_FOREVER = -1
DAY_MS = 24 * 60 * 60 * 1000
REPLICAS_WANTED = 3
SERVED_TIMEOUT_SECONDS = 60
RECORD_MAX_BYTES = 1024 * 1024


class Topic(msgspec.Struct, frozen=True):
    """One line of the catalogue. `partitions` None: as many as the settings say when the topic is made."""

    name: str
    about: str
    key: str
    partitions: int | None = None
    retention_ms: int = RETENTION_FOREVER

    def partition_count(self, settings: Settings) -> int:
        """Return how many partitions this topic is made with, and keeps."""
        return self.partitions or settings.topic_partitions

    def config(self, settings: Settings) -> dict[str, str]:
        """Return Kafka's topic configuration.

        Timestamps are the broker's (LogAppendTime): no producer can back-date a record, and time seeks are exact.
        With three replicas two must hold a record before it is acknowledged. Where the settings leave the number of
        replicas to the brokers', `apply` puts it in.
        """
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(self.retention_ms),
            "retention.bytes": "-1",
            "compression.type": "producer",
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(RECORD_MAX_BYTES + 12 * 1024),
            "min.insync.replicas": str(max(1, settings.topic_replication_factor - 1)),
            "unclean.leader.election.enable": "false",
        }


CATALOGUE: tuple[Topic, ...] = (
    Topic(EVENTS_TOPIC, "What happened, in order for each entity.", key="entity id"),
    Topic(
        DEAD_EVENTS_TOPIC,
        "Records of genesis.events that could not be applied: key, value and headers as they were, whether or not that"
        " is an event, then __connect.errors.topic, .partition, .offset and .exception.message. One may come twice.",
        key="what the record had, or none",
    ),
    Topic(OPERATIONS_TOPIC, "What operators did.", key="operation id", partitions=1),
    Topic(DELIVERIES_TOPIC, "Events on their way to endpoints.", key="endpoint id", retention_ms=7 * DAY_MS),
    *(
        Topic(
            name,
            f"Deliveries that wait {seconds} s for their next attempt.",
            key="endpoint id",
            retention_ms=7 * DAY_MS,
        )
        for name, seconds in zip(RETRY_TOPICS, RETRY_TOPIC_DELAYS_SECONDS, strict=True)
    ),
    Topic(
        DEAD_DELIVERIES_TOPIC,
        "Deliveries that have used up their attempts: the record as it was, then headers as Kafka Connect writes them,"
        " __connect.errors.topic, .partition, .offset, .connector.name, .task.id, .stage, .class.name,"
        " .exception.class.name and .exception.message. One may come twice.",
        key="endpoint id",
        retention_ms=30 * DAY_MS,
    ),
    Topic(ATTEMPTS_TOPIC, "What came of each attempt.", key="endpoint id", retention_ms=30 * DAY_MS),
    Topic(
        ENDPOINT_EVENTS_TOPIC,
        "What changed about endpoints, one event a change of state. One may come twice, with the same id.",
        key="endpoint id",
        retention_ms=30 * DAY_MS,
    ),
)


class Description(msgspec.Struct, frozen=True):
    """A topic as the brokers have it. One that was deleted and made again has another id.

    `replicas` and `in_sync` are those of the partition that has the fewest.
    """

    name: str
    partitions: int
    replicas: int
    topic_id: UUID
    in_sync: int


class Step(msgspec.Struct, frozen=True):
    """What `apply` does, or would do, about one topic; `differences` are settings that it leaves alone."""

    name: str
    action: Literal["create", "keep"]
    partitions: int
    differences: tuple[str, ...] = ()


@asynccontextmanager
async def admin(settings: Settings) -> AsyncIterator[RepairedAdmin]:
    """Yield an admin client that is connected; any failure of Kafka inside becomes KafkaUnavailable."""
    client = make_admin(settings, request_timeout_ms=10_000)
    try:
        await client.start()
        yield client
    except (KafkaError, TimeoutError) as error:
        raise KafkaUnavailable(why=f"{type(error).__name__} from {settings.kafka_bootstrap_servers}.") from error
    finally:
        await client.close()


async def describe(settings: Settings, names: Sequence[str] | None = None) -> dict[str, Description]:
    """Return the named topics that exist (all of the catalogue's by default), by name."""
    names = [topic.name for topic in CATALOGUE] if names is None else names
    async with admin(settings) as client:
        return await _describe(client, names)


async def apply(settings: Settings, *, dry_run: bool = False, catalogue: Sequence[Topic] = CATALOGUE) -> list[Step]:
    """Create what is missing and leave the rest as it is; running it again changes nothing.

    Raises, before anything is created, PartitionCountChanged where a topic has another partition count than wanted, and
    TooFewReplicas where it has fewer replicas than the settings ask for.
    """
    async with admin(settings) as client:
        existing = await _describe(client, [topic.name for topic in catalogue])
        _refuse_other_partition_counts(settings, catalogue, existing)
        _refuse_fewer_replicas(settings, existing)
        settings = _with_replicas(client, settings)
        differences = await _differences(client, settings, [topic for topic in catalogue if topic.name in existing])
        for name, description in existing.items():
            if description.replicas < settings.topic_replication_factor:
                few = f"it has {description.replicas} replicas, {settings.topic_replication_factor} are usual here"
                differences[name] = (few, *differences[name])
        steps = [
            Step(
                topic.name,
                "keep" if topic.name in existing else "create",
                topic.partition_count(settings),
                differences.get(topic.name, ()),
            )
            for topic in catalogue
        ]
        if not dry_run:
            await _create(client, settings, [topic for topic in catalogue if topic.name not in existing])
        return steps


async def _describe(
    client: RepairedAdmin, names: Sequence[str], broker_id: int | None = None
) -> dict[str, Description]:
    return {
        name: Description(
            name,
            len(partitions),
            min(len(replicas) for _, _, _, _, replicas, *_ in partitions),
            topic_id,
            min(len(in_sync) for _, _, _, _, _, in_sync, *_ in partitions),
        )
        for error, name, topic_id, _internal, partitions, *_ in await client.topics(names, broker_id)
        if error == 0
    }


def _refuse_other_partition_counts(
    settings: Settings, catalogue: Sequence[Topic], existing: dict[str, Description]
) -> None:
    for topic in catalogue:
        wanted = topic.partition_count(settings)
        if topic.name in existing and existing[topic.name].partitions != wanted:
            actual = existing[topic.name].partitions
            step = f"PLANT_TOPIC_PARTITIONS={actual} plant topics apply"
            raise PartitionCountChanged(topic.name, wanted, actual, next_step=step)


def _refuse_fewer_replicas(settings: Settings, existing: dict[str, Description]) -> None:
    for name, description in existing.items():
        if description.replicas < settings.topic_replication_factor:
            raise TooFewReplicas(
                f"The topic {name} has {description.replicas} replicas, not {settings.topic_replication_factor}.",
                why="It was made with fewer; Plant does not move the data of topics.",
                next_step=f"kafka-reassign-partitions.sh    (or PLANT_TOPIC_REPLICATION_FACTOR={description.replicas})",
            )


def _with_replicas(client: RepairedAdmin, settings: Settings) -> Settings:
    """Return the settings with the number of replicas that new topics get."""
    wanted = settings.topic_replication_factor or min(REPLICAS_WANTED, len(client.broker_ids()))
    return msgspec.structs.replace(settings, topic_replication_factor=wanted)


async def _differences(
    client: RepairedAdmin, settings: Settings, topics: Sequence[Topic]
) -> dict[str, tuple[str, ...]]:
    """Return, per topic, the configuration entries that are not the catalogue's."""
    if not topics:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in topics]
    configs: dict[str, dict[str, str]] = {}
    for response in await client.describe_configs(resources):
        for _error, _message, _kind, name, entries in response.resources:
            configs[name] = {entry[0]: entry[1] for entry in entries}
    return {
        topic.name: tuple(
            f"{key} is {configs[topic.name].get(key)}, the catalogue says {value}"
            for key, value in topic.config(settings).items()
            if configs[topic.name].get(key) != value
        )
        for topic in topics
    }


async def _create(client: RepairedAdmin, settings: Settings, topics: Sequence[Topic]) -> None:
    if not topics:
        return
    new = [
        NewTopic(
            topic.name,
            topic.partition_count(settings),
            settings.topic_replication_factor,
            topic_configs=topic.config(settings),
        )
        for topic in topics
    ]
    response = await client.create_topics(new)
    for name, code, message, *_ in response.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise TopicRefused(f"Kafka refused to create the topic {name}.", why=f"{error.__name__}: {message}")
    await _wait_served(client, [topic.name for topic in topics])


async def _wait_served(client: RepairedAdmin, names: Sequence[str]) -> None:
    """Wait until every broker has the new topics, and each partition's leader serves it.

    The controller makes them, each broker learns of them later, and makes the logs of those that it leads later still.
    """
    async with asyncio.timeout(SERVED_TIMEOUT_SECONDS):
        for broker_id in client.broker_ids():
            while len(await _describe(client, names, broker_id)) < len(names):  # noqa: ASYNC110 (brokers push nothing)
                await asyncio.sleep(0.02)
        while await client.without_leader(names):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

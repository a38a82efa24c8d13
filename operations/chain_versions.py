"""The versions of the audit chains, and the control records that raise them: a plan, and what it publishes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from audit.verifier.chain_range import Chain
from audit.verifier.chains import read_heads, read_raised
from operations.control_headers import control_headers
from operations.operator_actions import OperatorAction, record
from runtime.errors import ConfigurationError
from runtime.settings import Settings
from schemas import codec
from schemas.control import CHAIN_VERSION, LOGGED_TOPICS, chain_version_raised
from streams.errors import KafkaUnavailable, StreamsError, TopicMissing
from streams.kafka.clients import make_consumer
from streams.producer import EventProducer
from streams.record_position import RecordPosition
from streams.topics import EVENTS_TOPIC, OPERATIONS_TOPIC, describe

FETCH_TIMEOUT_SECONDS: Final = 0.25

TOPICS = (EVENTS_TOPIC, OPERATIONS_TOPIC)
"""The topics that workers log."""


class ChainState(msgspec.Struct, frozen=True, kw_only=True):
    """A partition's chain as the log has it. `raised_at` is the offset of its first v2 entry; None: it is on v1.

    `published_at` is the offset of a control record that is in Kafka already, where no worker has logged it yet.
    """

    topic: str
    partition: int
    raised_at: int | None
    published_at: int | None = None

    @property
    def version(self) -> int:
        """The version of its newest entry."""
        return 1 if self.raised_at is None else CHAIN_VERSION


def refuse_other_topics(topics: Sequence[str]) -> None:
    """Raise ConfigurationError for a topic that workers do not log, where the record would be a stranger."""
    for topic in topics:
        if topic.partition("-")[0] not in LOGGED_TOPICS:
            raise ConfigurationError(
                f"The topic {topic} has no audit chain.",
                why=f"Workers log {', '.join(TOPICS)}, and later generations of them.",
                next_step="plant topics list",
            )


async def chain_states(settings: Settings, topics: Sequence[str]) -> list[ChainState]:
    """Return the state of every partition that these topics have in Kafka, sorted.

    What workers have not logged yet is read from Kafka, on partitions that are on v1. Raises TopicMissing,
    KafkaUnavailable, DatabaseUnreachable.
    """
    described = await describe(settings, topics)
    missing = [topic for topic in topics if topic not in described]
    if missing:
        raise TopicMissing(f"The topic {missing[0]} does not exist.", next_step="plant topics apply")
    ids = Path(settings.schema_ids_file) if settings.schema_ids_file else None
    url = settings.database_address("auditor")
    raised = await asyncio.to_thread(read_raised, url, ids)
    heads = {head.chain: head.offset for head in await asyncio.to_thread(read_heads, url)}
    chains = [Chain(name, number) for name in sorted(described) for number in range(described[name].partitions)]
    waiting = await _published(settings, {each: heads.get(each, -1) + 1 for each in chains if each not in raised})
    return [
        ChainState(
            topic=each.topic, partition=each.partition, raised_at=raised.get(each), published_at=waiting.get(each)
        )
        for each in chains
    ]


async def _published(settings: Settings, next_offsets: Mapping[Chain, int]) -> dict[Chain, int]:
    """Return the offset of the first control record that each partition holds from an offset on, where it does."""
    values = {each: codec.encode(chain_version_raised(each.topic, each.partition)) for each in next_offsets}
    unread = {TopicPartition(each.topic, each.partition): each for each in next_offsets}
    found: dict[Chain, int] = {}
    if not next_offsets:
        return found
    consumer = make_consumer(
        settings, group_id=None, enable_auto_commit=False, auto_offset_reset="earliest",
        isolation_level="read_committed",
    )  # fmt: skip
    try:
        await consumer.start()
        consumer.assign(list(unread))
        ends = await consumer.end_offsets(list(unread))
        for partition, first in (await consumer.beginning_offsets(list(unread))).items():
            consumer.seek(partition, max(first, next_offsets[unread[partition]]))
        while True:
            for partition in list(unread):
                if unread[partition] in found or await consumer.position(partition) >= ends[partition]:
                    consumer.pause(partition)
                    del unread[partition]
            if not unread:
                return found
            for partition, records in (await consumer.fetch_columns(unread, FETCH_TIMEOUT_SECONDS)).items():
                chain = unread[partition]
                if values[chain] in records.values:
                    found[chain] = records.offsets[records.values.index(values[chain])]
    except (KafkaError, TimeoutError) as error:
        raise KafkaUnavailable(why=f"{type(error).__name__} from {settings.kafka_bootstrap_servers}.") from error
    finally:
        await consumer.stop()


async def raise_chains(
    settings: Settings, states: Sequence[ChainState], action: OperatorAction
) -> AsyncIterator[RecordPosition]:
    """Record the action, publish the control record into each of these partitions, and yield its position.

    Raises the first error of a partition when the others are known: running it again does the rest.
    """
    topics = sorted({state.topic for state in states})
    async with EventProducer(settings, topics=topics) as producer:
        await record(settings, action)
        publishes = []
        for state in states:
            raised = chain_version_raised(state.topic, state.partition)
            headers = control_headers(raised, action)
            publishes.append(
                producer.submit_record(state.topic, None, codec.encode(raised), headers, partition=state.partition)
            )
        outcomes = await producer.await_each(publishes)
    failed = [outcome for outcome in outcomes if isinstance(outcome, StreamsError)]
    for outcome in outcomes:
        if isinstance(outcome, RecordPosition):
            yield outcome
    if failed:
        raise failed[0]

"""The versions of the audit chains, and the control records that raise them: a plan, and what it publishes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from audit.verifier.chain_range import Chain
from audit.verifier.chains import read_raised
from operations.control_headers import control_headers
from operations.operator_actions import OperatorAction, record
from runtime.errors import ConfigurationError
from runtime.settings import Settings
from schemas import codec
from schemas.control import CHAIN_VERSION, LOGGED_TOPICS, chain_version_raised
from streams.errors import StreamsError, TopicMissing
from streams.producer import EventProducer
from streams.record_position import RecordPosition
from streams.topics import EVENTS_TOPIC, OPERATIONS_TOPIC, describe

TOPICS = (EVENTS_TOPIC, OPERATIONS_TOPIC)
"""The topics that workers log."""


class ChainState(msgspec.Struct, frozen=True, kw_only=True):
    """A partition's chain as the log has it. `raised_at` is the offset of its first v2 entry; None: it is on v1."""

    topic: str
    partition: int
    raised_at: int | None

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

    Raises TopicMissing, KafkaUnavailable, DatabaseUnreachable.
    """
    described = await describe(settings, topics)
    missing = [topic for topic in topics if topic not in described]
    if missing:
        raise TopicMissing(f"The topic {missing[0]} does not exist.", next_step="plant topics apply")
    ids = Path(settings.schema_ids_file) if settings.schema_ids_file else None
    raised = await asyncio.to_thread(read_raised, settings.database_address("auditor"), ids)
    return [
        ChainState(topic=topic, partition=partition, raised_at=raised.get(Chain(topic, partition)))
        for topic in sorted(described)
        for partition in range(described[topic].partitions)
    ]


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

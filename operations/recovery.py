"""What `plant recover` does, step by step: an empty database is filled from Kafka's topics.

hold        nobody else recovers it
ask         Kafka where each topic begins and ends; a topic that has lost its beginning is refused
begin       write down up to where it is recovered, and let deliverers begin behind all that was dispatched
recover     each partition, as its worker would
compare     the chains' heads with those that were kept
end         let dispatchers and the relay of dead letters go on, and forget that it was being recovered
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from audit.verifier.heads import Head
from database import schema_revision
from deliveries import dispatched_deliveries
from deliveries.deliverer.delivery_process import DeliveryTopics
from deliveries.dispatched_deliveries import DispatchedDeliveries
from operations.operator_actions import OperatorAction, record
from operations.services.worker import require_writer_session
from projections.checkpoints import DISPATCHER
from projections.recovery import consumer_positions, recovery_state
from projections.recovery.errors import RecoveryRefused
from projections.recovery.head_comparison import HeadComparison, compare_heads
from projections.recovery.recovery import recover_partitions
from projections.recovery.recovery_state import UnrecoveredPartition
from projections.session import Session
from relay.published_dead_letters import read_published
from runtime.clock import SystemClock
from runtime.settings import Settings
from schemas.external_registry import activate_registry
from streams.errors import TopicMissing
from streams.topic_watermarks import TopicWatermarks, read_watermarks
from streams.topics import DEAD_EVENTS_TOPIC, EVENTS_TOPIC, OPERATIONS_TOPIC

DEAD_LETTERS: Final = "dead_letters"
"""The consumer that publishes dead letters."""


class RecoveredTopics(msgspec.Struct, frozen=True):
    """The topics that a database is recovered from."""

    events: str = EVENTS_TOPIC
    operations: str = OPERATIONS_TOPIC
    dead_letters: str = DEAD_EVENTS_TOPIC
    deliveries: DeliveryTopics = DeliveryTopics()

    @property
    def all(self) -> tuple[str, ...]:
        """All of their names."""
        deliveries = self.deliveries
        return self.events, self.operations, self.dead_letters, deliveries.deliveries, *deliveries.retries


class DispatchPosition(msgspec.Struct, frozen=True, kw_only=True):
    """Where dispatch goes on in a partition; `known` unless the topic of deliveries has none of its deliveries."""

    partition: int
    next_offset: int
    known: bool


class DatabaseRecovery:
    """One run of `plant recover`. Use it within :meth:`held`."""

    def __init__(self, settings: Settings, topics: RecoveredTopics | None = None) -> None:
        self._settings = settings
        self._topics = topics or RecoveredTopics()
        self._opened: Session | None = None
        self._watermarks: Mapping[str, TopicWatermarks] = {}
        self._dispatched = DispatchedDeliveries({}, {})

    @contextlib.contextmanager
    def held(self) -> Iterator[DatabaseRecovery]:
        """Connect as the owner, and keep everybody else from recovering the database. Raises RecoveryRunning."""
        schema_revision.require_current_schema(self._settings.database_address("owner"))
        session = Session(self._settings.database_address("owner"))
        try:
            session.script(
                "SET statement_timeout = 0", "SET idle_in_transaction_session_timeout = 0",
                "SET application_name = 'plant-recover'",
            )  # fmt: skip
            recovery_state.hold_database(session)
            self._opened = session
            yield self
        finally:
            session.close()

    async def begin(self, actor: str, reason: str) -> dict[UnrecoveredPartition, int]:
        """Begin the recovery, or go on with the one that was begun; return what is left of each partition.

        Raises RecoveryRefused where the database holds a log, or a topic has lost its beginning; and TopicMissing.
        """
        targets = recovery_state.under_way(self._session)
        if not targets and self._session.query(dispatched_deliveries.in_use_query())[0][0]:
            raise RecoveryRefused(
                "Deliverers have begun on the database already.",
                why="They may have sent again what was sent before. A recovery fills an empty database.",
                next_step="plant db upgrade    # on a new database",
            )
        await asyncio.to_thread(activate_registry, self._settings)
        await require_writer_session(self._settings)
        self._watermarks = await read_watermarks(self._settings, self._topics.all)
        self._require_topics()
        topic = self._topics.deliveries.deliveries
        if (watermarks := self._watermarks.get(topic)) is not None:
            self._dispatched = await dispatched_deliveries.read_dispatched(self._settings, topic, watermarks)
        if not targets:
            action = OperatorAction(action="recover", target=self._topics.events, reason=reason, actor=actor)
            await record(self._settings, action)
            targets = self._targets()
            deliverers = dispatched_deliveries.begin_statements(
                self._topics.deliveries, self._watermarks, self._dispatched, SystemClock().now()
            )
            self._session.script("BEGIN", recovery_state.begin_statement(targets), *deliverers, "COMMIT")
        return recovery_state.left(self._session, targets)

    async def run(
        self, left: Mapping[UnrecoveredPartition, int], jobs: int, advance: Callable[[int], None]
    ) -> None:  # fmt: skip
        """Recover what is left, so many partitions at a time, those with the most first."""
        await recover_partitions(self._settings, list(left), jobs, advance)

    def compare(self, kept: Sequence[Head]) -> list[HeadComparison]:
        """Compare the heads of the recovered chains with heads that were kept."""
        return compare_heads(self._session, kept)

    def lagging(self) -> list[str]:
        """Return a line for each read model that does not follow the log."""
        return [
            f"{model} is at {topic}/{partition}@{next_offset}" + (f": {why}" if why else "")
            for model, topic, partition, next_offset, why in recovery_state.lagging_models(self._session)
        ]

    async def end(self) -> list[DispatchPosition]:
        """Let the other consumers go on, and end the recovery; return where dispatch goes on."""
        dead = self._watermarks.get(self._topics.dead_letters)
        published = {} if dead is None else await read_published(self._settings, self._topics.dead_letters, dead)
        statements, positions = [], []
        for topic, partition, log_end in recovery_state.recovered_to(self._session):
            if topic == self._topics.events:
                position = self._dispatch_position(partition, log_end)
                positions.append(position)
                statements.append(
                    consumer_positions.position_statement(DISPATCHER, topic, partition, position.next_offset)
                )
            next_offset = consumer_positions.dead_letter_position(
                self._session, topic, partition, published.get((topic, partition), ()), log_end
            )
            statements.append(consumer_positions.position_statement(DEAD_LETTERS, topic, partition, next_offset))
        actions = sum(bounds[1] for bounds in self._watermarks[self._topics.operations].bounds.values() if bounds)
        number = dispatched_deliveries.number_orders_statement(actions)
        self._session.script("BEGIN", *statements, number, recovery_state.end_statement(), "COMMIT")
        return positions

    def _dispatch_position(self, partition: int, log_end: int) -> DispatchPosition:
        last = self._dispatched.last_offsets.get(partition)
        if last is None:
            return DispatchPosition(partition=partition, next_offset=log_end, known=False)
        next_offset = consumer_positions.dispatch_position(self._session, self._topics.events, partition, last)
        return DispatchPosition(partition=partition, next_offset=next_offset, known=True)

    def _targets(self) -> list[UnrecoveredPartition]:
        return [
            UnrecoveredPartition(topic, partition, bounds[1])
            for topic in (self._topics.events, self._topics.operations)
            for partition, bounds in sorted(self._watermarks[topic].bounds.items())
            if bounds is not None
        ]

    def _require_topics(self) -> None:
        for topic in (self._topics.events, self._topics.operations):
            known = self._watermarks.get(topic)
            if known is None:
                raise TopicMissing(f"The topic {topic} does not exist.", next_step="plant topics list")
            for partition, bounds in sorted(known.bounds.items()):
                if bounds is None:
                    raise RecoveryRefused(
                        f"{topic}/{partition} has no leader that answers.", next_step="plant topics list"
                    )
                if bounds[0] > 0:
                    raise RecoveryRefused(
                        f"{topic}/{partition} begins at offset {bounds[0]}.",
                        why="What was before that is lost, and with it what followed from it. Restore a backup.",
                        next_step="see docs/runbooks/recovery.md",
                    )

    @property
    def _session(self) -> Session:
        assert self._opened is not None, "it is used within `held`"
        return self._opened

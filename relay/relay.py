"""The relay: publishes the outbox's rows, and marks them sent once Kafka has acknowledged them.

One relay is active, by a lock of its session in Postgres; others stand by. The lock saves work. The guarantees below do
not rest on it, so a relay that was frozen, or cut off from Postgres, and goes on next to its successor, does no harm.

**Nothing is lost.** A row is marked only after all in-sync replicas have its event. A relay that dies in between leaves
it unmarked, and it is published again.

**Nothing counts twice.** The event's id is the row's, made by the transaction of the change, and the key is the
entity's id; so each copy has the same id on the same partition, where the first occurrence counts and the others are
logged as repeats.

**An entity's changes keep their order.** Postgres adds an entity's rows one transaction after the other, so a reader
that sees one sees those before it. Each relay, active or not, sends an entity's row only when the row before is marked,
or has been acknowledged to itself; either way a copy of that one is in the partition already. So, by induction over the
rows, first occurrences are in order, whichever relay sends further copies, and however late. For that, at most one
event of an entity is on its way from a relay at a time: were there two, Kafka could take the second and not the first.

An unmappable row blocks its entity's later ones, and no others, until an operator has decided.

Dead letters are published next to the rows: see `relay/dead_letters.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Final

from database.errors import DatabaseUnreachable
from relay.cycle import CycleOutcome, OutboxPublisher
from relay.dead_letters import DeadLetterRelay
from relay.outbox import FIRST, next_after
from relay.outbox_mapper import OutboxRow
from relay.session import RelaySession, relay_session
from runtime import metrics
from runtime.clock import Clock, SystemClock
from runtime.logging import get_logger
from runtime.settings import Settings
from streams.errors import AnotherRelayActive, OutboxBlocked, PartitionCountChanged, StreamsError
from streams.producer import EventProducer
from streams.topics import DEAD_EVENTS_TOPIC, EVENTS_TOPIC, logical_topic

log = get_logger(__name__)

PAGE_ROWS: Final = 500
CYCLE_TIMEOUT_SECONDS: Final = 2.0
"""After this a cycle sends nothing more. It begins with a query, so rows are sent only by a relay that had its session,
and its lock, not longer ago than this; one that was frozen queries first."""
POLL_INTERVAL_SECONDS: Final = 1.0
STANDBY_INTERVAL_SECONDS: Final = 0.5
BACKOFF_SECONDS: Final = 0.2
BACKOFF_MAX_SECONDS: Final = 5.0
PURGE_INTERVAL_SECONDS: Final = 10.0
PURGE_ROWS: Final = 1_000
PURGE_BATCHES: Final = 5


class Relay:
    """One relay. Run it with :meth:`serve` until :meth:`stop`, or :meth:`once`; one of the two, one time."""

    def __init__(
        self,
        settings: Settings,
        *,
        events_topic: str = EVENTS_TOPIC,
        dead_topic: str = DEAD_EVENTS_TOPIC,
        source: str = "plant/relay",
        poll_seconds: float = POLL_INTERVAL_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        """`events_topic` is the topic for events of `genesis.events`, `dead_topic` the one for dead letters; `source`
        becomes the events' `ce_source`.
        """
        self._settings = settings
        self._producer = EventProducer(settings, topics=(EVENTS_TOPIC,), events_topic=events_topic)
        self._dead_letters = DeadLetterRelay(settings, dead_topic, logical_topic(events_topic))
        self._publisher = OutboxPublisher(self._producer, source)
        self._poll_seconds = poll_seconds
        self._clock = clock or SystemClock()
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()
        self._failures = 0
        self._next_entity = FIRST
        self._any_sent = False
        self._blocked_entities = 0
        self._purge_at = 0.0
        self._purge_after = 0
        self.sent_rows = 0
        """How many rows it has published and marked."""

    @property
    def dead_letters(self) -> int:
        """How many dead letters it has published and noted."""
        return self._dead_letters.sent

    def stop(self) -> None:
        """End after the cycle that is under way."""
        self._stopping.set()
        self._wake.set()

    async def serve(self) -> None:
        """Relay, or stand by, until stopped. While Kafka or Postgres is unreachable, wait.

        Raises PartitionCountChanged, SchemaBehind, and ConfigurationError for an address.
        """
        self._producer.start_in_background()
        self._dead_letters.start_in_background()
        try:
            while not self._stopping.is_set():
                try:
                    async with relay_session(self._settings) as session:
                        await self._in_session(session)
                except DatabaseUnreachable as error:
                    log.warning("relay.database_unreachable", why=error.why)
                    await self._back_off()
                finally:
                    _clear_gauges()
        finally:
            await self._dead_letters.stop()
            await self._producer.stop()
            log.info("relay.stopped", rows=self.sent_rows, dead_letters=self.dead_letters)

    async def once(self, lock_timeout_seconds: float = 10.0) -> int:
        """Publish all unsent rows and dead letters; return how many rows that were.

        Raises AnotherRelayActive when the lock is not free within `lock_timeout_seconds`, OutboxBlocked when rows with
        a problem are left, DatabaseUnreachable, and what publishing raises.
        """
        await self._producer.start()
        try:
            async with relay_session(self._settings) as session:
                try:
                    async with asyncio.timeout(lock_timeout_seconds):
                        await self._stand_by(session)
                except TimeoutError as error:
                    raise AnotherRelayActive(
                        why=f"It has kept its lock for {lock_timeout_seconds:g} s.", next_step="plant status"
                    ) from error
                while not self._stopping.is_set() and await self._run_cycle(session, give_up=True):
                    pass
                await self._dead_letters.start()
                with session.named_errors():
                    await self._dead_letters.finish(session.poison_rows)
                await session.unlock()
        finally:
            await self._dead_letters.stop()
            await self._producer.stop()
        if self._blocked_entities:
            raise OutboxBlocked(why=f"{self._blocked_entities} entities are blocked.", next_step="plant relay --help")
        return self.sent_rows

    async def _in_session(self, session: RelaySession) -> None:
        await self._stand_by(session)
        if self._stopping.is_set():
            return
        await session.listen(self._wake.set)
        log.info("relay.active")
        metrics.RELAY_ACTIVE.set(1)
        while not self._stopping.is_set():
            if self._next_entity == FIRST:
                self._wake.clear()
            more = await self._run_cycle(session)
            more |= await self._run_dead_letter_cycle(session)
            await self._purge(session)
            if not more and not self._stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._poll_seconds)
        await session.unlock()

    async def _stand_by(self, session: RelaySession) -> None:
        """Wait for the lock; return once it is held, or the relay is stopping."""
        logged = False
        while not self._stopping.is_set() and not await session.try_lock():
            if not logged:
                log.info("relay.standing_by")
                logged = True
            if await session.end_unresponsive_holder():
                log.warning("relay.ended_unresponsive_holder")
                continue
            await self._pause(STANDBY_INTERVAL_SECONDS)

    async def _run_cycle(self, session: RelaySession, *, give_up: bool = False) -> bool:
        """Publish the next page; return whether there is more to do at once. After a failure back off, or raise it."""
        started = self._clock.monotonic_seconds()
        with session.named_errors():
            page = await session.outbox.unsent(self._next_entity, PAGE_ROWS)
        oldest_seconds = self._age_seconds(page)

        def may_continue() -> bool:
            late = self._clock.monotonic_seconds() > started + CYCLE_TIMEOUT_SECONDS
            return not (late or session.lost or self._stopping.is_set())

        outcome = await self._publisher.publish(page, may_continue)
        await self._note(session, outcome)
        metrics.RELAY_UNSENT_ROWS.set(len(page))
        metrics.RELAY_OLDEST_SECONDS.set(oldest_seconds)
        if outcome.sent or outcome.failure:
            (log.warning if outcome.failure else log.info)(
                "outbox.relayed",
                count=len(outcome.sent),
                problems=len(outcome.problems),
                seconds=round(self._clock.monotonic_seconds() - started, 4),
                oldest_seconds=round(oldest_seconds, 3),
                why=str(outcome.failure or ""),
            )
        if outcome.failure is not None:
            if give_up or isinstance(outcome.failure, PartitionCountChanged):
                raise outcome.failure
            await self._back_off()
            return True
        self._failures = 0
        return self._turn_page(page, outcome)

    async def _run_dead_letter_cycle(self, session: RelaySession) -> bool:
        """Publish dead letters; return whether there may be more at once. Their errors are logged and stop nothing."""
        try:
            with session.named_errors():
                return await self._dead_letters.run_cycle(session.poison_rows)
        except StreamsError as error:
            log.warning("dead_letters.waiting", why=str(error))
            return False

    async def _note(self, session: RelaySession, outcome: CycleOutcome) -> None:
        """Mark the rows that were sent, in one statement, and those that are unmappable."""
        with session.named_errors():
            if outcome.sent:
                for seconds in await session.outbox.mark_sent([row.id for row in outcome.sent]):
                    metrics.RELAY_SECONDS.observe(seconds)
            for row, reason in outcome.problems:
                await session.outbox.mark_problem(row.id, reason)
                log.error(
                    "outbox.problem",
                    row=row.id,
                    entity_id=str(row.entity_id),
                    entity_type=row.entity_type,
                    event_type=row.event_type,
                    why=reason,
                )
                metrics.RELAY_PROBLEMS.inc()
        for row in outcome.sent:
            metrics.RELAY_EVENTS.labels(row.event_type).inc()
        self.sent_rows += len(outcome.sent)

    def _turn_page(self, page: list[OutboxRow], outcome: CycleOutcome) -> bool:
        """Move on to the next page of entities; return whether rows may wait there."""
        begins, ends = self._next_entity == FIRST, len(page) < PAGE_ROWS
        self._blocked_entities = outcome.blocked_entities + (0 if begins else self._blocked_entities)
        self._any_sent = bool(outcome.sent) or outcome.left or (self._any_sent and not begins)
        self._next_entity = FIRST if ends else next_after(page[-1].entity_id)
        if ends:
            metrics.RELAY_BLOCKED_ENTITIES.set(self._blocked_entities)
        # One page holds all there was; while several were published, more rows may have come on earlier ones.
        return not ends or (outcome.left if begins else self._any_sent)

    async def _purge(self, session: RelaySession) -> None:
        """Delete a few batches of rows that were sent long ago, every PURGE_INTERVAL_SECONDS."""
        if self._clock.monotonic_seconds() < self._purge_at:
            return
        self._purge_at = self._clock.monotonic_seconds() + PURGE_INTERVAL_SECONDS
        deleted = 0
        for _ in range(PURGE_BATCHES):
            with session.named_errors():
                self._purge_after, purged = await session.outbox.purge(
                    self._purge_after, PURGE_ROWS, self._settings.relay_keep_sent_days
                )
            deleted += purged
            if not self._purge_after:
                break
        if deleted:
            log.info("outbox.purged", rows=deleted)

    def _age_seconds(self, page: list[OutboxRow]) -> float:
        waiting = [row.occurred_at for row in page if row.problem is None]
        return max(0.0, (self._clock.now() - min(waiting)).total_seconds()) if waiting else 0.0

    async def _back_off(self) -> None:
        """Pause with full jitter, under a bound that doubles with each failure in a row."""
        self._failures += 1
        bound = min(BACKOFF_MAX_SECONDS, BACKOFF_SECONDS * 2 ** min(self._failures, 10))
        await self._pause(random.uniform(bound / 4, bound))  # noqa: S311 (no secret)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


def _clear_gauges() -> None:
    for gauge in (metrics.RELAY_ACTIVE, metrics.RELAY_UNSENT_ROWS, metrics.RELAY_OLDEST_SECONDS):
        gauge.set(0)
    metrics.RELAY_BLOCKED_ENTITIES.set(0)

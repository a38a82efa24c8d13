"""One round of the relay: a stretch of unsent rows is published, each entity's one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final

import msgspec

from relay.outbox_mapper import OutboxRow, event_of, without_values
from runtime.errors import PlantError
from schemas.errors import Unencodable
from streams.errors import OutcomeUnknown, RecordTooLarge, StreamsError, UnmappableRow
from streams.pending_publish import PendingPublish
from streams.producer import EventProducer

ENTITY_ROWS_MAX: Final = 50
"""An entity's rows wait for each other, so one with many may have no more than these of a round."""


class CycleOutcome(msgspec.Struct):
    """What became of a round's rows."""

    sent: list[OutboxRow] = msgspec.field(default_factory=list)
    """Acknowledged by Kafka."""
    problems: list[tuple[OutboxRow, str]] = msgspec.field(default_factory=list)
    """Rows of which no event can be made, and why."""
    blocked_entities: int = 0
    """Entities whose oldest row had a problem before, and those that have one now."""
    left: bool = False
    """Whether rows were left for another round though nothing is wrong with them."""
    failure: PlantError | None = None
    """The first thing that kept a row from being published, without being the row's fault."""


class OutboxPublisher:
    """Publishes rows, each entity's in order: one is sent when Kafka has acknowledged the one before."""

    def __init__(self, producer: EventProducer, source: str) -> None:
        self._producer = producer
        self._source = source
        # What Kafka has not answered for in time may still be written: it is waited for again, not sent again.
        self._late: dict[int, tuple[OutboxRow, PendingPublish]] = {}

    async def publish(self, changes: Sequence[OutboxRow], go_on: Callable[[], bool]) -> CycleOutcome:
        """Publish rows that come by entity and age. Once `go_on` says no, only what is under way is waited for.

        Among those sent are rows of rounds before, if Kafka has acknowledged them since.
        """
        outcome = CycleOutcome()
        entities = [list(rows) for _, rows in groupby(changes, key=lambda change: change.entity_id)]
        await asyncio.gather(*(self._in_order(rows, outcome, go_on) for rows in entities))
        outcome.sent += self._answered_late()
        return outcome

    def _answered_late(self) -> list[OutboxRow]:
        """Take out what has its answer by now; what was acknowledged. Its row may come rounds later, or never."""
        answered = [late for late in self._late.values() if late[1].done()]
        for change, _ in answered:
            del self._late[change.id]
        return [change for change, publish in answered if not publish.failed()]

    async def _in_order(self, changes: Sequence[OutboxRow], outcome: CycleOutcome, go_on: Callable[[], bool]) -> None:
        for number, change in enumerate(changes):
            if change.problem is not None:
                outcome.blocked_entities += 1
                return
            if outcome.failure is not None or number == ENTITY_ROWS_MAX or not go_on():
                outcome.left = True
                return
            try:
                await self._publish(change)
            except (UnmappableRow, Unencodable, RecordTooLarge) as error:
                outcome.problems.append((change, _reason(error)))
                outcome.blocked_entities += 1
                return
            except StreamsError as error:
                outcome.failure = outcome.failure or error
                return
            outcome.sent.append(change)

    async def _publish(self, change: OutboxRow) -> None:
        _, publish = self._late.pop(change.id, (change, None))
        if publish is None:
            publish = self._producer.submit(event_of(change), source=self._source)
        try:
            await self._producer.await_acknowledgement(publish)
        except OutcomeUnknown:
            self._late[change.id] = (change, publish)
            raise


def _reason(error: UnmappableRow | Unencodable | RecordTooLarge) -> str:
    """Why no event can be made, without a value of the row."""
    match error:
        case UnmappableRow():
            return error.reason
        case Unencodable():
            return without_values(error.reason)
        case RecordTooLarge():
            return error.why

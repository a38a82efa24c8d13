"""One cycle of the relay: a page of unsent rows is published, each entity's one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final

import msgspec

from relay.outbox_mapper import OutboxRow, event_of, without_values
from runtime.errors import PlantError
from schemas.errors import Unencodable
from schemas.sender_headers import RELAY_PRODUCER, Header, change_headers, sender_headers
from streams.errors import OutcomeUnknown, RecordTooLarge, StreamsError, UnmappableRow
from streams.pending_publish import PendingPublish
from streams.producer import EventProducer

_SENDER: Final = sender_headers(RELAY_PRODUCER)

ENTITY_ROWS_MAX: Final = 50
"""An entity's rows wait for each other, so one with many has no more than these in a cycle."""


class CycleOutcome(msgspec.Struct):
    """The outcome of a cycle's rows."""

    sent: list[OutboxRow] = msgspec.field(default_factory=list)
    """Acknowledged by Kafka."""
    problems: list[tuple[OutboxRow, str]] = msgspec.field(default_factory=list)
    """Unmappable rows, and why they are."""
    blocked_entities: int = 0
    """How many entities have a problem with their oldest row, from before or from this cycle."""
    left: bool = False
    """Whether rows were left for another cycle though they have no problem."""
    failure: PlantError | None = None
    """The first error that kept a row from being published, and is not the row's fault."""


class OutboxPublisher:
    """Publishes rows, each entity's in order: one is sent when Kafka has acknowledged the one before."""

    def __init__(self, producer: EventProducer, source: str) -> None:
        self._producer = producer
        self._source = source
        # A publish whose outcome is unknown may still be written: its answer is awaited, and it is not sent again.
        self._unanswered: dict[int, tuple[OutboxRow, PendingPublish]] = {}

    async def publish(self, page: Sequence[OutboxRow], may_continue: Callable[[], bool]) -> CycleOutcome:
        """Publish rows that come by entity and age. Once `may_continue` returns False, nothing more is sent.

        Among those sent are rows of earlier cycles, if Kafka has acknowledged them since.
        """
        outcome = CycleOutcome()
        entities = [list(rows) for _, rows in groupby(page, key=lambda row: row.entity_id)]
        await asyncio.gather(*(self._in_order(rows, outcome, may_continue) for rows in entities))
        outcome.sent += self._take_answered()
        return outcome

    def _take_answered(self) -> list[OutboxRow]:
        """Take out publishes that have their answer by now; return the rows of those that were acknowledged.

        Such a row may be in a page many cycles later, or never.
        """
        answered = [each for each in self._unanswered.values() if each[1].done()]
        for row, _ in answered:
            del self._unanswered[row.id]
        return [row for row, publish in answered if not publish.failed()]

    async def _in_order(
        self, rows: Sequence[OutboxRow], outcome: CycleOutcome, may_continue: Callable[[], bool]
    ) -> None:
        for number, row in enumerate(rows):
            if row.problem is not None:
                outcome.blocked_entities += 1
                return
            if outcome.failure is not None or number == ENTITY_ROWS_MAX or not may_continue():
                outcome.left = True
                return
            try:
                await self._publish(row)
            except (UnmappableRow, Unencodable, RecordTooLarge) as error:
                outcome.problems.append((row, _reason(error)))
                outcome.blocked_entities += 1
                return
            except StreamsError as error:
                outcome.failure = outcome.failure or error
                return
            outcome.sent.append(row)

    async def _publish(self, row: OutboxRow) -> None:
        _, publish = self._unanswered.pop(row.id, (row, None))
        if publish is None:
            publish = self._producer.submit(event_of(row), source=self._source, sender=_sender(row))
        try:
            await self._producer.await_acknowledgement(publish)
        except OutcomeUnknown:
            self._unanswered[row.id] = (row, publish)
            raise


def _sender(row: OutboxRow) -> tuple[Header, ...]:
    """Return the headers of a row's event: the relay's, and which change it is."""
    return _SENDER if row.tenant is None else (*_SENDER, *change_headers(row.tenant, row.version))


def _reason(error: UnmappableRow | Unencodable | RecordTooLarge) -> str:
    """Return why no event can be made, without a value of the row."""
    match error:
        case UnmappableRow():
            return error.reason
        case Unencodable():
            return without_values(error.reason)
        case RecordTooLarge():
            return error.why

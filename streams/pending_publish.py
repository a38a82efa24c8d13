"""A pending publish: an event that was submitted, its Kafka batch, and its index there."""

from __future__ import annotations

import asyncio

from streams.record_position import RecordPosition


class PendingPublish:
    """One event that was submitted. Events of a batch share its answer, since a future for each would cost more."""

    __slots__ = ("answer", "index")

    def __init__(self, answer: asyncio.Future[RecordPosition], index: int) -> None:
        """`answer` is done when Kafka has acknowledged or refused the batch, with the position of its first record. Do
        not cancel it: the batch is sent anyway.
        """
        self.answer = answer
        self.index = index

    def done(self) -> bool:
        """Return whether Kafka has acknowledged or refused the event."""
        return self.answer.done()

    def failed(self) -> bool:
        """Return whether it is known that the event was not acknowledged."""
        return self.answer.done() and (self.answer.cancelled() or self.answer.exception() is not None)

    def position(self) -> RecordPosition:
        """Return the event's position. Raises StreamsError where Kafka refused it, InvalidStateError before that."""
        first = self.answer.result()
        return RecordPosition(first.topic, first.partition, first.offset + self.index)

"""An event's publish: which Kafka batch it is in, and where in it."""

from __future__ import annotations

import asyncio

from streams.record_position import RecordPosition


class PendingPublish:
    """What becomes of one event that was submitted. Events of a batch share its answer; a future each costs more."""

    __slots__ = ("answer", "index")

    def __init__(self, answer: asyncio.Future[RecordPosition], index: int) -> None:
        """`answer` is done when Kafka has acknowledged or refused the batch, with the place of its first record. Do not
        cancel it: the batch is sent anyway.
        """
        self.answer = answer
        self.index = index

    def done(self) -> bool:
        """Whether Kafka has acknowledged or refused the event."""
        return self.answer.done()

    def failed(self) -> bool:
        """Whether it is known that the event was not acknowledged."""
        return self.answer.done() and (self.answer.cancelled() or self.answer.exception() is not None)

    def position(self) -> RecordPosition:
        """Where the event is. Raises StreamsError where Kafka refused it, InvalidStateError unless it is done."""
        first = self.answer.result()
        return RecordPosition(first.topic, first.partition, first.offset + self.index)

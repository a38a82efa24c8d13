"""Publishes control records in order, and waits until workers have applied them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, NamedTuple
from uuid import UUID

from audit.canonical import field
from operations.dead_letters.controls import Control, content_of
from operations.operator_actions import OperatorAction
from projections.dead_letter_rows import DeadLetterRows
from runtime.clock import Clock, SystemClock
from schemas import codec
from schemas.control import RecordRedriven, RecordSkipped
from schemas.sender_headers import OPERATION_HEADER
from streams.errors import CaughtUpTooLate, Overloaded
from streams.pending_publish import PendingPublish
from streams.producer import EventProducer
from streams.record_position import RecordPosition

POLL_SECONDS: Final = 0.2


class PublishedRange(NamedTuple):
    """The control records of one partition that Kafka has acknowledged: the first and the last offset."""

    first: int
    last: int


class PublishedRanges:
    """Where control records were published, by topic and partition."""

    def __init__(self) -> None:
        self.count = 0
        self._ranges: dict[tuple[str, int], PublishedRange] = {}

    def add(self, position: RecordPosition) -> None:
        """Note an acknowledged control record."""
        key = position.topic, position.partition
        known = self._ranges.get(key, PublishedRange(position.offset, position.offset))
        self._ranges[key] = PublishedRange(min(known.first, position.offset), max(known.last, position.offset))
        self.count += 1

    def items(self) -> list[tuple[tuple[str, int], PublishedRange]]:
        """Return the published, sorted by topic and partition."""
        return sorted(self._ranges.items())


async def publish_controls(
    producer: EventProducer, controls: AsyncIterator[Control], action: OperatorAction
) -> AsyncIterator[RecordPosition]:
    """Publish each to its record's own partition, with that record's key; yield positions once acknowledged, in order.

    Few are under way at a time. Raises at the first one that fails; those before it and some after it may have been
    written.
    """
    waiting: deque[PendingPublish] = deque()
    async for control in controls:
        while (publish := _submit_if_room(producer, control, action, alone=not waiting)) is None:
            yield await producer.await_acknowledgement(waiting.popleft())
        waiting.append(publish)
        while waiting[0].done():
            yield waiting.popleft().position()
            if not waiting:
                break
    while waiting:
        yield await producer.await_acknowledgement(waiting.popleft())


def _submit_if_room(
    producer: EventProducer, control: Control, action: OperatorAction, *, alone: bool
) -> PendingPublish | None:
    value, headers = content_of(control.record, action)
    try:
        return producer.submit_record(
            control.position.topic, control.key, value, headers, partition=control.position.partition
        )
    except Overloaded:
        if alone:
            raise
        return None


class Ineffective(NamedTuple):
    """A control record that a worker logged without effect, and the record that it names.

    `resolved_at` is the offset of the control record that took effect on that one; None: none did.
    """

    position: RecordPosition
    poison_offset: int
    resolved_at: int | None


async def await_effects(
    rows: DeadLetterRows,
    published: PublishedRanges,
    operation_id: UUID,
    timeout_seconds: float,
    clock: Clock | None = None,
) -> list[Ineffective]:
    """Return control records without effect once workers have logged all of them, by topic, partition and offset.

    Raises CaughtUpTooLate.
    """
    clock = clock or SystemClock()
    deadline = clock.monotonic_seconds() + timeout_seconds
    found: list[Ineffective] = []
    mark = field(OPERATION_HEADER.encode()) + field(str(operation_id).encode())
    for (topic, partition), part in published.items():
        while (next_offset := (await rows.log_ends()).get((topic, partition), 0)) <= part.last:
            if clock.monotonic_seconds() > deadline:
                raise CaughtUpTooLate(
                    f"Workers have not come to {topic}/{partition}/{part.last} within {timeout_seconds:g} s.",
                    why=f"Offset {next_offset} is read next. The control records are on the topic, and take effect"
                    " once a worker reads them.",
                    next_step="plant status",
                )
            await asyncio.sleep(POLL_SECONDS)
        found += await _ineffective(rows, topic, partition, part, mark)
    return found


async def _ineffective(
    rows: DeadLetterRows, topic: str, partition: int, part: PublishedRange, mark: bytes
) -> list[Ineffective]:
    found, first = [], part.first
    while page := await rows.ineffective(topic, partition, first, part.last, mark):
        named = [(offset, _poison_offset(value)) for offset, value in page]
        poison = [poison_offset for _, poison_offset in named]
        resolved = await rows.resolved(topic, partition, min(poison), max(poison))
        found += [
            Ineffective(RecordPosition(topic, partition, offset), poison_offset, resolved.get(poison_offset))
            for offset, poison_offset in named
        ]
        first = page[-1][0] + 1
    return found


def _poison_offset(value: bytes) -> int:
    record = codec.decode_record(value)
    assert isinstance(record, RecordRedriven | RecordSkipped)
    return record.poison_offset

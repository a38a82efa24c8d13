"""A partition's dispatcher for tests: events by number, a log that has them, and who takes what is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import cast
from uuid import UUID

from deliveries.dispatch.delivery_sender import EndOffsets
from deliveries.dispatch.partition_dispatcher import PartitionDispatcher
from deliveries.dispatch.queued_deliveries import DeliveryRecord
from projections.engine import PartitionProjector
from schemas import codec
from schemas.delivery_records import DeliveryQueued
from schemas.events import AgentOnboarded, Event
from streams.batch import EventBatch
from streams.errors import KafkaUnavailable
from tests.support.batches import WATERMARKS, Record, batch_of
from tests.support.poison_records import key_of
from tests.support.waiting import DEADLINE_SECONDS

AGENT, OTHER = UUID(int=1), UUID(int=2)
KEY = key_of(AGENT)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class SentDeliveries:
    """Takes slices as Kafka does, and can refuse them."""

    def __init__(self) -> None:
        self.records: list[DeliveryRecord] = []
        self.slices = 0
        self.refused: set[int] = set()
        """Numbers of the slices that are refused; what they held may have been written all the same."""

    def send(self, records: Sequence[DeliveryRecord]) -> Future[EndOffsets]:
        answer: Future[EndOffsets] = Future()
        self.slices += 1
        if self.slices in self.refused:
            self.records += records[: len(records) // 2]
            answer.set_exception(KafkaUnavailable(why="a test"))
        else:
            self.records += records
            answer.set_result({})
        return answer

    @property
    def queued(self) -> list[DeliveryQueued]:
        return [cast(DeliveryQueued, codec.decode_record(each.value)) for each in self.records]

    @property
    def first_occurrences(self) -> list[DeliveryQueued]:
        """Those that are above all before them."""
        return in_order(self.queued)


def order(queued: DeliveryQueued) -> tuple[int, int, bytes]:
    return queued.source_offset, queued.source_rank, queued.endpoint_id.bytes


Know = Callable[..., Awaitable[None]]
"""Adds endpoints by number, and waits until the directory has them."""


def named(number: int, agent_id: UUID = AGENT) -> AgentOnboarded:
    return AgentOnboarded(
        event_id=UUID(int=1000 + number), agent_id=agent_id, occurred_at=NOON, name=f"name {number}", skill_ids=()
    )


def apply(projector: PartitionProjector, records: Sequence[Event | Record], start: int = 0) -> None:
    """Write records to the log."""
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(records, token=token, start=start))


def take(dispatcher: PartitionDispatcher, batch: EventBatch, *, blocks: bool = True) -> int:
    """Have a dispatcher take a batch as a worker does, in an event loop of its own; fail where it must not block."""

    async def in_thread(function: Callable[..., object], *arguments: object) -> object:
        assert blocks, function
        return function(*arguments)

    async def accept() -> int:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await dispatcher.accept(batch, in_thread)
        finally:
            await dispatcher._parts.log_checkpoints.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, accept()).result()


def dispatch_all(dispatcher: PartitionDispatcher, records: Sequence[Event | Record], sizes: Iterator[int]) -> None:
    """DispatcherParts what is left of the records, in batches of these sizes."""
    acquired = dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    start = acquired.log_end.next_offset
    while start < len(records):
        batch = batch_of(records[start : start + next(sizes)], token=acquired.token, start=start)
        start = take(dispatcher, batch)


def in_order(queued: Sequence[DeliveryQueued]) -> list[DeliveryQueued]:
    """Return the deliveries of a stream that are above all before them."""
    taken: list[DeliveryQueued] = []
    for each in queued:
        if not taken or order(each) > order(taken[-1]):
            taken.append(each)
    return taken

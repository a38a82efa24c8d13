"""The one way of a process's deliveries to Kafka: slices of records, each acknowledged before the next one is sent.

A partition's thread hands over slices; the producer lives on the event loop. Records of a slice that go to one
partition of the topic are sent in order, one request at a time. A slice is handed to one connection in one turn of the
loop: when that connection fails, none of the slice's later records can go ahead on its successor.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Final, TypeAlias

from deliveries.dispatch.queued_deliveries import DeliveryRecord
from streams.ordered_records import OrderedRecord, publish_in_order
from streams.producer import EventProducer

SLICE_RECORDS_MAX: Final = 1_000
SLICE_BYTES_MAX: Final = 4 * 1024 * 1024

EndOffsets: TypeAlias = dict[int, int]
"""The offset behind a slice's last record, by partition."""


class DeliverySender:
    """Publishes slices of deliveries. Made on the event loop that the producer runs on."""

    def __init__(self, producer: EventProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self._loop = asyncio.get_running_loop()

    def send(self, records: Sequence[DeliveryRecord]) -> Future[EndOffsets]:
        """Send a slice, from any thread. The answer comes when Kafka has acknowledged it as a whole.

        It raises what the producer raises: from then on it is unknown which of the records were written.
        """
        return asyncio.run_coroutine_threadsafe(self._send(records), self._loop)

    async def _send(self, records: Sequence[DeliveryRecord]) -> EndOffsets:
        ordered = [OrderedRecord(key, value, []) for key, value in records]
        ends: EndOffsets = {}
        for position in await publish_in_order(self._producer, self._topic, ordered):
            ends[position.partition] = max(ends.get(position.partition, 0), position.offset + 1)
        return ends


class PendingSlice:
    """The slice of one partition that is on its way: the next one is made meanwhile, and sent after its answer."""

    def __init__(self, sender: DeliverySender) -> None:
        self._sender = sender
        self._answer: Future[EndOffsets] | None = None

    def send(self, records: Sequence[DeliveryRecord]) -> None:
        """Send a slice once the one before is acknowledged. Raises what that one's answer raises."""
        self.await_acknowledgement()
        self._answer = self._sender.send(records)

    def await_acknowledgement(self) -> EndOffsets:
        """Return once nothing is on its way, with the offsets behind the last slice, if there was one."""
        answer, self._answer = self._answer, None
        return {} if answer is None else answer.result()

    async def acknowledged(self) -> None:
        """Return once nothing is on its way, in the event loop. Cancelled, what is on its way stays so."""
        if self._answer is not None:
            await asyncio.shield(asyncio.wrap_future(self._answer))
            self._answer = None

    def forget(self) -> None:
        """Wait until nothing is on its way, whatever became of it."""
        answer, self._answer = self._answer, None
        if answer is not None:
            with contextlib.suppress(CancelledError):
                answer.exception()


def slices(records: Iterable[DeliveryRecord], records_max: int, bytes_max: int) -> Iterator[list[DeliveryRecord]]:
    """Yield records in their order, in lists that end with the record that reaches a bound.

    >>> [len(each) for each in slices([DeliveryRecord(b"", b"x")] * 5, records_max=2, bytes_max=9)]
    [2, 2, 1]
    """
    found: list[DeliveryRecord] = []
    size_bytes = 0
    for record in records:
        found.append(record)
        size_bytes += len(record.value)
        if len(found) >= records_max or size_bytes >= bytes_max:
            yield found
            found, size_bytes = [], 0
    if found:
        yield found

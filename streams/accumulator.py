"""The accumulator: a queue of pending batches for each partition, while the batch before them is on its way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from aiokafka.producer.message_accumulator import BatchBuilder

from streams.partitioning import partition_of
from streams.pending_publish import PendingPublish
from streams.record_position import RecordPosition


class PendingBatch:
    """Records that reach Kafka together, or not at all. `answer` is the position of the first."""

    __slots__ = ("answer", "builder", "records", "size_bytes")

    def __init__(self, builder: BatchBuilder, answer: asyncio.Future[RecordPosition]) -> None:
        self.builder = builder
        self.answer = answer
        self.records = 0
        self.size_bytes = 0


class PartitionQueue:
    """A partition's pending batches, the last of them open, while `sending` says that one is on its way."""

    __slots__ = ("partition", "pending", "sending", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.pending: deque[PendingBatch] = deque()
        self.sending = False


class Accumulator:
    """The partition queues of a connection's topics."""

    def __init__(self, partition_counts: Mapping[str, int], new_builder: Callable[[], BatchBuilder]) -> None:
        """`new_builder` returns an empty batch that is bounded in size."""
        self._new_builder = new_builder
        self._new_answer = asyncio.get_running_loop().create_future
        self._queues = {
            topic: [PartitionQueue(topic, partition) for partition in range(count)]
            for topic, count in partition_counts.items()
        }

    def add(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        size_bytes: int,
        partition: int | None = None,
    ) -> tuple[PartitionQueue, PendingPublish]:
        """Append a record to the open batch of the partition that is named, else of its key's; without a key, of 0.

        `size_bytes` is what the record counts for until it is released.
        """
        queues = self._queues[topic]
        if partition is None:
            partition = 0 if key is None else partition_of(key, len(queues))
        queue = queues[partition]
        pending = queue.pending
        batch = pending[-1] if pending else None
        # A batch that is full takes no more; an empty one takes whatever may be sent at all.
        if batch is None or batch.builder.append(timestamp=None, key=key, value=value, headers=headers) is None:
            batch = PendingBatch(self._new_builder(), self._new_answer())
            batch.builder.append(timestamp=None, key=key, value=value, headers=headers)
            pending.append(batch)
        publish = PendingPublish(batch.answer, batch.records)
        batch.records += 1
        batch.size_bytes += size_bytes
        return queue, publish

    def drain(self) -> Iterator[PendingBatch]:
        """Take out all pending batches."""
        for queues in self._queues.values():
            for queue in queues:
                while queue.pending:
                    yield queue.pending.popleft()

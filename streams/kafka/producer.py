"""aiokafka's producer, with a look at its background tasks and an end that does not wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from streams.kafka.repair import Repair

CLOSE_TIMEOUT_SECONDS: Final = 2.0

REPAIR: Final = Repair(
    name="producer tasks",
    needed_by="aiokafka 0.14.0",
    reason="The tasks that refresh metadata and send batches can end with an error that nobody sees, and publishers"
    " then wait without end. `stop` waits without end for batches that a broker does not acknowledge.",
    until="aiokafka reports the end of these tasks to its user, and `stop` takes a timeout.",
    touches=(
        "aiokafka.producer.producer:AIOKafkaProducer._closed",
        "aiokafka.producer.producer:AIOKafkaProducer._sender",
        "aiokafka.producer.producer:AIOKafkaProducer.client",
        "aiokafka.producer.sender:Sender.sender_task",
        "aiokafka.producer.sender:Sender.close()",
        "aiokafka.client:AIOKafkaClient._sync_task",
        "aiokafka.client:AIOKafkaClient.close()",
    ),
)


class RepairedProducer(AIOKafkaProducer):  # type: ignore[misc]  # aiokafka is not type-checked here
    """A producer that shows its background tasks. Made by `streams.kafka.clients.make_producer`."""

    def background_tasks(self) -> Iterator[asyncio.Task[Any]]:
        """Yield the tasks that must run as long as the producer is used; it must be started."""
        yield self.client._sync_task
        yield self._sender.sender_task

    async def abandon(self) -> None:
        """Disconnect without waiting for acknowledgements."""
        self._closed = True
        metadata_task = self.client._sync_task
        if metadata_task is not None and metadata_task.done():
            self.client._sync_task = None  # or its error would come up in `close`, before the connections are closed
        for close in (self.client.close, self._sender.close, self.client.close):
            with contextlib.suppress(KafkaError, OSError, TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                    await close()

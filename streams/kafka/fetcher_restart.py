"""The restart of aiokafka's fetcher, which ends permanently with the first error that it does not expect.

Seen: a broker died while partitions had no position yet. Two answers reported this for one of them, and the second
failed on the state that the first had left. The consumer stayed in its group and delivered nothing any more, and
nothing was logged.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiokafka import AIOKafkaConsumer

from runtime.logging import get_logger
from streams.kafka.repair import Repair

log = get_logger(__name__)

REPAIR: Final = Repair(
    name="fetcher restart",
    needed_by="aiokafka 0.14.0",
    reason="The fetcher's task ends with the first error that it does not expect; the consumer then stays in its group"
    " and delivers nothing.",
    until="aiokafka restarts its fetcher, or `getmany` raises the error that ended it.",
    touches=(
        "aiokafka.consumer.consumer:AIOKafkaConsumer._coordinator",
        "aiokafka.consumer.consumer:AIOKafkaConsumer._fetcher",
        "aiokafka.consumer.group_coordinator:GroupCoordinator._coordination_task",
        "aiokafka.consumer.fetcher:Fetcher._closed",
        "aiokafka.consumer.fetcher:Fetcher._fetch_task",
        "aiokafka.consumer.fetcher:Fetcher._pending_tasks",
        "aiokafka.consumer.fetcher:Fetcher._fetch_requests_routine()",
    ),
)


def restart_fetcher(consumer: AIOKafkaConsumer) -> None:
    """Restart the fetcher if it has ended; call this before each poll, in the consumer's loop.

    Positions move when records are delivered, so what was fetched and not delivered is fetched again. Raises KafkaError
    where the task that keeps the consumer in its group has ended: that one can't be restarted.
    """
    coordination = getattr(consumer._coordinator, "_coordination_task", None)
    if coordination is not None and coordination.done() and not coordination.cancelled():
        coordination.result()
    fetcher = consumer._fetcher
    ended = fetcher._fetch_task
    if not ended.done() or fetcher._closed:
        return
    error = None if ended.cancelled() else ended.exception()
    log.error("fetcher.restarted", why=repr(error.__cause__ or error if error is not None else None))
    over = {task for task in fetcher._pending_tasks if task.done()}
    for task in over:
        if not task.cancelled():
            task.exception()  # or asyncio would log it as never retrieved
    fetcher._pending_tasks -= over
    fetcher._fetch_task = asyncio.create_task(fetcher._fetch_requests_routine())

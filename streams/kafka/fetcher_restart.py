"""aiokafka's fetching in the background, kept going: it ends for good with the first error that it does not expect.

Seen: a broker died while partitions had no position yet, two answers said so of one of them, and the second tripped
over the first. The consumer stayed in its group and delivered nothing any more, without a word.
"""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaConsumer

from runtime.logging import get_logger

log = get_logger(__name__)


def restart_fetcher(consumer: AIOKafkaConsumer) -> None:
    """Begin anew if fetching has ended; call it before each poll, in the consumer's loop.

    Positions move when records are delivered, so what was fetched and not delivered is fetched again. Raises KafkaError
    where the part that keeps the consumer in its group has ended: that can't be begun anew.
    """
    coordination = getattr(consumer._coordinator, "_coordination_task", None)
    if coordination is not None and coordination.done() and not coordination.cancelled():
        coordination.result()
    fetcher = consumer._fetcher
    ended = fetcher._fetch_task
    if not ended.done() or fetcher._closed:
        return
    error = None if ended.cancelled() else ended.exception()
    log.error("fetching.begun_anew", why=repr(error.__cause__ or error if error is not None else None))
    over = {task for task in fetcher._pending_tasks if task.done()}
    for task in over:
        if not task.cancelled():
            task.exception()  # it is known now
    fetcher._pending_tasks -= over
    fetcher._fetch_task = asyncio.create_task(fetcher._fetch_requests_routine())

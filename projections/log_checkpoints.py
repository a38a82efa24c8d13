"""How far the log is in each partition of a topic: one poller for all of a process that wait for it.

It asks only while somebody waits: every few milliseconds, and less often while the log stands still.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, NamedTuple

from database.errors import DatabaseUnreachable
from database.sessions import single_connection
from projections.checkpoints import PROJECTOR
from runtime.errors import PlantError
from runtime.logging import get_logger

log = get_logger(__name__)

POLL_SECONDS: Final = 0.005
STILL_POLL_SECONDS: Final = 0.05
STILL_AFTER_SECONDS: Final = 2.0
"""After this without progress of any partition the poller asks less often."""
ANSWER_TIMEOUT_SECONDS: Final = 10.0
RECONNECT_SECONDS: Final = 0.5

_POSITIONS: Final = """
SELECT c.partition, c.next_offset, coalesce(c.applied_from, c.next_offset) AS applied_from, o.token
FROM checkpoints AS c JOIN partition_owners AS o ON o.topic = c.topic AND o.partition = c.partition
WHERE c.consumer = $1 AND o.consumer = $2 AND c.topic = $3
"""


class LogPosition(NamedTuple):
    """What Postgres said of a partition at one moment."""

    next_offset: int
    """The checkpoint of the log."""
    applied_from: int
    """From here up to the checkpoint all records are applied: none is a repeat, poison, parked, or a control record."""
    token: int
    """The fencing token of the consumer that follows the log. Whoever acquires the partition after that moment finds
    the checkpoint where it is here, or further on."""


NOWHERE: Final = LogPosition(0, 0, 0)


class LogWaiter(NamedTuple):
    """One that waits for the log to be past an offset of a partition. It alone is woken when that is so."""

    partition: int
    offset: int
    reached: asyncio.Future[LogPosition]


class LogCheckpoints:
    """The checkpoints of the log in one topic, for a consumer that follows it. Lives in one event loop."""

    def __init__(self, address: str, topic: str, consumer: str) -> None:
        """`address` is of a role that may read checkpoints and owners."""
        self._address = address
        self._topic = topic
        self._consumer = consumer
        self._positions: dict[int, LogPosition] = {}
        self._waiters: list[LogWaiter] = []
        self._awaited = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def past(self, partition: int, offset: int) -> LogPosition:
        """Return the log's position in a partition once its checkpoint is above an offset.

        Raises DatabaseUnreachable where Postgres can't be asked.
        """
        known = self._positions.get(partition, NOWHERE)
        if known.next_offset > offset:
            return known
        if self._task is None:
            self._awaited = asyncio.Event()  # of this loop: the one of before may have been another, and is closed
            self._task = asyncio.create_task(self._run(), name=f"log checkpoints of {self._topic}")
        waiter = LogWaiter(partition, offset, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._awaited.set()
        try:
            return await waiter.reached
        finally:
            self._waiters.remove(waiter)

    def forget(self, partition: int) -> None:
        """Forget a partition's position, from any thread: who owns it anew relies on what Postgres says from now on.

        A standby that takes over may lack what was known before.
        """
        self._positions.pop(partition, None)

    async def close(self) -> None:
        """End the poller. Nobody may wait any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                async with single_connection(
                    self._address, application_name="plant dispatcher", answer_timeout_seconds=ANSWER_TIMEOUT_SECONDS
                ) as connection:
                    await self._poll(connection)
            except PlantError as error:
                self._fail(error.what, error.why)
            except Exception as error:  # a defect: who waits tries again, and so does this
                log.exception("log_checkpoints.failed")
                self._fail("", repr(error))
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _poll(self, connection: Any) -> None:
        clock = asyncio.get_running_loop().time
        progressed_at = clock()
        while True:
            if not self._waiters:
                self._awaited.clear()
                await self._awaited.wait()
                progressed_at = clock()  # nobody has asked whether the log stood still
            rows = await connection.fetch(_POSITIONS, PROJECTOR, self._consumer, self._topic)
            positions = {partition: LogPosition(*position) for partition, *position in rows}
            now = clock()
            if positions != self._positions:
                self._positions, progressed_at = positions, now
                self._wake()
            await asyncio.sleep(POLL_SECONDS if now - progressed_at < STILL_AFTER_SECONDS else STILL_POLL_SECONDS)

    def _wake(self) -> None:
        for each in self._waiters:
            position = self._positions.get(each.partition, NOWHERE)
            if position.next_offset > each.offset and not each.reached.done():
                each.reached.set_result(position)

    def _fail(self, what: str, why: str) -> None:
        """Tell all who wait: each tries again, with a partition that is acquired anew."""
        for each in self._waiters:
            if not each.reached.done():
                each.reached.set_exception(DatabaseUnreachable(what, why=why))

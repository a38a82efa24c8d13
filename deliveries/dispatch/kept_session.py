"""A session of plant_writer that one task of a process works in: lost or failed, the work begins again in a new one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from database.sessions import single_connection
from runtime.errors import PlantError
from runtime.logging import get_logger
from runtime.settings import Settings

log = get_logger(__name__)

RECONNECT_SECONDS: Final = 1.0
ANSWER_TIMEOUT_SECONDS: Final = 10.0


class KeptSession:
    """The task, and the session that it has. Make it on the event loop that it runs on."""

    def __init__(self, settings: Settings, work: Callable[[Any], Awaitable[None]], failed_event: str) -> None:
        """`work` is called with the session and does not return; `failed_event` is the line of its first failure."""
        self._address = settings.database_address("writer")
        self._work = work
        self._failed_event = failed_event
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Work until :meth:`stop`, whenever Postgres is there."""
        self._task = asyncio.create_task(self._keep(), name=self._failed_event.partition(".")[0])

    async def stop(self) -> None:
        """Work no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def note_success(self) -> None:
        """Let the next failure be told: those that follow one another are told once."""
        self._failing = False

    def open(self) -> contextlib.AbstractAsyncContextManager[Any]:
        """Open a session. Raises DatabaseUnreachable."""
        return single_connection(
            self._address, application_name="plant dispatcher", answer_timeout_seconds=ANSWER_TIMEOUT_SECONDS
        )

    async def _keep(self) -> None:
        while True:
            try:
                async with self.open() as connection:
                    await self._work(connection)
            except PlantError as error:
                if not self._failing:
                    log.warning(self._failed_event, what=error.what, why=error.why)
                self._failing = True
            except Exception:
                log.exception(self._failed_event)
            await asyncio.sleep(RECONNECT_SECONDS)


async def stand_by(connection: Any, lock_name: str, poll_seconds: float) -> None:
    """Return once this session is the one that holds a lock, which it does until it ends."""
    lock = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))"
    while not await connection.fetchval(lock, lock_name):  # noqa: ASYNC110 (Postgres tells nobody that a lock is free)
        await asyncio.sleep(poll_seconds)

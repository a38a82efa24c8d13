"""Load on the way through the database: entities inserted, renamed, deleted and inserted again, many a transaction."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterator
from uuid import UUID

import asyncpg

from tests.support.direct_changes import KINDS, TABLES, changing, insert

PAUSE_SECONDS = 0.03
AWAY_SECONDS = 0.1
MOST_ENTITIES = 200


class ChangeLoad:
    """Changes entities until stopped, whatever becomes of the database meanwhile."""

    def __init__(self, url: str, *, seed: int) -> None:
        self.transactions = 0
        """Those whose commit was answered."""
        self._url = url
        self._chance = random.Random(seed)
        self._there: dict[UUID, str] = {}
        self._gone: dict[UUID, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join()

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._step()
                self.transactions += 1
                await asyncio.sleep(PAUSE_SECONDS)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
                # asyncpg raises its internal error where it has read the server's last message, and not yet the end of
                # the connection.
                await asyncio.sleep(AWAY_SECONDS)

    async def _step(self) -> None:
        what = self._chance.random()
        if len(self._there) < 20 or (what < 0.2 and len(self._there) < MOST_ENTITIES):
            await self._insert()
        elif what < 0.3:
            await self._delete()
        else:
            await self._rename()

    async def _insert(self) -> None:
        again = dict(list(self._gone.items())[:2])
        fresh = {UUID(int=self._chance.getrandbits(128)): self._chance.choice(list(KINDS)) for _ in range(3)}
        for entity_id in again:  # should the outcome stay unknown, it is left alone
            del self._gone[entity_id]
        async with changing(self._url) as connection:
            for entity_id, kind in (again | fresh).items():
                await insert(connection, kind, id=entity_id)
        self._there |= again | fresh

    async def _delete(self) -> None:
        entity_id = self._chance.choice(list(self._there))
        kind = self._there.pop(entity_id)
        async with changing(self._url) as connection:
            await connection.execute("DELETE FROM entities WHERE id = $1", entity_id)
        self._gone[entity_id] = kind

    async def _rename(self) -> None:
        chosen = sorted(self._chance.sample(list(self._there), 15))
        async with changing(self._url) as connection:
            for entity_id in chosen:
                name = f"name {self._chance.getrandbits(32)}"
                table = TABLES[self._there[entity_id]]
                await connection.execute(f"UPDATE {table} SET name = $1 WHERE id = $2", name, entity_id)

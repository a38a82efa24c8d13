"""The endpoints that a deliverer has to do with, and their secrets: read when first needed, and again once they change.

A change is seen within POLL_SECONDS. One that takes no deliveries is read again whenever there are some for it: who
dispatched them may have heard of a change that this process has not. Secrets that cannot be opened, and endpoints that
can't be used, are kept with the reason: their deliveries wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec

from database.connector import Database
from deliveries.endpoint_store import EndpointStore
from deliveries.endpoints import Endpoint, EndpointSecrets
from runtime.clock import Clock, SystemClock
from runtime.errors import PlantError
from runtime.logging import get_logger
from signing.master_key import MasterKeys

log = get_logger(__name__)

POLL_SECONDS: Final = 1.0
DISABLED_SECONDS: Final = 5.0
"""For how long an endpoint is taken for disabled that this process has found gone or failing: by then it is written,
or was not."""
OVERLAP: Final = timedelta(seconds=60)
"""A transaction's time is that of its begin: changes are asked for from this long before the last one that was seen."""


class KnownEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint, and what its requests are made with; None where that can't be opened."""

    endpoint: Endpoint
    secrets: EndpointSecrets | None
    expires_at: datetime | None = None
    """When one of its keys expires, so that it is read again."""


class EndpointCache:
    """The endpoints of one process. :meth:`get` never waits; :meth:`load` reads what it will be asked for."""

    def __init__(self, database: Database, master_keys: MasterKeys, clock: Clock | None = None) -> None:
        """Read as plant_deliverer."""
        self._store = EndpointStore(database, master_keys)
        self._clock = clock or SystemClock()
        self._known: dict[bytes, KnownEndpoint | None] = {}
        self._seen_at: datetime | None = None
        self._changed_at: dict[bytes, datetime] = {}
        self._digest: object = None
        """Of the changes as they were last read: after a change of all endpoints it spares reading all each time."""
        self._reading = asyncio.Lock()
        self._disabled_until_seconds: dict[bytes, float] = {}

    def get(self, endpoint_id: bytes) -> KnownEndpoint | None:
        """Return an endpoint that was loaded; None where there is none of this id."""
        return self._known.get(endpoint_id)

    def is_ordered(self, endpoint_id: bytes) -> bool:
        """Return whether an endpoint gets each entity's events in order."""
        known = self._known.get(endpoint_id)
        return known is not None and known.endpoint.configuration.ordering == "per_entity"

    def disable(self, endpoint_id: bytes) -> None:
        """Take an endpoint for disabled until its row is read again: for its deliveries after DISABLED_SECONDS."""
        self._disabled_until_seconds[endpoint_id] = self._clock.monotonic_seconds() + DISABLED_SECONDS
        known = self._known.get(endpoint_id)
        if known is not None and known.endpoint.state == "active":
            endpoint = msgspec.structs.replace(known.endpoint, state="disabled")
            self._known[endpoint_id] = msgspec.structs.replace(known, endpoint=endpoint)

    async def load(self, endpoint_ids: Collection[bytes]) -> None:
        """Read the endpoints of these ids that are not known yet, or known not to be active.

        Raises what the database raises.
        """
        if any(self._is_doubtful(each) for each in endpoint_ids):
            async with self._reading:
                await self._read({each for each in endpoint_ids if self._is_doubtful(each)})

    def _is_doubtful(self, endpoint_id: bytes) -> bool:
        """Return whether an endpoint's row has to be read before a delivery to it is begun or given up."""
        if endpoint_id not in self._known:
            return True
        known = self._known[endpoint_id]
        if known is None or known.endpoint.state == "active":
            return False
        until_seconds = self._disabled_until_seconds.get(endpoint_id)
        return until_seconds is None or until_seconds <= self._clock.monotonic_seconds()

    async def refresh(self) -> None:
        """Read again what has changed, and whose keys have expired. Raises what the database raises."""
        async with self._reading:
            now = self._clock.now()
            since = None if self._seen_at is None else self._seen_at - OVERLAP
            digest = since, await self._store.changes_digest(since)
            changed = self._changed_at if digest == self._digest else await self._changed_since(since)
            ids = {each for each, at in changed.items() if self._changed_at.get(each) != at} & self._known.keys()
            for endpoint_id, known in self._known.items():
                if known is None or (known.expires_at is not None and known.expires_at <= now):
                    ids.add(endpoint_id)
            await self._read(ids)
            self._changed_at = changed  # those of before are asked for no more
            self._seen_at = max(changed.values(), default=self._seen_at)
            self._digest = digest  # as it was before the changes were read: what came in between is read again

    async def _changed_since(self, since: datetime | None) -> dict[bytes, datetime]:
        return {each.bytes: at for each, at in (await self._store.changed_since(since)).items()}

    async def keep_fresh(self) -> None:
        """Refresh until cancelled; a database that is away is waited for."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self.refresh()
            except PlantError as error:
                log.warning("endpoints.not_refreshed", why=error.why)

    async def _read(self, endpoint_ids: Iterable[bytes]) -> None:
        ids = [UUID(bytes=each) for each in sorted(endpoint_ids)]
        if not ids:
            return
        found = await self._store.find_many(ids)
        for each in ids:
            self._disabled_until_seconds.pop(each.bytes, None)
            if each not in found:
                self._known[each.bytes] = None
                continue
            endpoint, secrets, expires_at = found[each]
            if secrets is None and endpoint.state == "active":
                log.error("endpoint.secrets_unreadable", endpoint=str(each))
            self._known[each.bytes] = KnownEndpoint(endpoint=endpoint, secrets=secrets, expires_at=expires_at)

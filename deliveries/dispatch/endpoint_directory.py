"""The endpoints that events are dispatched to, in memory: loaded at start, then kept by NOTIFY with a poll next to it.

What is new is parsed, and the index made, in a thread next to the event loop; it takes the place of the former one
when it is whole. While Postgres can't be asked, the last one stays.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

import msgspec

from deliveries.dispatch.endpoint_backfills import Resume
from deliveries.dispatch.kept_session import KeptSession
from deliveries.endpoints import EndpointId
from deliveries.errors import EndpointFilterRefused
from deliveries.matching import EndpointIndex, Subscription, make_subscription
from runtime import metrics
from runtime.errors import PlantError
from runtime.logging import get_logger
from runtime.settings import Settings

log = get_logger(__name__)

CHANNEL: Final = "plant_endpoints"
POLL_SECONDS: Final = 2.0

# A row's xmin is the transaction that wrote it last: any change changes one of the two.
_FINGERPRINT: Final = "SELECT count(*) AS rows, sum(xmin::text::bigint) AS written_by FROM endpoints"
_STATES: Final = "SELECT id, state, resumes, resumed_offsets FROM endpoints WHERE state <> 'removed'"
_CHOICES: Final = """
SELECT id, event_types, filter::text AS filter, start_offsets, ordering FROM endpoints WHERE id = ANY ($1::uuid[])
"""


class KnownEndpoints:
    """All endpoints that were not removed, as of one moment, and the index of the active ones. Never changed."""

    def __init__(
        self,
        subscriptions: Mapping[EndpointId, Subscription],
        active: frozenset[EndpointId],
        index: EndpointIndex,
        resumed: Mapping[EndpointId, Resume] | None = None,
    ) -> None:
        self.subscriptions = MappingProxyType(subscriptions)
        self.active = active
        self.index = index
        self.resumed = MappingProxyType(resumed or {})
        """The last resume of each endpoint that was ever resumed or enabled, and is active."""

    def is_in_order(self, endpoint_id: EndpointId) -> bool:
        """Return whether an endpoint is active and gets an entity's events in their order."""
        return endpoint_id in self.active and self.subscriptions[endpoint_id].in_order


NO_ENDPOINTS: Final = KnownEndpoints({}, frozenset(), EndpointIndex(()))


class EndpointDirectory:
    """The endpoints of a process. `known` may be read from any thread; the rest belongs to the event loop."""

    def __init__(self, settings: Settings, *, poll_seconds: float = POLL_SECONDS) -> None:
        self.known = NO_ENDPOINTS
        self.types_in_use: set[str] = set()
        """The event types that were looked up: their part of an index is made before it is used."""
        self._poll_seconds = poll_seconds
        self._unusable: frozenset[EndpointId] = frozenset()
        self._hinted = asyncio.Event()
        self._session = KeptSession(settings, self._follow, "endpoints.not_loaded")

    async def start(self) -> None:
        """Load the endpoints, and keep them up to date until :meth:`stop`. Raises DatabaseUnreachable."""
        async with self._session.open() as connection:
            await self._load(connection)
        self._session.start()

    async def stop(self) -> None:
        """Ask no more."""
        await self._session.stop()

    async def _follow(self, connection: Any) -> None:
        """Load what has changed, as soon as Postgres says so or a look shows it."""
        self._session.note_success()
        connection.add_termination_listener(lambda _: self._hinted.set())
        await connection.add_listener(CHANNEL, lambda *_: self._hinted.set())
        fingerprint = None
        while True:
            self._hinted.clear()
            found = tuple(await connection.fetchrow(_FINGERPRINT))
            if found != fingerprint:
                await self._load(connection)
                fingerprint = found
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._hinted.wait()

    async def _load(self, connection: Any) -> None:
        found = {EndpointId(UUID(bytes=row["id"].bytes)): row for row in await connection.fetch(_STATES)}
        states = {endpoint_id: row["state"] for endpoint_id, row in found.items()}
        resumed = {
            endpoint_id: Resume(row["resumes"], tuple(row["resumed_offsets"]))
            for endpoint_id, row in found.items()
            if row["resumes"] and row["state"] == "active"
        }
        new = [each for each in states if each not in self.known.subscriptions]
        if not new and self._is_as_known(states, resumed):
            return
        rows = await connection.fetch(_CHOICES, new) if new else []
        self.known = await asyncio.to_thread(self._known, states, rows, resumed)
        active = len(self.known.active)
        counts = {"active": active, "inactive": len(self.known.subscriptions) - active, "unusable": len(self._unusable)}
        for state, count in counts.items():
            metrics.DISPATCHER_ENDPOINTS.labels(state).set(count)
        log.debug("endpoints.loaded", new=len(new), **counts)

    def _is_as_known(self, states: Mapping[EndpointId, str], resumed: Mapping[EndpointId, Resume]) -> bool:
        """Return whether what has changed makes no difference here, such as a URL: an index of many takes seconds."""
        active = {endpoint_id for endpoint_id, state in states.items() if state == "active"}
        known = self.known
        return states.keys() == known.subscriptions.keys() and active == known.active and resumed == known.resumed

    def _known(
        self, states: Mapping[EndpointId, str], rows: Sequence[Any], resumed: Mapping[EndpointId, Resume]
    ) -> KnownEndpoints:
        """Return the endpoints from the states of all and the choices of new ones; it runs in a thread."""
        former = self.known.subscriptions
        found = {each: former[each] for each in states if each in former}
        unusable = set()
        for row in rows:
            endpoint_id = EndpointId(UUID(bytes=row["id"].bytes))
            try:
                event_filter = msgspec.json.decode(row["filter"])
                found[endpoint_id] = make_subscription(
                    endpoint_id,
                    row["event_types"],
                    event_filter,
                    row["start_offsets"],
                    in_order=row["ordering"] == "per_entity",
                )
            except (EndpointFilterRefused, msgspec.DecodeError) as error:
                unusable.add(endpoint_id)
                if endpoint_id not in self._unusable:
                    why = error.why if isinstance(error, PlantError) else "Its filter is no JSON."
                    log.error("endpoint.unusable", endpoint_id=str(endpoint_id), why=why)
        self._unusable = frozenset(unusable)
        active = frozenset(each for each in found if states[each] == "active")
        index = EndpointIndex(found[each] for each in active)
        for event_type in tuple(self.types_in_use):
            index.match(event_type, {})
        return KnownEndpoints(found, active, index, resumed)

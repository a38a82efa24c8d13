"""Makes the searches that tenants ask for over HTTP: what of the log an endpoint was not sent, and the order of it.

One dispatcher does, by a lock of its session in Postgres; the others stand by. A search is made whole and written down
once: a process that dies in it leaves it waiting, and the next one makes it again. The order and the end of its search
are one transaction, and an operation is ordered once, so two processes that make the same search give one order.

Searches rest as long as they work, since the same process dispatches live events. The same process deletes slots of
orders that ended days ago.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from database.connector import connect
from database.errors import DatabaseClosed
from deliveries.dispatch.kept_session import KeptSession, stand_by
from deliveries.endpoint_store import EndpointStore
from deliveries.errors import NothingToRedrive, SearchEnded, SearchTooLarge
from deliveries.redrive.missing_deliveries import (
    DEFAULT_NAMES,
    DeliveryTopicNames,
    MissingDelivery,
    MissingSearch,
    MissingTally,
)
from deliveries.redrive.missing_searches import (
    MissingPlan,
    MissingSearches,
    StoredSearch,
    end_search,
    missing_selection,
)
from deliveries.redrive.orders import RedriveOrder, Redrives
from runtime import metrics
from runtime.clock import SystemClock
from runtime.errors import PlantError, Unreachable
from runtime.logging import get_logger
from runtime.settings import Settings
from signing.master_key import MasterKeys

log = get_logger(__name__)

POLL_SECONDS: Final = 1.0
OFFSETS_MAX: Final = 5_000_000
"""Offsets of the log that one search looks at."""
DELIVERIES_MAX: Final = 100_000
"""Missing deliveries of one search; they are kept in memory until its end."""
REST_SHARE: Final = 1.0
FORGET_SECONDS: Final = 3600.0
"""How often slots of old orders are looked for."""

LOCK_NAME: Final = "plant.missing_searches"
_ALIVE: Final = "SELECT 1"


class MissingFinder:
    """The searches of one process. Make it on the event loop that it runs on."""

    def __init__(
        self, settings: Settings, names: DeliveryTopicNames = DEFAULT_NAMES, *, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._settings = settings
        self._names = names
        self._poll_seconds = poll_seconds
        self._forget_at = 0.0
        self._database = connect(settings, "writer")
        self._session = KeptSession(settings, self._make_all, "missing_searches.not_made")

    def start(self) -> None:
        """Make searches until :meth:`stop`, whenever Postgres and Kafka are there."""
        self._session.start()

    async def stop(self) -> None:
        """Make no more. A search that is not ended is made again by whoever is next."""
        await self._session.stop()
        await self._database.close()

    async def _make_all(self, connection: Any) -> None:
        await stand_by(connection, LOCK_NAME, self._poll_seconds)
        while True:
            await connection.execute(_ALIVE)  # the lock lives as long as its session
            await self._forget_redrives()
            more = await self.make_next()
            self._session.note_success()
            if not more:
                await asyncio.sleep(self._poll_seconds)

    async def _forget_redrives(self) -> None:
        now = time.monotonic()
        if now >= self._forget_at:
            self._forget_at = now + FORGET_SECONDS
            await Redrives(self._database).forget()

    async def make_next(self) -> bool:
        """Make the oldest search; return whether there was one. Raises Unreachable, DatabaseClosed."""
        searches = MissingSearches(self._database)
        asked = await searches.next_waiting()
        if asked is None:
            return False
        began = time.monotonic()
        try:
            ended = await self._make(searches, asked)
        except (Unreachable, DatabaseClosed):
            raise  # it waits until Postgres and Kafka are there again
        except SearchEnded:
            log.info("missing_search.ended_elsewhere", number=asked.number)
        except PlantError as error:
            await self._refuse(searches, asked, f"{error.what} {error.why}".strip())
        except Exception:
            # The others go on, and this one would fail again.
            log.exception("missing_search.failed", number=asked.number)
            await self._refuse(searches, asked, "Plant failed; its operator finds the reason in the dispatcher's log.")
        else:
            metrics.DISPATCHER_SEARCHES.labels("ended").inc()
            log.info(
                "missing_search.ended", number=asked.number, endpoint_id=str(asked.endpoint_id), **ended,
                duration_ms=round((time.monotonic() - began) * 1000, 3),
            )  # fmt: skip
        await searches.forget()
        return True

    async def _refuse(self, searches: MissingSearches, asked: StoredSearch, why: str) -> None:
        """End a search that can't be made, unless another process has made it at once and given its order."""
        if await searches.refuse(asked.number, why):
            metrics.DISPATCHER_SEARCHES.labels("refused").inc()
            log.info("missing_search.refused", number=asked.number, why=why)

    async def _make(self, searches: MissingSearches, asked: StoredSearch) -> dict[str, Any]:
        endpoint = await EndpointStore(self._database, MasterKeys(self._settings), asked.tenant).find(asked.endpoint_id)
        search = MissingSearch(
            self._settings, self._database, endpoint, self._names, log_reader="writer", rest_share=REST_SHARE
        )
        await search.prepare(asked.since, SystemClock().now())
        if search.offsets > OFFSETS_MAX:
            raise SearchTooLarge(why=f"{search.offsets:,} offsets of the log are since then; {OFFSETS_MAX:,} at most.")
        tally, missing = MissingTally(endpoint), []
        async with contextlib.aclosing(search.missing()) as found_missing:
            async for each in found_missing:
                if tally.add(each) is None and asked.execute:
                    missing.append(each)
                if tally.count > DELIVERIES_MAX:
                    raise SearchTooLarge(why=f"More than {DELIVERIES_MAX:,} events are missing.")
        found = MissingPlan(tally.groups(), list(tally.examples), search.undispatched)
        ordered = redrive = None
        if missing:
            redrive, ordered = await self._order(asked, missing, search.checked, found)
        if redrive is None:
            await searches.end(asked.number, search.checked, found)
        return {"compared": search.checked, "missing": tally.count, "redrive": redrive, "ordered": ordered}

    async def _order(
        self, asked: StoredSearch, missing: Sequence[MissingDelivery], compared: int, found: MissingPlan
    ) -> tuple[int | None, int | None]:
        """Order what is missing still, and end the search with it.

        Returns the order's number, and how many deliveries it has; None of each without one.
        """
        order = RedriveOrder(
            operation_id=asked.operation_id, kind="replay_missing", selection=missing_selection(asked),
            reason=asked.reason, ordered_by=asked.asked_by, rate_per_second=asked.rate_per_second,
            request_digest=asked.request_digest,
        )  # fmt: skip
        redrives = Redrives(self._database, asked.tenant)
        try:
            async with redrives.open_order(order) as new:
                await new.add_missing(asked.endpoint_id, missing)
                ordered = (await new.contents()).total()
                ended = msgspec.structs.replace(found, ordered=ordered)
                await end_search(new.connection, asked.number, compared, ended, new.number)
        except NothingToRedrive:  # others have ordered all of it by now
            return None, None
        return new.number, ordered

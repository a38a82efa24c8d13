"""Searches for what an endpoint was not sent, as they are asked for over HTTP: stored, taken up, and ended.

As plant_endpoints they are those of a tenant. A dispatcher takes them up as plant_writer, the oldest first
(`deliveries/dispatch/missing_finder.py`), since the role of the API does not read the log.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database
from deliveries.errors import SearchEnded, TooManySearches, UnknownSearch
from deliveries.redrive.redrive_plan import PlannedGroup, RedrivePlan

SearchState = Literal["waiting", "ended", "refused"]

PLANS_KEEP_DAYS: Final = 8
"""How long a search is kept that ordered nothing and was not to. The others are orders, and stay."""

_COLUMNS: Final = """
    number, operation_id, governance_agent_id AS tenant, request_digest, endpoint_id, since, rate_per_second, execute,
    reason, asked_by, asked_at, state, ended_at, why, compared, plan::text AS plan, redrive
"""
_INSERT: Final = text("""
    INSERT INTO missing_searches (operation_id, governance_agent_id, request_digest, endpoint_id, since,
                                  rate_per_second, execute, reason, asked_by)
    VALUES (:operation_id, :tenant, :request_digest, :endpoint_id, :since, :rate_per_second, :execute, :reason,
            :asked_by)
    ON CONFLICT (operation_id) DO NOTHING
""")
_FIND: Final = f"SELECT {_COLUMNS} FROM missing_searches WHERE {{condition}} ORDER BY number DESC LIMIT :rows"  # noqa: S608
_NEXT: Final = text(
    f"SELECT {_COLUMNS} FROM missing_searches WHERE state = 'waiting' ORDER BY number LIMIT 1"  # noqa: S608
)
_WAITING: Final = text("SELECT count(*) FROM missing_searches WHERE state = 'waiting'")
# One after the other for a tenant: requests that come at once see each other's searches.
_ONE_BY_ONE: Final = text("SELECT pg_advisory_xact_lock(hashtext('plant searches'), hashtext(:tenant))")
_STORED: Final = text("SELECT count(*) FROM missing_searches WHERE operation_id = :operation_id")
_END: Final = text("""
    UPDATE missing_searches SET state = 'ended', ended_at = clock_timestamp(), compared = :compared,
        plan = CAST(:plan AS jsonb), redrive = :redrive
    WHERE number = :number AND state = 'waiting'
""")
_REFUSE: Final = text("""
    UPDATE missing_searches SET state = 'refused', ended_at = clock_timestamp(), why = :why
    WHERE number = :number AND state = 'waiting'
""")
_FORGET: Final = text("""
    DELETE FROM missing_searches WHERE NOT execute AND ended_at < now() - make_interval(days => :days)
""")


class SearchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A search as a tenant asks for it: of the events since a time; with `execute`, what is missing is ordered."""

    operation_id: UUID
    endpoint_id: UUID
    since: datetime
    rate_per_second: int
    execute: bool
    reason: str
    asked_by: str
    request_digest: bytes | None = None
    """Of a request that may come again."""


class MissingPlan(msgspec.Struct, frozen=True):
    """What a search found: the groups of its plan, those that are left out among them, and some events."""

    groups: list[PlannedGroup]
    examples: list[UUID]
    undispatched: int | None = None
    """Offsets that were not looked at, since dispatchers have still to pass them; None of searches from before."""
    ordered: int | None = None
    """Deliveries of the order that was given: without those that other orders took meanwhile."""

    def plan(self) -> RedrivePlan:
        """Return the plan of an order of it."""
        return RedrivePlan(self.groups, self.examples)


class StoredSearch(SearchRequest, frozen=True, kw_only=True):
    """A search, and what came of it: `ended` with what was found, or `refused` and why."""

    number: int
    tenant: str
    asked_at: datetime
    state: SearchState
    ended_at: datetime | None
    why: str | None
    compared: int | None
    """Events of the log that were looked at."""
    plan: MissingPlan | None
    redrive: int | None
    """The order that was given."""


class MissingSearches:
    """The table `missing_searches`: of all tenants, or of one."""

    def __init__(self, database: Database, tenant: str | None = None) -> None:
        """Serve a tenant as plant_endpoints; without one, all of them as plant_writer."""
        self._database = database
        self._tenant = tenant

    def _writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._database.transaction(self._tenant)

    def _reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._database.transaction(self._tenant, read_only=True)

    async def store(self, request: SearchRequest, waiting_max: int) -> bool:
        """Store a search; return False where there is one of this operation already, also one under way at once.

        Raises TooManySearches where so many of the tenant wait, however many are stored at once.
        """
        values = {**msgspec.structs.asdict(request), "tenant": self._tenant}
        async with self._writing() as connection:
            await connection.execute(_ONE_BY_ONE, {"tenant": self._tenant})
            if (await connection.execute(_STORED, {"operation_id": request.operation_id})).scalar_one():
                return False
            if (await connection.execute(_WAITING)).scalar_one() >= waiting_max:
                raise TooManySearches
            return bool((await connection.execute(_INSERT, values)).rowcount)

    async def waiting(self) -> int:
        """Return how many searches wait or are under way."""
        async with self._reading() as connection:
            count: int = (await connection.execute(_WAITING)).scalar_one()
        return count

    async def newest(self, limit: int = 50, before: int | None = None) -> list[StoredSearch]:
        """Return the newest searches, newest first: of all, or of those before one."""
        condition = "true" if before is None else "number < :before"
        return await self._read(condition, {"rows": limit, "before": before})

    async def find(self, number: int) -> StoredSearch:
        """Return one search. Raises UnknownSearch."""
        found = await self._read("number = :number", {"number": number, "rows": 1})
        if not found:
            raise UnknownSearch(f"There is no search {number}.")
        return found[0]

    async def find_operation(self, operation_id: UUID) -> StoredSearch | None:
        """Return the search that was stored with an operation's id; None where there is none."""
        found = await self._read("operation_id = :operation_id", {"operation_id": operation_id, "rows": 1})
        return found[0] if found else None

    async def next_waiting(self) -> StoredSearch | None:
        """Return the oldest search that waits; None where none does."""
        async with self._reading() as connection:
            row = (await connection.execute(_NEXT)).mappings().one_or_none()
        return None if row is None else _stored(row)

    async def refuse(self, number: int, why: str) -> bool:
        """End a search that can't be made; return False where it has ended already."""
        async with self._writing() as connection:
            return bool((await connection.execute(_REFUSE, {"number": number, "why": why})).rowcount)

    async def forget(self) -> None:
        """Delete plans that are old."""
        async with self._writing() as connection:
            await connection.execute(_FORGET, {"days": PLANS_KEEP_DAYS})

    async def end(self, number: int, compared: int, found: MissingPlan) -> None:
        """End a search that ordered nothing."""
        async with self._writing() as connection:
            await end_search(connection, number, compared, found, None)

    async def _read(self, condition: str, values: dict[str, Any]) -> list[StoredSearch]:
        async with self._reading() as connection:
            rows = (await connection.execute(text(_FIND.format(condition=condition)), values)).mappings().all()
        return [_stored(row) for row in rows]


async def end_search(
    connection: AsyncConnection, number: int, compared: int, found: MissingPlan, redrive: int | None
) -> None:
    """End a search in the transaction that gives its order. Raises SearchEnded where it has ended already."""
    plan = msgspec.json.encode(found).decode()
    values = {"number": number, "compared": compared, "plan": plan, "redrive": redrive}
    if not (await connection.execute(_END, values)).rowcount:
        raise SearchEnded


def _stored(row: Any) -> StoredSearch:
    plan = None if row["plan"] is None else msgspec.json.decode(row["plan"], type=MissingPlan)
    return StoredSearch(**{**row, "plan": plan})


def missing_selection(request: SearchRequest) -> dict[str, Any]:
    """Return what an order says that it was asked for."""
    return {"endpoint_id": str(request.endpoint_id), "since": request.since.isoformat()}

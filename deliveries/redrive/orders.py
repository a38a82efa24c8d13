"""Orders to send deliveries again: planned, given, listed and stopped.

As plant_operator they are about all deliveries, as plant_endpoints about those of a tenant.

An order fixes its deliveries as it is given, a slot each, in the order of the log (`redrive_slots`). Dispatchers carry
it out (`deliveries/dispatch/redrive_reader.py`), whatever becomes of who gave it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database
from deliveries.errors import NothingToRedrive, TooManyRedrives, UnknownRedrive
from deliveries.redrive.missing_deliveries import MissingDelivery, still_missing
from deliveries.redrive.redrive_plan import PlannedGroup, RedrivePlan
from deliveries.redrive.selection import SELECTED, RedriveSelection, selection_conditions

RedriveKind = Literal["retry", "recover", "replay_missing"]
RedriveState = Literal["running", "finished", "stopped"]

ADDED_AT_A_TIME: Final = 500
LARGE_TIMEOUT_SECONDS: Final = 600
"""For a statement of an operator's, or a dispatcher's, which may be about millions of rows."""

_ENDPOINT_IDS: Final = text("SELECT id FROM endpoints")
_GROUPS: Final = f"""
SELECT endpoint_id, endpoint_state, state, type, left_out, count(*) AS deliveries FROM ({SELECTED}) AS d
GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 3, 4, 5
"""  # noqa: S608 (conditions are of ours)
_EXAMPLES: Final = f"""
SELECT id FROM ({SELECTED}) AS d WHERE left_out IS NULL ORDER BY occurred_at DESC, id DESC LIMIT :examples
"""  # noqa: S608 (the same)
_PARTITIONS: Final = f"""
SELECT DISTINCT source_partition FROM ({SELECTED}) AS d WHERE left_out IS NULL ORDER BY 1
"""  # noqa: S608 (the same)
_FILL: Final = f"""
INSERT INTO redrive_slots
SELECT :number, source_partition, row_number() OVER (ORDER BY source_offset, source_rank, endpoint_id, id) - 1,
       source_offset, source_rank, endpoint_id, event_id, id, occurred_at
FROM ({SELECTED}) AS d WHERE left_out IS NULL AND source_partition = :source_partition
"""  # noqa: S608 (the same)

# One order after the other: what one has selected is seen by the next.
_ONE_BY_ONE: Final = text("SELECT pg_advisory_xact_lock(hashtext('plant redrives'))")
_FORGET: Final = text("SELECT forget_redrives()")
_MAY_BE_LARGE: Final = text(f"SET LOCAL statement_timeout = '{LARGE_TIMEOUT_SECONDS}s'")
_INSERT: Final = text("""
    INSERT INTO redrives (operation_id, kind, selection, reason, ordered_by, rate_per_second, governance_agent_id,
                          request_digest)
    VALUES (:operation_id, :kind, CAST(:selection AS jsonb), :reason, :ordered_by, :rate_per_second, :tenant,
            :request_digest)
    RETURNING number
""")
_RUNNING: Final = text("SELECT count(*) FROM redrives WHERE state = 'running'")
_ADD_PARTITIONS: Final = text("""
    INSERT INTO redrive_partitions (number, source_partition, slots)
    SELECT number, source_partition, count(*) FROM redrive_slots WHERE number = :number GROUP BY 1, 2
    RETURNING slots
""")
_CONTENTS: Final = text(
    "SELECT endpoint_id, count(*) AS deliveries FROM redrive_slots WHERE number = :number GROUP BY 1"
)
_ALL: Final = """
SELECT r.number, r.kind, r.selection::text AS selection, r.reason, r.ordered_by, r.ordered_at, r.rate_per_second,
       r.state, r.ended_at, r.operation_id, r.request_digest, sum(p.slots)::bigint AS deliveries,
       sum(p.done - p.unfound)::bigint AS queued, sum(p.unfound)::bigint AS unfound
FROM redrives AS r JOIN redrive_partitions AS p USING (number) WHERE {condition}
GROUP BY r.number ORDER BY r.number DESC LIMIT :rows
"""
# Slot by slot: a join with a view that has a barrier would read all of a tenant's deliveries.
_RECORDED: Final = """
SELECT state, count(*) AS deliveries FROM (
    SELECT (
        SELECT d.state FROM {deliveries} AS d
        WHERE d.id = s.delivery_id AND d.occurred_at = s.occurred_at AND d.hop >= (s.number << 32)
    ) AS state
    FROM redrive_slots AS s WHERE s.number = :number
) AS recorded WHERE state IS NOT NULL GROUP BY 1
"""
_STOP: Final = text("""
    UPDATE redrives SET state = 'stopped', ended_at = clock_timestamp() WHERE number = :number AND state = 'running'
""")


_ADD_MISSING: Final = text("""
    INSERT INTO redrive_slots (number, source_partition, slot, source_offset, source_rank, endpoint_id, event_id,
                               delivery_id, occurred_at)
    VALUES (:number, :source_partition, :slot, :source_offset, :source_rank, :endpoint_id, :event_id, :delivery_id,
            :occurred_at)
""")


RecordOrder = Callable[[Mapping[UUID, int]], Awaitable[None]]
"""Records the action that an order is: what it has by then are so many deliveries of each endpoint."""


class RedriveOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order as an operator gives it."""

    operation_id: UUID
    kind: RedriveKind
    selection: dict[str, Any]
    """What was asked for, to be read later."""
    reason: str
    ordered_by: str
    rate_per_second: int
    request_digest: bytes | None = None
    """Of a request that may come again."""


class StoredRedrive(msgspec.Struct, frozen=True, kw_only=True):
    """An order, and how far it is: `queued` deliveries are on Kafka, and of the `unfound` the log has no event."""

    number: int
    kind: RedriveKind
    selection: dict[str, Any]
    reason: str
    ordered_by: str
    ordered_at: datetime
    rate_per_second: int
    state: RedriveState
    ended_at: datetime | None
    operation_id: UUID
    request_digest: bytes | None
    deliveries: int
    queued: int
    unfound: int


class Redrives:
    """The tables of redrives: all orders, or those of a tenant."""

    def __init__(self, database: Database, tenant: str | None = None) -> None:
        """Serve a tenant as plant_endpoints; without one, all of them as plant_operator."""
        self._database = database
        self._tenant = tenant
        self._deliveries = "webhook_deliveries" if tenant is None else "tenant_deliveries"

    def _writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._database.transaction(self._tenant)

    def _reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._database.transaction(self._tenant, read_only=True)

    async def _give_time(self, connection: AsyncConnection) -> None:
        """Let statements that count or write any number of deliveries end, where no request waits for them."""
        if self._tenant is None:
            await connection.execute(_MAY_BE_LARGE)

    async def plan(self, selection: RedriveSelection, examples: int = 3) -> RedrivePlan:
        """Return what an order of this selection would send, and what it leaves out."""
        async with self._reading() as connection:
            await self._give_time(connection)
            conditions, values = await _conditions(connection, selection)
            chosen = {"deliveries": self._deliveries, "conditions": conditions}
            rows = await connection.execute(text(_GROUPS.format(**chosen)), values)
            groups = [PlannedGroup(**row) for row in rows.mappings()]
            statement = text(_EXAMPLES.format(**chosen))
            found = (await connection.execute(statement, {**values, "examples": examples})).scalars().all()
            return RedrivePlan(groups, found)

    async def order(
        self,
        order: RedriveOrder,
        selection: RedriveSelection,
        running_max: int | None = None,
        record: RecordOrder | None = None,
    ) -> int:
        """Order the deliveries of a selection to be sent again; return the order's number.

        Raises as `open_order` does.
        """
        async with self.open_order(order, running_max, record) as new:
            await new.add_selected(selection)
        return new.number

    @asynccontextmanager
    async def open_order(
        self, order: RedriveOrder, running_max: int | None = None, record: RecordOrder | None = None
    ) -> AsyncIterator[NewOrder]:
        """Yield an order to add deliveries to; it is given, all or nothing, when the block ends.

        With `record` it is given once that has returned: nothing is recorded of an order that is not given, but for one
        whose commit fails.
        Raises NothingToRedrive where no delivery was added, and TooManyRedrives where so many orders run.
        """
        async with self._writing() as connection:
            await connection.execute(_ONE_BY_ONE)
            await self._give_time(connection)
            if running_max is not None and (await connection.execute(_RUNNING)).scalar_one() >= running_max:
                raise TooManyRedrives
            values = {
                **msgspec.structs.asdict(order),
                "selection": msgspec.json.encode(order.selection).decode(),
                "tenant": self._tenant,
            }
            number = (await connection.execute(_INSERT, values)).scalar_one()
            new = NewOrder(connection, number, self._deliveries)
            yield new
            if not (await connection.execute(_ADD_PARTITIONS, {"number": new.number})).all():
                raise NothingToRedrive
            if record is not None:
                await record(await new.contents())

    async def newest(self, limit: int = 50, before: int | None = None) -> list[StoredRedrive]:
        """Return the newest orders, newest first: of all, or of those before one."""
        condition = "true" if before is None else "r.number < :before"
        return await self._read(condition, {"rows": limit, "before": before})

    async def running(self) -> int:
        """Return how many orders are running."""
        async with self._reading() as connection:
            count: int = (await connection.execute(_RUNNING)).scalar_one()
        return count

    async def find_operation(self, operation_id: UUID) -> StoredRedrive | None:
        """Return the order that an operator action was; None where there is none."""
        found = await self._read("r.operation_id = :operation_id", {"operation_id": operation_id, "rows": 1})
        return found[0] if found else None

    async def find(self, number: int) -> StoredRedrive:
        """Return one order. Raises UnknownRedrive."""
        found = await self._read("r.number = :number", {"number": number, "rows": 1})
        if not found:
            raise UnknownRedrive(f"There is no redrive {number}.", next_step="plant deliveries redrives list")
        return found[0]

    async def recorded(self, number: int) -> dict[str, int]:
        """Return how many deliveries of an order are in each state, of those of which an attempt was recorded."""
        async with self._reading() as connection:
            rows = await connection.execute(text(_RECORDED.format(deliveries=self._deliveries)), {"number": number})
            return {row.state: row.deliveries for row in rows}

    async def stop(self, number: int) -> bool:
        """Stop an order: nothing more of it is sent. Returns False where it had ended. Raises UnknownRedrive."""
        await self.find(number)
        async with self._writing() as connection:
            return bool((await connection.execute(_STOP, {"number": number})).rowcount)

    async def forget(self) -> None:
        """Delete the slots of orders that ended days ago. There may be millions, so nobody who orders waits for it."""
        async with self._writing() as connection:
            await connection.execute(_MAY_BE_LARGE)
            await connection.execute(_FORGET)

    async def _read(self, condition: str, values: dict[str, Any]) -> list[StoredRedrive]:
        async with self._reading() as connection:
            rows = (await connection.execute(text(_ALL.format(condition=condition)), values)).mappings()
            return [StoredRedrive(**{**row, "selection": msgspec.json.decode(row["selection"])}) for row in rows]


class NewOrder:
    """An order in a transaction: deliveries are added to it."""

    def __init__(self, connection: AsyncConnection, number: int, deliveries: str) -> None:
        """`deliveries` is the table or view that deliveries are selected from."""
        self.connection: Final = connection
        self.number: Final = number
        self._deliveries = deliveries
        self._slots: Counter[int] = Counter()

    async def contents(self) -> Counter[UUID]:
        """Return how many deliveries of each endpoint were added."""
        rows = await self.connection.execute(_CONTENTS, {"number": self.number})
        return Counter({row.endpoint_id: row.deliveries for row in rows})

    async def add_selected(self, selection: RedriveSelection) -> None:
        """Add the deliveries of a selection, a partition at a time."""
        conditions, values = await _conditions(self.connection, selection)
        chosen = {"deliveries": self._deliveries, "conditions": conditions}
        partitions = await self.connection.execute(text(_PARTITIONS.format(**chosen)), values)
        fill = text(_FILL.format(**chosen))
        for partition in partitions.scalars().all():
            await self.connection.execute(fill, {**values, "number": self.number, "source_partition": partition})

    async def add_missing(self, endpoint_id: UUID, missing: Sequence[MissingDelivery]) -> None:
        """Add deliveries of an endpoint, in the order of the log: those that are missing still, and in no other order.

        So what is missing is looked for before the order is begun: nobody else can give one until it is given.
        """
        for at in range(0, len(missing), ADDED_AT_A_TIME):
            part = await still_missing(self.connection, missing[at : at + ADDED_AT_A_TIME])
            if rows := [self._slot_of(endpoint_id, each) for each in part if not each.ordered]:
                await self.connection.execute(_ADD_MISSING, rows)

    def _slot_of(self, endpoint_id: UUID, missing: MissingDelivery) -> dict[str, Any]:
        """Return the row of a delivery, behind those of its partition that were added."""
        slot = self._slots[missing.source_partition]
        self._slots[missing.source_partition] += 1
        names = ("source_partition", "source_offset", "source_rank", "event_id", "delivery_id", "occurred_at")
        own = {name: getattr(missing, name) for name in names}
        return {**own, "number": self.number, "slot": slot, "endpoint_id": endpoint_id}


async def _conditions(connection: AsyncConnection, selection: RedriveSelection) -> tuple[str, dict[str, Any]]:
    endpoint_ids: Sequence[UUID] = ()
    if selection.filter.event_id is not None:
        endpoint_ids = (await connection.execute(_ENDPOINT_IDS)).scalars().all()
    return selection_conditions(selection, endpoint_ids)

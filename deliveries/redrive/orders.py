"""Orders to send deliveries again: planned, given, listed and stopped, on a Database as plant_operator.

An order fixes its deliveries as it is given, a slot each, in the order of the log (`redrive_slots`). Dispatchers carry
it out (`deliveries/dispatch/redrive_reader.py`), whatever becomes of who gave it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database
from deliveries.errors import NothingToRedrive, UnknownRedrive
from deliveries.redrive.missing_deliveries import MissingDelivery
from deliveries.redrive.redrive_plan import PlannedGroup, RedrivePlan
from deliveries.redrive.selection import SELECTED, RedriveSelection, selection_conditions

RedriveKind = Literal["retry", "recover", "replay_missing"]
RedriveState = Literal["running", "finished", "stopped"]

KEPT_DAYS: Final = 8
"""How long the slots of an order stay after its end: longer than its records are on their topic."""

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
_FORGET: Final = text(f"""
    DELETE FROM redrive_slots WHERE number IN (
        SELECT number FROM redrives WHERE ended_at < now() - interval '{KEPT_DAYS} days'
    )
""")  # noqa: S608 (a number)
_INSERT: Final = text("""
    INSERT INTO redrives (operation_id, kind, selection, reason, ordered_by, rate_per_second)
    VALUES (:operation_id, :kind, CAST(:selection AS jsonb), :reason, :ordered_by, :rate_per_second) RETURNING number
""")
_ADD_PARTITIONS: Final = text("""
    INSERT INTO redrive_partitions (number, source_partition, slots)
    SELECT number, source_partition, count(*) FROM redrive_slots WHERE number = :number GROUP BY 1, 2
    RETURNING slots
""")
_ALL: Final = """
SELECT r.number, r.kind, r.selection::text AS selection, r.reason, r.ordered_by, r.ordered_at, r.rate_per_second,
       r.state, r.ended_at, sum(p.slots)::bigint AS deliveries, sum(p.done - p.unfound)::bigint AS queued,
       sum(p.unfound)::bigint AS unfound
FROM redrives AS r JOIN redrive_partitions AS p USING (number) WHERE {condition}
GROUP BY r.number ORDER BY r.number DESC LIMIT :rows
"""
_RECORDED: Final = text("""
    SELECT d.state, count(*) AS deliveries FROM redrive_slots AS s
    JOIN webhook_deliveries AS d ON (d.id, d.occurred_at) = (s.delivery_id, s.occurred_at)
    WHERE s.number = :number AND d.hop >= (s.number << 32) GROUP BY 1
""")
_STOP: Final = text("""
    UPDATE redrives SET state = 'stopped', ended_at = clock_timestamp() WHERE number = :number AND state = 'running'
""")


_ADD_MISSING: Final = text("""
    INSERT INTO redrive_slots (number, source_partition, slot, source_offset, source_rank, endpoint_id, event_id,
                               delivery_id, occurred_at)
    VALUES (:number, :source_partition, :slot, :source_offset, :source_rank, :endpoint_id, :event_id, :delivery_id,
            :occurred_at)
""")


class RedriveOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order as an operator gives it."""

    operation_id: UUID
    kind: RedriveKind
    selection: dict[str, Any]
    """What was asked for, to be read later."""
    reason: str
    ordered_by: str
    rate_per_second: int


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
    deliveries: int
    queued: int
    unfound: int


class Redrives:
    """The tables of redrives."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def plan(self, selection: RedriveSelection, examples: int = 3) -> RedrivePlan:
        """Return what an order of this selection would send, and what it leaves out."""
        async with self._database.transaction(read_only=True) as connection:
            conditions, values = await _conditions(connection, selection)
            rows = await connection.execute(text(_GROUPS.format(conditions=conditions)), values)
            groups = [PlannedGroup(**row) for row in rows.mappings()]
            statement = text(_EXAMPLES.format(conditions=conditions))
            found = (await connection.execute(statement, {**values, "examples": examples})).scalars().all()
            return RedrivePlan(groups, found)

    async def order(self, order: RedriveOrder, selection: RedriveSelection) -> int:
        """Order the deliveries of a selection to be sent again; return the order's number.

        Raises NothingToRedrive where there is none by now.
        """
        async with self.open_order(order) as new:
            await new.add_selected(selection)
        return new.number

    @asynccontextmanager
    async def open_order(self, order: RedriveOrder) -> AsyncIterator[NewOrder]:
        """Yield an order to add deliveries to; it is given, all or nothing, when the block ends.

        Raises NothingToRedrive where no delivery was added.
        """
        async with self._database.transaction() as connection:
            await connection.execute(_ONE_BY_ONE)
            await connection.execute(_FORGET)
            values = {**msgspec.structs.asdict(order), "selection": msgspec.json.encode(order.selection).decode()}
            new = NewOrder(connection, (await connection.execute(_INSERT, values)).scalar_one())
            yield new
            if not (await connection.execute(_ADD_PARTITIONS, {"number": new.number})).all():
                raise NothingToRedrive

    async def newest(self, limit: int = 50) -> list[StoredRedrive]:
        """Return the newest orders, newest first."""
        return await self._read("true", {"rows": limit})

    async def find(self, number: int) -> StoredRedrive:
        """Return one order. Raises UnknownRedrive."""
        found = await self._read("r.number = :number", {"number": number, "rows": 1})
        if not found:
            raise UnknownRedrive(f"There is no redrive {number}.", next_step="plant deliveries redrives list")
        return found[0]

    async def recorded(self, number: int) -> dict[str, int]:
        """Return how many deliveries of an order are in each state, of those of which an attempt was recorded."""
        async with self._database.transaction(read_only=True) as connection:
            rows = await connection.execute(_RECORDED, {"number": number})
            return {row.state: row.deliveries for row in rows}

    async def stop(self, number: int) -> bool:
        """Stop an order: nothing more of it is sent. Returns False where it had ended. Raises UnknownRedrive."""
        await self.find(number)
        async with self._database.transaction() as connection:
            return bool((await connection.execute(_STOP, {"number": number})).rowcount)

    async def _read(self, condition: str, values: dict[str, Any]) -> list[StoredRedrive]:
        async with self._database.transaction(read_only=True) as connection:
            rows = (await connection.execute(text(_ALL.format(condition=condition)), values)).mappings()
            return [StoredRedrive(**{**row, "selection": msgspec.json.decode(row["selection"])}) for row in rows]


class NewOrder:
    """An order in a transaction: deliveries are added to it."""

    def __init__(self, connection: AsyncConnection, number: int) -> None:
        self.connection: Final = connection
        self.number: Final = number
        self._slots: Counter[int] = Counter()

    async def add_selected(self, selection: RedriveSelection) -> None:
        """Add the deliveries of a selection, a partition at a time."""
        conditions, values = await _conditions(self.connection, selection)
        partitions = await self.connection.execute(text(_PARTITIONS.format(conditions=conditions)), values)
        fill = text(_FILL.format(conditions=conditions))
        for partition in partitions.scalars().all():
            await self.connection.execute(fill, {**values, "number": self.number, "source_partition": partition})

    async def add_missing(self, endpoint_id: UUID, missing: Sequence[MissingDelivery]) -> None:
        """Add deliveries of an endpoint that are missing, behind those that were added: in the order of the log."""
        rows = []
        for each in missing:
            slot = self._slots[each.source_partition]
            self._slots[each.source_partition] += 1
            names = ("source_partition", "source_offset", "source_rank", "event_id", "delivery_id", "occurred_at")
            own = {name: getattr(each, name) for name in names}
            rows.append({**own, "number": self.number, "slot": slot, "endpoint_id": endpoint_id})
        if rows:
            await self.connection.execute(_ADD_MISSING, rows)


async def _conditions(connection: AsyncConnection, selection: RedriveSelection) -> tuple[str, dict[str, Any]]:
    endpoint_ids: Sequence[UUID] = ()
    if selection.filter.event_id is not None:
        endpoint_ids = (await connection.execute(_ENDPOINT_IDS)).scalars().all()
    return selection_conditions(selection, endpoint_ids)

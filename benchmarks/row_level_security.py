"""What row-level security costs a point read: the tables with their policies next to copies without any.

Both sides are read by the same connector, as `plant_api`, in transactions that name a tenant, with the
same statement but for the tables' names: a transaction a read, and many reads in one, where nothing hides the cost.
Sides take turns; medians are compared.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from uuid import UUID

from sqlalchemy import TextClause, text

from benchmarks.stage import Stage, clean_database
from database.connector import Database, connect
from devstack.stack import Stack
from tests.support.seeded_vectors import fill, seeded_skills

ROWS = 20_000
ROUNDS = 60
CALLS = 50
"""Reads of one side in one round."""

READS = {
    "skill": "SELECT name, description, category FROM skills{copy} WHERE id = :id",
    "skill and entity": """SELECT e.external_id, e.status, s.name, s.description, s.category
    FROM entities{copy} AS e JOIN skills{copy} AS s ON s.id = e.id WHERE e.id = :id""",
}

COPY = (
    "CREATE TABLE {table}_open (LIKE {table} INCLUDING ALL EXCLUDING INDEXES)",
    "INSERT INTO {table}_open SELECT * FROM {table}",
    "ALTER TABLE {table}_open ADD PRIMARY KEY (id)",
    "GRANT SELECT ON {table}_open TO plant_api",
    "VACUUM ANALYZE {table}_open",
)


def run(stack: Stack) -> list[dict[str, object]]:
    """Return the median time of a read with policies and without, and what they add in percent; 25 is allowed."""
    with clean_database(stack) as stage:
        return asyncio.run(_measure(stage))


async def _measure(stage: Stage) -> list[dict[str, object]]:
    skills = seeded_skills(ROWS)
    await fill(stage.superuser_url, skills)
    for table in ("entities", "skills"):
        for statement in COPY:
            stage.execute(statement.format(table=table))
    ids = [each for each, of in zip(skills.ids, skills.tenants, strict=True) if of == "genesis"]
    database = connect(stage.settings, "api")
    try:
        return [
            {"read": name, "transactions": "one a read" if each else "one for all", **measured}
            for name, read in READS.items()
            for each in (True, False)
            for measured in [await _compare(database, read, ids, reads_each=1 if each else CALLS)]
        ]
    finally:
        await database.close()


async def _compare(database: Database, read: str, ids: Sequence[UUID], *, reads_each: int) -> dict[str, object]:
    sides = {"policies": text(read.format(copy="")), "open": text(read.format(copy="_open"))}
    some = cycle(ids)
    for statement in sides.values():
        await _round(database, statement, some, reads_each)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS):
        for name in sides if number % 2 else reversed(sides):
            times[name].append(await _round(database, sides[name], some, reads_each))
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {
        "policies_microseconds": round(medians["policies"] * 1e6, 1),
        "open_microseconds": round(medians["open"] * 1e6, 1),
        "overhead_percent": round((medians["policies"] / medians["open"] - 1) * 100, 1),
    }


async def _round(database: Database, statement: TextClause, ids: Iterator[UUID], reads_each: int) -> float:
    """Return the seconds of one read, one at a time, so many in each transaction."""
    started = time.perf_counter()
    for _ in range(CALLS // reads_each):
        async with database.transaction("genesis") as connection:
            for _ in range(reads_each):
                (await connection.execute(statement, {"id": next(ids)})).one()
    return (time.perf_counter() - started) / CALLS

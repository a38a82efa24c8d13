"""The connector next to bare asyncpg doing the same, and how long tasks wait for a connection.

Both sides have a pool of the same size. A unit of work is a transaction that names its tenant, runs one
statement and commits. The machine is noisy, so sides take short turns in one run, and the overhead is the median of
what each pair of turns gave.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy import insert, text

from benchmarks.stage import Stage, clean_database
from database.connector import Database, connect
from devstack.stack import Stack
from entities.entity import Entity
from entities.skill import Skill
from entities.store import put

CONNECTIONS = 10
ROUNDS = 200
CALLS = 10
"""Units of work of one side in one round; fewer where one is long."""

TASKS = 200
TRANSACTIONS_OF_A_TASK = 20

CONTEXT = "SELECT set_config('plant.governance_agent_id', $1, true)"
POINT = """SELECT e.id, e.external_id, e.status, s.name, s.description, s.category
FROM entities e JOIN skills s ON s.id = e.id WHERE e.id = $1"""
PAGE = """SELECT e.id, e.external_id, e.status, s.name, s.description, s.category
FROM entities e JOIN skills s ON s.id = e.id WHERE s.id >= $1 ORDER BY s.id LIMIT 100"""
COLUMNS = [
    *(getattr(Entity, name) for name in ("id", "external_id", "status")),
    *(getattr(Skill, name) for name in ("name", "description", "category")),
]
WRITE = "INSERT INTO job_role_skills (job_role_id, skill_id) VALUES ($1, $2)"

Work = Callable[[], Awaitable[Any]]


def run(stack: Stack) -> list[dict[str, object]]:
    """Return the median time of a unit of work on both sides, and the connector's overhead in percent (35 at most)."""
    with clean_database(stack) as stage:
        return asyncio.run(_overheads(stage))


def fairness(stack: Stack) -> dict[str, object]:
    """200 tasks on 10 connections: the longest total wait of a task as a multiple of the median; 4 is allowed."""
    with clean_database(stack) as stage:
        return asyncio.run(_fairness(stage))


async def _overheads(stage: Stage) -> list[dict[str, object]]:
    database = connect(stage.settings, "writer")
    pool = await asyncpg.create_pool(stage.environ["PLANT_DATABASE_WRITER_URL"], min_size=1, max_size=CONNECTIONS)
    try:
        ids, role = await _fill(database)
        stage.execute("ANALYZE")  # Or plans change in the middle of a run, when the server does it by itself.
        rows = []
        for name, calls, ours, bare in _units(database, pool, ids, role):
            rows.append({"unit": name, **await _compare(ours, bare, calls)})
        return rows
    finally:
        await pool.close()
        await database.close()


async def _fill(database: Database) -> tuple[list[UUID], UUID]:
    """Insert a thousand skills and an entity that rows of job_role_skills can belong to."""
    skills = [Skill(name=f"skill {number}", category="technical", description="x" * 200) for number in range(1_000)]
    role = Entity(entity_type="job_role", status="stub")
    async with database.transaction("genesis") as connection:
        await put(connection, skills)
        await connection.execute(insert(Entity.__table__).values(id=role.id, entity_type="job_role", status="stub"))
    return sorted(skill.id for skill in skills), role.id


def _units(database: Database, pool: Any, ids: Sequence[UUID], role: UUID) -> list[tuple[str, int, Work, Work]]:
    # Statements whose columns SQLAlchemy knows, as it does those of mapped classes: else it works them out each time.
    by_id = text(POINT.replace("$1", ":id")).columns(*COLUMNS)
    page = text(PAGE.replace("$1", ":id")).columns(*COLUMNS)
    write = text(WRITE.replace("$1", ":role").replace("$2", ":skill"))
    some = iter(ids * 1_000)

    async def ours_read(statement: Any) -> Any:
        async with database.transaction("genesis") as connection:
            return (await connection.execute(statement, {"id": next(some)})).all()

    async def bare_read(statement: str) -> Any:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(CONTEXT, "genesis")
            return await connection.fetch(statement, next(some))

    async def ours_write(count: int) -> None:
        async with database.transaction("genesis") as connection:
            await connection.execute(write, [{"role": role, "skill": uuid4()} for _ in range(count)])

    async def bare_write(count: int) -> None:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(CONTEXT, "genesis")
            await connection.executemany(WRITE, [(role, uuid4()) for _ in range(count)])

    first = ids[0]

    async def ours_page() -> Any:
        async with database.transaction("genesis") as connection:
            return (await connection.execute(page, {"id": first})).all()

    async def bare_page() -> Any:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(CONTEXT, "genesis")
            return await connection.fetch(PAGE, first)

    return [
        ("read one row", CALLS, lambda: ours_read(by_id), lambda: bare_read(POINT)),
        ("read 100 rows", CALLS, ours_page, bare_page),
        ("write one row", CALLS, lambda: ours_write(1), lambda: bare_write(1)),
        ("write 100 rows", 1, lambda: ours_write(100), lambda: bare_write(100)),
    ]


async def _compare(ours: Work, bare: Work, calls: int) -> dict[str, object]:
    times: dict[str, list[float]] = {"connector": [], "asyncpg": []}
    for work in (ours, bare):
        await _round(work, 5 * calls)
    for number in range(ROUNDS):
        sides = [("connector", ours), ("asyncpg", bare)]
        for name, work in sides if number % 2 else reversed(sides):
            times[name].append(await _round(work, calls))
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratio = statistics.median(ours / bare for ours, bare in zip(*times.values(), strict=True))
    return {
        "connector_microseconds": round(medians["connector"] * 1e6, 1),
        "asyncpg_microseconds": round(medians["asyncpg"] * 1e6, 1),
        "overhead_percent": round((ratio - 1) * 100, 1),
    }


async def _round(work: Work, calls: int) -> float:
    """Return the seconds of one call, one at a time."""
    started = time.perf_counter()
    for _ in range(calls):
        await work()
    return (time.perf_counter() - started) / calls


async def _fairness(stage: Stage) -> dict[str, object]:
    database = connect(stage.settings, "writer")
    waited = [0.0] * TASKS
    waits: list[float] = []
    query = text("SELECT pg_sleep(0.001)")

    async def task(number: int) -> None:
        for _ in range(TRANSACTIONS_OF_A_TASK):
            started = time.perf_counter()
            async with database.transaction() as connection:
                waits.append(time.perf_counter() - started)
                waited[number] += waits[-1]
                await connection.execute(query)

    try:
        await asyncio.gather(*(task(number) for number in range(CONNECTIONS)))  # connects
        waited[:] = [0.0] * TASKS
        waits.clear()
        await asyncio.gather(*(task(number) for number in range(TASKS)))
    finally:
        await database.close()
    median = statistics.median(waited)
    return {
        "tasks": TASKS,
        "connections": CONNECTIONS,
        "median_wait_ms": round(median * 1000, 1),
        "longest_wait_ms": round(max(waited) * 1000, 1),
        "longest_is_times_median": round(max(waited) / median, 2),
        "longest_single_wait_is_times_median": round(max(waits) / statistics.median(waits), 2),
    }

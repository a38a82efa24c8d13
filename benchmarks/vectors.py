"""Nearest neighbours among 20,000 skills, through the connector as `plant_api`, with policies on.

The peer is exact search: the same statement with a sort that no index gives. Sides take turns in one run; exact search
reads the whole table, which empties the processor's caches, so a turn has many calls. Recall is what a search has of
the exact result of the same query.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text

from benchmarks.stage import Stage, clean_database
from database.connector import Database, connect
from devstack.stack import Stack
from entities.embedding import direction
from entities.neighbours import NEAREST_SKILLS, nearest_skills
from tests.support.seeded_vectors import SeededSkills, fill, seeded_skills

ROWS = 20_000
LIMIT = 10
CALLS = 1_000
TURN = 100
"""Searches in a turn. Exact search is slow: it has the first tenth of the same queries."""

VECTOR = "CAST(CAST(:vector AS real[]) AS vector(384))"
EXACT = text(
    NEAREST_SKILLS.text.replace("ORDER BY distance LIMIT", f"ORDER BY 1 - (1 - (k.embedding <=> {VECTOR})) LIMIT")
)

Search = Callable[[NDArray[np.float32]], Awaitable[list[UUID]]]


class Scene(NamedTuple):
    """What is searched: a tenant, and a category of skills if any."""

    name: str
    tenant: str
    category: str | None = None


SCENES = (
    Scene("98 % of the rows", "genesis"),
    Scene("a tenant with 2 %", "small"),
    Scene("a category with 3 %", "genesis", "soft_skill"),
)


def run(stack: Stack) -> list[dict[str, object]]:
    """Times and recall at 10 of each scene. Of all rows, p99 may be 5 ms; recall may nowhere be under 0.95."""
    with clean_database(stack) as stage:
        return asyncio.run(_measure(stage))


async def _measure(stage: Stage) -> list[dict[str, object]]:
    skills = seeded_skills(ROWS, queries=CALLS)
    await fill(stage.superuser_url, skills)
    database = connect(stage.settings, "api")
    try:
        return [await _scene(database, skills, scene) for scene in SCENES]
    finally:
        await database.close()


async def _scene(database: Database, skills: SeededSkills, scene: Scene) -> dict[str, object]:
    async def ours(query: NDArray[np.float32]) -> list[UUID]:
        async with database.transaction(scene.tenant) as connection:
            found = await nearest_skills(connection, query, limit=LIMIT, category=scene.category)
        return [each.id for each in found]

    async def exact(query: NDArray[np.float32]) -> list[UUID]:
        given = {"vector": direction(query).tolist(), "category": scene.category, "without": [], "farthest": 2.0}
        async with database.transaction(scene.tenant) as connection:
            found = await connection.execute(EXACT, {**given, "candidates": LIMIT, "limit": LIMIT})
            return [row.id for row in found]

    for query in skills.queries[:20]:  # connects, and brings the index into memory
        await ours(query)
    times: dict[str, list[float]] = {"ours": [], "exact": []}
    hits = []
    for start in range(0, CALLS, TURN):
        queries = skills.queries[start : start + TURN]
        found = [await _timed(ours, query, times["ours"]) for query in queries]
        true = [await _timed(exact, query, times["exact"]) for query in queries[: TURN // 10]]
        hits += [len(set(mine) & set(all_)) / len(all_) for mine, all_ in zip(found, true, strict=False)]
    measured = {"searched": scene.name, **_quantiles("", times["ours"]), **_quantiles("exact_", times["exact"])}
    return {**measured, "recall_at_10": round(sum(hits) / len(hits), 4)}


async def _timed(search: Search, query: NDArray[np.float32], times: list[float]) -> list[UUID]:
    started = time.perf_counter()
    found = await search(query)
    times.append(time.perf_counter() - started)
    return found


def _quantiles(name: str, seconds: Sequence[float]) -> dict[str, object]:
    return {f"{name}p{share}_ms": round(float(np.percentile(seconds, share)) * 1000, 2) for share in (50, 99)}

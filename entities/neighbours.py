"""Nearest neighbours by the cosine of embeddings: skills and industries near a vector, and agents by their skills.

Everything runs in the caller's transaction and sees what its tenant sees. Retired entities are left out,
and so are those without an embedding. Why it is done so, and what was measured: docs/decisions/0012.

The connection must be the connector's: its sessions have `hnsw.iterative_scan` on, without which a filter would be
applied to the candidates in view only, and find few or nothing in a small tenant. A long search sets
`hnsw.ef_search` for the rest of the transaction.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from entities.embedding import direction
from entities.errors import SearchRefused
from entities.vocabulary import IDS_MAX, SKILL_CATEGORIES

LIMIT_MAX: Final = 200
"""Results of one search. Far more than anyone reads; an index of neighbours is no way to export a table."""

AMONG: Final = 20
"""How many of the nearest skills count when agents are searched for by a vector."""

CANDIDATES_EACH: Final = 2
"""Candidates fetched for each result. The index brings them roughly in order: a nearer one may come a little later."""

EF_SEARCH: Final = 40
"""Candidates that the index keeps in view, by default: pgvector's default."""

EF_SEARCH_MAX: Final = 1000
"""The most that pgvector takes."""


class NearSkill(NamedTuple):
    """A skill, and its cosine distance from what was searched for: 0 is the same direction, 2 the opposite one."""

    id: UUID
    name: str
    category: str
    distance: float

    @property
    def similarity(self) -> float:
        """The cosine: 1 is the same direction, -1 the opposite one."""
        return 1 - self.distance


class NearIndustry(NamedTuple):
    """An industry, and its cosine distance from what was searched for: 0 is the same direction, 2 the opposite one."""

    id: UUID
    name: str
    distance: float

    @property
    def similarity(self) -> float:
        """The cosine: 1 is the same direction, -1 the opposite one."""
        return 1 - self.distance


class NearAgent(NamedTuple):
    """An agent that has skills near what was searched for: the nearest one, its distance, and how many they are."""

    id: UUID
    name: str
    available: bool
    skill_id: UUID
    distance: float
    skills_near: int

    @property
    def similarity(self) -> float:
        """The nearest skill's cosine."""
        return 1 - self.distance


class SkilledAgent(NamedTuple):
    """An agent, and how many of the skills asked for it has."""

    id: UUID
    name: str
    available: bool
    skills_had: int


# The candidates are materialized, or the bound on the distance would be checked in the scan, which then would look for
# more until it gives up. They come from the index roughly in order, and Postgres takes that for sorted: `+ 0` makes it
# sort them.
NEAREST_SKILLS: Final = text("""
WITH near AS MATERIALIZED (
    SELECT k.id, k.name, k.category, k.embedding <=> CAST(CAST(:vector AS real[]) AS vector(384)) AS distance
    FROM skills AS k JOIN entities AS e ON e.id = k.id
    WHERE k.embedding IS NOT NULL AND e.deleted_at IS NULL AND k.id <> ALL (CAST(:without AS uuid[]))
      AND (CAST(:category AS text) IS NULL OR k.category = :category)
    ORDER BY distance LIMIT :candidates
)
SELECT id, name, category, distance FROM near WHERE distance <= :farthest ORDER BY distance + 0, id LIMIT :limit
""")

NEAREST_INDUSTRIES: Final = text("""
WITH near AS MATERIALIZED (
    SELECT k.id, k.name, k.embedding <=> CAST(CAST(:vector AS real[]) AS vector(384)) AS distance
    FROM industries AS k JOIN entities AS e ON e.id = k.id
    WHERE k.embedding IS NOT NULL AND e.deleted_at IS NULL AND k.id <> ALL (CAST(:without AS uuid[]))
    ORDER BY distance LIMIT :candidates
)
SELECT id, name, distance FROM near WHERE distance <= :farthest ORDER BY distance + 0, id LIMIT :limit
""")

NEAREST_AGENTS: Final = text("""
WITH near AS MATERIALIZED (
    SELECT k.id, k.embedding <=> CAST(CAST(:vector AS real[]) AS vector(384)) AS distance
    FROM skills AS k JOIN entities AS e ON e.id = k.id
    WHERE k.embedding IS NOT NULL AND e.deleted_at IS NULL
    ORDER BY distance LIMIT :candidates
), counted AS MATERIALIZED (
    SELECT id, distance FROM near WHERE distance <= :farthest ORDER BY distance + 0, id LIMIT :among
)
SELECT a.id, a.name, a.available, (array_agg(c.id ORDER BY c.distance, c.id))[1], min(c.distance), count(*)
FROM counted AS c
JOIN agent_skills AS h ON h.skill_id = c.id
JOIN agents AS a ON a.id = h.agent_id
JOIN entities AS e ON e.id = a.id
WHERE e.deleted_at IS NULL AND a.id <> ALL (CAST(:without AS uuid[]))
  AND (CAST(:available AS boolean) IS NULL OR a.available = :available)
GROUP BY a.id ORDER BY min(c.distance), count(*) DESC, a.id LIMIT :limit
""")

AGENTS_WITH: Final = text("""
SELECT a.id, a.name, a.available, count(*)
FROM agent_skills AS h
JOIN agents AS a ON a.id = h.agent_id
JOIN entities AS e ON e.id = a.id
WHERE h.skill_id = ANY (CAST(:skills AS uuid[])) AND e.deleted_at IS NULL
  AND (CAST(:available AS boolean) IS NULL OR a.available = :available)
GROUP BY a.id HAVING count(*) >= :at_least ORDER BY count(*) DESC, a.id LIMIT :limit
""")


async def nearest_skills(
    connection: AsyncConnection,
    vector: Any,
    *,
    limit: int = 10,
    category: str | None = None,
    without: Collection[UUID] = (),
    min_similarity: float = -1.0,
) -> list[NearSkill]:
    """Return up to `limit` skills near `vector`, nearest first, then by id; only of `category`, if it is not None.

    `vector` is 384 numbers, of any length but zero. Skills with ids in `without` and those below `min_similarity` are
    left out. Raises VectorRefused, SearchRefused.
    """
    if category is not None and category not in SKILL_CATEGORIES:
        raise SearchRefused(why=f"category must be one of {', '.join(SKILL_CATEGORIES)}.")
    parameters = {
        **near_parameters(vector, limit, min_similarity),
        "without": _ids("without", without),
        "category": category,
    }
    await widen_search(connection, limit)
    rows = await connection.execute(NEAREST_SKILLS, {**parameters, "limit": limit})
    return [NearSkill(*row) for row in rows]


async def nearest_industries(
    connection: AsyncConnection,
    vector: Any,
    *,
    limit: int = 10,
    without: Collection[UUID] = (),
    min_similarity: float = -1.0,
) -> list[NearIndustry]:
    """Return up to `limit` industries near `vector`; otherwise as `nearest_skills`."""
    parameters = {**near_parameters(vector, limit, min_similarity), "without": _ids("without", without)}
    await widen_search(connection, limit)
    rows = await connection.execute(NEAREST_INDUSTRIES, {**parameters, "limit": limit})
    return [NearIndustry(*row) for row in rows]


async def nearest_agents(
    connection: AsyncConnection,
    vector: Any,
    *,
    limit: int = 10,
    among: int = AMONG,
    available: bool | None = None,
    without: Collection[UUID] = (),
    min_similarity: float = -1.0,
) -> list[NearAgent]:
    """Return up to `limit` agents that have one of the `among` skills nearest to `vector`, ranked by their nearest.

    Of equally near agents the one with more of these skills comes first, then the lower id. `available` selects those
    that take work now, or don't; `without` are ids of agents; `min_similarity` is of skills. Raises VectorRefused,
    SearchRefused.
    """
    _check_number("limit", limit, LIMIT_MAX)
    parameters = {**near_parameters(vector, among, min_similarity, "among"), "without": _ids("without", without)}
    await widen_search(connection, among)
    rows = await connection.execute(
        NEAREST_AGENTS, {**parameters, "among": among, "available": available, "limit": limit}
    )
    return [NearAgent(*row) for row in rows]


async def agents_with(
    connection: AsyncConnection,
    skill_ids: Collection[UUID],
    *,
    at_least: int | None = None,
    available: bool | None = None,
    limit: int = 10,
) -> list[SkilledAgent]:
    """Return up to `limit` agents that have all these skills, or `at_least` so many; most skills first, then by id.

    Raises SearchRefused.
    """
    wanted = sorted(set(_ids("skill_ids", skill_ids)))
    if not wanted:
        raise SearchRefused(why="skill_ids must not be empty.")
    _check_number("limit", limit, LIMIT_MAX)
    needed = len(wanted) if at_least is None else at_least
    _check_number("at_least", needed, len(wanted))
    rows = await connection.execute(
        AGENTS_WITH, {"skills": wanted, "at_least": needed, "available": available, "limit": limit}
    )
    return [SkilledAgent(*row) for row in rows]


async def widen_search(connection: AsyncConnection, limit: int) -> None:
    """Make the index keep all candidates of `limit` results in view, until the transaction ends."""
    if CANDIDATES_EACH * limit > EF_SEARCH:
        await connection.execute(_WIDEN, {"breadth": str(min(EF_SEARCH_MAX, CANDIDATES_EACH * limit))})


_WIDEN: Final = text("SELECT set_config('hnsw.ef_search', :breadth, true)")


def near_parameters(vector: Any, limit: int, min_similarity: float, name: str = "limit") -> dict[str, Any]:
    """Return the parameters that each search near a vector has. Raises VectorRefused, SearchRefused."""
    _check_number(name, limit, LIMIT_MAX)
    if isinstance(min_similarity, bool) or not isinstance(min_similarity, int | float):
        raise SearchRefused(why="min_similarity must be a number.")
    if not -1 <= min_similarity <= 1:
        raise SearchRefused(why=f"min_similarity must be from -1 to 1, and is {min_similarity}.")
    return {
        "vector": direction(vector).tolist(),
        "candidates": CANDIDATES_EACH * limit,
        "farthest": 1 - min_similarity,
    }


def _check_number(name: str, value: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise SearchRefused(why=f"{name} must be a whole number from 1 to {most}, and is {value!r}.")


def _ids(name: str, ids: Collection[UUID]) -> list[UUID]:
    if len(ids) > IDS_MAX:
        raise SearchRefused(why=f"{name} must have at most {IDS_MAX} ids, and has {len(ids)}.")
    if not all(isinstance(each, UUID) for each in ids):
        raise SearchRefused(why=f"{name} must be UUIDs.")
    return list(ids)

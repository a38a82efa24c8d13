"""Skills with seeded vectors, straight into the tables: no model made them, and no trigger saw them.

They lie as embeddings of texts do, in clusters that overlap, in far fewer directions than they have numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import numpy as np
from numpy.typing import NDArray
from pgvector import Vector

from entities.vocabulary import EMBEDDING_DIMENSIONS

CLUSTERS = 200
DIRECTIONS = 64
SPREAD = 1.0
"""Of a cluster's members round its centre, where 1 is the spread of the centres themselves."""
SCATTER = 0.05

TENANTS = {"genesis": 0.98, "small": 0.02}
CATEGORIES = {"technical": 0.67, "domain_expertise": 0.30, "soft_skill": 0.03}


class SeededSkills(NamedTuple):
    """Skills, one a row of each; `queries` are vectors of the same kind that none of them has."""

    ids: Sequence[UUID]
    vectors: NDArray[np.float32]
    tenants: Sequence[str]
    categories: Sequence[str]
    queries: NDArray[np.float32]

    def nearest(self, queries: NDArray[np.float32], limit: int, tenant: str, category: str = "") -> list[list[UUID]]:
        """The exact nearest neighbours of each query by cosine, nearest first: every vector is compared."""
        fits = np.asarray(self.tenants) == tenant
        if category:
            fits &= np.asarray(self.categories) == category
        places = np.flatnonzero(fits)
        order = np.argsort(-(queries @ self.vectors[places].T), axis=1, kind="stable")[:, :limit]
        return [[self.ids[places[column]] for column in row] for row in order]


def seeded_skills(count: int, *, queries: int = 200, seed: int = 1) -> SeededSkills:
    """The same skills for the same numbers, in the shares of :data:`TENANTS` and :data:`CATEGORIES`."""
    chance = np.random.default_rng(seed)
    turn = chance.standard_normal((DIRECTIONS, EMBEDDING_DIMENSIONS))
    centres = chance.standard_normal((CLUSTERS, DIRECTIONS))
    rows = count + queries
    places = centres[chance.integers(0, CLUSTERS, rows)] + SPREAD * chance.standard_normal((rows, DIRECTIONS))
    vectors = places @ turn + SCATTER * chance.standard_normal((rows, EMBEDDING_DIMENSIONS)) * DIRECTIONS**0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors.astype(np.float32)
    return SeededSkills(
        ids=[UUID(bytes=chance.bytes(16), version=4) for _ in range(count)],
        vectors=vectors[:count],
        tenants=_drawn(chance, TENANTS, count),
        categories=_drawn(chance, CATEGORIES, count),
        queries=vectors[count:],
    )


async def fill(superuser_url: str, skills: SeededSkills) -> None:
    """Copy the skills into empty tables, and build the index afterwards, as the migration defines it."""
    connection = await asyncpg.connect(superuser_url)
    try:
        await connection.set_type_codec("vector", encoder=_binary, decoder=bytes, format="binary")
        await connection.execute("SET session_replication_role = replica; SET maintenance_work_mem = '256MB'")
        index = await connection.fetchval("SELECT pg_get_indexdef('skills_embedding'::regclass)")
        await connection.execute("DROP INDEX skills_embedding")
        await connection.copy_records_to_table(
            "entities",
            records=[(each, "skill", of) for each, of in zip(skills.ids, skills.tenants, strict=True)],
            columns=["id", "entity_type", "governance_agent_id"],
        )
        rows = zip(skills.ids, skills.tenants, skills.categories, skills.vectors, strict=True)
        await connection.copy_records_to_table(
            "skills",
            records=[
                (each, of, f"skill {number}", "What it is, in words. " * 10, kind, vector)
                for number, (each, of, kind, vector) in enumerate(rows)
            ],
            columns=["id", "governance_agent_id", "name", "description", "category", "embedding"],
        )
        await connection.execute(index)
        await connection.execute("VACUUM ANALYZE entities")
        await connection.execute("VACUUM ANALYZE skills")
    finally:
        await connection.close()


def _drawn(chance: np.random.Generator, shares: dict[str, float], count: int) -> list[str]:
    return [str(name) for name in chance.choice(list(shares), count, p=list(shares.values()))]


def _binary(vector: Any) -> bytes:
    return Vector(vector).to_binary()

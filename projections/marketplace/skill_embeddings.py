"""The embeddings of skills: the table `skill_embeddings`, filled from the catalogue by a service, and searches of it.

No fold computes or reads one, so the marketplace's tables are functions of the log alone, and a new build of it has
embeddings at once. The hash of a skill's text shows whether it is new, or says something else by now. So the service
keeps no position: it can be killed at any moment and started again, and two of them do the same work twice at worst.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import text

from database.connector import Database
from entities.embedding import Embedder, embed
from entities.neighbours import near_parameters, widen_search
from entities.vocabulary import DEFAULT_TENANT

SKILLS_A_BATCH: Final = 200

_FIRST: Final = UUID(int=0)

_STALE: Final = text("""
    WITH page AS MATERIALIZED (
        SELECT entity_id AS skill_id, name || E'\\n' || description AS text FROM read_models.marketplace_catalogue
        WHERE kind = 'skill' AND entity_id > :after ORDER BY entity_id LIMIT :limit
    )
    SELECT p.skill_id, CASE WHEN sha256(convert_to(p.text, 'UTF8')) IS DISTINCT FROM (
            SELECT e.text_sha256 FROM skill_embeddings AS e
            WHERE e.skill_id = p.skill_id AND e.governance_agent_id = :tenant AND e.model = :model
        ) THEN p.text END AS text
    FROM page AS p ORDER BY p.skill_id
""")

_KEEP: Final = text("""
    INSERT INTO skill_embeddings AS e (skill_id, governance_agent_id, model, text_sha256, embedding)
    VALUES (:skill_id, :tenant, :model, sha256(convert_to(:text, 'UTF8')), CAST(CAST(:vector AS real[]) AS vector(384)))
    ON CONFLICT (governance_agent_id, skill_id) DO UPDATE SET
        model = excluded.model, text_sha256 = excluded.text_sha256, embedding = excluded.embedding, embedded_at = now()
""")

_VECTOR: Final = text("""
    SELECT CAST(e.embedding AS real[]) FROM skill_embeddings AS e
    WHERE e.skill_id = :skill_id AND e.governance_agent_id = :tenant AND e.model = :model
""")

# As in entities/neighbours.py: candidates are materialized, and sorted again by `+ 0`.
_SIMILAR: Final = text("""
    WITH near AS MATERIALIZED (
        SELECT e.skill_id, e.embedding <=> CAST(CAST(:vector AS real[]) AS vector(384)) AS distance
        FROM skill_embeddings AS e
        WHERE e.model = :model AND e.skill_id <> ALL (CAST(:without AS uuid[]))
          AND NOT (SELECT c.retired FROM read_models.marketplace_catalogue AS c
                   WHERE c.kind = 'skill' AND c.entity_id = e.skill_id)
        ORDER BY distance LIMIT :candidates
    )
    SELECT n.skill_id,
        (SELECT c.name FROM read_models.marketplace_catalogue AS c WHERE c.kind = 'skill' AND c.entity_id = n.skill_id),
        n.distance
    FROM near AS n WHERE n.distance <= :farthest ORDER BY n.distance + 0, n.skill_id LIMIT :limit
""")


class NearCatalogueSkill(NamedTuple):
    """A skill, and its cosine distance from what was searched for: 0 is the same direction, 2 the opposite one."""

    skill_id: UUID
    name: str
    distance: float

    @property
    def similarity(self) -> float:
        """The cosine: 1 is the same direction, -1 the opposite one."""
        return 1 - self.distance


async def embed_skills(database: Database, embedder: Embedder, stopping: Callable[[], bool] = lambda: False) -> int:
    """Embed the skills that have no embedding of their present text by this model; return how many there were.

    Every batch is kept as it is done; after one, `stopping` ends the work. Raises EmbedderBroken, and what the embedder
    raises.
    """
    embedded, after = 0, _FIRST
    while True:
        page = await _page(database, embedder.model, after)
        if stale := [(row.skill_id, row.text) for row in page if row.text is not None]:
            await _keep(database, embedder, stale)
            embedded += len(stale)
        if len(page) < SKILLS_A_BATCH or stopping():
            return embedded
        after = page[-1].skill_id


async def _page(database: Database, model: str, after: UUID) -> list[Any]:
    arguments = {"after": after, "limit": SKILLS_A_BATCH, "model": model, "tenant": DEFAULT_TENANT}
    async with database.transaction(DEFAULT_TENANT, read_only=True) as connection:
        return list((await connection.execute(_STALE, arguments)).all())


async def _keep(database: Database, embedder: Embedder, stale: list[tuple[UUID, str]]) -> None:
    vectors = await embed(embedder, [words for _, words in stale])
    rows = [
        {"skill_id": skill_id, "tenant": DEFAULT_TENANT, "model": embedder.model, "text": words, "vector": list(vector)}
        for (skill_id, words), vector in zip(stale, vectors.tolist(), strict=True)
    ]
    async with database.transaction(DEFAULT_TENANT) as connection:
        await connection.execute(_KEEP, rows)


async def similar_skills(
    database: Database, embedder: Embedder, wanted: str | UUID, *, limit: int = 10, min_similarity: float = 0.0
) -> list[NearCatalogueSkill]:
    """Return up to `limit` skills near a text, or near a skill, without itself; nearest first, then by id.

    Skills that have no embedding by this model yet, and retired ones, are left out. A skill without one is near none.
    Raises SearchRefused, and what the embedder raises.
    """
    if isinstance(wanted, str):
        (vector,) = await embed(embedder, [wanted])
        without = []
    else:
        vector = await _vector(database, embedder.model, wanted)
        without = [wanted]
    if vector is None:
        return []
    parameters = near_parameters(vector, limit, min_similarity) | {"model": embedder.model, "without": without}
    async with database.transaction(DEFAULT_TENANT, read_only=True, replica=True) as connection:
        await widen_search(connection, limit)
        rows = await connection.execute(_SIMILAR, parameters | {"limit": limit})
        return [NearCatalogueSkill(*row) for row in rows]


async def _vector(database: Database, model: str, skill_id: UUID) -> Any:
    arguments = {"skill_id": skill_id, "model": model, "tenant": DEFAULT_TENANT}
    async with database.transaction(DEFAULT_TENANT, read_only=True, replica=True) as connection:
        return (await connection.execute(_VECTOR, arguments)).scalar_one_or_none()

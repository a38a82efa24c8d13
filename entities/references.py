"""What does not fit together in one governance boundary: references, names, kinds, and chains of versions.

Nothing of this is enforced when entities are written: events tell of them in any order. It is looked for afterwards.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from entities.versions import EntityVersion, first_break


class Finding(NamedTuple):
    """One thing that does not fit. `finding` is what kind of thing it is: see docs/reference/database.md."""

    finding: str
    entity_type: str
    entity_id: UUID
    detail: str


_REFERENCES: Final = """
    SELECT 'agent' AS kind, id, 'job_role' AS wanted, job_role_id AS other FROM agents
    UNION ALL SELECT 'agent', id, 'team', team_id FROM agents
    UNION ALL SELECT 'agent', id, 'industry', industry_id FROM agents
    UNION ALL SELECT 'agent', agent_id, 'skill', skill_id FROM agent_skills
    UNION ALL SELECT 'job_role', id, 'industry', industry_id FROM job_roles
    UNION ALL SELECT 'job_role', job_role_id, 'skill', skill_id FROM job_role_skills
    UNION ALL SELECT 'team', id, 'job_role', job_role_id FROM teams
    UNION ALL SELECT 'team', id, 'industry', industry_id FROM teams
    UNION ALL SELECT 'team', team_id, 'agent', agent_id FROM team_members
    UNION ALL SELECT entity_type, id, NULL, parent_id FROM entities
"""

_DANGLING: Final = text(f"""
    SELECT CASE WHEN e.id IS NULL THEN 'missing' WHEN e.entity_type <> r.wanted THEN 'wrong kind'
                WHEN e.status = 'stub' THEN 'stub' ELSE 'retired' END AS finding,
           r.kind AS entity_type, r.id AS entity_id,
           format('refers to %s %s', coalesce(r.wanted, e.entity_type, 'parent'), r.other) AS detail
    FROM ({_REFERENCES}) AS r LEFT JOIN entities AS e ON e.id = r.other
    JOIN entities AS own ON own.id = r.id AND own.deleted_at IS NULL
    WHERE r.other IS NOT NULL
      AND (e.id IS NULL OR e.entity_type <> r.wanted OR e.status = 'stub' OR e.deleted_at IS NOT NULL)
    ORDER BY finding, r.kind, r.id, detail
""")  # noqa: S608 (no value in it)

_NAMES: Final = text("""
    SELECT 'name clash' AS finding, kind AS entity_type, min(n.id::text)::uuid AS entity_id,
           format('%s are called %s', count(*), quote_literal(min(name))) AS detail
    FROM (SELECT 'agent' AS kind, id, name FROM agents UNION ALL SELECT 'industry', id, name FROM industries
          UNION ALL SELECT 'job_role', id, name FROM job_roles UNION ALL SELECT 'skill', id, name FROM skills
          UNION ALL SELECT 'team', id, name FROM teams) AS n
    JOIN entities AS e ON e.id = n.id AND e.deleted_at IS NULL
    GROUP BY kind, lower(name) HAVING count(*) > 1 ORDER BY kind, min(name)
""")

# A row of a kind that its entity is not, or an entity that is no stub and has no row of its kind.
_KINDS: Final = text("""
    SELECT 'wrong row' AS finding, e.entity_type, e.id AS entity_id,
           coalesce('has a row as ' || k.kind, 'has no row as ' || e.entity_type) AS detail
    FROM entities AS e FULL JOIN (
        SELECT 'agent' AS kind, id FROM agents UNION ALL SELECT 'industry', id FROM industries
        UNION ALL SELECT 'job_role', id FROM job_roles UNION ALL SELECT 'skill', id FROM skills
        UNION ALL SELECT 'team', id FROM teams) AS k ON k.id = e.id
    WHERE k.kind <> e.entity_type OR (k.kind IS NULL AND e.status <> 'stub')
    ORDER BY e.entity_type, e.id
""")

_HEADS: Final = text("""
    SELECT 'tampered' AS finding, coalesce(e.entity_type, v.entity_type) AS entity_type,
           coalesce(e.id, v.entity_id) AS entity_id,
           CASE WHEN v.entity_id IS NULL THEN 'has no versions'
                WHEN e.id IS NULL THEN 'is gone, and no version says so'
                WHEN v.operation = 'deleted' THEN 'is there, and its newest version says that it was deleted'
                WHEN e.hash_chain_sha256 IS DISTINCT FROM v.hash OR e.version_hash IS DISTINCT FROM v.version_hash
                THEN 'its hashes are not those of its newest version'
                ELSE 'is not what its newest version says' END AS detail
    FROM entities AS e FULL JOIN (
        SELECT DISTINCT ON (entity_id) * FROM entity_versions ORDER BY entity_id, version DESC
    ) AS v ON v.entity_id = e.id
    WHERE v.entity_id IS NULL OR (e.id IS NULL AND v.operation <> 'deleted')
       OR (e.id IS NOT NULL AND (v.operation = 'deleted' OR e.hash_chain_sha256 IS DISTINCT FROM v.hash
                                 OR e.version_hash IS DISTINCT FROM v.version_hash OR entity_state(e.id) <> v.state))
    ORDER BY 2, 3
""")

VERSIONS_AT_ONCE: Final = 1_000


async def check(connection: AsyncConnection) -> list[Finding]:
    """All that does not fit in the transaction's boundary, as of one moment; empty when all is well.

    Give it a REPEATABLE READ transaction where others write meanwhile.
    """
    findings: list[Finding] = []
    for query in (_DANGLING, _NAMES, _KINDS, _HEADS):
        findings += [Finding(*row) for row in await connection.execute(query)]
    return findings + await broken_chains(connection)


async def broken_chains(connection: AsyncConnection) -> list[Finding]:
    """Where an entity's versions do not follow from each other: recomputed here, from what is stored."""
    columns = EntityVersion.__table__.columns
    rows = await connection.stream(
        select(*columns).order_by(EntityVersion.entity_id, EntityVersion.version),
        execution_options={"yield_per": VERSIONS_AT_ONCE},
    )
    findings: list[Finding] = []
    chain: list[EntityVersion] = []
    async for row in rows:
        version = EntityVersion(**row._mapping)
        if chain and chain[-1].entity_id != version.entity_id:
            findings += _broken(chain)
            chain = []
        chain.append(version)
    return findings + _broken(chain)


def _broken(chain: list[EntityVersion]) -> list[Finding]:
    found = first_break(chain)
    if found is None:
        return []
    return [Finding("broken chain", chain[0].entity_type, found.entity_id, f"version {found.version}: {found.why}")]

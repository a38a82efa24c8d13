"""Checks of one tenant's entities: references, names, kinds, rules, and chains of versions.

Events describe entities in any order, so references and names are not enforced when they are written; tampering evades
what is enforced. These checks look for both afterwards. They do not detect an entity that was rewritten together with
all its versions: the events in the log are the evidence then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from entities.validators import holds_address
from entities.versions import EntityVersion, first_break


class EntityCheck(NamedTuple):
    """The outcome of a check: how many entities there are or were, and the faults."""

    entities: int
    faults: list[EntityFault]


class EntityFault(NamedTuple):
    """One fault. `finding` is its kind, as docs/reference/database.md lists them."""

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
           format('%s are called %s', count(*), quote_literal(min(name COLLATE "C"))) AS detail
    FROM (SELECT 'agent' AS kind, id, name FROM agents UNION ALL SELECT 'industry', id, name FROM industries
          UNION ALL SELECT 'job_role', id, name FROM job_roles UNION ALL SELECT 'skill', id, name FROM skills
          UNION ALL SELECT 'team', id, name FROM teams) AS n
    JOIN entities AS e ON e.id = n.id AND e.deleted_at IS NULL
    GROUP BY kind, lower(name) HAVING count(*) > 1 ORDER BY kind, min(name)
""")

_EXTERNAL_IDS: Final = text("""
    SELECT 'external id clash' AS finding, min(entity_type COLLATE "C") AS entity_type,
           min(id::text)::uuid AS entity_id, format('%s have the external id %s', count(*), quote_literal(external_id))
    FROM entities WHERE external_id IS NOT NULL AND deleted_at IS NULL
    GROUP BY external_id HAVING count(*) > 1 ORDER BY external_id
""")

_ROWS: Final = text("""
    SELECT 'wrong row' AS finding, coalesce(e.entity_type, k.kind) AS entity_type, coalesce(e.id, k.id) AS entity_id,
           CASE WHEN e.id IS NULL THEN 'has a row as ' || k.kind || ' and is no entity'
                WHEN k.id IS NULL THEN 'has no row as ' || e.entity_type
                WHEN k.kind <> e.entity_type THEN 'has a row as ' || k.kind
                ELSE 'is described, and its status is stub' END AS detail
    FROM entities AS e FULL JOIN (
        SELECT 'agent' AS kind, id FROM agents UNION ALL SELECT 'industry', id FROM industries
        UNION ALL SELECT 'job_role', id FROM job_roles UNION ALL SELECT 'skill', id FROM skills
        UNION ALL SELECT 'team', id FROM teams) AS k ON k.id = e.id
    WHERE e.id IS NULL OR k.kind <> e.entity_type OR (k.id IS NULL) <> (e.status = 'stub')
    ORDER BY 2, 3
""")

_HEADS: Final = text("""
    SELECT 'tampered' AS finding, coalesce(e.entity_type, v.entity_type) AS entity_type,
           coalesce(e.id, v.entity_id) AS entity_id,
           CASE WHEN v.entity_id IS NULL THEN 'has no versions'
                WHEN e.id IS NULL THEN 'is gone, and no version says so'
                WHEN v.operation = 'deleted' THEN 'is there, and its newest version says that it was deleted'
                WHEN e.hash_chain_sha256 IS DISTINCT FROM v.hash OR e.version_hash IS DISTINCT FROM v.version_hash
                THEN 'has hashes that are not those of its newest version'
                ELSE 'is not what its newest version says' END AS detail
    FROM entities AS e FULL JOIN (
        SELECT DISTINCT ON (entity_id) * FROM entity_versions ORDER BY entity_id, version DESC
    ) AS v ON v.entity_id = e.id
    WHERE v.entity_id IS NULL OR (e.id IS NULL AND v.operation <> 'deleted')
       OR (e.id IS NOT NULL AND (v.operation = 'deleted' OR e.hash_chain_sha256 IS DISTINCT FROM v.hash
                                 OR e.version_hash IS DISTINCT FROM v.version_hash
                                 OR e.entity_type <> v.entity_type OR entity_state(e.id) <> v.state))
    ORDER BY 2, 3
""")

# An entity without versions is tampered with, and one that was deleted has versions alone.
_COUNT: Final = text("""
    SELECT count(*) FROM (SELECT id FROM entities UNION SELECT entity_id FROM entity_versions
        UNION SELECT id FROM agents UNION SELECT id FROM industries UNION SELECT id FROM job_roles
        UNION SELECT id FROM skills UNION SELECT id FROM teams) AS known
""")

VERSIONS_AT_ONCE: Final = 1_000


async def check_entities(connection: AsyncConnection) -> EntityCheck:
    """Return the count of entities and all faults of the transaction's tenant, as of one moment.

    Without entities nothing was checked. Pass a REPEATABLE READ transaction where others write meanwhile.
    """
    entities = (await connection.execute(_COUNT)).scalar_one()
    findings: list[EntityFault] = []
    for query in (_DANGLING, _NAMES, _EXTERNAL_IDS, _ROWS, _HEADS):
        findings += [EntityFault(*row) for row in await connection.execute(query)]
    async for chain in _chains(connection):
        findings += _in_chain(chain)
    return EntityCheck(entities, findings)


async def _chains(connection: AsyncConnection) -> AsyncIterator[list[EntityVersion]]:
    """Yield each entity's versions, in order."""
    rows = await connection.stream(
        select(*EntityVersion.__table__.columns).order_by(EntityVersion.entity_id, EntityVersion.version),
        execution_options={"yield_per": VERSIONS_AT_ONCE},
    )
    chain: list[EntityVersion] = []
    async for row in rows:
        version = EntityVersion(**row._mapping)
        if chain and chain[-1].entity_id != version.entity_id:
            yield chain
            chain = []
        chain.append(version)
    if chain:
        yield chain


def _in_chain(chain: Sequence[EntityVersion]) -> Iterator[EntityFault]:
    """Yield the faults of one entity's versions: hashes are recomputed from the stored states."""
    newest = chain[-1]
    if broken := first_break(chain):
        yield EntityFault(
            "broken chain", newest.entity_type, broken.entity_id, f"version {broken.version}: {broken.why}"
        )
    if newest.operation != "deleted" and holds_address(newest.state):
        yield EntityFault("rule broken", newest.entity_type, newest.entity_id, "L0-05: it holds an e-mail address")

"""Writing entities in bulk: insert or replace by id, with stubs for what they refer to and nobody has described yet.

For one entity at a time the mapped classes will do. This is for many: a catalogue, or events, which tell of entities in
any order. Rows are written sorted by id, so writers don't deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Table, any_, bindparam, inspect, or_, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Uuid

from entities.agent import Agent, AgentSkill
from entities.entity import Entity
from entities.errors import EntityInvalid, KindChanged
from entities.industry import Industry
from entities.job_role import JobRole, JobRoleSkill
from entities.mapping import Row
from entities.skill import Skill
from entities.team import Team, TeamMember
from entities.validators import accept
from entities.vocabulary import STUB

KINDS: Final[Mapping[str, type[Entity]]] = {
    "agent": Agent,
    "industry": Industry,
    "job_role": JobRole,
    "skill": Skill,
    "team": Team,
}
PUT_MAX: Final = 500
"""Entities in one statement."""

_REFERENCES: Final = {"industry_id": "industry", "job_role_id": "job_role", "team_id": "team"}


class Links(NamedTuple):
    """A list of ids that a kind has: the field, the rows behind it, and the kind that it names."""

    field: str
    row: type[Row]
    kind: str


LINKS: Final[Mapping[str, Links]] = {
    "agent": Links("skill_ids", AgentSkill, "skill"),
    "job_role": Links("required_skill_ids", JobRoleSkill, "skill"),
    "team": Links("member_ids", TeamMember, "agent"),
}

# The recorder's hashes, and what never changes.
_KEPT: Final = {
    "id",
    "entity_type",
    "created_at",
    "updated_at",
    "version_hash",
    "hash_chain_sha256",
    "append_only",
    "tamper_proof",
    "governance_agent_id",
}


class Written(NamedTuple):
    """Ids of what a call has written."""

    created: frozenset[UUID]
    changed: frozenset[UUID]
    unchanged: frozenset[UUID]


async def put(connection: AsyncConnection, entities: Sequence[Entity]) -> Written:
    """Insert entities, or replace what is under their ids, in the caller's transaction and governance boundary.

    What is there already and equal is not touched. Ids that they refer to and that are not there become stubs; a stub
    that is described becomes what is described. Doing it again changes nothing. Embeddings that are not set are kept.

    Raises EntityInvalid, ConstitutionBroken or KindChanged, and has then written nothing of this call.
    """
    ordered = sorted(entities, key=attrgetter("id"))
    if len({entity.id for entity in ordered}) < len(ordered):
        raise EntityInvalid("Entities can't be written.", why="An id is given twice.")
    written = Written(frozenset(), frozenset(), frozenset())
    for start in range(0, len(ordered), PUT_MAX):
        some = await _put_some(connection, ordered[start : start + PUT_MAX])
        written = Written(*(before | now for before, now in zip(written, some, strict=True)))
    await _add_stubs(connection, ordered)
    return written


async def _put_some(connection: AsyncConnection, entities: Sequence[Entity]) -> Written:
    there = await _lock(connection, [entity.id for entity in entities])
    for entity in entities:
        found = there.get(entity.id)
        if found is not None and found.entity_type != entity.entity_type:
            raise KindChanged(why=f"{entity.id} is a {found.entity_type} and can't become a {entity.entity_type}.")
        accept(entity, found.amendment_history if found is not None else ())
    touched = await _upsert(connection, _table(Entity), entities)
    for kind, some in groupby(sorted(entities, key=attrgetter("entity_type", "id")), attrgetter("entity_type")):
        same_kind = list(some)
        for with_embedding in (False, True):
            rows = [entity for entity in same_kind if ("embedding" in entity.fields()) is with_embedding]
            touched |= await _upsert(connection, _table(KINDS[kind]), rows)
        if kind in LINKS:
            touched |= await _link(connection, LINKS[kind], same_kind)
    described = {entity_id for entity_id, found in there.items() if found.status != STUB}
    ids = frozenset(entity.id for entity in entities)
    return Written(ids - described, frozenset(touched) & described, frozenset(described - touched))


async def _lock(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, Any]:
    columns = _table(Entity).c
    query = select(columns.id, columns.entity_type, columns.status, columns.amendment_history)
    found = await connection.execute(
        query.where(columns.id == any_(_ids("ids"))).order_by(columns.id).with_for_update(), {"ids": list(ids)}
    )
    return {row.id: row for row in found}


async def _upsert(connection: AsyncConnection, table: Table, entities: Sequence[Entity]) -> set[UUID]:
    """Returns the ids whose rows were not there, or differed."""
    if not entities:
        return set()
    statement = insert(table).values([_values(entity, table) for entity in entities])
    given = statement.excluded
    settable = [name for name in _values(entities[0], table) if name not in _KEPT]
    differs: ColumnElement[bool] = or_(*(table.c[name].is_distinct_from(given[name]) for name in settable))
    found = await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[table.c.id], set_={name: given[name] for name in settable}, where=differs
        ).returning(table.c.id)
    )
    return set(found.scalars())


async def _link(connection: AsyncConnection, links: Links, entities: Sequence[Entity]) -> set[UUID]:
    """Make the rows behind a list of ids equal to it; returns the ids of the entities for which they were not."""
    table = _table(links.row)
    owner, other = list(table.primary_key.columns)
    wanted = [
        {owner.name: entity.id, other.name: linked, "governance_agent_id": entity.governance_agent_id}
        for entity in entities
        for linked in sorted(getattr(entity, links.field))
    ]
    pairs = [(row[owner.name], row[other.name]) for row in wanted]
    gone = table.delete().where(owner == any_(_ids("owners")))
    if pairs:
        gone = gone.where(tuple_(owner, other).not_in(pairs))
    removed = await connection.execute(gone.returning(owner), {"owners": [entity.id for entity in entities]})
    touched = set(removed.scalars())
    for start in range(0, len(wanted), _LINK_ROWS_MAX):
        rows = wanted[start : start + _LINK_ROWS_MAX]
        added = await connection.execute(insert(table).values(rows).on_conflict_do_nothing().returning(owner))
        touched |= set(added.scalars())
    return touched


_LINK_ROWS_MAX: Final = 5_000


async def _add_stubs(connection: AsyncConnection, entities: Iterable[Entity]) -> None:
    wanted = sorted({reference for entity in entities for reference in _references(entity)})
    for start in range(0, len(wanted), _LINK_ROWS_MAX):
        rows = [
            {"id": identity, "entity_type": kind, "governance_agent_id": boundary, "status": STUB}
            for identity, kind, boundary in wanted[start : start + _LINK_ROWS_MAX]
        ]
        await connection.execute(insert(_table(Entity)).values(rows).on_conflict_do_nothing())


def _references(entity: Entity) -> Iterator[tuple[UUID, str, str]]:
    """Id, kind and boundary of each entity that this one refers to. A parent may be of any kind, so it is left out."""
    for field, kind in _REFERENCES.items():
        identity = getattr(entity, field, None)
        if identity is not None:
            yield identity, kind, entity.governance_agent_id
    if links := LINKS.get(entity.entity_type):
        for identity in getattr(entity, links.field):
            yield identity, links.kind, entity.governance_agent_id


def _values(entity: Entity, table: Table) -> dict[str, Any]:
    fields = entity.fields()
    return {column.name: fields[column.name] for column in table.columns if column.name in fields}


def _table(row: type[Row]) -> Table:
    table = inspect(row).local_table
    assert isinstance(table, Table), "every mapped class here is of one table"
    return table


def _ids(name: str) -> Any:
    return bindparam(name, type_=ARRAY(Uuid))

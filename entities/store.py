"""Writing entities in bulk: insert or replace by id, with stubs for what they refer to and nobody has described yet.

The mapped classes suffice for one entity at a time. This is for many: a catalogue, or events, which describe entities
in any order. A call first makes the rows that are missing, then locks those that existed, each in the order of ids: so
calls that overlap wait for each other and don't deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Table, TextClause, any_, bindparam, func, inspect, or_, select, text
from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Text, Uuid

from database.errors import RowRefused
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

# Columns that the database writes; and columns that never change once they are written.
_WRITTEN_BY_DATABASE: Final = {"updated_at", "version_hash", "hash_chain_sha256", "external_id_from_event"}
_NEVER_CHANGED: Final = {"id", "entity_type", "created_at", "append_only", "tamper_proof", "governance_agent_id"}


class Written(NamedTuple):
    """The ids that a call has written. A stub that was described counts as created."""

    created: frozenset[UUID] = frozenset()
    changed: frozenset[UUID] = frozenset()
    unchanged: frozenset[UUID] = frozenset()

    def __or__(self, other: Written) -> Written:
        return Written(*(mine | its for mine, its in zip(self, other, strict=True)))


async def put(connection: AsyncConnection, entities: Sequence[Entity]) -> Written:
    """Insert entities, or replace those with their ids, in the caller's transaction and tenant.

    An equal entity is not touched. Ids that they refer to and that have no row become stubs; a stub that is described
    becomes the described entity. A second call with the same entities changes nothing. Embeddings that are not set are
    kept.

    Raises EntityInvalid, ConstitutionBroken, KindChanged or RowRefused, and has then written nothing of this call.
    """
    ordered = sorted(entities, key=attrgetter("id"))
    if len({entity.id for entity in ordered}) < len(ordered):
        raise EntityInvalid("Entities can't be written.", why="An id occurs twice.")
    if any(entity.is_stub for entity in ordered):
        raise EntityInvalid("A stub can't be written.", why="Stubs are made for what other entities refer to.")
    for entity in ordered:
        accept(entity)
    written = Written()
    async with connection.begin_nested():
        made = await _make_missing(connection, ordered)
        for some in _batches(ordered):
            written |= await _put_some(connection, some, made)
    return written


async def _make_missing(connection: AsyncConnection, entities: Sequence[Entity]) -> set[UUID]:
    """Make the rows that are missing in `entities`, and stubs for ids referred to; return the ids of the rows made."""
    ids = {entity.id for entity in entities}
    wanted = {reference for entity in entities for reference in _references(entity) if reference[0] not in ids}
    stubs = [Entity(id=id_, entity_type=kind, governance_agent_id=tenant) for id_, kind, tenant in wanted]
    table = _table(Entity)
    made: set[UUID] = set()
    for some in _batches(sorted([*entities, *stubs], key=attrgetter("id", "entity_type"))):
        rows = [_values(entity, table) for entity in some]
        inserted = await connection.execute(_insert(table).on_conflict_do_nothing().returning(table.c.id), rows)
        made.update(inserted.scalars())
    return made


async def _put_some(connection: AsyncConnection, entities: Sequence[Entity], made: set[UUID]) -> Written:
    earlier = [entity for entity in entities if entity.id not in made]
    locked = await _lock(connection, [entity.id for entity in earlier])
    if gone := [entity for entity in earlier if entity.id not in locked]:
        await _make_again(connection, gone)
        earlier = [entity for entity in earlier if entity.id in locked]
    for entity in earlier:
        stored = locked[entity.id]
        if stored.entity_type != entity.entity_type:
            raise KindChanged(why=f"{entity.id} is a {stored.entity_type} and can't become a {entity.entity_type}.")
        accept(entity, stored.amendment_history)
    touched = await _upsert(connection, _table(Entity), earlier)
    for kind, some in groupby(sorted(entities, key=attrgetter("entity_type", "id")), attrgetter("entity_type")):
        touched |= await _put_kind(connection, kind, list(some))
    described = {id_ for id_, row in locked.items() if row.status != STUB}
    ids = frozenset(entity.id for entity in entities)
    return Written(ids - described, frozenset(touched & described), frozenset(described - touched))


async def _make_again(connection: AsyncConnection, entities: Sequence[Entity]) -> None:
    """Make rows whose ids were taken when the missing rows were made, and that could not be locked afterwards.

    Such a row was deleted in between, has the same external id under another id, or belongs to another tenant, whose
    rows this transaction does not see: that is RowRefused.
    """
    table = _table(Entity)
    statement = _insert(table).on_conflict_do_nothing(index_elements=[table.c.id]).returning(table.c.id)
    made = set((await connection.execute(statement, [_values(entity, table) for entity in entities])).scalars())
    if refused := [entity.id for entity in entities if entity.id not in made]:
        raise RowRefused(why=f"{refused[0]} is not of this tenant.", next_step="choose another id for it")


async def _lock(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, Any]:
    """Lock the rows with these ids and return them by id.

    The lock is FOR NO KEY UPDATE: other writers of these rows wait, and checks of foreign keys, which lock only the key
    of a row, go on.
    """
    columns = _table(Entity).c
    query = select(columns.id, columns.entity_type, columns.status, columns.amendment_history)
    query = query.where(columns.id == any_(bindparam("ids", type_=ARRAY(Uuid)))).order_by(columns.id)
    rows = await connection.execute(query.with_for_update(key_share=True), {"ids": ids})
    return {row.id: row for row in rows}


async def _put_kind(connection: AsyncConnection, kind: str, entities: Sequence[Entity]) -> set[UUID]:
    """Write the rows of a kind and its lists of ids; return the ids of the entities that differed."""
    touched: set[UUID] = set()
    for with_embedding in (False, True):
        rows = [entity for entity in entities if ("embedding" in entity.fields()) is with_embedding]
        touched |= await _upsert(connection, _table(KINDS[kind]), rows)
    if kind in LINKS:
        touched |= await _link(connection, LINKS[kind], entities)
    return touched


async def _upsert(connection: AsyncConnection, table: Table, entities: Sequence[Entity]) -> set[UUID]:
    """Insert or update rows; return the ids of those that were missing or differed."""
    if not entities:
        return set()
    rows = [_values(entity, table) for entity in entities]
    statement = _insert(table)
    proposed = statement.excluded
    settable = [name for name in rows[0] if name not in _NEVER_CHANGED]
    differs: ColumnElement[bool] = or_(*(table.c[name].is_distinct_from(proposed[name]) for name in settable))
    written = await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[table.c.id], set_={name: proposed[name] for name in settable}, where=differs
        ).returning(table.c.id),
        rows,
    )
    return set(written.scalars())


async def _link(connection: AsyncConnection, links: Links, entities: Sequence[Entity]) -> set[UUID]:
    """Make the rows behind a list of ids equal to it; return the ids of the entities that differed."""
    wanted = [
        (entity.id, linked, entity.governance_agent_id)
        for entity in entities
        for linked in sorted(getattr(entity, links.field))
    ]
    owners, others, tenants = ([row[at] for row in wanted] for at in range(3))
    values = {"ids": [entity.id for entity in entities], "owners": owners, "others": others, "tenants": tenants}
    touched: set[UUID] = set()
    for statement in _link_statements(_table(links.row)):
        touched.update((await connection.execute(statement, values)).scalars())
    return touched


def _link_statements(table: Table) -> tuple[TextClause, TextClause]:
    """Return the statements that remove and add rows. They take arrays: there may be hundreds of thousands of rows."""
    owner, other = (column.name for column in table.primary_key.columns)
    ids = [bindparam(name, type_=ARRAY(Uuid)) for name in ("owners", "others")]
    remove = text(f"""
        DELETE FROM {table.name} AS l WHERE l.{owner} = ANY (:ids) AND NOT EXISTS (
            SELECT FROM unnest(:owners, :others) AS w (owner, other) WHERE w.owner = l.{owner} AND w.other = l.{other})
        RETURNING l.{owner}
    """)  # noqa: S608 (names of ours)
    add = text(f"""
        INSERT INTO {table.name} ({owner}, {other}, governance_agent_id)
        SELECT * FROM unnest(:owners, :others, :tenants) ON CONFLICT DO NOTHING RETURNING {owner}
    """)  # noqa: S608 (names of ours)
    return (
        remove.bindparams(*ids, bindparam("ids", type_=ARRAY(Uuid))),
        add.bindparams(*ids, bindparam("tenants", type_=ARRAY(Text))),
    )


def _references(entity: Entity) -> Iterator[tuple[UUID, str, str]]:
    """Yield id, kind and tenant of each entity that this one refers to; not of its parent, which may be of any kind."""
    for field, kind in _REFERENCES.items():
        id_ = getattr(entity, field, None)
        if id_ is not None:
            yield id_, kind, entity.governance_agent_id
    if links := LINKS.get(entity.entity_type):
        for id_ in getattr(entity, links.field):
            yield id_, links.kind, entity.governance_agent_id


def _values(entity: Entity, table: Table) -> dict[str, Any]:
    """Return a row of this table, without the columns that the database writes."""
    fields = entity.fields()
    fields.setdefault("created_at", None)
    names = [column.name for column in table.columns if column.name not in _WRITTEN_BY_DATABASE]
    return {name: fields[name] for name in names if name in fields}


def _insert(table: Table) -> Insert:
    """Return an insert of many rows, which is compiled once. Without a time of creation it is now."""
    if "created_at" not in table.c:
        return insert(table)
    created_at = bindparam("created_at", type_=table.c.created_at.type)
    return insert(table).values(created_at=func.coalesce(created_at, func.now()))


def _batches(entities: Sequence[Entity]) -> Iterable[Sequence[Entity]]:
    return (entities[start : start + PUT_MAX] for start in range(0, len(entities), PUT_MAX))


def _table(row: type[Row]) -> Table:
    table = inspect(row).local_table
    assert isinstance(table, Table), "every mapped class here is of one table"
    return table

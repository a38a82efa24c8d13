"""Writing entities in bulk: insert or replace by id, with stubs for what they refer to and nobody has described yet.

For one entity at a time the mapped classes will do. This is for many: a catalogue, or events, which tell of entities in
any order. A call first makes the rows that are missing, then locks those that were there, each in the order of ids: so
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

# What the database writes; and what, once written, never changes.
_WRITTEN_BY_DATABASE: Final = {"updated_at", "version_hash", "hash_chain_sha256"}
_NEVER_CHANGED: Final = {"id", "entity_type", "created_at", "append_only", "tamper_proof", "governance_agent_id"}


class Written(NamedTuple):
    """Ids of what a call has written. A stub that was described counts as created."""

    created: frozenset[UUID] = frozenset()
    changed: frozenset[UUID] = frozenset()
    unchanged: frozenset[UUID] = frozenset()

    def __or__(self, other: Written) -> Written:
        return Written(*(mine | its for mine, its in zip(self, other, strict=True)))


async def put(connection: AsyncConnection, entities: Sequence[Entity]) -> Written:
    """Insert entities, or replace what is under their ids, in the caller's transaction and governance boundary.

    What is there already and equal is not touched. Ids that they refer to and that are not there become stubs; a stub
    that is described becomes what is described. Doing it again changes nothing. Embeddings that are not set are kept.

    Raises EntityInvalid, ConstitutionBroken, KindChanged or RowRefused, and has then written nothing of this call.
    """
    ordered = sorted(entities, key=attrgetter("id"))
    if len({entity.id for entity in ordered}) < len(ordered):
        raise EntityInvalid("Entities can't be written.", why="An id is given twice.")
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
    """Make the rows in `entities` of those that have none, and stubs for what they refer to; returns whose."""
    given = {entity.id for entity in entities}
    wanted = {reference for entity in entities for reference in _references(entity) if reference[0] not in given}
    stubs = [Entity(id=identity, entity_type=kind, governance_agent_id=where) for identity, kind, where in wanted]
    table = _table(Entity)
    made: set[UUID] = set()
    for some in _batches(sorted([*entities, *stubs], key=attrgetter("id", "entity_type"))):
        rows = [_values(entity, table) for entity in some]
        found = await connection.execute(_insert(table).on_conflict_do_nothing().returning(table.c.id), rows)
        made.update(found.scalars())
    return made


async def _put_some(connection: AsyncConnection, entities: Sequence[Entity], made: set[UUID]) -> Written:
    earlier = [entity for entity in entities if entity.id not in made]
    there = await _lock(connection, [entity.id for entity in earlier])
    if gone := [entity for entity in earlier if entity.id not in there]:
        await _make_again(connection, gone)
        earlier = [entity for entity in earlier if entity.id in there]
    for entity in earlier:
        found = there[entity.id]
        if found.entity_type != entity.entity_type:
            raise KindChanged(why=f"{entity.id} is a {found.entity_type} and can't become a {entity.entity_type}.")
        accept(entity, found.amendment_history)
    touched = await _upsert(connection, _table(Entity), earlier)
    for kind, some in groupby(sorted(entities, key=attrgetter("entity_type", "id")), attrgetter("entity_type")):
        touched |= await _put_kind(connection, kind, list(some))
    described = {identity for identity, found in there.items() if found.status != STUB}
    ids = frozenset(entity.id for entity in entities)
    return Written(ids - described, frozenset(touched & described), frozenset(described - touched))


async def _make_again(connection: AsyncConnection, entities: Sequence[Entity]) -> None:
    """Rows that stood in the way a moment ago and are not to be seen: one was deleted since, has the same external id
    under another id, or is out of sight in another boundary."""
    table = _table(Entity)
    statement = _insert(table).on_conflict_do_nothing(index_elements=[table.c.id]).returning(table.c.id)
    made = set((await connection.execute(statement, [_values(entity, table) for entity in entities])).scalars())
    if refused := [entity.id for entity in entities if entity.id not in made]:
        raise RowRefused(why=f"{refused[0]} is not of this boundary.", next_step="choose another id for it")


async def _lock(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, Any]:
    """The rows with these ids, by id. Not against those who only refer to them: they lock the key."""
    columns = _table(Entity).c
    query = select(columns.id, columns.entity_type, columns.status, columns.amendment_history)
    query = query.where(columns.id == any_(bindparam("ids", type_=ARRAY(Uuid)))).order_by(columns.id)
    found = await connection.execute(query.with_for_update(key_share=True), {"ids": ids})
    return {row.id: row for row in found}


async def _put_kind(connection: AsyncConnection, kind: str, entities: Sequence[Entity]) -> set[UUID]:
    """The rows of a kind, and its lists of ids; returns the ids of the entities for which something differed."""
    touched: set[UUID] = set()
    for with_embedding in (False, True):
        rows = [entity for entity in entities if ("embedding" in entity.fields()) is with_embedding]
        touched |= await _upsert(connection, _table(KINDS[kind]), rows)
    if kind in LINKS:
        touched |= await _link(connection, LINKS[kind], entities)
    return touched


async def _upsert(connection: AsyncConnection, table: Table, entities: Sequence[Entity]) -> set[UUID]:
    """Returns the ids whose rows were not there, or differed."""
    if not entities:
        return set()
    rows = [_values(entity, table) for entity in entities]
    statement = _insert(table)
    given = statement.excluded
    settable = [name for name in rows[0] if name not in _NEVER_CHANGED]
    differs: ColumnElement[bool] = or_(*(table.c[name].is_distinct_from(given[name]) for name in settable))
    found = await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[table.c.id], set_={name: given[name] for name in settable}, where=differs
        ).returning(table.c.id),
        rows,
    )
    return set(found.scalars())


async def _link(connection: AsyncConnection, links: Links, entities: Sequence[Entity]) -> set[UUID]:
    """Make the rows behind a list of ids equal to it; returns the ids of the entities for which they were not."""
    wanted = [
        (entity.id, linked, entity.governance_agent_id)
        for entity in entities
        for linked in sorted(getattr(entity, links.field))
    ]
    owners, others, boundaries = ([row[at] for row in wanted] for at in range(3))
    values = {"ids": [entity.id for entity in entities], "owners": owners, "others": others, "boundaries": boundaries}
    touched: set[UUID] = set()
    for statement in _link_statements(_table(links.row)):
        touched.update((await connection.execute(statement, values)).scalars())
    return touched


def _link_statements(table: Table) -> tuple[TextClause, TextClause]:
    """Arrays, not a row of parameters each: there may be hundreds of thousands."""
    owner, other = (column.name for column in table.primary_key.columns)
    ids = [bindparam(name, type_=ARRAY(Uuid)) for name in ("owners", "others")]
    remove = text(f"""
        DELETE FROM {table.name} AS l WHERE l.{owner} = ANY (:ids) AND NOT EXISTS (
            SELECT FROM unnest(:owners, :others) AS w (owner, other) WHERE w.owner = l.{owner} AND w.other = l.{other})
        RETURNING l.{owner}
    """)  # noqa: S608 (names of ours)
    add = text(f"""
        INSERT INTO {table.name} ({owner}, {other}, governance_agent_id)
        SELECT * FROM unnest(:owners, :others, :boundaries) ON CONFLICT DO NOTHING RETURNING {owner}
    """)  # noqa: S608 (names of ours)
    return (
        remove.bindparams(*ids, bindparam("ids", type_=ARRAY(Uuid))),
        add.bindparams(*ids, bindparam("boundaries", type_=ARRAY(Text))),
    )


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
    """A row of this table; what the database writes is left to it."""
    fields = entity.fields()
    fields.setdefault("created_at", None)
    names = [column.name for column in table.columns if column.name not in _WRITTEN_BY_DATABASE]
    return {name: fields[name] for name in names if name in fields}


def _insert(table: Table) -> Insert:
    """An insert of many rows, which is compiled once. What is created at no given time is created now."""
    if "created_at" not in table.c:
        return insert(table)
    given = bindparam("created_at", type_=table.c.created_at.type)
    return insert(table).values(created_at=func.coalesce(given, func.now()))


def _batches(entities: Sequence[Entity]) -> Iterable[Sequence[Entity]]:
    return (entities[start : start + PUT_MAX] for start in range(0, len(entities), PUT_MAX))


def _table(row: type[Row]) -> Table:
    table = inspect(row).local_table
    assert isinstance(table, Table), "every mapped class here is of one table"
    return table

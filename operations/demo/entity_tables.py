"""The demo's turn of the read model `registry`: how far it has come, and what its entity tables hold then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database
from entities.entity import Entity
from entities.references import check_entities
from entities.versions import EntityVersion
from entities.vocabulary import DEFAULT_TENANT
from operations.demo.errors import NotAsPromised
from operations.demo.outcome import EntityTablesPart, EntityTypeRow
from projections.build_states import build_states

REGISTRY: Final = "registry"


async def registry_lag(database: Database) -> int:
    """Return how many records it lacks, as operators see it. Raises NotAsPromised where it was refused."""
    (state,) = (each for each in await build_states(database) if each.name == REGISTRY and each.state != "left")
    if state.last_error:
        raise NotAsPromised("The read model registry has stopped.", why=state.last_error)
    return state.lag


async def read_entity_tables(database: Database, agents: Sequence[UUID]) -> EntityTablesPart:
    """Return how many entities and versions there are by type. Raises NotAsPromised where one of `agents` is not."""
    async with database.transaction(DEFAULT_TENANT, isolation="REPEATABLE READ", read_only=True) as connection:
        own = Entity.__table__.c
        there = set((await connection.scalars(select(own.id).where(own.id.in_(agents)))).all())
        entities = await _counts(connection, own.entity_type)
        versions = await _counts(connection, EntityVersion.__table__.c.entity_type)
        checked = await check_entities(connection)
    if missing := set(agents) - there:
        raise NotAsPromised("Agents are missing in the entity tables.", why=f"{len(missing)} of {len(agents)} are.")
    rows = [EntityTypeRow(entity_type=kind, entities=entities[kind], versions=versions[kind]) for kind in entities]
    return EntityTablesPart(checked=checked.entities, findings=len(checked.faults), rows=rows)


async def _counts(connection: AsyncConnection, kind: ColumnElement[str]) -> dict[str, int]:
    """Return the rows by type, of a table with the types in this column."""
    rows = await connection.execute(select(kind, func.count()).group_by(kind).order_by(kind))
    return dict(rows.tuples().all())

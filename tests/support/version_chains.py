"""Chains of versions as tests look at them: read from the database, and recomputed by other code than Plant's."""

from __future__ import annotations

import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from database.connector import connect
from entities import references
from entities.references import EntityFault
from entities.versions import EntityVersion, first_break
from runtime.settings import Settings
from tests.support.direct_changes import fetch

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def plain_hash(previous: bytes, version: Any) -> bytes:
    """The formula once more, from the words at the top of entities/versions.py."""
    microseconds = (version["recorded_at"] - EPOCH) // timedelta(microseconds=1)
    parts = [b"plant.entity.version.v1", version["entity_id"].bytes, struct.pack(">q", version["version"])]
    parts += [version["entity_type"].encode(), version["operation"].encode(), struct.pack(">q", microseconds)]
    parts += [version[name].encode() for name in ("recorded_by", "governance_agent_id", "state")]
    return hashlib.sha256(previous + b"".join(struct.pack(">i", len(part)) + part for part in parts)).digest()


async def versions_of(superuser_url: str, entity_id: UUID) -> list[asyncpg.Record]:
    """An entity's versions in order, after it was checked that they are one unbroken chain that ends at the entity.

    The chain is checked with `first_break` and, by itself, with `plain_hash`.
    """
    rows = await fetch(superuser_url, "SELECT * FROM entity_versions WHERE entity_id = $1 ORDER BY version", entity_id)
    assert first_break([EntityVersion(**row) for row in rows]) is None
    previous = bytes(32)
    for number, row in enumerate(rows, start=1):
        assert (row["version"], row["previous_hash"]) == (number, previous)
        assert row["version_hash"] == hashlib.sha256(row["state"].encode()).digest()
        assert row["hash"] == plain_hash(previous, row)
        previous = row["hash"]
    heads = await fetch(superuser_url, "SELECT version_hash, hash_chain_sha256 FROM entities WHERE id = $1", entity_id)
    if rows and rows[-1]["operation"] != "deleted":
        assert [tuple(head) for head in heads] == [(rows[-1]["version_hash"], rows[-1]["hash"])]
    else:
        assert heads == []
    return rows


async def states_of(superuser_url: str, entity_id: UUID) -> list[dict[str, Any]]:
    """What an entity was after each change, its chain checked."""
    return [json.loads(row["state"]) for row in await versions_of(superuser_url, entity_id)]


async def names_of(superuser_url: str, entity_id: UUID) -> list[str | None]:
    """Its name after each change, its chain checked."""
    return [state.get("name") for state in await states_of(superuser_url, entity_id)]


async def findings(api_url: str, governance: str = "genesis") -> list[EntityFault]:
    """What `plant entities check` finds in a tenant."""
    database = connect(Settings(database_api_url=api_url), "api")
    try:
        async with database.transaction(governance, isolation="REPEATABLE READ", read_only=True) as connection:
            return (await references.check_entities(connection)).faults
    finally:
        await database.close()

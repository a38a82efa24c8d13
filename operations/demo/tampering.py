"""Two attempts to change history: one on the log itself, which is refused; one on a copy, which is detected."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import msgspec

from audit.verifier.chain_range import Chain
from audit.verifier.chains import verify_chains
from audit.verifier.verdicts import ChainVerdict
from database import migrate
from database.address import connect_arguments
from devstack import postgres, sql
from operations.demo.errors import NotAsPromised
from runtime.settings import Settings
from schemas import codec
from schemas.events import AgentRated
from streams.topics import EVENTS_TOPIC

COPY: Final = "plant_demo_copy"
BEST_RATING: Final = 5

_RATED: Final = """
SELECT "offset", value FROM log_records
WHERE topic = $1 AND partition = $2 AND "offset" >= $3
  AND event_type = 'genesis.agent.rated' AND disposition = 'applied'
ORDER BY "offset" LIMIT 200
"""

_RANGES: Final = "SELECT first_offset FROM log_ranges WHERE topic = $1 AND partition = $2 ORDER BY 1"

_ROWS: Final = "SELECT * FROM log_records WHERE topic = $1 AND partition = $2"

_CHANGE: Final = """
UPDATE log_records SET value = $1 WHERE topic = $2 AND partition = $3 AND "offset" = $4 AND value = $5
"""


class TamperedRow(msgspec.Struct, frozen=True):
    """An entry of the log that somebody would like to be another one."""

    partition: int
    offset: int
    event: AgentRated


class RefusedStatement(msgspec.Struct, frozen=True):
    """A change that Postgres refused, and its error."""

    role: str
    statement: str
    error: str


class Forgery(msgspec.Struct, frozen=True, kw_only=True):
    """A change to the copy, and the verifier's finding; hashes in hex."""

    topic: str
    partition: int
    offset: int
    event_type: str
    byte: int
    before: int
    after: int
    change: str
    problem: str
    stored_hash: str
    recomputed_hash: str


def choose_row(auditor_url: str, first_offsets: Mapping[int, int]) -> TamperedRow:
    """Return this run's worst rating in the first partition that has one; partitions are read from these offsets."""

    async def search() -> TamperedRow:
        connection = await asyncpg.connect(**connect_arguments(auditor_url, application_name="plant demo"))
        try:
            for partition, first in sorted(first_offsets.items()):
                rows = await connection.fetch(_RATED, EVENTS_TOPIC, partition, first)
                ratings = [TamperedRow(partition, row["offset"], _rating(row["value"])) for row in rows]
                worst = min(ratings, key=lambda rating: rating.event.rating, default=None)
                if worst is not None and worst.event.rating < BEST_RATING:
                    return worst
        finally:
            await connection.close()
        raise NotAsPromised(
            "There is no rating to tamper with.", why="All of them are the best.", next_step="plant demo"
        )

    return asyncio.run(search())


def _rating(value: bytes) -> AgentRated:
    event = codec.decode(value)
    assert isinstance(event, AgentRated)
    return event


def attempt_changes(settings: Settings, row: TamperedRow) -> list[RefusedStatement]:
    """Try to change the log as the role that writes it, and as its owner. Raises NotAsPromised if it works."""
    statement = (
        f"UPDATE log_records SET value = '\\x00' WHERE topic = '{EVENTS_TOPIC}' AND partition = {row.partition} "  # noqa: S608
        f'AND "offset" = {row.offset}'
    )
    return [
        RefusedStatement(f"plant_{role}", statement, _attempt(settings.database_address(role), statement))
        for role in ("writer", "owner")
    ]


def _attempt(url: str, statement: str) -> str:
    async def attempt() -> str:
        connection = await asyncpg.connect(**connect_arguments(url, application_name="plant demo"))
        try:
            async with connection.transaction():
                try:
                    await connection.execute(statement)
                except asyncpg.InsufficientPrivilegeError as error:
                    return str(error).splitlines()[0]
                raise NotAsPromised("The log let itself be changed.", why="The change was rolled back.")
        finally:
            await connection.close()

    return asyncio.run(attempt())


def forge_copy(environ: Mapping[str, str], row: TamperedRow) -> Forgery:
    """Copy the chain, verify it, change one byte as superuser with the triggers off, and verify it again.

    The copy is a database of its own, migrated like the real one, and is dropped at the end. Raises NotAsPromised
    where the verifier does not find the change.
    """
    superuser_url = environ["PLANT_DATABASE_SUPERUSER_URL"]
    auditor_url = environ["PLANT_DATABASE_AUDITOR_URL"]
    postgres.drop_database(superuser_url, COPY)  # of a demo that was killed
    try:
        chain = Chain(EVENTS_TOPIC, row.partition)
        _copy_chain(superuser_url, environ["PLANT_DATABASE_OWNER_URL"], chain)
        before = _verdict(_in_copy(auditor_url), chain)
        if before.finding is not None or not before.entries:
            raise NotAsPromised("The copy of the chain is not good.", why=str(before.finding or "It is empty."))
        at, old, new = _change_one_byte(_in_copy(superuser_url), row)
        finding = _verdict(_in_copy(auditor_url), chain).finding
    finally:
        postgres.drop_database(superuser_url, COPY)
    if finding is None or finding.offset != row.offset:
        raise NotAsPromised(
            "The verifier did not find the change.", why=f"Offset {row.offset}; the finding is {finding}."
        )
    return Forgery(
        topic=chain.topic,
        partition=chain.partition,
        offset=row.offset,
        event_type=row.event.event_type,
        byte=at,
        before=old,
        after=new,
        change=f"a rating of {row.event.rating} made {BEST_RATING}",
        problem=finding.problem,
        stored_hash=finding.stored_hash or "",
        recomputed_hash=finding.recomputed_hash or "",
    )


def _verdict(url: str, chain: Chain) -> ChainVerdict:
    return verify_chains(url, chains=[chain], jobs=1)[0]


def _copy_chain(superuser_url: str, owner_url: str, chain: Chain) -> None:
    """Make the database, by the real migrations, and copy the chain's rows into it, through a file.

    Not CREATE DATABASE … TEMPLATE: that needs a database without sessions, and workers are connected to this one.
    """
    postgres.create_database(superuser_url, COPY)
    sql.execute(_in_copy(superuser_url), ["CREATE EXTENSION IF NOT EXISTS vector", postgres.SCHEMA_GRANT])
    migrate.upgrade(_in_copy(owner_url))

    async def copy() -> None:
        source = await asyncpg.connect(superuser_url, ssl=False)
        owner = await asyncpg.connect(_in_copy(owner_url), ssl=False)
        target = await asyncpg.connect(_in_copy(superuser_url), ssl=False)
        try:
            for (first_offset,) in await source.fetch(_RANGES, chain.topic, chain.partition):
                await owner.execute("SELECT add_log_range($1, $2, $3)", chain.topic, chain.partition, first_offset)
            with tempfile.TemporaryFile() as rows:
                await source.copy_from_query(_ROWS, chain.topic, chain.partition, output=rows, format="binary")
                rows.seek(0)
                await target.copy_to_table("log_records", source=rows, format="binary")
        finally:
            for connection in (source, owner, target):
                await connection.close()

    asyncio.run(copy())


def _change_one_byte(superuser_url: str, row: TamperedRow) -> tuple[int, int, int]:
    """Change a byte of the value; return its index, old and new."""
    old = codec.encode(row.event)
    new = codec.encode(msgspec.structs.replace(row.event, rating=BEST_RATING))
    changed = [at for at, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
    assert len(changed) == 1, "a rating is one byte"

    async def change() -> None:
        connection = await asyncpg.connect(superuser_url, ssl=False)
        try:
            await connection.execute("SET session_replication_role = replica")  # switches the triggers off
            done = await connection.execute(_CHANGE, new, EVENTS_TOPIC, row.partition, row.offset, old)
            assert done == "UPDATE 1", done
        finally:
            await connection.close()

    asyncio.run(change())
    return changed[0], old[changed[0]], new[changed[0]]


def _in_copy(url: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{COPY}"))

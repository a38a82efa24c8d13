"""Rows of the log for tests: built by the writer's side from real events, stored as `plant_writer`."""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg

from audit.canonical import headers_bytes
from audit.chain import CHAIN_START, ChainSlice, extend_slice
from devstack import postgres, sql
from projections.session import Session
from schemas import codec
from schemas.control import chain_version_raised
from schemas.entity_states import AgentState
from schemas.event_id import event_id
from schemas.events import AgentOnboarded, EntityRetired, Event, OperationRecorded
from tests.conftest import Database
from tests.support.services import Services

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STARTED_MS = 1_767_323_045_678


@dataclass(frozen=True)
class Row:
    """A row of log_records, with the key that it stands for and the hash before."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    disposition: str
    event_id: UUID | None
    key: bytes | None
    value: bytes | None
    headers: bytes
    reason: str | None
    entity_type: str | None
    entity_id: UUID | None
    event_type: str | None
    control_offset: int | None = None
    previous_hash: bytes = CHAIN_START
    hash: bytes = CHAIN_START

    @property
    def created_at(self) -> datetime:
        return EPOCH + timedelta(milliseconds=self.timestamp_ms)

    @property
    def stored(self) -> tuple[Any, ...]:
        """Its columns in the order of :data:`COLUMNS`; a key that is the entity's id is not stored twice."""
        key = None if self.entity_id is not None and self.key == str(self.entity_id).encode() else self.key
        types = (self.event_id, self.entity_id, self.entity_type, self.event_type)
        record = (self.hash, key, self.value, self.headers, self.reason)
        return (
            self.topic,
            self.partition,
            self.offset,
            self.created_at,
            self.disposition,
            *types,
            *record,
            self.control_offset,
        )


COLUMNS = (
    "topic", "partition", "offset", "created_at", "disposition", "event_id", "entity_id", "entity_type", "event_type",
    "hash", "key", "value", "headers", "reason", "control_offset",
)  # fmt: skip


def onboarded(number: int) -> AgentOnboarded:
    return AgentOnboarded(
        event_id=event_id("test", f"onboarded {number}"),
        agent_id=UUID(int=number + 1),
        occurred_at=EPOCH,
        name=f"Agent {number}",
        skill_ids=(),
    )


def retired(number: int) -> EntityRetired:
    agent = AgentState(name="Agent", skill_ids=(), status="retired", available=False)
    identity = event_id("test", f"retired {number}")
    return EntityRetired(
        event_id=identity, entity_id=UUID(int=number + 1), occurred_at=EPOCH, entity_type="agent", agent=agent
    )


def operation(number: int) -> OperationRecorded:
    return OperationRecorded(
        event_id=event_id("test", f"operation {number}"),
        operation_id=UUID(int=number + 1),
        occurred_at=EPOCH,
        actor="an operator",
        action="keys add",
        target="genesis",
        reason="a test",
    )


def row(topic: str, partition: int, offset: int, event: Event, disposition: str = "applied") -> Row:
    """An event's record as the worker stores it; not linked yet."""
    return Row(
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp_ms=STARTED_MS + offset % 1_000_000,
        disposition=disposition,
        event_id=event.event_id,
        key=codec.key(event),
        value=codec.encode(event),
        headers=headers_bytes(codec.headers(event, "test")),
        reason=None,
        entity_type=event.entity_type,
        entity_id=event.entity_id,
        event_type=event.event_type,
    )


def poison(topic: str, partition: int, offset: int, key: bytes | None, value: bytes | None) -> Row:
    """An undecodable record as the worker stores it; not linked yet."""
    position = (topic, partition, offset, STARTED_MS + offset % 1_000_000)
    return Row(*position, "poison", None, key, value, headers_bytes([("h", None)]), "a test", None, None, None)


def switch(topic: str, partition: int, offset: int) -> Row:
    """The control record that takes the chain to v2, as the worker stores it; not linked yet."""
    raised = chain_version_raised(topic, partition)
    position = (topic, partition, offset, STARTED_MS + offset % 1_000_000)
    record = (None, codec.encode(raised), headers_bytes([("ce_type", raised.event_type.encode())]))
    return Row(*position, "control", raised.event_id, *record, None, None, None, raised.event_type)


def linked(rows: Iterable[Row], before: bytes = CHAIN_START, *, raised: bool = False) -> list[Row]:
    """The rows with their hashes, by the writer's code: in v2 from the first control record on, or `raised` at once."""
    linked_rows = []
    for each in rows:
        raised = raised or each.disposition == "control"
        event_id = None if each.event_id is None else each.event_id.bytes
        parts = ([each.offset], [each.timestamp_ms], [each.key], [each.value], [each.headers])
        judged = ChainSlice(*parts, [each.disposition], [event_id])
        (after,) = extend_slice(each.topic, each.partition, before, judged, 0 if raised else 1)
        linked_rows.append(replace(each, previous_hash=before, hash=after))
        before = after
    return linked_rows


def log(topic: str = "genesis.events", partition: int = 0) -> list[Row]:
    """A chain of 20 entries with gaps: events, a repeat, an entity that retired, and records that are no events."""
    rows = [row(topic, partition, offset, onboarded(offset)) for offset in (*range(3, 10), *range(12, 20))]
    rows.append(row(topic, partition, 21, onboarded(3), disposition="repeat"))
    rows.append(row(topic, partition, 22, retired(4)))
    rows.append(poison(topic, partition, 23, None, b"\x00\x00\x00\x00\x01 no event"))
    rows.append(poison(topic, partition, 24, b"", None))
    rows.append(row(topic, partition, 25, onboarded(25)))
    return linked(rows)


def raised_log(topic: str = "genesis.events", partition: int = 0) -> list[Row]:
    """The chain of :func:`log`, which goes over to v2 at offset 26, and goes on: events, a repeat, poison."""
    rows = [switch(topic, partition, 26), row(topic, partition, 27, onboarded(27))]
    rows.append(row(topic, partition, 30, onboarded(27), disposition="repeat"))
    rows.append(poison(topic, partition, 31, b"key", b"no event"))
    rows.append(row(topic, partition, 32, retired(27)))
    rows.append(switch(topic, partition, 33))
    rows.append(row(topic, partition, 34, onboarded(34)))
    before = log(topic, partition)
    return [*before, *linked(rows, before[-1].hash)]


def store(database: Database, rows: Sequence[Row]) -> None:
    """Append rows as the writer; ranges that are missing are made."""
    make_ranges(database, rows)

    async def work(connection: Any) -> None:
        async with connection.transaction():
            records = [each.stored for each in rows]
            await connection.copy_records_to_table("log_records", records=records, columns=COLUMNS)

    on_connection(database.superuser_url, work)


def make_ranges(database: Database, rows: Iterable[Row]) -> None:
    """Make the ranges that these rows belong in, where they are missing."""
    size = int(sql.value(database.superuser_url, "SELECT log_range_offsets()"))
    ranges = sorted({(each.topic, each.partition, each.offset - each.offset % size) for each in rows})

    async def work(connection: Any) -> None:
        known = {tuple(row) for row in await connection.fetch("SELECT topic, partition, first_offset FROM log_ranges")}
        for each in ranges:
            if each not in known:
                await connection.execute("SELECT add_log_range($1, $2, $3)", *each)

    on_connection(database.owner_url, work)


@contextmanager
def migrated_database(stack: Services, template: str) -> Iterator[Database]:
    """A database for the tests of one module: a copy of the template, which is slow to make for each test."""
    name = f"plant_log_{secrets.token_hex(6)}"
    postgres.create_database(stack.superuser_url, name, template=template)
    try:
        yield addresses(stack, name)
    finally:
        postgres.drop_database(stack.superuser_url, name)


def addresses(stack: Services, name: str) -> Database:
    """A database of this name, by role."""
    roles = ("owner", "writer", "ingress", "operator", "api", "auditor", "embedder", "deliverer", "endpoints",
             "superuser")  # fmt: skip
    urls = [urlsplit(stack.environ[f"PLANT_DATABASE_{role.upper()}_URL"]) for role in roles]
    return Database(name, *(url._replace(path=f"/{name}").geturl() for url in urls))


@contextmanager
def unmigrated(stack: Services, *, extension: bool = True) -> Iterator[Database]:
    """A database that was never migrated; its administrator has added the vector extension, unless it is not wanted."""
    name = f"plant_bare_{secrets.token_hex(6)}"
    postgres.create_database(stack.superuser_url, name)
    database = addresses(stack, name)
    if extension:
        sql.execute(database.superuser_url, ["CREATE EXTENSION vector"])
    yield database
    postgres.drop_database(stack.superuser_url, name)


def empty(database: Database) -> None:
    """Remove every row of the log, as nobody but a superuser can."""
    statements = ["SET session_replication_role = replica", "TRUNCATE log_records"]
    sql.execute(database.superuser_url, statements)


def on_connection(url: str, work: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    """Run work on a connection of its own, from plain code."""

    async def whole() -> Any:
        connection = await asyncpg.connect(url, timeout=300)
        try:
            return await work(connection)
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(whole())).result()


_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_EPOCH_2000_MS = 946_684_800_000


def copied(rows: Iterable[Row]) -> bytes:
    """What `COPY … TO STDOUT (FORMAT binary)` of audit/verifier/rows.sql gives for these rows."""
    return _COPY_HEADER + b"".join(_copied(each) for each in rows) + b"\xff\xff"


def _copied(each: Row) -> bytes:
    fields: list[bytes | None] = [each.hash, struct.pack(">q", (each.timestamp_ms - _EPOCH_2000_MS) * 1000)]
    fields += [struct.pack(">q", each.offset), each.key, each.value, each.headers, each.disposition.encode()]
    fields.append(None if each.event_id is None else each.event_id.bytes)
    fields += [None if text is None else text.encode() for text in (each.event_type, each.entity_type)]
    fields.append(None if each.entity_id is None else each.entity_id.bytes)
    fields.append(None if each.control_offset is None else struct.pack(">q", each.control_offset))
    fields.append(None)  # it lies in the table of its partition
    shown = [b"\xff\xff\xff\xff" if data is None else struct.pack(">i", len(data)) + data for data in fields]
    return struct.pack(">h", len(fields)) + b"".join(shown)


def different(rows: Sequence[Row], index: int, **changes: Any) -> list[Row]:
    """The rows with one of them changed."""
    return [replace(each, **changes) if at == index else each for at, each in enumerate(rows)]


def applied(database: Database) -> int:
    """Return how many records of the log are applied."""
    session = Session(database.auditor_url)
    try:
        return int(session.query("SELECT count(*) AS n FROM event_stream WHERE disposition = 'applied'")[0][0])
    finally:
        session.close()

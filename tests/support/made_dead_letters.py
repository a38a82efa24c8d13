"""A log with dead letters, made row by row: what workers would have written for poison, parked and control records."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from audit.canonical import headers_bytes
from schemas import codec
from schemas.control import RecordRedriven, RecordSkipped
from schemas.events import Event
from tests.conftest import Database
from tests.support.log_rows import make_ranges, on_connection, poison

UNREADABLE = "no schema has the id 77"
APPENDED = datetime(2026, 11, 27, 8, tzinfo=UTC)
COLUMNS = (
    "topic", "partition", "offset", "created_at", "disposition", "control_offset", "event_id", "entity_id",
    "event_type", "hash", "key", "value", "headers", "reason",
)  # fmt: skip


@dataclass
class MadeLog:
    """Rows of a topic's log, and where each partition's ends."""

    topic: str = "genesis.events"
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def poison(
        self,
        partition: int,
        offset: int,
        key: bytes | UUID | None,
        value: bytes | None = b"\x00\x00\x00\x00\x4d no event",
        *,
        reason: str = UNREADABLE,
        headers: list[tuple[str, bytes | None]] | None = None,
        parks: bool = True,
        at: datetime = APPENDED,
    ) -> None:
        """A record that can't be applied; it parks its entity's later events if its key is one's."""
        entity = key if isinstance(key, UUID) and parks else None
        stored = str(key).encode() if isinstance(key, UUID) and entity is None else None if entity else key
        self._add(partition, offset, at, "poison", None, None, entity, None, stored, value, headers or [], reason)

    def parked(self, partition: int, offset: int, event: Event) -> None:
        """An event that waits behind a poison record."""
        ids = (event.event_id, event.entity_id, event.event_type)
        self._add(partition, offset, APPENDED, "parked", None, *ids, None, codec.encode(event), [], None)

    def applied(self, partition: int, offset: int, event: Event) -> None:
        """An event that took effect."""
        ids = (event.event_id, event.entity_id, event.event_type)
        self._add(partition, offset, APPENDED, "applied", None, *ids, None, codec.encode(event), [], None)

    def control(
        self,
        partition: int,
        offset: int,
        record: RecordRedriven | RecordSkipped,
        *,
        key: bytes | None = None,
        effect: bool = True,
        headers: list[tuple[str, bytes | None]] | None = None,
        value: bytes | None = None,
    ) -> None:
        """A control record, by default with effect."""
        named = record.poison_offset if effect else None
        ids = (record.event_id, None, record.event_type)
        value = value or codec.encode(record)
        self._add(partition, offset, APPENDED, "control", named, *ids, key, value, headers or [], None)

    def _add(self, partition: int, offset: int, at: datetime, *columns: Any) -> None:
        disposition, named, event_id, entity_id, event_type, key, value, headers, reason = columns
        ids = (disposition, named, event_id, entity_id, event_type)
        content = (bytes(32), key, value, headers_bytes(headers), reason)
        self.rows.append((self.topic, partition, offset, at, *ids, *content))

    def store(self, database: Database) -> None:
        """Write the rows that were not written yet; a partition's checkpoint follows its last one."""
        new, self.rows = self.rows, []
        next_offsets = {partition: offset + 1 for _, partition, offset, *_ in sorted(new, key=lambda each: each[:3])}
        make_ranges(database, (poison(*each[:3], None, None) for each in new))

        async def write(connection: Any) -> None:
            await connection.copy_records_to_table("log_records", records=new, columns=COLUMNS)
            for partition, end in next_offsets.items():
                await connection.execute(
                    "INSERT INTO checkpoints (consumer, topic, partition, next_offset) VALUES ('projector', $1, $2, $3)"
                    " ON CONFLICT (consumer, topic, partition) DO UPDATE SET next_offset = $3",
                    self.topic, partition, end,
                )  # fmt: skip

        on_connection(database.superuser_url, write)

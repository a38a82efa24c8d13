"""A record that workers have not come to, since its partition waits at it: its schema is of a later release of Plant.

It can be skipped: the partition's owner reads ahead for the skip, and logs the record as poison.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

from audit.canonical import headers_bytes
from operations.dead_letters.dead_letter import DeadLetter, entity_of
from operations.dead_letters.search import Unread
from projections.dead_letter_rows import DeadLetterRows, LoggedRow
from runtime.settings import Settings
from streams.consume import read_record
from streams.errors import SchemaNewer
from streams.record_position import RecordPosition


def unread_at(settings: Settings, rows: DeadLetterRows) -> Unread:
    """Return a function that does as :func:`unread_record`, given a position alone."""
    return partial(unread_record, settings, rows)


async def unread_record(settings: Settings, rows: DeadLetterRows, position: RecordPosition) -> DeadLetter | None:
    """Return the record at a position if its partition waits at it; None where it does not.

    Raises KafkaUnavailable, TopicMissing.
    """
    reason = await rows.stop_reason(position.topic, position.partition)
    if reason is None or not SchemaNewer.waits_at(reason, position.offset):
        return None
    record = await read_record(settings, position)
    if record is None:
        return None
    row = LoggedRow(
        topic=position.topic,
        partition=position.partition,
        offset=position.offset,
        disposition="unread",
        created_at=datetime.fromtimestamp(record.timestamp / 1000, UTC),
        reason="its partition waits at it: no schema has its id, but a later release may have it",
        key=record.key,
        entity_id=entity_of(record.key),
        event_id=None,
        event_type=None,
        headers=headers_bytes(record.headers),
        value=record.value,
        value_bytes=None if record.value is None else len(record.value),
    )
    return DeadLetter(row=row)

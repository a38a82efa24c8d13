"""Who may send the deliveries of a partition, and how far each of its topics is done.

A partition number has one owner on all topics of deliveries, so all that concerns an endpoint, the key of their
records, is in one process. A fence of its own, since who handles the answers of strangers may not touch the log's.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Final, Literal
from uuid import UUID

import msgspec

from projections.checkpoints import storable
from projections.session import Session, sql_literal
from streams.errors import PartitionCountChanged, TopicRecreated
from streams.log_end import LogEnd, RecordDigest
from streams.watermarks import Watermarks

DeliveryConsumer = Literal["deliverer", "recorder"]

OWNER: Final = f"{socket.gethostname()}:{os.getpid()}"

OffsetRanges = Sequence[tuple[int, int]]
"""Ranges of offsets, ascending and apart; the second is the first offset that is not in it."""

# Only the very session that acquired the partition is ended, by its start. The wait makes sure that its locks are gone.
_TERMINATE: Final = """
SELECT pg_terminate_backend(a.pid, 5000)
FROM delivery_owners AS o JOIN pg_stat_activity AS a ON a.pid = o.backend_pid AND a.backend_start = o.backend_started_at
WHERE o.consumer = $1 AND o.partition = $2 AND a.pid <> pg_backend_pid()
"""

_ACQUIRE: Final = """
INSERT INTO delivery_owners AS o (consumer, partition, token, worker, backend_pid, backend_started_at)
SELECT $1, $2, 1, $3, pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()
ON CONFLICT (consumer, partition) DO UPDATE SET token = o.token + 1, worker = excluded.worker,
    backend_pid = excluded.backend_pid, backend_started_at = excluded.backend_started_at,
    taken_at = clock_timestamp(), stop_reason = NULL
RETURNING token
"""

_NOTE_STOP: Final = "UPDATE delivery_owners SET stop_reason = $3 WHERE consumer = $1 AND partition = $2"

_ADD_CHECKPOINT: Final = """
INSERT INTO delivery_checkpoints (consumer, topic, partition, partitions, topic_id, next_offset, read_to)
VALUES ($1, $2, $3, $4, $5::text::uuid, $6, $6) ON CONFLICT DO NOTHING
"""

_CHECKPOINT: Final = """
SELECT partitions, topic_id::text AS topic_id, next_offset, read_to, last_offset, last_digest,
       ARRAY(SELECT lower(r) FROM unnest(done) AS r) AS starts, ARRAY(SELECT upper(r) FROM unnest(done) AS r) AS ends
FROM delivery_checkpoints WHERE consumer = $1 AND topic = $2 AND partition = $3
"""


_LAST_RECORDED: Final = """
SELECT last_offset, last_digest FROM delivery_checkpoints
WHERE consumer = 'recorder' AND topic = $1 AND partition = $2 AND last_offset IS NOT NULL
"""


class TopicOffsets(msgspec.Struct, frozen=True):
    """The offsets of a topic's partition that are done: all below `next_offset`, and those in `done`, above it.

    Records below `read_to` were told from copies already, and `last` is the last of them, where that is known.
    """

    next_offset: int
    done: OffsetRanges = ()
    read_to: int = 0
    last: RecordDigest | None = None

    @property
    def log_end(self) -> LogEnd:
        """What Kafka has to hold before the first record that is read."""
        known = self.last is not None and self.last.offset < self.next_offset
        return LogEnd(self.last if known else None, self.next_offset, compared=known)


class DeliveryFence:
    """The right to send a partition's deliveries, or to record their attempts, until another session acquires it."""

    def __init__(self, session: Session, consumer: DeliveryConsumer, partition: int) -> None:
        """End the former owner's session, and take the next token for this session."""
        session.query(_TERMINATE, (consumer, partition))
        self.token: Final = int(session.query(_ACQUIRE, (consumer, partition, OWNER))[0][0])
        self.lock_statement: Final = f"SELECT lock_deliveries({sql_literal(consumer)}, {int(partition)}, {self.token})"
        """Each transaction begins with it; it raises OwnershipLost where the token is not current."""
        self._session = session
        self._consumer = consumer
        self._partition = partition

    def open_topic(self, topic: str, watermarks: Watermarks, first_offset: int = 0) -> TopicOffsets:
        """Return how far the partition is done on a topic: to `first_offset`, where nobody has opened it before.

        Raises TopicRecreated and PartitionCountChanged.
        """
        topic_id = watermarks.leadership.topic_id
        count = watermarks.partition_count
        key = (self._consumer, topic, self._partition)
        self._session.execute(_ADD_CHECKPOINT, (*key, count, str(topic_id), first_offset))
        known_count, known_id, next_offset, read_to, last_offset, digest, starts, ends = self._session.query(
            _CHECKPOINT, key
        )[0]
        if known_count != count:
            raise PartitionCountChanged(topic, known_count, count)
        if UUID(known_id) != topic_id:
            raise TopicRecreated(topic, self._partition, UUID(known_id), topic_id)
        last = None if last_offset is None else RecordDigest(last_offset, bytes(digest))
        return TopicOffsets(next_offset, tuple(zip(starts, ends, strict=True)), read_to, last)

    def last_recorded(self, topic: str) -> RecordDigest | None:
        """Return the last record of the partition's attempts that was recorded; None where none was."""
        rows = self._session.query(_LAST_RECORDED, (topic, self._partition))
        return RecordDigest(rows[0][0], bytes(rows[0][1])) if rows else None

    def advance_statement(self, topic: str, offsets: TopicOffsets) -> str:
        """Return the statement that writes how far the partition is done on a topic."""
        last = ""
        if offsets.last is not None:
            last = f", last_offset = {int(offsets.last.offset)}, last_digest = '\\x{offsets.last.digest.hex()}'"
        done = "{" + ",".join(f"[{int(start)},{int(end)})" for start, end in offsets.done) + "}"
        return (
            f"UPDATE delivery_checkpoints SET next_offset = {int(offsets.next_offset)}, done = '{done}',"  # noqa: S608 (numbers)
            f" read_to = {max(int(offsets.read_to), int(offsets.next_offset))}{last}"
            f" WHERE consumer = {sql_literal(self._consumer)} AND topic = {sql_literal(topic)}"
            f" AND partition = {int(self._partition)}"
        )

    def note_stop(self, reason: str | None) -> None:
        """Write down why the partition is stopped, for those who look from outside; the next owner clears that.

        None: it is not stopped any more.
        """
        stored = None if reason is None else storable(reason)
        self._session.execute(_NOTE_STOP, (self._consumer, self._partition, stored))

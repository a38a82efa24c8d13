"""Partition owners and checkpoints: the statements that make a batch count exactly once.

`partition_owners` holds a fencing token for each consumer and partition, `checkpoints` the offset that the consumer
reads next. A batch's transaction begins by locking the token and ends by advancing the checkpoint. Consumers of one
partition have fences of their own, and none ends another's session. The projector's checkpoint is that of the log and
of every read model that has caught up with it; the others have rows of their own (projections/model_checkpoints.py).
"""

from __future__ import annotations

import json
import os
import socket
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol
from uuid import UUID

from projections.session import Session, sql_literal
from runtime.process import escaped
from streams.batch import EventBatch
from streams.errors import OwnershipLost, PartitionCountChanged, TopicRecreated
from streams.log_end import LogEnd, LoggedRecord

PROJECTOR: Final = "projector"
"""The consumer that writes the log and the read models."""

DISPATCHER: Final = "dispatcher"
"""The consumer that makes deliveries of events."""

KNOWN_REVISION: Final = 30
"""The newest revision of the database that this worker has to know. One that needs a newer one refuses it by name."""

STOP_REASON_CHARACTERS_MAX: Final = 1000
"""A longer reason is cut off."""

_OWNERS = """
SELECT count(*) AS owners, count(*) FILTER (WHERE partition = $3) AS own,
       max(topic_id::text) FILTER (WHERE partition = $3) AS topic_id
FROM partition_owners WHERE consumer = $1 AND topic = $2
"""

# Only the very session that acquired the partition is terminated: a backend's start time tells it from a later one that
# happens to have the same process id. The wait makes sure its locks are gone before we ask for them.
_TERMINATE = """
SELECT pg_terminate_backend(a.pid, 5000)
FROM partition_owners AS o
JOIN pg_stat_activity AS a ON a.pid = o.backend_pid AND a.backend_start = o.backend_started_at
WHERE o.consumer = $1 AND o.topic = $2 AND o.partition = $3 AND a.pid <> pg_backend_pid()
"""

# Run once the token is the next one: no session can register under the former.
_TERMINATE_FEEDER = """
SELECT pg_terminate_backend(a.pid, 5000)
FROM partition_owners AS o
JOIN pg_stat_activity AS a ON a.pid = o.feeder_pid AND a.backend_start = o.feeder_started_at
WHERE o.consumer = 'projector' AND o.topic = $1 AND o.partition = $2 AND a.pid <> $3
"""

_TOPIC_ID = """
SELECT topic_id::text FROM partition_owners WHERE consumer = $1 AND topic = $2 AND partition = $3
"""

_ADVANCE_OWNER = """
UPDATE partition_owners SET token = token + 1, worker = $4, topic_id = coalesce(topic_id, $5::uuid),
    backend_pid = pg_backend_pid(), taken_at = clock_timestamp(), stop_reason = NULL,
    backend_started_at = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
WHERE consumer = $1 AND topic = $2 AND partition = $3
RETURNING token
"""

_NOTE_STOP = """
UPDATE partition_owners SET stop_reason = $4
WHERE consumer = $1 AND topic = $2 AND partition = $3 AND token = coalesce($5::bigint, token)
"""

_LOG_CHECKPOINT = "SELECT next_offset FROM checkpoints WHERE consumer = $1 AND topic = $2 AND partition = $3"

_CHECKPOINTS_OF = "SELECT partition, next_offset FROM checkpoints WHERE consumer = $1 AND topic = $2"

_PARTITION_COUNT = "SELECT count(*) AS n FROM partition_owners WHERE consumer = $1 AND topic = $2"

_INSERT_CHECKPOINT = """
INSERT INTO checkpoints (consumer, topic, partition, next_offset) VALUES ($1, $2, $3, 0) ON CONFLICT DO NOTHING
"""

# hash_before looks at the last range that has records. A query of `log_records` reads whole ranges until they are
# analysed: Postgres takes the conditions on topic and partition for ones that hardly a record meets.
_FENCE = """
SELECT o.token,
       (SELECT json_build_object('next_offset', c.next_offset, 'caught_up', c.read_models)::text
        FROM checkpoints AS c
        WHERE c.consumer = o.consumer AND c.topic = o.topic AND c.partition = o.partition) AS checkpoint,
       (SELECT json_object_agg(m.projection || '/' || m.version, m.next_offset)::text FROM model_checkpoints AS m
        WHERE m.topic = o.topic AND m.partition = o.partition) AS lagging,
       hash_before({topic}, {partition}, 9223372036854775807) AS head
FROM partition_owners AS o
WHERE o.consumer = {consumer} AND o.topic = {topic} AND o.partition = {partition} AND o.token = {token} FOR UPDATE
"""

_LAST_RECORD = """
SELECT "offset", (extract(epoch FROM created_at) * 1000)::bigint AS timestamp_ms, key, value, headers
FROM event_stream WHERE topic = $1 AND partition = $2 AND "offset" < $3 ORDER BY "offset" DESC LIMIT 1
"""

WORKER: Final = f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class Fence:
    """A token, and what its owner alone writes: the consumer's checkpoint, those of models, and the chain's head.

    No other session moves any of them, so an owner does not read what it has committed itself.
    """

    token: int
    next_offset: int
    head: bytes
    caught_up: frozenset[str] = frozenset()
    """The read models, as `name/version`, that share the checkpoint of the log."""
    lagging: Mapping[str, int] = field(default_factory=dict)
    """The next offsets of read models that don't."""

    def model_offset(self, key: str) -> int:
        """Return the offset that a read model reads next; 0 for one that stands nowhere, since it holds nothing."""
        return self.next_offset if key in self.caught_up else self.lagging.get(key, 0)


def acquire(
    session: Session, consumer: str, topic: str, partition: int, partitions: int, topic_id: UUID | None
) -> Fence:
    """Make this session the only one that writes what a consumer makes of a partition.

    `partitions` and `topic_id` come from the broker. The consumer's former owner is terminated first: a backend frozen
    inside COPY would keep its locks past every timeout. Raises TopicRecreated and PartitionCountChanged before anything
    is changed.
    """
    key, recorded = (consumer, topic, partition), str(topic_id) if topic_id is not None else None
    session.script(_call("add_partition_owners", consumer, topic, partitions, recorded, KNOWN_REVISION))
    owners, own, former_id = session.query(_OWNERS, (consumer, topic, partition))[0]
    if not own or owners != partitions:
        raise PartitionCountChanged(topic, owners, partitions)
    if former_id is not None and recorded is not None and former_id != recorded:
        raise TopicRecreated(topic, partition, UUID(former_id), UUID(recorded))
    session.query(_TERMINATE, key)
    session.begin()
    token = session.query(_ADVANCE_OWNER, (*key, WORKER, recorded))[0][0]
    session.execute(_INSERT_CHECKPOINT, key)
    fence = lock_fence(session, consumer, topic, partition, token)
    session.commit()
    return fence


def recorded_topic_id(session: Session, consumer: str, topic: str, partition: int) -> UUID | None:
    """Return the id of the topic that a consumer has read, where an owner has recorded it."""
    rows = session.query(_TOPIC_ID, (consumer, topic, partition))
    return UUID(rows[0][0]) if rows and rows[0][0] is not None else None


def terminate_feeder(session: Session, topic: str, partition: int, own_pid: int) -> None:
    """End the session that a former owner feeds a partition's lagging models with, unless its process is `own_pid`.

    Call it after :func:`acquire`. Frozen in a transaction, it would keep their checkpoints locked.
    """
    session.query(_TERMINATE_FEEDER, (topic, partition, own_pid))


def lock_fence(session: Session, consumer: str, topic: str, partition: int, token: int) -> Fence:
    """Lock the token for this transaction and read the fence. Raises OwnershipLost when the token is not ours."""
    sql = _FENCE.format(
        consumer=sql_literal(consumer),
        topic=sql_literal(topic),
        partition=sql_literal(partition),
        token=sql_literal(token),
    )
    rows = session.query(sql)
    if not rows:
        raise OwnershipLost(why=f"The token {token} of {topic}/{partition} is not current.")
    _, row, lagging, head = rows[0]
    if row is None:
        raise OwnershipLost(why=f"{topic}/{partition} has no checkpoint of the consumer {consumer} any more.")
    checkpoint = json.loads(row)
    return Fence(
        token,
        checkpoint["next_offset"],
        head,
        frozenset(checkpoint["caught_up"]),
        json.loads(lagging) if lagging else {},
    )


def note_stop(session: Session, consumer: str, topic: str, partition: int, token: int | None, reason: str) -> None:
    """Write down why a partition is stopped, unless it has a later owner, who would have cleared it.

    Nothing is decided by it. Without a token the partition could not even be acquired.
    """
    session.execute(_NOTE_STOP, (consumer, topic, partition, storable(reason), token))


def log_end(session: Session, topic: str, partition: int, fence: Fence) -> LogEnd:
    """Return the last record of the log below a consumer's checkpoint, and the checkpoint, which its owner alone moves.

    The log holds every record below it: no consumer of records is ahead of the log.
    """
    rows = session.query(_LAST_RECORD, (topic, partition, fence.next_offset))
    return LogEnd(LoggedRecord(*rows[0]) if rows else None, fence.next_offset)


def log_next_offset(session: Session, topic: str, partition: int) -> int:
    """Return the checkpoint of the log, 0 where there is none: what a consumer that follows it can have read so far."""
    rows = session.query(_LOG_CHECKPOINT, (PROJECTOR, topic, partition))
    return int(rows[0][0]) if rows else 0


def checkpoints_of(session: Session, consumer: str, topic: str) -> dict[int, int]:
    """Return the checkpoints of a consumer, by partition."""
    return dict(session.query(_CHECKPOINTS_OF, (consumer, topic)))


def partition_count(session: Session, consumer: str, topic: str) -> int:
    """Return how many partitions a topic had when a consumer acquired the first of them, 0 before that."""
    return int(session.query(_PARTITION_COUNT, (consumer, topic))[0][0])


def storable(reason: str) -> str:
    r"""Return a reason as one line that Postgres and a terminal can take, cut to STOP_REASON_CHARACTERS_MAX.

    >>> storable("a\x00b\n\x1b[31mé\ud800")
    'a\\x00b\\n\\x1b[31mé\\ud800'
    """
    return escaped(reason[:STOP_REASON_CHARACTERS_MAX])[:STOP_REASON_CHARACTERS_MAX]


class ReadTo(Protocol):
    """How far an owner has come under its token."""

    @property
    def token(self) -> int: ...

    @property
    def next_offset(self) -> int: ...


def remainder(batch: EventBatch, fence: ReadTo) -> EventBatch | None:
    """Return the part of a batch at and after its owner's checkpoint; None when all of it is applied already.

    Raises OwnershipLost where the batch was fetched under another token, or records before it are missing. Cheap, and
    no substitute for the statement of `lock_statement`: another owner may have the partition by now.
    """
    next_offset = fence.next_offset
    if batch.token != fence.token:
        raise OwnershipLost(why=f"The batch was fetched under token {batch.token}, not {fence.token}.")
    if batch.next_offset <= next_offset:
        return None
    if batch.fetched_from > next_offset:
        raise OwnershipLost(why=f"Offsets {next_offset} to {batch.fetched_from} were not read; reading resumes there.")
    first = bisect_left(batch.offsets, next_offset)
    return batch.between(first, len(batch)) if first else batch


def lock_statement(consumer: str, topic: str, partition: int, token: int, next_offset: int) -> str:
    """Return the statement that locks the token for its transaction, where the checkpoint is `next_offset`.

    Running it raises OwnershipLost when the token is no longer ours, or the checkpoint another.
    """
    return _call("lock_partition", consumer, topic, partition, token, next_offset, KNOWN_REVISION)


def advance_statement(
    consumer: str, topic: str, partition: int, next_offset: int, *, all_applied: bool = False
) -> str:  # fmt: skip
    """Return the statement that moves the checkpoint forward; it runs in the transaction that wrote the rows.

    `all_applied` says that all records which it passes take effect where they are: who follows the log relies on it.
    Running it raises OwnershipLost where the checkpoint is gone, or beyond.
    """
    return _call("advance_checkpoint", consumer, topic, partition, next_offset, all_applied)


def _call(function: str, *arguments: str | int | None) -> str:
    """Return the statement that calls a database function."""
    values = ", ".join("NULL" if value is None else sql_literal(value) for value in arguments)
    return f"SELECT {function}({values})"

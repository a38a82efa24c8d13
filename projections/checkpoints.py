"""Partition owners and checkpoints: the statements that make a batch count exactly once.

`partition_owners` holds the fencing token of each partition; `checkpoints` the next offset of the log (projection
zero) and of each read model. A batch's transaction begins by locking the token and ends by advancing the checkpoints.
"""

from __future__ import annotations

import json
import os
import socket
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from audit.chain import CHAIN_START
from projections.session import Session, sql_literal
from runtime.process import escaped
from streams.batch import EventBatch
from streams.errors import OwnershipLost, PartitionCountChanged, TopicRecreated
from streams.log_end import LogEnd, LoggedRecord

LOG: Final = "log/0"
"""Projection zero: event_stream and audit_log."""

STOP_REASON_CHARACTERS_MAX: Final = 1000
"""A longer reason is cut off."""

_OWNERS = """
SELECT count(*) AS owners, count(*) FILTER (WHERE partition = $2) AS own,
       max(topic_id::text) FILTER (WHERE partition = $2) AS topic_id
FROM partition_owners WHERE topic = $1
"""

# Only the very session that acquired the partition is terminated: a backend's start time tells it from a later one that
# happens to have the same process id. The wait makes sure its locks are gone before we ask for them.
_TERMINATE = """
SELECT pg_terminate_backend(a.pid, 5000)
FROM partition_owners AS o
JOIN pg_stat_activity AS a ON a.pid = o.backend_pid AND a.backend_start = o.backend_started_at
WHERE o.topic = $1 AND o.partition = $2 AND a.pid <> pg_backend_pid()
"""

_INSERT_OWNERS = """
INSERT INTO partition_owners (topic, partition, token, worker, backend_pid, backend_started_at, topic_id)
SELECT $1, partition, 1, '', 0, '-infinity', $3::uuid FROM generate_series(0, $2::int - 1) AS partition
WHERE NOT EXISTS (SELECT FROM partition_owners WHERE topic = $1)
ON CONFLICT DO NOTHING
"""

_ADVANCE_OWNER = """
UPDATE partition_owners SET token = token + 1, worker = $3, topic_id = coalesce(topic_id, $4::uuid),
    backend_pid = pg_backend_pid(), taken_at = clock_timestamp(), stop_reason = NULL,
    backend_started_at = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
WHERE topic = $1 AND partition = $2
RETURNING token
"""

_NOTE_STOP = """
UPDATE partition_owners SET stop_reason = $3 WHERE topic = $1 AND partition = $2 AND token = coalesce($4::bigint, token)
"""

_INSERT_CHECKPOINTS = """
INSERT INTO checkpoints (projection, version, topic, partition, next_offset)
SELECT split_part(name, '/', 1), split_part(name, '/', 2)::int, $1, $2, 0
FROM unnest(string_to_array($3, ',')) AS name
ON CONFLICT DO NOTHING
"""

_FENCE = """
SELECT o.token,
       (SELECT json_object_agg(projection || '/' || version, next_offset)::text FROM checkpoints AS c
        WHERE c.topic = o.topic AND c.partition = o.partition) AS checkpoints,
       (SELECT hash FROM audit_log AS a WHERE a.topic = o.topic AND a.partition = o.partition
        ORDER BY "offset" DESC LIMIT 1) AS head
FROM partition_owners AS o WHERE o.topic = {topic} AND o.partition = {partition} AND o.token = {token} FOR UPDATE
"""

_LAST_RECORD = """
SELECT "offset", (extract(epoch FROM created_at) * 1000)::bigint AS timestamp_ms, key, value, headers
FROM event_stream WHERE topic = $1 AND partition = $2 ORDER BY "offset" DESC LIMIT 1
"""

_ADVANCE = """
UPDATE checkpoints SET next_offset = {next_offset}
WHERE topic = {topic} AND partition = {partition} AND next_offset <= {next_offset}
  AND projection || '/' || version = ANY (string_to_array({names}, ','))
"""

_NOTE_STOPPED = """
UPDATE checkpoints SET stop_reason = nullif($4, '') WHERE topic = $1 AND partition = $2
  AND projection || '/' || version = $3 RETURNING next_offset
"""

_IS_STOPPED = """
SELECT stop_reason IS NOT NULL AS stopped FROM checkpoints WHERE topic = $1 AND partition = $2
  AND projection || '/' || version = $3
"""

_FOLLOWING = """
UPDATE checkpoints SET stop_reason = NULL WHERE topic = $1 AND partition = $2 AND stop_reason IS NOT NULL
  AND projection || '/' || version = ANY (string_to_array($3, ','))
"""

WORKER: Final = f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class Fence:
    """A token, and what its owner alone writes: the checkpoints by `name/version`, and the head of the chain.

    No other session moves either, so an owner does not read what it has committed itself.
    """

    token: int
    checkpoints: dict[str, int]
    head: bytes


def acquire(
    session: Session, topic: str, partition: int, partitions: int, topic_id: UUID | None, names: Iterable[str]
) -> Fence:
    """Make this session the partition's only writer.

    `partitions` and `topic_id` come from the broker; `names` lists the projections as `name/version`. The former
    owner's backend is terminated first: one frozen inside COPY would keep its locks past every timeout.
    Raises TopicRecreated and PartitionCountChanged before anything is changed.
    """
    recorded = str(topic_id) if topic_id is not None else None
    session.execute(_INSERT_OWNERS, (topic, partitions, recorded))
    owners, own, former_id = session.query(_OWNERS, (topic, partition))[0]
    if not own or owners != partitions:
        raise PartitionCountChanged(topic, owners, partitions)
    if former_id is not None and recorded is not None and former_id != recorded:
        raise TopicRecreated(topic, partition, UUID(former_id), UUID(recorded))
    session.query(_TERMINATE, (topic, partition))
    session.begin()
    token = session.query(_ADVANCE_OWNER, (topic, partition, WORKER, recorded))[0][0]
    session.execute(_INSERT_CHECKPOINTS, (topic, partition, ",".join(names)))
    fence = lock_fence(session, topic, partition, token)
    session.commit()
    return fence


def lock_fence(session: Session, topic: str, partition: int, token: int) -> Fence:
    """Lock the token for this transaction and read the fence. Raises OwnershipLost when the token is not ours."""
    rows = session.query(
        _FENCE.format(topic=sql_literal(topic), partition=sql_literal(partition), token=sql_literal(token))
    )
    if not rows:
        raise OwnershipLost(why=f"The token {token} of {topic}/{partition} is not current.")
    _, checkpoints, head = rows[0]
    return Fence(token, json.loads(checkpoints) if checkpoints else {}, head or CHAIN_START)


def note_stop(session: Session, topic: str, partition: int, token: int | None, reason: str) -> None:
    """Write down why a partition is stopped, unless it has a later owner, who would have cleared it.

    Nothing is decided by it. Without a token the partition could not even be acquired.
    """
    session.execute(_NOTE_STOP, (topic, partition, storable(reason), token))


def log_end(session: Session, topic: str, partition: int, fence: Fence) -> LogEnd:
    """Return the last record of the log and its checkpoint; they are the fence's owner's, who alone moves them."""
    rows = session.query(_LAST_RECORD, (topic, partition))
    return LogEnd(LoggedRecord(*rows[0]) if rows else None, fence.checkpoints[LOG])


def storable(reason: str) -> str:
    r"""Return a reason as one line that Postgres and a terminal can take, cut to STOP_REASON_CHARACTERS_MAX.

    >>> storable("a\x00b\n\x1b[31mé\ud800")
    'a\\x00b\\n\\x1b[31mé\\ud800'
    """
    return escaped(reason[:STOP_REASON_CHARACTERS_MAX])[:STOP_REASON_CHARACTERS_MAX]


def note_stopped(session: Session, topic: str, partition: int, name: str, reason: str) -> int:
    """Write down why a read model does not follow its partition; returns the offset at which it stays."""
    return int(session.query(_NOTE_STOPPED, (topic, partition, name, storable(reason)))[0][0])


def is_stopped(session: Session, topic: str, partition: int, name: str) -> bool:
    """Return whether a read model was refused and has not followed its partition since."""
    return session.query(_IS_STOPPED, (topic, partition, name)) == [(True,)]


def note_following(session: Session, topic: str, partition: int, names: Iterable[str]) -> None:
    """Clear the reasons of read models that follow their partition again."""
    session.execute(_FOLLOWING, (topic, partition, ",".join(names)))


def remainder(batch: EventBatch, fence: Fence) -> EventBatch | None:
    """Return the part of a batch at and after the log's checkpoint; None when all of it is applied already.

    Raises OwnershipLost where the batch was fetched under another token, or records before it are missing. Cheap, and
    no substitute for the statement of `lock_statement`: another owner may have the partition by now.
    """
    next_offset = fence.checkpoints[LOG]
    if batch.token != fence.token:
        raise OwnershipLost(why=f"The batch was fetched under token {batch.token}, not {fence.token}.")
    if batch.next_offset <= next_offset:
        return None
    if batch.fetched_from > next_offset:
        raise OwnershipLost(why=f"Offsets {next_offset} to {batch.fetched_from} were not read; reading resumes there.")
    first = bisect_left(batch.offsets, next_offset)
    return batch.between(first, len(batch)) if first else batch


def lock_statement(topic: str, partition: int, token: int, next_offset: int) -> str:
    """Return the statement that locks the token for its transaction, where the log ends at `next_offset`.

    Running it raises OwnershipLost when the token is no longer ours, or the log ends elsewhere.
    """
    arguments = ", ".join(sql_literal(value) for value in (topic, partition, token, next_offset))
    return f"SELECT hold_partition({arguments})"


def advance_statement(topic: str, partition: int, names: Iterable[str], next_offset: int) -> str:
    """Return the statement that moves checkpoints forward; it runs in the transaction that wrote the rows."""
    return _ADVANCE.format(
        topic=sql_literal(topic),
        partition=sql_literal(partition),
        names=sql_literal(",".join(names)),
        next_offset=sql_literal(next_offset),
    )

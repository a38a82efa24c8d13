"""Checkpoints of read models: a model that has caught up shares the log's, any other has a row of its own.

`checkpoints.read_models` lists those that share; `model_checkpoints` has the rows of the others. A model that stands in
neither holds nothing of the partition, so no missing row ever means that a model has caught up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from projections.checkpoints import PROJECTOR, Fence, lock_fence, storable
from projections.session import Session, sql_literal
from streams.errors import OwnershipLost

# The next three statements come with the models' keys, separated by commas. A model goes on from where it is.
_LEAVE = """
WITH shared AS (
    SELECT topic, partition, next_offset, read_models FROM checkpoints
    WHERE consumer = 'projector' AND topic = {topic} AND partition = {partition} AND read_models && {keys}
), moved AS (
    UPDATE checkpoints AS c
    SET read_models = ARRAY(SELECT name FROM unnest(c.read_models) AS name WHERE name <> ALL ({keys}))
    FROM shared WHERE c.consumer = 'projector' AND c.topic = shared.topic AND c.partition = shared.partition
)
INSERT INTO model_checkpoints AS m (projection, version, topic, partition, next_offset)
SELECT split_part(name, '/', 1), split_part(name, '/', 2)::int, topic, partition, next_offset
FROM shared CROSS JOIN LATERAL unnest(read_models) AS name WHERE name = ANY ({keys})
ON CONFLICT (projection, version, topic, partition) DO UPDATE SET next_offset = excluded.next_offset
"""

_START = """
INSERT INTO model_checkpoints (projection, version, topic, partition, next_offset)
SELECT split_part(name, '/', 1), split_part(name, '/', 2)::int, {topic}, {partition}, 0 FROM unnest({keys}) AS name
ON CONFLICT DO NOTHING
"""

_JOIN = """
WITH joined AS (
    DELETE FROM model_checkpoints AS m
    WHERE m.topic = {topic} AND m.partition = {partition} AND m.projection || '/' || m.version = ANY ({keys})
)
UPDATE checkpoints SET read_models = ARRAY(SELECT unnest(read_models) UNION SELECT unnest({keys}) ORDER BY 1)
WHERE consumer = 'projector' AND topic = {topic} AND partition = {partition}
"""

_ADVANCE = """
INSERT INTO model_checkpoints AS m (projection, version, topic, partition, next_offset)
SELECT split_part({key}, '/', 1), split_part({key}, '/', 2)::int, {topic}, {partition}, {next_offset}
ON CONFLICT (projection, version, topic, partition)
DO UPDATE SET next_offset = excluded.next_offset WHERE m.next_offset <= excluded.next_offset
"""

_NOTE_STOPPED = """
UPDATE model_checkpoints SET stop_reason = $4 WHERE topic = $1 AND partition = $2
  AND projection = split_part($3, '/', 1) AND version = split_part($3, '/', 2)::int RETURNING next_offset
"""

_IS_STOPPED = """
SELECT stop_reason IS NOT NULL AS stopped FROM model_checkpoints WHERE topic = $1 AND partition = $2
  AND projection = split_part($3, '/', 1) AND version = split_part($3, '/', 2)::int
"""


def keep(session: Session, topic: str, partition: int, fence: Fence, keys: Collection[str]) -> Fence:
    """Write down which read models the partition's owner keeps; returns the fence as it is then.

    The others stay where the log is, for the owner will not fold into them; new ones begin at 0.
    """
    left = fence.caught_up.difference(keys)
    new = [key for key in keys if key not in fence.caught_up and key not in fence.lagging]
    if not left and not new:
        return fence
    session.begin()
    lock_fence(session, PROJECTOR, topic, partition, fence.token)
    for sql, moving in ((_LEAVE, left), (_START, new)):
        if moving:
            session.later(_statement(sql, topic, partition, moving))
    fence = lock_fence(session, PROJECTOR, topic, partition, fence.token)
    session.commit()
    return fence


def join(session: Session, topic: str, partition: int, token: int, keys: Collection[str]) -> None:
    """Let read models that have caught up share the log's checkpoint from now on; clears why they were stopped.

    Raises OwnershipLost where one has not.
    """
    session.begin()
    fence = lock_fence(session, PROJECTOR, topic, partition, token)
    for key in keys:
        if (offset := fence.model_offset(key)) != fence.next_offset:
            raise OwnershipLost(why=f"{key} was brought up to {fence.next_offset} and is at {offset}.")
    session.script(_statement(_JOIN, topic, partition, keys), "COMMIT")


def note_stopped(session: Session, topic: str, partition: int, key: str, reason: str) -> int:
    """Write down why a read model does not follow its partition; returns the offset at which it stays.

    Runs in the caller's transaction, under the fence, before the checkpoint is advanced.
    """
    session.later(*(_statement(each, topic, partition, [key]) for each in (_LEAVE, _START)))
    return int(session.query(_NOTE_STOPPED, (topic, partition, key, storable(reason)))[0][0])


def is_stopped(session: Session, topic: str, partition: int, key: str) -> bool:
    """Return whether a read model was refused and has not followed its partition since."""
    return session.query(_IS_STOPPED, (topic, partition, key)) == [(True,)]


def advance_model_statement(topic: str, partition: int, key: str, next_offset: int) -> str:
    """Return the statement that moves a lagging model's checkpoint; it runs in the transaction that wrote the rows."""
    return _ADVANCE.format(
        topic=sql_literal(topic), partition=sql_literal(partition), key=sql_literal(key),
        next_offset=sql_literal(next_offset),
    )  # fmt: skip


def _statement(sql: str, topic: str, partition: int, keys: Iterable[str]) -> str:
    names = f"string_to_array({sql_literal(','.join(keys))}, ',')"
    return sql.format(topic=sql_literal(topic), partition=sql_literal(partition), keys=names)

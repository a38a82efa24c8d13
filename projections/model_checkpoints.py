"""Checkpoints of read models: a model that has caught up shares the log's, any other has a row of its own.

`checkpoints.read_models` lists those that share; `model_checkpoints` has the rows of the others. A model that stands in
neither holds nothing of the partition, so no missing row ever means that a model has caught up.

Who moves a row, or takes its model back, has locked it: so a slice counts once, whoever feeds it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from projections.checkpoints import PROJECTOR, Fence, lock_fence, storable
from projections.session import Session, sql_literal
from streams.errors import OwnershipLost

# The next five statements come with the models' keys, separated by commas. A model goes on from where it is.
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
UPDATE model_checkpoints SET next_offset = {next_offset}, stop_reason = NULL
WHERE topic = {topic} AND partition = {partition} AND projection || '/' || version = ANY ({keys})
  AND next_offset <= {next_offset}
"""

# The rows stay locked for the transaction: no other session can move them, nor take the models back.
_LOCK = """
SELECT m.projection || '/' || m.version AS key, m.next_offset, c.next_offset AS log_next_offset
FROM model_checkpoints AS m
JOIN checkpoints AS c ON c.consumer = 'projector' AND c.topic = m.topic AND c.partition = m.partition
WHERE m.topic = {topic} AND m.partition = {partition} AND m.projection || '/' || m.version = ANY ({keys})
  AND EXISTS (
      SELECT FROM partition_owners AS o WHERE o.consumer = 'projector' AND o.topic = {topic}
      AND o.partition = {partition} AND o.token = {token}
  )
ORDER BY m.projection, m.version FOR UPDATE OF m
"""

_REGISTER_FEEDER = """
UPDATE partition_owners SET feeder_pid = pg_backend_pid(),
    feeder_started_at = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
WHERE consumer = 'projector' AND topic = $1 AND partition = $2 AND token = $3 RETURNING token
"""

_NOTE_STOPPED = """
UPDATE model_checkpoints SET stop_reason = $4 WHERE topic = $1 AND partition = $2
  AND projection = split_part($3, '/', 1) AND version = split_part($3, '/', 2)::int RETURNING next_offset
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


def lock(session: Session, topic: str, partition: int, token: int, keys: Collection[str]) -> tuple[dict[str, int], int]:
    """Lock the rows of lagging models for this transaction; returns their next offsets by key, and the log's.

    One that does not lag any more has no row. Raises OwnershipLost where none has, or the token is not current.
    """
    sql = _statement(_LOCK, topic, partition, keys, token=token)
    rows = session.query(sql)
    if not rows:
        raise OwnershipLost(why=f"The token {token} of {topic}/{partition} is not current, or no model lags there.")
    return {key: next_offset for key, next_offset, _ in rows}, min(log_end for _, _, log_end in rows)


def register_feeder(session: Session, topic: str, partition: int, token: int) -> None:
    """Write down that this session feeds a partition's lagging models: whoever acquires it ends the session.

    Raises OwnershipLost where the token is not current.
    """
    if not session.query(_REGISTER_FEEDER, (topic, partition, token)):
        raise OwnershipLost(why=f"The token {token} of {topic}/{partition} is not current.")


def advance_models_statement(topic: str, partition: int, keys: Collection[str], next_offset: int) -> str:
    """Return the statement that moves the checkpoints of lagging models, and clears why they were stopped.

    It runs in the transaction that has locked them and written the rows.
    """
    return _statement(_ADVANCE, topic, partition, keys, next_offset=next_offset)


def _statement(sql: str, topic: str, partition: int, keys: Iterable[str], **numbers: int) -> str:
    names = f"string_to_array({sql_literal(','.join(keys))}, ',')"
    literals = {name: sql_literal(value) for name, value in numbers.items()}
    return sql.format(topic=sql_literal(topic), partition=sql_literal(partition), keys=names, **literals)

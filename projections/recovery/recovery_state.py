"""What a database says of its own recovery: whether it is empty, or half recovered, and how far.

While a database is recovered, `checkpoints` has a row a partition of the consumer `recovery`: the offset at which the
topic ended as the recovery began. They are written before anything else is, and go with its end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from projections.checkpoints import PROJECTOR, WORKER
from projections.recovery.errors import RecoveryRefused, RecoveryRunning
from projections.session import Session, sql_literal

RECOVERY: Final = "recovery"
"""The consumer whose checkpoints say that a database is being recovered."""

_HOLD: Final = "SELECT pg_try_advisory_lock(hashtextextended('plant.recover', 0))"

_UNDER_WAY: Final = """
SELECT topic, partition, next_offset FROM checkpoints WHERE consumer = 'recovery' ORDER BY topic, partition
"""
_IN_USE: Final = """
SELECT consumer, topic, partition, next_offset FROM checkpoints WHERE consumer <> 'recovery' AND next_offset > 0
ORDER BY consumer, topic, partition LIMIT 1
"""
_LOGGED: Final = "SELECT EXISTS (SELECT FROM log_ranges)"

_RECOVERED: Final = "SELECT topic, partition, next_offset FROM checkpoints WHERE consumer = 'projector'"

# Who may not see the start of other roles' sessions is left with the process id and the database.
_OWNER: Final = """
SELECT o.worker FROM partition_owners AS o JOIN pg_stat_activity AS a
    ON a.pid = o.backend_pid AND a.datname = current_database()
    AND coalesce(a.backend_start, o.backend_started_at) = o.backend_started_at
WHERE o.consumer = 'projector' AND o.topic = $1 AND o.partition = $2 AND o.worker <> $3
"""

_END: Final = "DELETE FROM checkpoints WHERE consumer = 'recovery'"

_LAGGING: Final = """
SELECT projection || '/' || version AS model, topic, partition, next_offset, coalesce(stop_reason, '') AS stop_reason
FROM model_checkpoints ORDER BY projection, version, topic, partition
"""


class UnrecoveredPartition(NamedTuple):
    """A partition, and the offset at which its topic ended when the recovery began."""

    topic: str
    partition: int
    until: int


def hold_database(session: Session) -> None:
    """Keep everybody else from recovering the database while the session lasts. Raises RecoveryRunning."""
    if not session.query(_HOLD)[0][0]:
        raise RecoveryRunning("The database is being recovered.", why="Somebody else has begun, and goes on.")


def under_way(session: Session) -> list[UnrecoveredPartition]:
    """Return the partitions of a recovery that was begun and has not ended; none where the database is empty.

    Raises RecoveryRefused where it holds a log.
    """
    targets = [UnrecoveredPartition(*row) for row in session.query(_UNDER_WAY)]
    if targets:
        return targets
    in_use = session.query(_IN_USE)
    if in_use or session.query(_LOGGED)[0][0]:
        consumer, topic, partition, next_offset = in_use[0] if in_use else (PROJECTOR, "the log", 0, 0)
        raise RecoveryRefused(
            "The database holds a log already.",
            why=f"The {consumer} is at {topic}/{partition}@{next_offset}. A recovery fills an empty database.",
            next_step="plant db upgrade    # on a new database",
        )
    return []


def other_owner(url: str, topic: str, partition: int) -> str | None:
    """Return the worker that has taken a partition from this process, and is connected; None where none has."""
    with contextlib.closing(Session(url)) as session:
        rows = session.query(_OWNER, (topic, partition, WORKER))
    return rows[0][0] if rows else None


def begin_statement(targets: Sequence[UnrecoveredPartition]) -> str:
    """Return the statement that says that the database is being recovered, up to these offsets."""
    rows = ", ".join(
        f"({sql_literal(RECOVERY)}, {sql_literal(each.topic)}, {int(each.partition)}, {int(each.until)})"
        for each in targets
    )
    return f"INSERT INTO checkpoints (consumer, topic, partition, next_offset) VALUES {rows}"  # noqa: S608 (numbers)


def end_statement() -> str:
    """Return the statement that says that the database is recovered."""
    return _END


def left(session: Session, targets: Sequence[UnrecoveredPartition]) -> dict[UnrecoveredPartition, int]:
    """Return how many offsets of each partition are still to be recovered, the most first."""
    done = {(topic, partition): next_offset for topic, partition, next_offset in session.query(_RECOVERED)}
    found = {each: max(0, each.until - done.get((each.topic, each.partition), 0)) for each in targets}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def recovered_to(session: Session) -> list[tuple[str, int, int]]:
    """Return topic, partition and next offset of each partition of the log."""
    return [(topic, partition, next_offset) for topic, partition, next_offset in session.query(_RECOVERED)]


def lagging_models(session: Session) -> list[tuple[str, str, int, int, str]]:
    """Return the read models that do not follow the log, with topic, partition, their offset, and the reason if any."""
    return [(model, topic, partition, at, why) for model, topic, partition, at, why in session.query(_LAGGING)]

"""The rows of failure streaks: what an owner reads of them, and the statements of its rounds.

What concerns an endpoint's own row comes first: whoever enables an endpoint locks that row, and then its streak.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, assert_never
from uuid import UUID

from deliveries.deliverer.endpoint_streaks import EndpointChange, EndpointStreak, StreakChanges
from deliveries.failure_streak import FailureStreak, FailureWarning, StreakEnded
from projections.session import Session, sql_literal

_STREAKS: Final = """
SELECT uuid_send(s.endpoint_id) AS endpoint_id, s.began_at, s.attempts, s.warned_percent, e.enabled_at
FROM endpoint_streaks AS s JOIN endpoints AS e ON e.id = s.endpoint_id WHERE s.partition = $1
"""

# An endpoint that was disabled or enabled meanwhile keeps no streak from before.
_KEEP: Final = """
INSERT INTO endpoint_streaks AS s (endpoint_id, partition, began_at, attempts, warned_percent)
SELECT v.endpoint_id, {partition}, v.began_at, v.attempts, v.warned_percent
FROM (VALUES {rows}) AS v (endpoint_id, began_at, attempts, warned_percent, enabled_at)
JOIN endpoints AS e ON e.id = v.endpoint_id AND e.enabled_at IS NOT DISTINCT FROM v.enabled_at
WHERE e.state IN ('active', 'paused')
ON CONFLICT (endpoint_id) DO UPDATE SET partition = excluded.partition, began_at = excluded.began_at,
    attempts = excluded.attempts, warned_percent = excluded.warned_percent
"""


def find_streaks(session: Session, partition: int) -> dict[bytes, EndpointStreak]:
    """Return the stored streaks of a partition's endpoints."""
    rows = session.frame(_STREAKS, (partition,)).iter_rows()
    return {
        endpoint_id: EndpointStreak(
            FailureStreak(began_at=_utc(began_at), attempts=attempts, warned_percent=warned_percent),
            None if enabled_at is None else _utc(enabled_at),
        )
        for endpoint_id, began_at, attempts, warned_percent, enabled_at in rows
    }


def streak_statements(partition: int, changes: StreakChanges) -> list[str]:
    """Return the statements that write what has changed; none for nothing."""
    statements = [_note_statement(each) for each in changes.notes]
    if changes.kept:
        statements.append(_KEEP.format(partition=int(partition), rows=_rows(changes.kept)))
    if changes.ended:
        ids = ",".join(each.hex() for each in changes.ended)
        statements.append(f"DELETE FROM endpoint_streaks WHERE endpoint_id = ANY ('{{{ids}}}'::uuid[])")  # noqa: S608 (ids)
    return statements


def _note_statement(note: EndpointChange) -> str:
    known = f"{_uuid(note.endpoint_id)}, {_time(note.enabled_at)}, {_time(note.failing_since)}"
    match note.change:
        case FailureWarning(percent=percent):
            return f"SELECT note_endpoint_failing({known}, {int(percent)}, {sql_literal(note.why)})"
        case StreakEnded():
            return f"SELECT note_endpoint_recovered({known})"
        case _:
            assert_never(note.change)


def _rows(kept: Mapping[bytes, EndpointStreak]) -> str:
    return ", ".join(
        f"({_uuid(endpoint_id)}, {_time(each.streak.began_at)}, {int(each.streak.attempts)},"
        f" {int(each.streak.warned_percent)}, {_time(each.enabled_at)})"
        for endpoint_id, each in sorted(kept.items())
    )


def _uuid(value: bytes) -> str:
    return f"'{UUID(bytes=value)}'::uuid"


def _time(time: datetime | None) -> str:
    return "NULL::timestamptz" if time is None else f"'{time.astimezone(UTC).isoformat()}'::timestamptz"


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC)

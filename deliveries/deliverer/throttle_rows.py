"""The rows of endpoints that asked for time: what an owner reads of them, and the statement of its rounds."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from deliveries.deliverer.attempt_records import EndedDelivery
from deliveries.outcomes import RETRY_AFTER_MAX_SECONDS, THROTTLE_MIN_SECONDS, throttle_seconds
from projections.session import Session

CLOCKS_APART_SECONDS: Final = 60
"""How far ahead of the database's clock a deliverer's may be before its times are cut."""

_FORGET: Final = "DELETE FROM endpoint_throttles WHERE partition = $1 AND throttled_until <= now()"
_THROTTLES: Final = """
SELECT uuid_send(endpoint_id) AS endpoint_id, throttled_until FROM endpoint_throttles WHERE partition = $1
"""
_KEEP: Final = """
INSERT INTO endpoint_throttles AS t (endpoint_id, partition, throttled_until)
SELECT e.id, {partition}, least(v.throttled_until, now() + interval '{longest} s')
FROM (VALUES {rows}) AS v (endpoint_id, throttled_until) JOIN endpoints AS e ON e.id = v.endpoint_id
ON CONFLICT (endpoint_id) DO UPDATE SET partition = excluded.partition,
    throttled_until = greatest(t.throttled_until, excluded.throttled_until)
"""


def throttled_until(ended: EndedDelivery) -> datetime | None:
    """Return until when an endpoint asked for no attempts; None where it asked for no more than a pause.

    The shortest of all is over before anybody else can own the partition.
    """
    if ended.attempt is None or (seconds := throttle_seconds(ended.attempt.outcome)) <= THROTTLE_MIN_SECONDS:
        return None
    return ended.began_at + timedelta(seconds=ended.attempt.duration_seconds + seconds)


def find_throttles(session: Session, partition: int) -> dict[bytes, datetime]:
    """Return until when endpoints of a partition get no attempts, and drop what is over."""
    session.execute(_FORGET, (partition,))
    rows = session.frame(_THROTTLES, (partition,)).iter_rows()
    return {endpoint_id: until.astimezone(UTC) for endpoint_id, until in rows}


def throttle_statements(partition: int, ended: Iterable[EndedDelivery]) -> list[str]:
    """Return the statement that stores for how long endpoints asked for time; none where none did."""
    until: dict[bytes, datetime] = {}
    for each in ended:
        if (at := throttled_until(each)) is not None:
            endpoint_id = each.delivery.endpoint_id
            until[endpoint_id] = max(at, until.get(endpoint_id, at))
    rows = ", ".join(_row(*each) for each in sorted(until.items()))
    longest = int(RETRY_AFTER_MAX_SECONDS) + CLOCKS_APART_SECONDS
    return [_KEEP.format(partition=int(partition), rows=rows, longest=longest)] if rows else []


def _row(endpoint_id: bytes, until: datetime) -> str:
    return f"('{endpoint_id.hex()}'::uuid, '{until.astimezone(UTC).isoformat()}'::timestamptz)"

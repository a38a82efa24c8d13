"""What a rebuild would take, from what former ones took and what readers have now."""

from __future__ import annotations

from typing import NamedTuple

from projections.read_model import ReadModel
from projections.session import Session

# The last rebuild of this read model, or of another one where it has had none.
_RATE = """
SELECT r.read_events / r.fill_seconds AS rate, b.read_model
FROM rebuilds AS r JOIN read_model_builds AS b USING (projection, version)
WHERE r.filled_at IS NOT NULL AND r.fill_seconds > 0 AND r.read_events > 0
ORDER BY b.read_model = $1 DESC, r.filled_at DESC LIMIT 1
"""
_LOG = """
SELECT count(*) AS partitions, coalesce(sum(next_offset), 0)::bigint AS events
FROM checkpoints WHERE consumer = 'projector' AND next_offset > 0
"""
_SIZE = "SELECT coalesce(pg_total_relation_size(to_regclass($1)), 0)::bigint AS size"


class RebuildPlan(NamedTuple):
    """What a rebuild would read and write. Without a former rebuild nobody knows how long it takes."""

    events: int
    partitions: int
    space_bytes: int
    seconds: float | None
    rate_of: str | None


def plan(
    session: Session, read_model: str, live: ReadModel | None, max_rate: int | None, part: int | None = None
) -> RebuildPlan:
    """Return what a rebuild would take; `live` is the build that readers see, which is as large as the new one.

    `part` is how many events it reads, where it reads a part of the log.
    """
    ((partitions, every),) = session.query(_LOG)
    events = every if part is None else part
    rates = session.query(_RATE, (read_model,))
    rate, rate_of = rates[0] if rates else (None, None)
    if max_rate is not None:
        rate, rate_of = (min(rate, max_rate), rate_of) if rate is not None else (float(max_rate), "--max-rate")
    tables = [f"{live.schema}.{name}" for name in live.tables] if live is not None else []
    space = sum(int(session.query(_SIZE, (table,))[0][0]) for table in tables)
    return RebuildPlan(events, partitions, space, round(events / rate, 1) if rate is not None else None, rate_of)

"""Where the log ends as of a time: in each partition before the first record that is later."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from projections.session import Session

_LOGGED: Final = "SELECT topic, partition, next_offset FROM checkpoints WHERE consumer = 'projector' ORDER BY 1, 2"

# In the order of offsets, so no more of the log is read than a rebuild reads of it.
_FIRST_LATER: Final = """
SELECT "offset" FROM log_records WHERE topic = $1 AND partition = $2 AND "offset" >= 0
AND created_at > $3::text::timestamptz ORDER BY "offset" LIMIT 1
"""

EndOffsets = dict[tuple[str, int], int]
"""By topic and partition, the offset at which a rebuild ends."""


def end_offsets(session: Session, as_of: datetime) -> EndOffsets:
    """Return where each partition of the log ends as of a time: at its checkpoint where no record is later.

    Producers set the times of records, so earlier ones can follow a later one: these are left out.
    """
    return {
        (topic, partition): min([next_offset, *_first_later(session, topic, partition, as_of)])
        for topic, partition, next_offset in session.query(_LOGGED)
    }


def _first_later(session: Session, topic: str, partition: int, as_of: datetime) -> list[int]:
    return [offset for (offset,) in session.query(_FIRST_LATER, (topic, partition, as_of.isoformat()))]

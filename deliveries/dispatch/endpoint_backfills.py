"""From where on each endpoint gets a partition's events, and how far it was given those before: `endpoint_backfills`.

A row's two offsets, next <= until:

    start .. next    were read again from the log for this endpoint alone, or there was nothing to read
    next .. until    are still to be read again
    until ..         come with the partition's live events, for it and for all others

The owner of a partition writes an endpoint's row when it hears of it, under its fence, before it dispatches anything to
it; `until` never changes. So every owner has the same live endpoints at an offset: copies that it writes after it began
again at its checkpoint are those that were written before, with none between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from uuid import UUID

from deliveries.endpoints import EndpointId
from deliveries.matching import Subscription
from projections.session import Session

_ROWS: Final = """
SELECT uuid_send(endpoint_id) AS endpoint_id, next_offset, until_offset FROM endpoint_backfills WHERE partition = $1
"""
_INSERT: Final = """
INSERT INTO endpoint_backfills (endpoint_id, partition, next_offset, until_offset)
SELECT endpoint_id, {partition}, next_offset, until_offset
FROM unnest('{{{ids}}}'::uuid[], '{{{nexts}}}'::bigint[], '{{{untils}}}'::bigint[])
    AS heard (endpoint_id, next_offset, until_offset)
ORDER BY endpoint_id
"""
_ADVANCE: Final = """
UPDATE endpoint_backfills SET next_offset = {next_offset}
WHERE endpoint_id = '{endpoint_id}' AND partition = {partition}
"""


class Backfill(NamedTuple):
    """The offsets that an endpoint is still to be given from the log, and from where on it gets live events."""

    next_offset: int
    until_offset: int

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be read again."""
        return self.next_offset >= self.until_offset


def new_backfill(start_offset: int, dispatched_until: int) -> Backfill:
    """Return the row of an endpoint that begins at an offset, where events below another may have been dispatched.

    >>> new_backfill(5, 9), new_backfill(9, 5)
    (Backfill(next_offset=5, until_offset=9), Backfill(next_offset=9, until_offset=9))
    """
    return Backfill(start_offset, max(start_offset, dispatched_until))


class EndpointBackfills:
    """The rows of one partition, as its owner has them in memory."""

    def __init__(self, partition: int, rows: Mapping[EndpointId, Backfill]) -> None:
        self._partition = partition
        self._rows = dict(rows)
        self._unfinished = {endpoint_id for endpoint_id, each in self._rows.items() if not each.is_done}

    @classmethod
    def load(cls, session: Session, partition: int) -> EndpointBackfills:
        """Read the rows of a partition."""
        frame = session.frame(_ROWS, (partition,))
        return cls(partition, {EndpointId(UUID(bytes=row[0])): Backfill(row[1], row[2]) for row in frame.iter_rows()})

    def __len__(self) -> int:
        return len(self._rows)

    def is_live(self, endpoint_id: EndpointId, offset: int) -> bool:
        """Return whether an endpoint gets the live events of an offset."""
        row = self._rows.get(endpoint_id)
        return row is not None and row.until_offset <= offset

    @property
    def has_unfinished(self) -> bool:
        """Whether offsets of any endpoint are still to be read again."""
        return bool(self._unfinished)

    def unfinished(self) -> dict[EndpointId, Backfill]:
        """Return the rows with offsets that are still to be read again, in the order of the endpoints' ids."""
        return {endpoint_id: self._rows[endpoint_id] for endpoint_id in sorted(self._unfinished)}

    def heard_of(self, subscriptions: Mapping[EndpointId, Subscription], dispatched_until: int) -> NewBackfills | None:
        """Return the rows of endpoints that have none yet; None where all have one."""
        new = sorted(subscriptions.keys() - self._rows.keys())
        if not new:
            return None
        starts = (subscriptions[each].start_offset(self._partition) for each in new)
        return NewBackfills(
            self._partition,
            {each: new_backfill(start, dispatched_until) for each, start in zip(new, starts, strict=True)},
        )

    def note_heard(self, heard: NewBackfills) -> None:
        """Keep rows whose statement was committed."""
        self._rows |= heard.rows
        self._unfinished |= {endpoint_id for endpoint_id, each in heard.rows.items() if not each.is_done}

    def advance_statement(self, endpoint_id: EndpointId, next_offset: int) -> str:
        """Return the statement that moves an endpoint's next offset."""
        return _ADVANCE.format(next_offset=int(next_offset), endpoint_id=endpoint_id, partition=int(self._partition))

    def note_advanced(self, endpoint_id: EndpointId, next_offset: int) -> bool:
        """Keep a next offset whose statement was committed; return whether the endpoint is owed nothing now."""
        row = self._rows[endpoint_id] = Backfill(next_offset, self._rows[endpoint_id].until_offset)
        if row.is_done:
            self._unfinished.discard(endpoint_id)
        return row.is_done


class NewBackfills(NamedTuple):
    """The rows of endpoints that a partition's owner has heard of, before they are stored."""

    partition: int
    rows: Mapping[EndpointId, Backfill]

    @property
    def statement(self) -> str:
        """The statement that stores them; it runs in a transaction that holds the fence."""
        return _INSERT.format(
            partition=int(self.partition),
            ids=_joined(self.rows),
            nexts=_joined(each.next_offset for each in self.rows.values()),
            untils=_joined(each.until_offset for each in self.rows.values()),
        )


def _joined(values: Iterable[object]) -> str:
    return ",".join(map(str, values))

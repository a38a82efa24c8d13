"""From where on each endpoint gets a partition's events, and how far it was given those before: `endpoint_backfills`.

A row's two offsets, next <= until:

    start .. next    were read again from the log for this endpoint alone, or there was nothing to read
    next .. until    are still to be read again
    until ..         come with the partition's live events, for it and for all others

The owner of a partition writes an endpoint's row when it hears of it, under its fence, before it dispatches anything to
it. So every owner has the same live endpoints at an offset: copies that it writes after it began again at its
checkpoint are those that were written before, with none between them.

`until` moves in two cases, under the fence too, and to above all that anybody may have dispatched. Where an entity's
events come in order and offsets are still to be read again, live events wait behind these: `until` is moved to the end
of each batch before anything of it is sent. And a resume is a start: what was passed by since is read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from uuid import UUID

from deliveries.endpoints import EndpointId
from deliveries.matching import Subscription
from projections.session import Session

_ROWS: Final = """
SELECT uuid_send(endpoint_id) AS endpoint_id, next_offset, until_offset, resumes
FROM endpoint_backfills WHERE partition = $1
"""
_STORE: Final = """
INSERT INTO endpoint_backfills (endpoint_id, partition, next_offset, until_offset, resumes)
SELECT endpoint_id, {partition}, next_offset, until_offset, resumes
FROM unnest('{{{ids}}}'::uuid[], '{{{nexts}}}'::bigint[], '{{{untils}}}'::bigint[], '{{{resumes}}}'::integer[])
    AS heard (endpoint_id, next_offset, until_offset, resumes)
ORDER BY endpoint_id
ON CONFLICT (partition, endpoint_id) DO UPDATE SET
    next_offset = excluded.next_offset, until_offset = excluded.until_offset, resumes = excluded.resumes
"""
_ADVANCE: Final = """
UPDATE endpoint_backfills SET next_offset = {next_offset}
WHERE endpoint_id = '{endpoint_id}' AND partition = {partition}
"""


class Resume(NamedTuple):
    """The last resume of an endpoint: its number, and the first offset of each partition that it gets since then."""

    number: int
    offsets: tuple[int, ...]

    def start_offset(self, partition: int) -> int:
        """Return the first offset of a partition; one that the topic did not have begins at its beginning."""
        return self.offsets[partition] if partition < len(self.offsets) else 0


class Backfill(NamedTuple):
    """The offsets that an endpoint is still to be given from the log, and from where on it gets live events."""

    next_offset: int
    until_offset: int
    resumes: int = 0
    """Up to which resume of the endpoint that holds."""

    @property
    def left(self) -> int:
        """How many offsets are still to be read again."""
        return self.until_offset - self.next_offset

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be read again."""
        return self.next_offset >= self.until_offset


def new_backfill(start_offset: int, dispatched_until: int) -> Backfill:
    """Return the row of an endpoint that begins at an offset, where events below another may have been dispatched.

    >>> new_backfill(5, 9)[:2], new_backfill(9, 5)[:2]
    ((5, 9), (9, 9))
    """
    return Backfill(start_offset, max(start_offset, dispatched_until))


def resumed_backfill(row: Backfill, resume: Resume, partition: int, dispatched_until: int) -> Backfill:
    """Return the row of an endpoint that was resumed; what it was owed before comes first, and all behind that.

    What is to be read again ends below all that the log may lack: a resume's offsets are the ends of the topic by then.

    >>> resume = Resume(2, (30,))
    >>> resumed_backfill(Backfill(9, 9, 1), resume, 0, 40), resumed_backfill(Backfill(5, 9, 1), resume, 0, 20)
    (Backfill(next_offset=30, until_offset=40, resumes=2), Backfill(next_offset=5, until_offset=20, resumes=2))
    """
    start = resume.start_offset(partition) if row.is_done else row.next_offset
    until = max(start, row.until_offset, dispatched_until)
    return Backfill(start, until, resume.number)


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
        return cls(partition, {EndpointId(UUID(bytes=row[0])): Backfill(*row[1:]) for row in frame.iter_rows()})

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

    def heard_of(
        self,
        subscriptions: Mapping[EndpointId, Subscription],
        dispatched_until: int,
        resumed: Mapping[EndpointId, Resume] | None = None,
    ) -> NewBackfills | None:
        """Return the rows of endpoints that have none yet, or were resumed since; None where there is no such one."""
        rows = {}
        resumed = resumed or {}
        for each in sorted(subscriptions.keys() - self._rows.keys()):
            row = new_backfill(subscriptions[each].start_offset(self._partition), dispatched_until)
            rows[each] = row._replace(resumes=resumed[each].number) if each in resumed else row
        for each, resume in sorted(resumed.items()):
            known = self._rows.get(each)
            if known is not None and known.resumes < resume.number:
                rows[each] = resumed_backfill(known, resume, self._partition, dispatched_until)
        return NewBackfills(self._partition, rows) if rows else None

    def put_off(self, endpoint_ids: Iterable[EndpointId], until_offset: int) -> NewBackfills | None:
        """Return the rows of those of the endpoints whose live events wait: they begin at an offset at the earliest."""
        rows = {
            each: self._rows[each]._replace(until_offset=until_offset)
            for each in sorted(self._unfinished.intersection(endpoint_ids))
            if self._rows[each].until_offset < until_offset
        }
        return NewBackfills(self._partition, rows) if rows else None

    def note_heard(self, heard: NewBackfills) -> None:
        """Keep rows whose statement was committed."""
        self._rows |= heard.rows
        self._unfinished -= heard.rows.keys()
        self._unfinished |= {endpoint_id for endpoint_id, each in heard.rows.items() if not each.is_done}

    def advance_statement(self, endpoint_id: EndpointId, next_offset: int) -> str:
        """Return the statement that moves an endpoint's next offset."""
        return _ADVANCE.format(next_offset=int(next_offset), endpoint_id=endpoint_id, partition=int(self._partition))

    def note_advanced(self, endpoint_id: EndpointId, next_offset: int) -> bool:
        """Keep a next offset whose statement was committed; return whether the endpoint is owed nothing now."""
        row = self._rows[endpoint_id] = self._rows[endpoint_id]._replace(next_offset=next_offset)
        if row.is_done:
            self._unfinished.discard(endpoint_id)
        return row.is_done


class NewBackfills(NamedTuple):
    """Rows of a partition's owner that are new or changed, before they are stored."""

    partition: int
    rows: Mapping[EndpointId, Backfill]

    @property
    def statement(self) -> str:
        """The statement that stores them; it runs in a transaction that holds the fence."""
        return _STORE.format(
            partition=int(self.partition),
            ids=_joined(self.rows),
            nexts=_joined(each.next_offset for each in self.rows.values()),
            untils=_joined(each.until_offset for each in self.rows.values()),
            resumes=_joined(each.resumes for each in self.rows.values()),
        )


def _joined(values: Iterable[object]) -> str:
    return ",".join(map(str, values))

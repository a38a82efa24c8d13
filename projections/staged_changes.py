"""Which change in the database each staged event tells of, by the headers of its record: what only the relay says.

Headers are looked at only where a read model's statement names the columns `change_tenant` and `change_version`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from audit.canonical import read_headers
from projections.parking_log import ParkingLog
from projections.prepared import PreparedBatch
from projections.session import Session
from projections.staging import Changes
from schemas.sender_headers import VERSION_HEADER, changed_version

_VERSION_NAME: Final = VERSION_HEADER.encode()


def changes_in(headers: Sequence[bytes | None]) -> Changes:
    """Return the change of each record, from its headers in canonical bytes.

    Nearly no record tells of one, so most are not taken apart.
    """
    return [
        changed_version(read_headers(each)) if each is not None and _VERSION_NAME in each else None for each in headers
    ]


def changes_of(session: Session, prepared: PreparedBatch) -> Callable[[], Changes]:
    """Return a function that reads the changes of a batch's rows, those of released events behind its own.

    A released event has the headers of the record in whose place it stands. One that a control record has brought in
    has that record's: it tells of no change. Runs in the caller's transaction.
    """

    def read() -> Changes:
        batch = prepared.batch
        own = dict(zip(batch.offsets, batch.headers, strict=True))
        released = [offset for offset, _ in prepared.released]
        return changes_in([*batch.headers, *_headers_at(session, batch.topic, batch.partition, released, own)])

    return read


def released_changes(session: Session, topic: str, partition: int, offsets: Sequence[int]) -> Changes:
    """Return the changes of released events that stand at some offsets of the log."""
    return changes_in(_headers_at(session, topic, partition, offsets, {}))


def _headers_at(
    session: Session, topic: str, partition: int, offsets: Sequence[int], known: Mapping[int, bytes | None]
) -> list[bytes | None]:
    logged = [offset for offset in offsets if offset not in known]
    read = ParkingLog(topic, partition).headers(session, logged) if logged else {}
    return [known[offset] if offset in known else read[offset] for offset in offsets]

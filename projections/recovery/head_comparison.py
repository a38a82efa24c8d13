"""The heads of a recovered log's chains, compared with heads that were kept elsewhere.

Where they differ, something between the last head that is the same and the first that is not was logged otherwise than
it is now. v1 of the chain covers the records alone, so there the records are others. v2 covers what was said of them as
well: each entry is tried with the other things that a release could have said, until the kept head comes out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from audit.canonical import read_headers
from audit.chain import CHAIN_START, ChainSlice, extend_slice
from audit.verifier.heads import Head
from projections.session import Session

TRIED_RECORDS_MAX: Final = 200_000
"""Entries between two heads that are looked at; of more the first that differs is not looked for."""
EVENT_ID_AT: Final = slice(5, 21)
"""Where the value of an event has its id: behind the five bytes that name the schema."""
HASHES_MAX: Final = 20_000_000
"""Hashes that are made to find it."""

_HASH: Final = 'SELECT hash FROM log_records WHERE topic = $1 AND partition = $2 AND "offset" = $3'
_RAISED: Final = """
SELECT min("offset") AS first FROM log_records WHERE topic = $1 AND partition = $2
  AND disposition = 'control' AND disposition <> 'applied' AND event_type::text = 'plant.chain.version_raised'
"""
_BETWEEN: Final = """
SELECT "offset", (extract(epoch FROM created_at) * 1000)::bigint AS timestamp_ms,
       coalesce(key, convert_to(entity_id::text, 'UTF8')) AS key, value, headers, disposition::text AS disposition,
       uuid_send(event_id) AS event_id, coalesce(reason, '') AS reason, hash
FROM log_records WHERE topic = $1 AND partition = $2 AND "offset" > $3 AND "offset" <= $4
ORDER BY "offset" LIMIT $5
"""


class HeadComparison(NamedTuple):
    """A kept head, and what the recovered chain has there. `first` is the first entry that differs, if it was found."""

    topic: str
    partition: int
    offset: int
    same: bool
    first: int | None
    why: str


class ChainEntry(NamedTuple):
    """An entry of the recovered log."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: bytes
    disposition: str
    event_id: bytes | None
    reason: str
    hash: bytes


def compare_heads(session: Session, kept: Sequence[Head]) -> list[HeadComparison]:
    """Return what became of each kept head, sorted; of a chain without a difference the last one alone."""
    found = []
    for topic, partition in sorted({(head.topic, head.partition) for head in kept}):
        heads = sorted(head for head in kept if (head.topic, head.partition) == (topic, partition))
        found.append(_compare_chain(session, heads))
    return found


def _compare_chain(session: Session, heads: Sequence[Head]) -> HeadComparison:
    same_to, previous = -1, CHAIN_START
    for head in heads:
        rows = session.query(_HASH, (head.topic, head.partition, head.offset))
        if not rows:
            why = "The topic holds no record there any more, or never did: the log ends before, or has a gap."
            return HeadComparison(head.topic, head.partition, head.offset, False, None, why)
        if bytes(rows[0][0]).hex() != head.hash:
            first, why = _first_difference(session, head, same_to, previous)
            return HeadComparison(head.topic, head.partition, head.offset, False, first, why)
        same_to, previous = head.offset, bytes(rows[0][0])
    return HeadComparison(heads[-1].topic, heads[-1].partition, heads[-1].offset, True, None, "")


def _first_difference(session: Session, head: Head, same_to: int, previous: bytes) -> tuple[int | None, str]:
    """Return the first entry that differs, None where it can't be found, and why."""
    raised = session.query(_RAISED, (head.topic, head.partition))[0][0]
    if raised is None or raised > head.offset:
        why = (
            "Records differ: the chain is v1 up to there, which covers their bytes and nothing that is said of them."
            " The topic does not hold what was logged."
        )
        return None, why
    rows = session.frame(_BETWEEN, (head.topic, head.partition, same_to, head.offset, TRIED_RECORDS_MAX + 1)).rows()
    entries = [ChainEntry(*row) for row in rows]
    between = f"between {same_to} and {head.offset}" if same_to >= 0 else f"up to {head.offset}"
    if len(entries) > TRIED_RECORDS_MAX:
        return None, f"It is {between}: too many entries to try each. Heads that were kept in between name it."
    found = _judged_otherwise(head, entries, previous, int(raised))
    if found is not None:
        return found
    return None, f"It is {between}. No single entry that was judged otherwise explains it."


def _judged_otherwise(
    head: Head, entries: Sequence[ChainEntry], previous: bytes, raised: int
) -> tuple[int, str] | None:  # fmt: skip
    """Return the entry with which the kept head comes out once something else is said of it."""
    hashes = 0
    for at, entry in _by_doubt(entries):
        if entry.offset < raised:
            continue
        before = entries[at - 1].hash if at else previous
        for disposition, event_id in _alternatives(entry):
            hashes += len(entries) - at
            if hashes > HASHES_MAX:
                return None
            changed = [entry._replace(disposition=disposition, event_id=event_id), *entries[at + 1 :]]
            if _head_of(head, changed, before) == head.hash:
                was = f"It was {disposition}, and is {entry.disposition} now"
                return entry.offset, f"{was}{f' ({entry.reason})' if entry.reason else ''}: this release judges it so."
    return None


def _by_doubt(entries: Sequence[ChainEntry]) -> Iterator[tuple[int, ChainEntry]]:
    """Yield entries with their index: poison first, since that is what limits and schemas decide."""
    for poison in (True, False):
        for at, entry in enumerate(entries):
            if (entry.disposition == "poison") == poison:
                yield at, entry


def _alternatives(entry: ChainEntry) -> Iterator[tuple[str, bytes | None]]:
    """Yield what another release could have said of an entry."""
    ids = [entry.event_id] if entry.event_id else list(_event_ids(entry))
    for disposition in ("applied", "poison", "repeat", "parked"):
        for event_id in (*ids, None):
            if (disposition, event_id) != entry[5:7] and (event_id or disposition == "poison"):
                yield disposition, event_id


def _event_ids(entry: ChainEntry) -> Iterator[bytes]:
    """Yield ids that the event may have: that of the header, and where every schema of an event has it."""
    if entry.value is not None and len(entry.value) >= EVENT_ID_AT.stop:
        yield entry.value[EVENT_ID_AT]
    for name, value in read_headers(entry.headers):
        if name == "ce_id" and value is not None:
            with contextlib.suppress(ValueError):
                yield UUID(value.decode()).bytes


def _head_of(head: Head, entries: Sequence[ChainEntry], before: bytes) -> str:
    columns = ChainSlice(*(list(column) for column in zip(*(entry[:7] for entry in entries), strict=True)))
    return extend_slice(head.topic, head.partition, before, columns, 0)[-1].hex()

"""The audit chain: one link for each record, one chain for each partition.

    hash = sha256(previous_hash + event_data)

with `event_data` as in `audit/canonical.py`, in v1 or v2, and 32 zero bytes before the first record of a partition. The
chain's order is the order of offsets; offsets may have gaps, the links may not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from audit.canonical import DOMAIN_V2, NULL, SHORT, field, outcome_bytes, positions, prefix

CHAIN_START: Final = bytes(32)
"""The previous hash of a partition's first record."""

_DISPOSITIONS: Final = ("applied", "repeat", "poison", "parked", "control")
_WITH_EVENT_ID: Final = {name: outcome_bytes(name, bytes(16))[:-16] for name in _DISPOSITIONS}
"""The bytes between headers and event id, by disposition: looking them up costs a record less than making them."""

_prefix = lru_cache(maxsize=4096)(prefix)
_empty = hashlib.sha256()


def extend(
    topic: str,
    partition: int,
    previous_hash: bytes,
    offsets: Sequence[int],
    timestamps_ms: Sequence[int],
    keys: Sequence[bytes | None],
    values: Sequence[bytes | None],
    headers: Sequence[bytes],
) -> list[bytes]:
    """Return the v1 hash of each record of a slice of one partition, in order; the last one is the chain's new head.

    `previous_hash` is the head so far (:data:`CHAIN_START` for an empty chain). The sequences run side by side, offsets
    ascending; `headers` holds each record's canonical headers (:func:`audit.canonical.headers_bytes`).

    >>> first, second = extend("t", 0, CHAIN_START, [0, 5], [1, 1], [None, b""], [b"v", b"v"], [bytes(4), bytes(4)])
    >>> [second] == extend("t", 0, first, [5], [1], [b""], [b"v"], [bytes(4)])
    True
    """
    hashes: list[bytes] = []
    append, join, short, position = hashes.append, b"".join, SHORT, positions
    # Copying an empty state and updating it is cheaper than making a new one: OpenSSL looks up the algorithm then.
    copy = _empty.copy
    start = _prefix(topic, partition)
    previous = previous_hash
    for offset, timestamp_ms, key, value, header in zip(offsets, timestamps_ms, keys, values, headers, strict=True):
        try:
            parts = (
                previous,
                start,
                position(8, offset, 8, timestamp_ms),
                short[len(key)],  # type: ignore[arg-type]  # null takes the slow path
                key,
                short[len(value)],  # type: ignore[arg-type]  # null takes the slow path
                value,
                header,
            )
        except (IndexError, TypeError):
            parts = (
                previous,
                start,
                position(8, offset, 8, timestamp_ms),
                b"",
                _field_or_null(key),
                b"",
                _field_or_null(value),
                header,
            )
        state = copy()
        state.update(join(parts))  # type: ignore[arg-type]  # no null is left
        previous = state.digest()
        append(previous)
    return hashes


def extend_v2(
    topic: str,
    partition: int,
    previous_hash: bytes,
    offsets: Sequence[int],
    timestamps_ms: Sequence[int],
    keys: Sequence[bytes | None],
    values: Sequence[bytes | None],
    headers: Sequence[bytes],
    dispositions: Sequence[str],
    event_ids: Sequence[bytes | None],
) -> list[bytes]:
    """Do as :func:`extend` in v2: each hash covers the record's disposition and event id (16 bytes or null) too.

    >>> record = ([0], [1], [None], [b"v"], [bytes(4)])
    >>> (applied,) = extend_v2("t", 0, CHAIN_START, *record, ["applied"], [bytes(16)])
    >>> (poison,) = extend_v2("t", 0, CHAIN_START, *record, ["poison"], [bytes(16)])
    >>> applied == poison or applied == extend("t", 0, CHAIN_START, *record)[0]
    False
    """
    hashes: list[bytes] = []
    append, join, short, position, outcomes = hashes.append, b"".join, SHORT, positions, _WITH_EVENT_ID
    copy = _empty.copy
    start = _prefix(topic, partition, DOMAIN_V2)
    previous = previous_hash
    columns = zip(offsets, timestamps_ms, keys, values, headers, dispositions, event_ids, strict=True)
    for offset, timestamp_ms, key, value, header, disposition, event_id in columns:
        place, outcome = position(8, offset, 8, timestamp_ms), outcomes[disposition]
        try:
            key_length, value_length = short[len(key)], short[len(value)]
            parts = (previous, start, place, key_length, key, value_length, value, header, outcome, event_id)
            data = join(parts)
        except (IndexError, TypeError):
            record = (previous, start, place, _field_or_null(key), _field_or_null(value), header)
            data = join((*record, outcome_bytes(disposition, event_id)))
        state = copy()
        state.update(data)
        previous = state.digest()
        append(previous)
    return hashes


class ChainSlice(NamedTuple):
    """Records of one partition as columns side by side, offsets ascending; event ids are 16 bytes or null."""

    offsets: Sequence[int]
    timestamps_ms: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[bytes]
    dispositions: Sequence[str]
    event_ids: Sequence[bytes | None]


def extend_slice(topic: str, partition: int, previous_hash: bytes, records: ChainSlice, first_v2: int) -> list[bytes]:
    """Return the hash of each record of a slice: in v1 before the index `first_v2`, in v2 from it on.

    `first_v2` is 0 where the partition went over before, the length of the slice where it has not yet, and otherwise
    the index of the control record with which it does.

    >>> records = ChainSlice([0, 1], [1, 1], [None] * 2, [b"v"] * 2, [bytes(4)] * 2, ["poison", "control"], [None] * 2)
    >>> first, second = extend_slice("t", 0, CHAIN_START, records, 1)
    >>> [first] == extend("t", 0, CHAIN_START, *(column[:1] for column in records[:5]))
    True
    >>> [second] == extend_v2("t", 0, first, *(column[1:] for column in records))
    True
    """
    if first_v2 <= 0:
        return extend_v2(topic, partition, previous_hash, *records)
    if first_v2 >= len(records.offsets):
        return extend(topic, partition, previous_hash, *records[:5])
    before = ChainSlice._make(column[:first_v2] for column in records)
    after = ChainSlice._make(column[first_v2:] for column in records)
    hashes = extend(topic, partition, previous_hash, *before[:5])
    return hashes + extend_v2(topic, partition, hashes[-1], *after)


def _field_or_null(data: bytes | None) -> bytes:
    return NULL if data is None else field(data)

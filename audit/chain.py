"""The audit chain: one link for each record, one chain for each partition.

    hash = sha256(previous_hash + event_data)

with `event_data` as in `audit/canonical.py`, and 32 zero bytes before the first record of a partition. The chain's
order is the order of offsets; offsets may have gaps, the links may not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from audit.canonical import NULL, SHORT, field, positions, prefix

CHAIN_START: Final = bytes(32)
"""The previous hash of a partition's first record."""

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
    """Return the hash of each record of a slice of one partition, in order; the last one is the chain's new head.

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


def _field_or_null(data: bytes | None) -> bytes:
    return NULL if data is None else field(data)

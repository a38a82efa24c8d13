"""The canonical bytes of a Kafka record, which the audit hash covers (`docs/reference/audit-format.md`).

    u32(n)         4 bytes, big-endian, unsigned
    field(b)       u32(len(b)) + b
    null           0xFFFFFFFF, and nothing after it; so null and empty differ
    headers_bytes  u32(count) + for each header, in order: field(name, utf-8) + field-or-null(value)
    event_data     field("plant.event.v1") + field(topic, utf-8) + field(int32 partition) + field(int64 offset)
                   + field(int64 timestamp in ms) + field-or-null(key) + field-or-null(value) + headers_bytes

Everything is length-prefixed, so no two records have the same bytes, and nothing has to be decoded to make them.
These functions run once a record in the worker's hot loop.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

DOMAIN: Final = b"plant.event.v1"
NULL: Final = b"\xff\xff\xff\xff"

Header = tuple[str, bytes | None]

_NAMES_MAX: Final = 1024
_u32: Final = struct.Struct(">I").pack
_names: dict[str, bytes] = {}

SHORT: Final = tuple(_u32(length) for length in range(4096))
"""u32 of the lengths that nearly every key, value and header has: indexing it is cheaper than packing."""


def field(data: bytes) -> bytes:
    """Return a length-prefixed field.

    >>> field(b"ab").hex()
    '000000026162'
    """
    return _u32(len(data)) + data


def headers_bytes(headers: Sequence[Header]) -> bytes:
    """Return the canonical bytes of a record's ordered headers; `event_stream.headers` stores them.

    >>> headers_bytes([("a", b"1"), ("a", None)]).hex(" ", -4)
    '00000002 00000001 61000000 01310000 000161ff ffffff'

    Names that were not valid UTF-8 keep their bytes when they were decoded with `surrogateescape`.
    """
    names = _names
    short = SHORT
    parts = [_u32(len(headers))]
    try:
        for name, value in headers:
            parts += (names[name], short[len(value)], value)  # type: ignore[arg-type]  # null: the slow path
    except (KeyError, IndexError, TypeError):
        return _headers_bytes_slow(headers)
    return b"".join(parts)


def _headers_bytes_slow(headers: Sequence[Header]) -> bytes:
    """Do as :func:`headers_bytes`, for what its tables lack: new names, long values, null values."""
    parts = [_u32(len(headers))]
    for name, value in headers:
        encoded = field(name.encode("utf-8", "surrogateescape"))
        if len(_names) < _NAMES_MAX and len(encoded) < 256:
            _names[name] = encoded
        parts.append(encoded)
        parts.append(NULL if value is None else field(value))
    return b"".join(parts)


def read_headers(data: bytes) -> list[Header]:
    """Return the headers from the bytes that :func:`headers_bytes` makes.

    >>> read_headers(headers_bytes([("a", b"1"), ("a", None)]))
    [('a', b'1'), ('a', None)]
    """
    at = 4

    def next_field() -> bytes | None:
        nonlocal at
        length, at = data[at : at + 4], at + 4
        if length == NULL:
            return None
        start, at = at, at + int.from_bytes(length, "big")
        return data[start:at]

    count = int.from_bytes(data[:4], "big")
    return [((next_field() or b"").decode("utf-8", "surrogateescape"), next_field()) for _ in range(count)]


def prefix(topic: str, partition: int) -> bytes:
    """Return the part of event_data that all records of a partition share, up to the offset's length."""
    return field(DOMAIN) + field(topic.encode("utf-8")) + field(struct.pack(">i", partition))


positions: Final[Callable[[int, int, int, int], bytes]] = struct.Struct(">IqIq").pack
"""`positions(8, offset, 8, timestamp_ms)`: the two fixed-size fields in one call."""


def event_data(
    topic: str,
    partition: int,
    offset: int,
    timestamp_ms: int,
    key: bytes | None,
    value: bytes | None,
    headers: bytes,
) -> bytes:
    """Return the canonical bytes of one record; `headers` comes from :func:`headers_bytes`."""
    return b"".join(
        (
            prefix(topic, partition),
            positions(8, offset, 8, timestamp_ms),
            NULL if key is None else field(key),
            NULL if value is None else field(value),
            headers,
        )
    )

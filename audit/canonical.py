"""The canonical bytes of a Kafka record, which the audit hash covers (`docs/reference/audit-format.md`).

    u32(n)         4 bytes, big-endian, unsigned
    field(b)       u32(len(b)) + b
    null           0xFFFFFFFF, and nothing after it; so null and empty differ
    headers_bytes  u32(count) + for each header, in order: field(name, utf-8) + field-or-null(value)
    record_data    field(topic, utf-8) + field(int32 partition) + field(int64 offset) + field(int64 timestamp in ms)
                   + field-or-null(key) + field-or-null(value) + headers_bytes
    v1             event_data = field("plant.event.v1") + record_data
    v2             event_data = field("plant.event.v2") + record_data + field(disposition) + field-or-null(event_id)

A partition's chain begins with v1. Its first v2 entry is a control record in it, `plant.chain.version_raised`; that one
and all after it are v2. Everything is length-prefixed, so no two records have the same bytes, and nothing has to be
decoded to make them. These functions run once a record in the worker's hot loop.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

DOMAIN_V1: Final = b"plant.event.v1"
DOMAIN_V2: Final = b"plant.event.v2"
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


def prefix(topic: str, partition: int, domain: bytes = DOMAIN_V1) -> bytes:
    """Return the part of event_data that all records of a partition share in one version, up to the offset's length."""
    return field(domain) + field(topic.encode("utf-8")) + field(struct.pack(">i", partition))


def outcome_bytes(disposition: str, event_id: bytes | None) -> bytes:
    """Return what v2 adds to a record's bytes: field(disposition) + field-or-null(event_id).

    >>> outcome_bytes("poison", None).hex(" ", -4)
    '00000006 706f6973 6f6effff ffff'
    """
    return field(disposition.encode("ascii")) + (NULL if event_id is None else field(event_id))


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
    """Return the canonical bytes of one record in v1; `headers` comes from :func:`headers_bytes`.

    >>> event_data("t", 0, 0, 0, b"k", None, headers_bytes([])).hex()[:36]
    '0000000e706c616e742e6576656e742e7631'
    """
    return prefix(topic, partition) + _after_prefix(offset, timestamp_ms, key, value, headers)


def event_data_v2(
    topic: str,
    partition: int,
    offset: int,
    timestamp_ms: int,
    key: bytes | None,
    value: bytes | None,
    headers: bytes,
    disposition: str,
    event_id: bytes | None,
) -> bytes:
    """Return the canonical bytes of one record in v2, which hold the log's judgement of it too.

    >>> record = ("t", 0, 0, 0, b"k", None, headers_bytes([]))
    >>> event_data_v2(*record, "poison", None)[18:] == event_data(*record)[18:] + outcome_bytes("poison", None)
    True
    """
    data = prefix(topic, partition, DOMAIN_V2) + _after_prefix(offset, timestamp_ms, key, value, headers)
    return data + outcome_bytes(disposition, event_id)


def _after_prefix(offset: int, timestamp_ms: int, key: bytes | None, value: bytes | None, headers: bytes) -> bytes:
    key_field, value_field = (NULL if data is None else field(data) for data in (key, value))
    return positions(8, offset, 8, timestamp_ms) + key_field + value_field + headers

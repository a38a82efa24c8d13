"""Verifies a range of one stored chain, from the stored bytes alone. Shares no code with the writer.

The formula (`docs/reference/audit-format.md`); lengths are 4 bytes, big-endian, 0xFFFFFFFF for null:

    hash = sha256(previous_hash + event_data)
    record_data = field(topic) + field(int32 partition) + field(int64 offset) + field(int64 timestamp in ms)
                  + field-or-null(key) + field-or-null(value) + headers
    v1: event_data = field("plant.event.v1") + record_data
    v2: event_data = field("plant.event.v2") + record_data + field(disposition) + field-or-null(event_id)

Rows come by binary COPY, whose fields are length-prefixed in just this way, so a row's key and value are hashed
without a change, and so are disposition and event id. Memory is bounded by the largest row. Checking stops at the first
bad entry.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import msgspec

from audit.verifier.decoded_columns import (
    APPLIED,
    ENTITY_ID,
    EVENT_ID,
    REPEAT,
    DecodedColumns,
    Layouts,
    id_offsets,
    mismatch,
    unknown_schema,
)

CHAIN_START: Final = bytes(32)

_COPY_HEADER_BYTES: Final = 19
_TRAILER: Final = b"\xff\xff"
_EPOCH_2000_US: Final = 946_684_800_000_000  # Postgres counts microseconds since 2000-01-01 UTC.

# Number of fields; length and content of hash, created_at and offset; length of the key.
_fixed: Final = struct.Struct(">hi32siqiqi").unpack_from
_KEY_AT: Final = struct.calcsize(">hi32siqiq")
_i32: Final = struct.Struct(">i").unpack_from
_u32: Final = struct.Struct(">I").pack
_pack_position: Final = struct.Struct(">IqIq").pack
_DOMAINS: Final = (b"plant.event.v1", b"plant.event.v2")
_empty: Final = hashlib.sha256()
_APPLIED_WITH_ID: Final = _u32(len(APPLIED)) + APPLIED.encode() + _u32(16)
_NULL: Final = _u32(0xFFFFFFFF)
_APPLIED_OUTCOME_BYTES: Final = len(_APPLIED_WITH_ID) + 16


class Chain(msgspec.Struct, frozen=True, order=True):
    """One partition's chain; written `topic/partition`."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class ChainFault(msgspec.Struct, frozen=True, kw_only=True):
    """A bad entry. Hashes are in hex; None where nothing is stored, or nothing can be recomputed."""

    topic: str
    partition: int
    offset: int
    problem: str
    stored_hash: str | None = None
    recomputed_hash: str | None = None


class UnjudgedEntries(msgspec.Struct, frozen=True, kw_only=True):
    """Entries whose hashes are good, and whose columns can't be judged: the verifier does not know their schemas."""

    entries: int
    first_offset: int
    schema_ids: tuple[int, ...]
    """Some of the ids, ascending; at most :data:`SCHEMA_IDS_MAX`."""

    def with_more(self, more: UnjudgedEntries) -> UnjudgedEntries:
        """Return both together."""
        return UnjudgedEntries(
            entries=self.entries + more.entries,
            first_offset=min(self.first_offset, more.first_offset),
            schema_ids=tuple(sorted({*self.schema_ids, *more.schema_ids})[:SCHEMA_IDS_MAX]),
        )


SCHEMA_IDS_MAX: Final = 10


class RangeVerifier:
    """A verifier of one range, fed with the binary COPY of `rows.sql` in chunks; it keeps the first finding.

    `before` is the stored hash of the entry before the range, :data:`CHAIN_START` where there is none, and `first_v2`
    the offset at which the chain goes over to v2, None where it does not. Afterwards `head_hash` and `head_offset`
    belong to the last good entry.
    """

    def __init__(
        self, chain: Chain, before: bytes, layouts: Layouts | None = None, first_v2: int | None = None
    ) -> None:
        """`layouts` are the schemas that it knows: the bundled ones, unless others are named."""
        self.chain = chain
        self._layouts = id_offsets() if layouts is None else layouts
        self._constants: dict[bytes, bytes | None] = {}
        self.head_hash = before
        self.head_offset: int | None = None
        self.entries = 0
        self.finding: ChainFault | None = None
        self.repeats: list[tuple[int, bytes]] = []
        """Offset and event id of entries marked as repeats: an earlier one must have been applied."""
        self.unjudged: UnjudgedEntries | None = None
        self._rest = b""
        self._begun = False
        self._first_v2 = first_v2
        shared = chain.topic.encode(), struct.pack(">i", chain.partition)
        self._prefixes = [b"".join(_u32(len(part)) + part for part in (domain, *shared)) for domain in _DOMAINS]

    def feed(self, data: bytes) -> None:
        """Check the rows that are complete; the rest is kept for the next chunk."""
        buffer, at = self._rest + data, 0
        if not self._begun:
            if len(buffer) < _COPY_HEADER_BYTES:
                self._rest = buffer
                return
            self._begun, at = True, _COPY_HEADER_BYTES
        size, row = len(buffer), self._row
        try:
            while at + 2 < size and self.finding is None:  # The trailer is two bytes.
                at = row(buffer, at, size)
        except struct.error:
            pass  # The row goes on in the next chunk.
        self._rest = buffer[at:]

    def finish(self) -> None:
        """Check that only the trailer is left. Call it after the last chunk."""
        if self.finding is None and self._rest != _TRAILER:
            self._keep((self.head_offset or 0) + 1, "the rows end in the middle of one, or can't be read")

    def _row(self, buffer: bytes, at: int, size: int) -> int:
        """Check one row and return the index after it. Raises struct.error where the row is not complete."""
        _, hash_bytes, stored, _, created_us, _, offset, key_bytes = _fixed(buffer, at)
        if hash_bytes != 32:
            return self._unreadable_hash(buffer, at, size)
        key_at = at + _KEY_AT
        value_at = key_at + 4 + key_bytes if key_bytes > 0 else key_at + 4
        headers_at = _end(buffer, value_at)
        outcome_at = _end(buffer, headers_at)
        end, outcome_end, problem, unknown = self._check_decoded(
            buffer, offset, key_at, value_at, headers_at, outcome_at
        )
        if end > size:
            raise struct.error
        timestamp_ms, odd_us = divmod(created_us + _EPOCH_2000_US, 1000)
        first_v2, before = self._first_v2, self.head_hash
        parts = [
            before,
            self._prefixes[0],
            _pack_position(8, offset, 8, timestamp_ms),
            buffer[key_at:headers_at],
            buffer[headers_at + 4 : outcome_at],
        ]
        if first_v2 is not None and offset >= first_v2:
            parts[1] = self._prefixes[1]
            parts.append(buffer[outcome_at:outcome_end])
        state = _empty.copy()  # cheaper than a new one
        state.update(b"".join(parts))
        recomputed = state.digest()
        if odd_us:
            problem = "created_at is not a whole number of milliseconds"
        elif recomputed != stored:
            problem = problem or "the hash does not fit the stored bytes and the entry before"
        if problem is not None:
            self._keep(offset, problem, stored, recomputed)
            return size
        self.head_hash, self.head_offset = stored, offset
        self.entries += 1
        if unknown is not None:
            one = UnjudgedEntries(entries=1, first_offset=offset, schema_ids=(unknown,))
            self.unjudged = one if self.unjudged is None else self.unjudged.with_more(one)
        return end

    def _unreadable_hash(self, buffer: bytes, at: int, size: int) -> int:
        """Keep the finding of a hash that is not 32 bytes long; return the index after all rows."""
        created_at = _end(buffer, at + 2)
        self._keep(struct.unpack_from(">q", buffer, created_at + 16)[0], "the stored hash is not 32 bytes long")
        return size

    def _check_decoded(
        self, buffer: bytes, offset: int, key_at: int, value_at: int, headers_at: int, outcome_at: int
    ) -> tuple[int, int, str | None, int | None]:
        """Return the indexes after the row and after its event id, the mismatch of its columns with key and value, and
        an unknown schema.
        """
        value = buffer[value_at + 4 : headers_at]
        try:
            types = self._constants[value[:5]]
        except KeyError:
            types = self._constant_columns(value[:5])
        if types is not None:
            expected = b"".join((_APPLIED_WITH_ID, value[EVENT_ID], types, value[ENTITY_ID], _NULL, _NULL))
            if buffer.startswith(expected, outcome_at):
                return outcome_at + len(expected), outcome_at + _APPLIED_OUTCOME_BYTES, None, None
        fields: list[bytes | None] = []
        ends: list[int] = []
        at = outcome_at
        for _ in range(7):
            end = _end(buffer, at)
            fields.append(None if _i32(buffer, at)[0] < 0 else buffer[at + 4 : end])
            ends.append(at := end)
        disposition, event_id, event_type, entity_type, entity_id, named, foreign = fields
        columns = DecodedColumns(_text(event_type), _text(entity_type), entity_id, event_id)
        stored_key = None if _i32(buffer, key_at)[0] < 0 else buffer[key_at + 4 : value_at]
        stored_value = None if _i32(buffer, value_at)[0] < 0 else value
        shown = _text(disposition) or ""
        control_offset = None if named is None else int.from_bytes(named, "big", signed=True)
        problem = mismatch(
            columns, shown, stored_value, self._layouts, key=stored_key, control_offset=control_offset
        )  # fmt: skip
        if foreign is not None:
            problem = f"a record of {_text(foreign)} is in a table of this partition"
        elif problem is None and shown == REPEAT:
            self.repeats.append((offset, event_id or b""))
        return at, ends[1], problem, unknown_schema(columns, shown, stored_value, self._layouts, key=stored_key)

    def _constant_columns(self, start: bytes) -> bytes | None:
        """Return the columns' bytes between the two ids in an applied record; None if they depend on its data."""
        layout = self._layouts.get(start)
        if layout is None:
            return None  # not kept: there may be very many
        constants = None
        if layout.entity_type is not None:
            names = (layout.event_type.encode(), layout.entity_type.encode())
            constants = b"".join(_u32(len(name)) + name for name in names) + _u32(16)
        self._constants[start] = constants
        return constants

    def _keep(self, offset: int, problem: str, stored: bytes | None = None, recomputed: bytes | None = None) -> None:
        self.finding = ChainFault(
            topic=self.chain.topic,
            partition=self.chain.partition,
            offset=offset,
            problem=problem,
            stored_hash=stored.hex() if stored is not None else None,
            recomputed_hash=recomputed.hex() if recomputed is not None else None,
        )


def _end(buffer: bytes, at: int) -> int:
    """Return the index after the field that begins here; null has no content."""
    length: int = _i32(buffer, at)[0]
    return at + 4 + length if length > 0 else at + 4


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "replace")

"""Verifies a range of one stored chain, from the stored bytes alone. Shares no code with the writer.

The formula (`docs/reference/audit-format.md`); lengths are 4 bytes, big-endian, 0xFFFFFFFF for null:

    hash = sha256(previous_hash + event_data)
    event_data = field("plant.event.v1") + field(topic) + field(int32 partition) + field(int64 offset)
                 + field(int64 timestamp in ms) + field-or-null(key) + field-or-null(value) + headers

Rows come by binary COPY, whose fields are length-prefixed in just this way, so a row's key and value are hashed
without a change. Memory is bounded by the largest row. Checking stops at the first bad entry.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import msgspec

from audit.verifier.decoded_columns import (
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
_MISSING: Final = "event_stream has a row that audit_log lacks"
_EPOCH_2000_US: Final = 946_684_800_000_000  # Postgres counts microseconds since 2000-01-01 UTC.

# Number of fields; then length and content of offset, created_at, offset, created_at, previous_hash, hash.
_FIXED: Final = struct.Struct(">hiqiqiqiqi32si32s")
_AFTER_FIXED: Final = _FIXED.size
_fixed: Final = _FIXED.unpack_from
_i32: Final = struct.Struct(">i").unpack_from
_pack_position: Final = struct.Struct(">IqIq").pack


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

    `before` is the stored hash of the entry before the range, :data:`CHAIN_START` where there is none. Afterwards
    `head_hash` and `head_offset` belong to the last good entry.
    """

    def __init__(self, chain: Chain, before: bytes, layouts: Layouts | None = None) -> None:
        """`layouts` are the schemas that it knows: the bundled ones, unless others are named."""
        self.chain = chain
        self._layouts = id_offsets() if layouts is None else layouts
        self._constants: dict[bytes, tuple[bytes, bytes, bytes] | None] = {}
        self.head_hash = before
        self.head_offset: int | None = None
        self.entries = 0
        self.finding: ChainFault | None = None
        self.repeats: list[tuple[int, bytes]] = []
        """Offset and event id of entries marked as repeats: an earlier one must have been applied."""
        self.unjudged: UnjudgedEntries | None = None
        self._rest = b""
        self._begun = False
        topic, partition = chain.topic.encode(), struct.pack(">i", chain.partition)
        self._prefix = b"".join(struct.pack(">I", len(part)) + part for part in (b"plant.event.v1", topic, partition))

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
        _, _, offset, _, created_us, _, audit_offset, _, created_too, n5, previous, n6, stored = _fixed(buffer, at)
        if audit_offset != offset or n5 != 32 or n6 != 32:
            self._keep(offset, _MISSING if audit_offset != offset else "a stored hash is not 32 bytes long")
            return size
        key_at = at + _AFTER_FIXED
        value_at = _end(buffer, key_at)
        headers_at = _end(buffer, value_at)
        decoded_at = _end(buffer, headers_at)
        if decoded_at > size:
            raise struct.error
        end, problem, unknown = self._check_decoded(buffer, offset, value_at, headers_at, decoded_at)
        if end > size:
            raise struct.error
        timestamp_ms, odd_us = divmod(created_us + _EPOCH_2000_US, 1000)
        position = _pack_position(8, offset, 8, timestamp_ms)
        key_and_value, headers = buffer[key_at:headers_at], buffer[headers_at + 4 : decoded_at]
        before = self.head_hash
        recomputed = hashlib.sha256(b"".join((before, self._prefix, position, key_and_value, headers))).digest()
        if previous != before:
            problem = f"previous_hash is {previous.hex()}, but the entry before has {before.hex()}"
        elif created_us != created_too:
            problem = "created_at differs between event_stream and audit_log"
        elif odd_us:
            problem = "created_at is not a whole number of milliseconds"
        elif recomputed != stored:
            problem = "the hash does not fit the stored bytes"
        if problem is not None:
            self._keep(offset, problem, stored, recomputed)
            return size
        self.head_hash, self.head_offset = stored, offset
        self.entries += 1
        if unknown is not None:
            one = UnjudgedEntries(entries=1, first_offset=offset, schema_ids=(unknown,))
            self.unjudged = one if self.unjudged is None else self.unjudged.with_more(one)
        return end

    def _check_decoded(
        self, buffer: bytes, offset: int, value_at: int, headers_at: int, decoded_at: int
    ) -> tuple[int, str | None, int | None]:
        """Return the row's end, the mismatch of the columns after its headers with its value, and an unknown schema."""
        value = buffer[value_at + 4 : headers_at]
        try:
            constants = self._constants[value[:5]]
        except KeyError:
            constants = self._constant_columns(value[:5])
        if constants is not None:
            types, sixteen, applied = constants
            expected = b"".join((types, sixteen, value[ENTITY_ID], sixteen, value[EVENT_ID], applied))
            if buffer.startswith(expected, decoded_at):
                return decoded_at + len(expected), None, None
        fields: list[bytes | None] = []
        at = decoded_at
        for _ in range(5):
            end = _end(buffer, at)
            fields.append(None if _i32(buffer, at)[0] < 0 else buffer[at + 4 : end])
            at = end
        event_type, entity_type, entity_id, event_id, disposition = fields
        columns = DecodedColumns(_text(event_type), _text(entity_type), entity_id, event_id)
        stored_value = None if _i32(buffer, value_at)[0] < 0 else value
        shown = _text(disposition) or ""
        problem = mismatch(columns, shown, stored_value, self._layouts)
        if problem is None and disposition == REPEAT.encode():
            self.repeats.append((offset, event_id or b""))
        return at, problem, unknown_schema(columns, shown, stored_value, self._layouts)

    def _constant_columns(self, start: bytes) -> tuple[bytes, bytes, bytes] | None:
        """Return the columns' bytes around the two ids in an applied record; None if they depend on its data."""
        layout = self._layouts.get(start)
        if layout is None:
            return None  # not kept: there may be very many
        constants = None
        if layout.entity_type is not None:
            names = (layout.event_type.encode(), layout.entity_type.encode())
            types = b"".join(struct.pack(">I", len(name)) + name for name in names)
            constants = types, struct.pack(">I", 16), struct.pack(">I", 7) + b"applied"
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

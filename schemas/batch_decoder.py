"""A Kafka batch's values, decoded in columns: a frame for each event type, a reason for each value that is no event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy

from schemas import codec
from schemas.binary.block import BlockReader, RowIndexes, merge_frames
from schemas.binary.frames import align, columns
from schemas.errors import Undecodable, UnknownSchema
from schemas.events import RecordValue
from schemas.field_limits import Limit, first_broken, limits_in
from schemas.polars_import import polars
from schemas.registry import Registered


@dataclass(frozen=True, slots=True)
class DecodedEvents:
    """The events of one type: `rows` are the indexes of their values in the batch, ascending, `frame` their fields."""

    event_type: str
    rows: RowIndexes
    frame: polars.DataFrame


@dataclass(frozen=True, slots=True)
class RejectedValue:
    """A value that is no event; `row` is its index in the batch."""

    row: int
    reason: str


def decode_batch(
    values: Sequence[bytes | None], topic: str | None = None
) -> tuple[list[DecodedEvents], list[RejectedValue]]:
    """Decode every value once: into one frame, in the columns of today's schema, or into a rejection with a reason.

    Accepts exactly what :func:`schemas.codec.decode` accepts. With `topic`, values whose schema is not registered for
    that topic are rejected. Rejected rows come in ascending order, frames in the order of their first value.

    Raises UnknownSchema, with the row, for the first value whose schema a later release of Plant may know.
    """
    rejected: list[RejectedValue] = []
    parts: dict[type[RecordValue], list[tuple[RowIndexes, polars.DataFrame]]] = {}
    for known, rows in _by_schema(values, topic, rejected):
        reader = reader_of(known)
        kept, frame, reasons = reader.block.read([values[row] or b"" for row in rows], codec.WIRE_PREFIX.size)
        rejected += [RejectedValue(rows[index], reason) for index, reason in reasons.items()]
        if len(kept):
            within = _within_limits(reader.limits, numpy.asarray(rows, dtype=numpy.int64)[kept], frame, rejected)
            if len(within[0]):
                aligned = align(within[1], known.writer, known.reader)
                parts.setdefault(known.event, []).append((within[0], aligned))
    decoded = [DecodedEvents(event.event_type, *merge_frames(frames)) for event, frames in parts.items()]
    return decoded, sorted(rejected, key=lambda rejection: rejection.row)


def empty_frame(event: type[RecordValue]) -> polars.DataFrame:
    """Return a frame without rows in the columns that :func:`decode_batch` gives for this type."""
    return columns(codec.avro_type_of(event)).to_frame()


class VersionReader(NamedTuple):
    """The reader of one schema version's values, into frames of its own columns, and their limits."""

    block: BlockReader
    limits: tuple[Limit, ...]


_READERS: dict[int, VersionReader] = {}


def reader_of(known: Registered) -> VersionReader:
    """Return the reader of a registered schema, made once a process."""
    reader = _READERS.get(known.version.id)
    if reader is None:
        block = BlockReader(known.writer, known.writer)
        reader = _READERS[known.version.id] = VersionReader(block, limits_in(known.writer, known.limits))
    return reader


def _within_limits(
    limits: Sequence[Limit], rows: RowIndexes, frame: polars.DataFrame, rejected: list[RejectedValue]
) -> tuple[RowIndexes, polars.DataFrame]:
    """Return the rows that are within the limits of their version; the others are rejected."""
    broken = first_broken(limits, frame)
    if broken:
        rejected += [RejectedValue(int(rows[index]), reason) for index, reason in broken.items()]
        within = numpy.ones(len(rows), dtype=numpy.bool_)
        within[list(broken)] = False
        rows, frame = rows[within], frame.filter(polars.Series(within))
    return rows, frame


def _by_schema(
    values: Sequence[bytes | None], topic: str | None, rejected: list[RejectedValue]
) -> list[tuple[Registered, list[int]]]:
    """Group rows by the schema they name; rows that name none are rejected.

    Raises UnknownSchema for the first row whose schema may be a later release's.
    """
    by_prefix: dict[bytes | None, list[int]] = {}
    for row, value in enumerate(values):
        prefix = None if value is None else value[: codec.WIRE_PREFIX.size]
        if prefix in by_prefix:
            by_prefix[prefix].append(row)
        else:
            by_prefix[prefix] = [row]
    groups = []
    for prefix, rows in by_prefix.items():
        try:
            groups.append((codec.registered(prefix, topic), rows))
        except UnknownSchema as error:  # groups come in the order of their first rows
            raise UnknownSchema(error.schema_id, rows[0]) from None
        except Undecodable as error:
            rejected += [RejectedValue(row, error.reason) for row in rows]
    return groups

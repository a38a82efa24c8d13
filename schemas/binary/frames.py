"""Frames of records: UUIDs are Binary of 16 bytes, times Datetime('us', 'UTC'), arrays List, nested records Struct."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cache

from schemas.binary.avro_types import Array, AvroType, Fixed, Optional, Record, Scalar
from schemas.binary.reader import default_of
from schemas.binary.writer import long_bytes
from schemas.polars_import import polars

_SYNC = bytes(16)
_MAGIC = b"Obj\x01"
_SCALARS: dict[str, polars.DataType] = {
    "boolean": polars.Boolean(),
    "int": polars.Int32(),
    "long": polars.Int64(),
    "float": polars.Float32(),
    "double": polars.Float64(),
    "string": polars.String(),
    "bytes": polars.Binary(),
    "timestamp-micros": polars.Datetime("us", "UTC"),
}


def column_type(avro_type: AvroType) -> polars.DataType:
    """Return the polars type of a column of such values."""
    match avro_type:
        case Scalar(kind=kind):
            return _SCALARS[kind]
        case Fixed():
            return polars.Binary()
        case Array(items=items):
            return polars.List(column_type(items))
        case Optional(item=item):
            return column_type(item)
        case Record(fields=fields):
            return polars.Struct([polars.Field(field.name, column_type(field.type)) for field in fields])


@cache
def columns(avro_type: Record) -> polars.Schema:
    """Return the columns of a frame of such records, in field order."""
    return polars.Schema({field.name: column_type(field.type) for field in avro_type.fields})


def from_records(avro_type: Record, records: Sequence[dict[str, object]]) -> polars.DataFrame:
    """Return a frame of records that were read one by one; their times are microseconds."""
    return polars.from_dicts(records, schema=columns(avro_type))


def from_block(avro_type: Record, count: int, joined: bytes) -> polars.DataFrame:
    """Return a frame of joined values. Each must be exactly one record of this type (schemas/binary/row_scan.py).

    Joined values are what an Avro container file holds between a block's size and its sync marker, so they are read as
    a file of one block. Raises polars.exceptions.ComputeError for invalid UTF-8.
    """
    block = b"".join((_header(avro_type), long_bytes(count), long_bytes(len(joined)), joined, _SYNC))
    return polars.read_avro(io.BytesIO(block))


def align(frame: polars.DataFrame, writer: AvroType, reader: AvroType) -> polars.DataFrame:
    """Return the same rows in the reader's columns: in its order, without fields that it lacks, with its defaults.

    The two schemas must have passed the compatibility check.
    """
    if writer == reader:
        return frame
    assert isinstance(writer, Record)
    assert isinstance(reader, Record)
    whole = frame.select(polars.struct(polars.all()).alias("record"))
    return whole.select(_aligned(polars.col("record"), writer, reader).alias("record")).unnest("record")


@cache
def _header(avro_type: Record) -> bytes:
    """Return a container file's header: magic, metadata as one map block, sync marker."""
    schema = json.dumps(_Names().schema(avro_type)).encode()
    metadata = ((b"avro.codec", b"null"), (b"avro.schema", schema))
    entries = b"".join(long_bytes(len(part)) + part for entry in metadata for part in entry)
    return _MAGIC + long_bytes(len(metadata)) + entries + long_bytes(0) + _SYNC


class _Names:
    """Writes an Avro type as the schema that the columnar reader is given; every named type gets a new name."""

    def __init__(self) -> None:
        self.used = 0

    def schema(self, avro_type: AvroType) -> object:
        match avro_type:
            case Scalar(kind="timestamp-micros"):
                return {"type": "long", "logicalType": "timestamp-micros"}
            case Scalar(kind=kind):
                return kind
            case Fixed(size=size):
                return {"type": "fixed", "name": self._next(), "size": size}
            case Array(items=items):
                return {"type": "array", "items": self.schema(items)}
            case Optional(item=item, null_index=null_index):
                branches = [self.schema(item)]
                branches.insert(null_index, "null")
                return branches
            case Record(fields=fields):
                described = [{"name": field.name, "type": self.schema(field.type)} for field in fields]
                return {"type": "record", "name": self._next(), "fields": described}

    def _next(self) -> str:
        self.used += 1
        return f"type_{self.used}"


def _aligned(value: polars.Expr, writer: AvroType, reader: AvroType) -> polars.Expr:
    match writer, reader:
        case _ if writer == reader:
            return value
        case Optional(item=item), Optional(item=wanted):
            return _aligned(value, item, wanted)
        case Array(items=items), Array(items=wanted):
            return value.list.eval(_aligned(polars.element(), items, wanted))
        case Record(fields=fields), Record(fields=wanted_fields):
            written = {field.name: field.type for field in fields}
            parts = [
                _aligned(value.struct.field(field.name), written[field.name], field.type).alias(field.name)
                if field.name in written
                else polars.lit(default_of(field), dtype=column_type(field.type)).alias(field.name)
                for field in wanted_fields
            ]
            return polars.when(value.is_not_null()).then(polars.struct(parts))
    raise AssertionError(f"{writer} can't be read as {reader}")

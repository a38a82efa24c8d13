"""Hypothesis strategies for Avro schemas that Plant reads in columns, their evolutions, and their values."""

from __future__ import annotations

import io
from typing import Any

import fastavro
from hypothesis import strategies as st

from schemas.binary.reader import TIME_MAX, TIME_MIN

Schema = Any
FINITE = {"allow_nan": False}
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, **FINITE),
    "double": st.floats(**FINITE),
    "string": st.text(max_size=8),
    "bytes": st.binary(max_size=8),
}
MICROS = {"type": "long", "logicalType": "timestamp-micros"}


class _Namer:
    """Gives every named type of one schema a name of its own."""

    def __init__(self) -> None:
        self.used = 0

    def next(self, prefix: str) -> str:
        self.used += 1
        return f"{prefix}{self.used}"


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    """A record schema of one to five fields."""
    return _record(draw, _Namer(), depth=2)


@st.composite
def schemas_with_values(draw: st.DrawFn, min_size: int = 1) -> tuple[Schema, list[Any]]:
    """A schema, and values of it."""
    schema = draw(schemas())
    return schema, draw(st.lists(values(schema), min_size=min_size, max_size=12))


@st.composite
def evolutions(draw: st.DrawFn) -> tuple[Schema, Schema, list[Any]]:
    """A writer's schema, a FULL-compatible reader's schema, and values of the writer's."""
    namer = _Namer()
    writer = _with_optional_field(_record(draw, namer, depth=2), namer)
    reader = _evolved(draw, namer, writer)
    return writer, reader, draw(st.lists(values(writer), min_size=1, max_size=8))


def values(schema: Schema) -> st.SearchStrategy[Any]:
    """Values as plain data: fixed as bytes, times as microseconds."""
    if schema == MICROS:
        return st.integers(TIME_MIN, TIME_MAX)
    if isinstance(schema, list):
        return st.none() | values(next(branch for branch in schema if branch != "null"))
    if isinstance(schema, str):
        return SCALARS[schema]
    if schema["type"] == "fixed":
        return st.binary(min_size=schema["size"], max_size=schema["size"])
    if schema["type"] == "array":
        return st.lists(values(schema["items"]), max_size=4)
    return st.fixed_dictionaries({field["name"]: values(field["type"]) for field in schema["fields"]})


def plain(schema: Schema) -> Schema:
    """The schema without logical types, so that the oracle reads and writes numbers."""
    if isinstance(schema, dict):
        return {key: plain(value) for key, value in schema.items() if key != "logicalType"}
    return [plain(item) for item in schema] if isinstance(schema, list) else schema


def write(schema: Schema, value: Any) -> bytes:
    """The bytes that fastavro writes."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(plain(schema)), value)
    return out.getvalue()


def oracle(writer: Schema, reader: Schema, data: bytes) -> Any:
    """What fastavro reads, resolved into the reader's schema."""
    parsed = fastavro.parse_schema(plain(writer)), fastavro.parse_schema(plain(reader))
    return _with_bytes(reader, fastavro.schemaless_reader(io.BytesIO(data), *parsed))


def _with_bytes(schema: Schema, value: Any) -> Any:
    """fastavro leaves a default of fixed or bytes as the text in the schema; Avro means its Latin-1 bytes."""
    if isinstance(schema, list):
        return value if value is None else _with_bytes(next(branch for branch in schema if branch != "null"), value)
    if isinstance(schema, dict) and schema["type"] == "array":
        return [_with_bytes(schema["items"], item) for item in value]
    if isinstance(schema, dict) and schema["type"] == "record":
        return {field["name"]: _with_bytes(field["type"], value[field["name"]]) for field in schema["fields"]}
    is_bytes = schema == "bytes" or (isinstance(schema, dict) and schema["type"] == "fixed")
    return value.encode("latin-1") if is_bytes and isinstance(value, str) else value


@st.composite
def corrupted(draw: st.DrawFn, data: bytes) -> bytes:
    """The same bytes after one small accident, or none."""
    at = draw(st.integers(0, len(data)))
    byte = draw(st.integers(0, 255))
    match draw(st.sampled_from(["none", "flip", "insert", "delete", "cut", "append", "twice", "overlong"])):
        case "flip" if at < len(data):
            return data[:at] + bytes([data[at] ^ (byte or 1)]) + data[at + 1 :]
        case "insert":
            return data[:at] + bytes([byte]) + data[at:]
        case "delete":
            return data[:at] + data[at + 1 :]
        case "cut":
            return data[:at]
        case "append":
            return data + bytes([byte])
        case "twice":
            return data + data
        case "overlong" if at < len(data) and data[at] < 0x80:
            return data[:at] + bytes([data[at] | 0x80, 0]) + data[at + 1 :]
    return data


def _record(draw: st.DrawFn, namer: _Namer, depth: int) -> Schema:
    name = namer.next("Record")
    kinds = [draw(st.integers(0, 10**6)) for _ in range(draw(st.integers(1, 5)))]
    fields = [{"name": f"field_{number}", "type": _type(draw, namer, depth)} for number, _ in enumerate(kinds)]
    return {"type": "record", "name": name, "fields": fields}


def _type(draw: st.DrawFn, namer: _Namer, depth: int, optional: bool = True) -> Schema:
    shapes = ["scalar", "scalar", "fixed", "time"]
    if depth:
        shapes += ["array", "record"]
    if optional:
        shapes += ["optional", "optional"]
    match draw(st.sampled_from(shapes)):
        case "scalar":
            return draw(st.sampled_from(sorted(SCALARS)))
        case "fixed":
            return {"type": "fixed", "name": namer.next("Fixed"), "size": draw(st.integers(1, 17))}
        case "time":
            return dict(MICROS)
        case "array":
            return {"type": "array", "items": _type(draw, namer, depth - 1)}
        case "record":
            return _record(draw, namer, depth - 1)
        case _:
            branches = ["null", _type(draw, namer, depth, optional=False)]
            return branches if draw(st.booleans()) else branches[::-1]


def _with_optional_field(schema: Schema, namer: _Namer) -> Schema:
    """A field that a reader may drop: one with a default."""
    field = {"name": namer.next("dropped_"), "type": ["null", "string"], "default": None}
    return {**schema, "fields": [*schema["fields"], field]}


_NEW_FIELDS: list[tuple[Schema, Any]] = [
    (["null", "string"], None),
    (["string", "null"], "text"),
    ("long", 7),
    ("boolean", True),
    ("double", 0.5),
    (MICROS, 1_000_000),
    ("bytes", "\u00ff\u0000"),
    ({"type": "array", "items": "string"}, ["a", "b"]),
    ({"type": "array", "items": "long"}, []),
]


def _evolved(draw: st.DrawFn, namer: _Namer, schema: Schema) -> Schema:
    """Fields with a default dropped, fields with a default added, the order changed; at any depth."""
    if isinstance(schema, list):
        return [branch if branch == "null" else _evolved(draw, namer, branch) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    if schema["type"] == "array":
        return {**schema, "items": _evolved(draw, namer, schema["items"])}
    if schema["type"] != "record":
        return schema
    fields = [
        {**field, "type": _evolved(draw, namer, field["type"])}
        for field in schema["fields"]
        if "default" not in field or draw(st.booleans())
    ]
    if draw(st.booleans()):
        type_, default = draw(st.sampled_from(_NEW_FIELDS))
        fields.append({"name": namer.next("added_"), "type": type_, "default": default})
    if draw(st.booleans()):
        size = draw(st.integers(1, 4))
        fixed = {"type": "fixed", "name": namer.next("Fixed"), "size": size}
        fields.append({"name": namer.next("added_"), "type": fixed, "default": "\u0001" * size})
    if draw(st.booleans()):
        inner = {"name": "inner", "type": "long", "default": 3}
        record = {"type": "record", "name": namer.next("Record"), "fields": [inner]}
        fields.append({"name": namer.next("added_"), "type": record, "default": {"inner": 4}})
    return {**schema, "fields": draw(st.permutations(fields))}

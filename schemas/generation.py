"""Avro schemas made from the event structs: the structs are the one source."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import inspect as types

from schemas.errors import UnsupportedSchema
from schemas.events import RecordValue
from schemas.record_types import RECORD_TYPES

AVRO_FOLDER = Path(__file__).parent / "avro"

Schema = dict[str, object]


def schema_of(event: type[RecordValue]) -> Schema:
    """Return the Avro schema of an event type, as JSON data; its full name is `<namespace>.<class name>`."""
    namespace = event.event_type.partition(".")[0]
    return _record(event, namespace)


def avro_file_text(event: type[RecordValue]) -> str:
    """Return the content of the event type's `.avsc` file."""
    return json.dumps(schema_of(event), indent=2, ensure_ascii=False) + "\n"


def full_name(event: type[RecordValue]) -> str:
    """Return the record's full name, such as `genesis.AgentOnboarded`."""
    return f"{event.event_type.partition('.')[0]}.{event.__name__}"


def stale_files(folder: Path = AVRO_FOLDER, events: Mapping[str, type[RecordValue]] = RECORD_TYPES) -> dict[Path, str]:
    """Return each `.avsc` file that differs from its struct, with its right content; an empty text: it must go."""
    wanted = {folder / f"{name}.avsc": avro_file_text(event) for name, event in events.items()}
    stale = {path: text for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text}
    return stale | {path: "" for path in sorted(folder.glob("*.avsc")) if path not in wanted}


def _record(struct: type[msgspec.Struct], namespace: str | None) -> Schema:
    """Return a record's schema; the outermost record alone has a namespace, and the others inherit it."""
    info = types.type_info(struct)
    assert isinstance(info, types.StructType)
    fields = [_field(struct.__name__, field) for field in info.fields]
    schema: Schema = {"type": "record", "name": struct.__name__}
    if namespace is not None:
        schema["namespace"] = namespace
    return {**schema, "doc": inspect.cleandoc(struct.__doc__ or ""), "fields": fields}


def _field(owner: str, field: types.Field) -> Schema:
    """Return a field's schema; a fixed is named after its record and field, so no name is used twice."""
    schema: Schema = {"name": field.name, "type": _type(owner + _camel(field.name), field.type)}
    text = description(field.type)
    if text:
        schema["doc"] = text
    if field.default is None:
        schema["default"] = None
    return schema


def _type(name: str, type_: types.Type) -> object:
    match type_:
        case types.Metadata(type=inner):
            return _type(name, inner)
        case types.UnionType(types=(inner, types.NoneType())) | types.UnionType(types=(types.NoneType(), inner)):
            return ["null", _type(name, inner)]
        case types.UUIDType():
            return {"type": "fixed", "name": name, "size": 16}
        case types.DateTimeType():
            return {"type": "long", "logicalType": "timestamp-micros"}
        case types.VarTupleType(item_type=item):
            return {"type": "array", "items": _type(name, item)}
        case types.StructType(cls=struct):
            return _record(struct, None)
        case types.LiteralType(values=values) if all(isinstance(value, str) for value in values):
            return "string"
    primitive = _PRIMITIVES.get(type(type_))
    if primitive is None:
        raise UnsupportedSchema(name, f"no Avro type for {type(type_).__name__}")
    return primitive


_PRIMITIVES: Mapping[type[types.Type], str] = {
    types.StrType: "string",
    types.BoolType: "boolean",
    types.IntType: "long",
    types.FloatType: "double",
    types.BytesType: "bytes",
}


def description(type_: types.Type) -> str:
    """Return the description in `Meta`, also where it stands inside an optional."""
    match type_:
        case types.Metadata(type=inner, extra_json_schema=extra):
            return str((extra or {}).get("description", "")) or description(inner)
        case types.UnionType(types=members):
            return next((text for text in map(description, members) if text), "")
        case types.StructType(cls=struct):
            return inspect.cleandoc(struct.__doc__ or "")
        case _:
            return ""


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))

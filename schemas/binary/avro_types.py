"""The part of Avro that Plant's schemas use, as a tree of types.

What parses here is columnar: rows of it can be read as one block. So whether a schema is columnar is decided from the
schema, and a schema that is not is refused by rule (`UnsupportedSchema` names field and rule) before it gets an id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

from schemas.errors import UnsupportedSchema

ScalarKind = Literal["boolean", "int", "long", "float", "double", "string", "bytes", "timestamp-micros"]
SCALARS = frozenset(("boolean", "int", "long", "float", "double", "string", "bytes"))


class Absent:
    """The default of a field that has none."""


ABSENT = Absent()


@dataclass(frozen=True, slots=True)
class Scalar:
    """A primitive; times are microseconds since 1970 in UTC."""

    kind: ScalarKind


@dataclass(frozen=True, slots=True)
class Fixed:
    """Bytes of a known number."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Array:
    """Any number of items."""

    items: AvroType


@dataclass(frozen=True, slots=True)
class Optional:
    """A union of null and one other type; `null_index` is the index of null's branch."""

    item: AvroType
    null_index: int


@dataclass(frozen=True, slots=True)
class Field:
    """One field; `default` is as in the schema's JSON."""

    name: str
    type: AvroType
    default: object = field(hash=False)


@dataclass(frozen=True, slots=True)
class Record:
    """Fields one after the other; `name` is the full name."""

    name: str
    fields: tuple[Field, ...]


AvroType: TypeAlias = Scalar | Fixed | Array | Optional | Record


def parse(schema: Mapping[str, object]) -> Record:
    """Parse a record schema into its tree; raises UnsupportedSchema naming the field and the rule it breaks."""
    parser = _Parser()
    parsed = parser.parse(schema, str(schema.get("name", "schema")), "")
    if not isinstance(parsed, Record):
        raise UnsupportedSchema("schema", "the outermost type must be a record")
    return parsed


class _Parser:
    def __init__(self) -> None:
        self.names: set[str] = set()

    def parse(self, schema: object, where: str, namespace: str) -> AvroType:
        if isinstance(schema, list):
            return self._union(schema, where, namespace)
        if isinstance(schema, str):
            schema = {"type": schema}
        if not isinstance(schema, dict):
            raise UnsupportedSchema(where, "not a schema")
        kind = schema.get("type")
        if isinstance(kind, (dict, list)):
            return self.parse(kind, where, namespace)
        if kind in SCALARS:
            return _scalar(schema, where)
        if kind == "array":
            return Array(self.parse(schema.get("items"), f"{where}[]", namespace))
        if kind == "fixed":
            return self._fixed(schema, where, namespace)
        if kind == "record":
            return self._record(schema, where, namespace)
        raise UnsupportedSchema(
            where, _REFUSED.get(str(kind), f"no reference to a named type ({kind}); define it where it is used")
        )

    def _union(self, branches: list[object], where: str, namespace: str) -> Optional:
        if len(branches) != 2 or branches.count("null") != 1:
            raise UnsupportedSchema(where, "a union is null and one other type, no wider")
        null_index = branches.index("null")
        item = self.parse(branches[1 - null_index], where, namespace)
        if isinstance(item, Optional):
            raise UnsupportedSchema(where, "a union holds no union")
        return Optional(item, null_index)

    def _fixed(self, schema: Mapping[str, object], where: str, namespace: str) -> Fixed:
        name = self._name(schema, where, namespace)
        size = schema.get("size")
        if not isinstance(size, int) or size < 1:
            raise UnsupportedSchema(where, "a fixed has a size of at least 1")
        if "logicalType" in schema:
            raise UnsupportedSchema(where, f"no logical type {schema['logicalType']} on a fixed")
        return Fixed(name, size)

    def _record(self, schema: Mapping[str, object], where: str, namespace: str) -> Record:
        name = self._name(schema, where, namespace)
        namespace = name.rpartition(".")[0]
        fields = schema.get("fields")
        if not isinstance(fields, list) or not fields:
            raise UnsupportedSchema(where, "a record has fields")
        parsed: list[Field] = []
        for member in cast(list[dict[str, object]], fields):
            label = str(member.get("name"))
            if any(known.name == label for known in parsed):
                raise UnsupportedSchema(f"{where}.{label}", "each field has a name of its own")
            if "aliases" in member:
                raise UnsupportedSchema(f"{where}.{label}", "no aliases: columns are matched by name")
            type_ = self.parse(member.get("type"), f"{where}.{label}", namespace)
            default = member.get("default", ABSENT)
            if default is not ABSENT and not fits(type_, default):
                raise UnsupportedSchema(f"{where}.{label}", "the default does not fit the type")
            parsed.append(Field(label, type_, default))
        return Record(name, tuple(parsed))

    def _name(self, schema: Mapping[str, object], where: str, namespace: str) -> str:
        name = str(schema.get("name", ""))
        if "aliases" in schema:
            raise UnsupportedSchema(where, "no aliases: columns are matched by name")
        space = str(schema.get("namespace", namespace))
        full = name if "." in name or not space else f"{space}.{name}"
        if not name or full in self.names:
            raise UnsupportedSchema(where, f"each fixed and each record has a name of its own ({full} is used twice)")
        self.names.add(full)
        return full


_REFUSED = {
    "enum": "no enum: symbols can't evolve; use a string",
    "map": "no map: it can't be read in columns; use an array of records",
    "null": "null stands only in a union with one other type",
}


def _scalar(schema: Mapping[str, object], where: str) -> Scalar:
    kind = schema["type"]
    logical = schema.get("logicalType")
    if logical is None:
        return Scalar(cast(ScalarKind, kind))
    if kind == "long" and logical == "timestamp-micros":
        return Scalar("timestamp-micros")
    raise UnsupportedSchema(where, f"no logical type {logical} on {kind}; a time is a long with timestamp-micros")


def fixed_size(avro_type: AvroType) -> int | None:
    """Return the encoded size where all values have the same; else None."""
    match avro_type:
        case Fixed(size=size):
            return size
        case Scalar(kind="float"):
            return 4
        case Scalar(kind="double"):
            return 8
        case Record(fields=fields):
            sizes = [fixed_size(member.type) for member in fields]
            return None if None in sizes else sum(size for size in sizes if size is not None)
        case _:
            return None


def fits(avro_type: AvroType, default: object) -> bool:
    """Return whether a field's default, as in the schema's JSON, is a value of the type (of a union's first branch)."""
    match avro_type:
        case Scalar(kind=kind):
            return _scalar_fits(kind, default)
        case Fixed(size=size):
            return _scalar_fits("bytes", default) and len(cast(str, default)) == size
        case Array(items=items):
            return isinstance(default, list) and all(fits(items, item) for item in default)
        case Optional(item=item, null_index=null_index):
            return default is None if null_index == 0 else fits(item, default)
        case Record(fields=fields):
            return isinstance(default, dict) and all(
                fits(member.type, default[member.name]) if member.name in default else member.default is not ABSENT
                for member in fields
            )


def _scalar_fits(kind: ScalarKind, default: object) -> bool:
    match kind:
        case "boolean":
            return isinstance(default, bool)
        case "int" | "long" | "timestamp-micros":
            bits = 31 if kind == "int" else 63
            return type(default) is int and -(1 << bits) <= default < 1 << bits
        case "float" | "double":
            return type(default) in (int, float)
        case "string":
            return isinstance(default, str)
        case "bytes":
            return isinstance(default, str) and all(ord(character) < 256 for character in default)

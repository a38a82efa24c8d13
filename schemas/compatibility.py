"""The rules by which data written in one Avro schema can be read in another, and FULL_TRANSITIVE evolution.

Pure functions over schemas as JSON data, for all of Avro and not only the part that Plant uses. The rules are those of
Avro 1.12, "Schema Resolution".
Source: https://avro.apache.org/docs/1.12.0/specification/#schema-resolution. Aliases are not followed: Plant's schemas
have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

Named: TypeAlias = Mapping[str, object]
Direction = Literal["backward", "forward"]

PROMOTIONS = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}
"""The other primitives that each one may be read as."""


@dataclass(frozen=True, slots=True)
class Incompatibility:
    """One reason why the reader can't read the writer's data; `field` is a path such as `agent.skill_ids[]`."""

    field: str
    rule: str

    def __str__(self) -> str:
        return f"{self.field}: {self.rule}"


@dataclass(frozen=True, slots=True)
class VersionBreak:
    """An incompatibility with an earlier version; backward: new can't read old data; forward: old can't read new."""

    version: int
    direction: Direction
    finding: Incompatibility


def incompatibilities(reader: object, writer: object) -> list[Incompatibility]:
    """Return every reason why the reader's schema can't read the writer's data; empty: it can read all of it."""
    return list(_Comparison(reader, writer).compare(reader, writer, "", "", ""))


def full_transitive(candidate: object, earlier: Sequence[object]) -> list[VersionBreak]:
    """Return the breaks of FULL_TRANSITIVE: a schema and each earlier version, 1 first, must read each other.

    Plant asks more than Avro in two places, since values are read in columns: a logical type must not change, and
    string and bytes must not stand for each other (bytes need not be UTF-8).
    """
    breaks: list[VersionBreak] = []
    for version, old in enumerate(earlier, start=1):
        breaks += [VersionBreak(version, "backward", finding) for finding in incompatibilities(candidate, old)]
        breaks += [VersionBreak(version, "forward", finding) for finding in incompatibilities(old, candidate)]
        breaks += [VersionBreak(version, "backward", finding) for finding in _meaning_changes(candidate, old, "")]
    return breaks


class _Comparison:
    """Keeps each side's named types, and the pairs under comparison, so that a recursive schema ends."""

    def __init__(self, reader: object, writer: object) -> None:
        self.reader_names = dict(_named_types(reader, ""))
        self.writer_names = dict(_named_types(writer, ""))
        self.under_way: set[tuple[str, str]] = set()

    def compare(
        self, reader: object, writer: object, where: str, rspace: str, wspace: str
    ) -> Iterator[Incompatibility]:
        reader, rspace = _resolve(reader, self.reader_names, rspace)
        writer, wspace = _resolve(writer, self.writer_names, wspace)
        if isinstance(writer, list):
            for branch in writer:
                yield from self.compare(reader, branch, where, rspace, wspace)
            return
        if isinstance(reader, list):
            if all(list(self.compare(branch, writer, where, rspace, wspace)) for branch in reader):
                yield Incompatibility(where or "schema", f"the reader's union has no branch for {_label(writer)}")
            return
        assert isinstance(reader, dict)
        assert isinstance(writer, dict)
        yield from self._compare_one(reader, writer, where, rspace, wspace)

    def _compare_one(
        self, reader: Named, writer: Named, where: str, rspace: str, wspace: str
    ) -> Iterator[Incompatibility]:
        kind, written = str(reader["type"]), str(writer["type"])
        here = where or "schema"
        if kind != written:
            if kind not in PROMOTIONS.get(written, ()):
                yield Incompatibility(here, f"{_label(writer)} can't be read as {_label(reader)}")
        elif kind in ("record", "fixed", "enum") and _short_name(reader) != _short_name(writer):
            yield Incompatibility(
                here, f"the {kind}'s name changed from {_short_name(writer)} to {_short_name(reader)}"
            )
        elif kind == "fixed" and reader["size"] != writer["size"]:
            yield Incompatibility(here, f"the fixed's size changed from {writer['size']} to {reader['size']}")
        elif kind == "enum":
            missing = [symbol for symbol in _listed(writer, "symbols") if symbol not in _listed(reader, "symbols")]
            if missing and "default" not in reader:
                yield Incompatibility(
                    here, f"the reader's enum lacks {', '.join(map(str, missing))} and has no default"
                )
        elif kind == "array":
            yield from self.compare(reader["items"], writer["items"], f"{where}[]", rspace, wspace)
        elif kind == "map":
            yield from self.compare(reader["values"], writer["values"], f"{where}{{}}", rspace, wspace)
        elif kind == "record":
            yield from self._compare_records(reader, writer, where, rspace, wspace)

    def _compare_records(
        self, reader: Named, writer: Named, where: str, rspace: str, wspace: str
    ) -> Iterator[Incompatibility]:
        pair = (_full_name(reader, rspace), _full_name(writer, wspace))
        if pair in self.under_way:
            return
        self.under_way.add(pair)
        rspace, wspace = (name.rpartition(".")[0] for name in pair)
        written = {field["name"]: field for field in _fields(writer)}
        for field in _fields(reader):
            path = f"{where}.{field['name']}".lstrip(".")
            if field["name"] in written:
                yield from self.compare(field["type"], written[field["name"]]["type"], path, rspace, wspace)
            elif "default" not in field:
                yield Incompatibility(
                    path, "the reader has this field without a default, and the writer does not write it"
                )
        self.under_way.discard(pair)


def _meaning_changes(new: object, old: object, where: str) -> Iterator[Incompatibility]:
    """Yield the changes that Avro allows and Plant does not. Plant's schemas have no named references to follow."""
    new, old = _plain(new), _plain(old)
    here = where or "schema"
    if isinstance(new, list) and isinstance(old, list):
        items = [[branch for branch in branches if branch != "null"] for branches in (new, old)]
        if len(items[0]) == len(items[1]) == 1:
            yield from _meaning_changes(items[0][0], items[1][0], where)
    if not isinstance(new, dict) or not isinstance(old, dict):
        return
    if {new["type"], old["type"]} == {"string", "bytes"}:
        yield Incompatibility(here, "string and bytes must not stand for each other")
    if new.get("logicalType") != old.get("logicalType"):
        yield Incompatibility(
            here, f"the logical type changed from {old.get('logicalType')} to {new.get('logicalType')}"
        )
    for part, mark in (("items", "[]"), ("values", "{}")):
        if part in new and part in old:
            yield from _meaning_changes(new[part], old[part], where + mark)
    known = {field["name"]: field for field in _fields(old)}
    for field in _fields(new):
        if field["name"] in known:
            path = f"{where}.{field['name']}".lstrip(".")
            yield from _meaning_changes(field["type"], known[field["name"]]["type"], path)


def _plain(schema: object) -> object:
    """Return `"string"` and `{"type": {"type": "string"}}` as `{"type": "string"}`."""
    if isinstance(schema, str):
        return {"type": schema}
    if isinstance(schema, dict) and isinstance(schema.get("type"), (dict, list)):
        return _plain(schema["type"])
    return schema


def _resolve(schema: object, names: Mapping[str, Named], namespace: str) -> tuple[object, str]:
    """Return the definition that a name stands for, and the namespace of the names in it."""
    schema = _plain(schema)
    if isinstance(schema, dict):
        name = str(schema["type"])
        for full in (name, f"{namespace}.{name}"):
            if full in names:
                return names[full], full.rpartition(".")[0]
    return schema, namespace


def _named_types(schema: object, namespace: str) -> Iterator[tuple[str, Named]]:
    schema = _plain(schema)
    if isinstance(schema, list):
        for branch in schema:
            yield from _named_types(branch, namespace)
    if not isinstance(schema, dict):
        return
    if schema["type"] in ("record", "fixed", "enum"):
        full = _full_name(schema, namespace)
        namespace = full.rpartition(".")[0]
        yield full, schema
    for part in ("items", "values"):
        if part in schema:
            yield from _named_types(schema[part], namespace)
    for field in _fields(schema):
        yield from _named_types(field["type"], namespace)


def _full_name(schema: Named, namespace: str) -> str:
    name = str(schema["name"])
    space = str(schema.get("namespace", namespace))
    return name if "." in name or not space else f"{space}.{name}"


def _short_name(schema: Named) -> str:
    return str(schema["name"]).rpartition(".")[2]


def _fields(schema: Named) -> list[Named]:
    return cast("list[Named]", schema.get("fields", []))


def _listed(schema: Named, part: str) -> list[object]:
    return cast("list[object]", schema[part])


def _label(schema: object) -> str:
    if isinstance(schema, dict):
        return f"{schema['type']} {schema['name']}" if "name" in schema else str(schema["type"])
    return "union" if isinstance(schema, list) else str(schema)

"""Avro's resolution rules, one by one, and Plant's gate on top of them."""

from __future__ import annotations

import json
from typing import Any

import avro.schema
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from hypothesis import given, settings

from schemas.compatibility import Incompatibility, full_transitive, incompatibilities
from tests.support.made_schemas import evolutions, plain, schemas

Schema = Any


def record(*fields: Schema, name: str = "R") -> Schema:
    return {"type": "record", "name": name, "namespace": "n", "fields": list(fields)}


def field(type_: Schema, name: str = "a", **more: Any) -> Schema:
    return {"name": name, "type": type_, **more}


def fixed(size: int, name: str = "F") -> Schema:
    return {"type": "fixed", "name": name, "size": size}


def enum(*symbols: str, name: str = "E", **more: Any) -> Schema:
    return {"type": "enum", "name": name, "symbols": list(symbols), **more}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def map_(values: Schema) -> Schema:
    return {"type": "map", "values": values}


READABLE = [
    *[(kind, kind) for kind in ("null", "boolean", "int", "long", "float", "double", "string", "bytes")],
    *[("long", "int"), ("float", "int"), ("double", "int"), ("float", "long"), ("double", "long")],
    *[("double", "float"), ("bytes", "string"), ("string", "bytes")],
    (array("long"), array("int")),
    (map_("double"), map_("long")),
    (fixed(4), fixed(4)),
    (enum("A", "B"), enum("A")),
    (enum("A", default="A"), enum("A", "B")),
    (["null", "int"], "int"),
    (["null", "long"], "int"),
    (["int", "null"], ["null", "int"]),
    (["null", "int", "string"], ["null", "int"]),
    ("long", ["int", "long"]),
    (record(field("int")), record(field("int"), field("string", "b"))),
    (record(field("int"), field("string", "b", default="x")), record(field("int"))),
    (record(field("int"), field("string", "b")), record(field("string", "b"), field("int"))),
    (record(field(record(field("long"), name="I"))), record(field(record(field("int"), name="I")))),
    (record(field({"type": "string"})), record(field("string"))),
]

UNREADABLE = [
    ("int", "long", "schema", "long can't be read as int"),
    ("long", "float", "schema", "float can't be read as long"),
    ("float", "double", "schema", "double can't be read as float"),
    ("string", "int", "schema", "int can't be read as string"),
    ("boolean", "int", "schema", "int can't be read as boolean"),
    ("null", "int", "schema", "int can't be read as null"),
    (array("int"), array("string"), "[]", "string can't be read as int"),
    (map_("int"), map_("string"), "{}", "string can't be read as int"),
    (array("int"), map_("int"), "schema", "map can't be read as array"),
    (fixed(4), fixed(5), "schema", "the fixed's size changed from 5 to 4"),
    (fixed(4, "G"), fixed(4), "schema", "the fixed's name changed from F to G"),
    (enum("A", name="G"), enum("A"), "schema", "the enum's name changed from E to G"),
    (enum("A"), enum("A", "B"), "schema", "the reader's enum lacks B and has no default"),
    ("int", ["null", "int"], "schema", "null can't be read as int"),
    (["null", "string"], "int", "schema", "the reader's union has no branch for int"),
    (["null", "int"], ["null", "int", "string"], "schema", "the reader's union has no branch for string"),
    (record(name="S"), record(), "schema", "the record's name changed from R to S"),
    (
        record(field("int"), field("string", "b")),
        record(field("int")),
        "b",
        "the reader has this field without a default, and the writer does not write it",
    ),
    (record(field("int")), record(field("string")), "a", "string can't be read as int"),
    (
        record(field(record(field("int", "x"), name="I"))),
        record(field(record(field("long", "x"), name="I"))),
        "a.x",
        "long can't be read as int",
    ),
    (record(field(array(["null", "int"]))), record(field(array(["null", "string"]))), "a[]", "no branch for string"),
    (
        record(field(["null", fixed(4)])),
        record(field(["null", fixed(8)])),
        "a",
        "the reader's union has no branch for fixed F",
    ),
]


def apache_agrees(reader: Schema, writer: Schema) -> bool:
    """Whether Apache Avro's own checker says that the reader can read the writer's data."""
    parsed = [avro.schema.parse(json.dumps(schema)) for schema in (reader, writer)]
    result = ReaderWriterCompatibilityChecker().get_compatibility(*parsed)
    return result.compatibility is SchemaCompatibilityType.compatible


@pytest.mark.parametrize(("reader", "writer"), READABLE, ids=str)
def test_what_avro_lets_a_reader_read(reader: Schema, writer: Schema) -> None:
    """Each permitted difference passes, here and in Apache Avro's checker."""
    assert incompatibilities(reader, writer) == []
    assert apache_agrees(reader, writer)


@pytest.mark.parametrize(("reader", "writer", "where", "rule"), UNREADABLE, ids=str)
def test_what_avro_refuses_is_named(reader: Schema, writer: Schema, where: str, rule: str) -> None:
    """Each refused difference is found, at its field and by its rule; Apache Avro's checker refuses it too."""
    found = incompatibilities(reader, writer)
    assert [finding.field for finding in found] == [where]
    assert rule in found[0].rule
    assert not apache_agrees(reader, writer)


def test_every_finding_is_reported() -> None:
    """Several breaches in one schema are all named, not only the first."""
    found = incompatibilities(record(field("int"), field("int", "b")), record(field("string"), field("string", "b")))
    assert [str(finding) for finding in found] == [
        "a: string can't be read as int",
        "b: string can't be read as int",
    ]


def test_named_types_are_followed() -> None:
    """A reference stands for its definition, by short or by full name, on either side."""
    defined = record(field(fixed(4), "x"), field("n.F", "y"))
    assert incompatibilities(record(field(fixed(4), "x"), field("F", "y")), defined) == []
    assert [finding.field for finding in incompatibilities(record(field(fixed(8), "x"), field("F", "y")), defined)] == [
        "x",
        "y",
    ]


def test_recursive_schemas_come_to_an_end() -> None:
    """A type that holds itself is compared once."""
    one = record(field("int"), field(["null", "R"], "next", default=None))
    other = record(field("string"), field(["null", "n.R"], "next", default=None))
    assert incompatibilities(one, one) == []
    assert Incompatibility("a", "string can't be read as int") in incompatibilities(one, other)


@settings(deadline=None, max_examples=60)
@given(schemas(), schemas())
def test_verdicts_on_unrelated_schemas_are_apaches(reader: Schema, writer: Schema) -> None:
    """On generated pairs the verdict equals Apache Avro's."""
    assert (incompatibilities(plain(reader), plain(writer)) == []) == apache_agrees(plain(reader), plain(writer))


@settings(deadline=None, max_examples=60)
@given(evolutions())
def test_verdicts_on_evolutions_are_apaches(made: tuple[Schema, Schema, Any]) -> None:
    """Compatible evolutions pass in both directions, here and there."""
    older, newer, _ = made
    assert full_transitive(newer, [older]) == []
    assert apache_agrees(plain(newer), plain(older))
    assert apache_agrees(plain(older), plain(newer))


V1 = record(field("string", "name"))
V2 = record(field("string", "name"), field(["null", "string"], "note", default=None))


def test_an_optional_field_may_come_and_go() -> None:
    """A field with a default may be added and removed again."""
    assert full_transitive(V2, [V1]) == []
    assert full_transitive(V1, [V1, V2]) == []


@pytest.mark.parametrize(
    ("candidate", "direction", "where"),
    [
        (record(field("string", "name"), field("long", "score")), "backward", "score"),
        (record(field(["null", "string"], "note", default=None)), "forward", "name"),
        (record(field(["null", "string"], "name")), "forward", "name"),
        (record(field("bytes", "name")), "backward", "name"),
    ],
    ids=["a new field without a default", "a required field removed", "made optional", "text into bytes"],
)
def test_an_evolution_that_one_side_could_not_read_is_refused(candidate: Schema, direction: str, where: str) -> None:
    """FULL asks for both directions: what only new or only old readers can read is refused."""
    broken = full_transitive(candidate, [V1])
    assert (direction, where) in {(found.direction, found.finding.field) for found in broken}


def test_all_earlier_versions_count() -> None:
    """A change that the last version would bear is refused because of an earlier one."""
    without = record(field("int", "other", default=0))
    newest = record(field("int", "other", default=0), field("string", "x", default=""))
    clash = record(field("int", "other", default=0), field("long", "x", default=0))
    assert full_transitive(newest, [without]) == []
    assert full_transitive(clash, [without]) == []
    assert {found.version for found in full_transitive(clash, [newest, without])} == {1}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("long", {"type": "long", "logicalType": "timestamp-micros"}),
        (["null", {"type": "long", "logicalType": "timestamp-millis"}], ["null", "long"]),
        (array("long"), array({"type": "long", "logicalType": "timestamp-micros"})),
        (map_("long"), map_({"type": "long", "logicalType": "timestamp-micros"})),
    ],
)
def test_a_changed_logical_type_is_refused(old: Schema, new: Schema) -> None:
    """Avro reads on, and the value means something else; Plant refuses it."""
    broken = full_transitive(record(field(new)), [record(field(old))])
    assert ["the logical type changed" in found.finding.rule for found in broken] == [True]
    assert broken[0].finding.field.startswith("a")


def test_each_use_of_a_named_type_is_compared() -> None:
    """A type that is used in two fields is reported at both."""

    def twice(kind: str) -> Schema:
        return record(field(record(field(kind, "x"), name="I"), "one"), field("I", "two"))

    assert [finding.field for finding in incompatibilities(twice("int"), twice("string"))] == ["one.x", "two.x"]


def test_a_fixed_may_neither_grow_nor_shrink() -> None:
    """Any other size shifts the bytes after it."""
    for reader, writer in ((4, 5), (5, 4)):
        (finding,) = incompatibilities(fixed(reader), fixed(writer))
        assert finding.rule == f"the fixed's size changed from {writer} to {reader}"

"""The schema rules: the part of Avro that can be read in columns and can evolve."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.binary.avro_types import Array, Field, Fixed, Optional, Record, Scalar, fixed_size, parse
from schemas.errors import UnsupportedSchema

FIXED = {"type": "fixed", "name": "F", "size": 16}


def record(*types: Any, **more: Any) -> dict[str, Any]:
    fields = [{"name": f"f{number}", "type": type_} for number, type_ in enumerate(types)]
    return {"type": "record", "name": "R", "namespace": "n", "fields": fields, **more}


@pytest.mark.parametrize(
    ("schema", "where", "rule"),
    [
        (record({"type": "enum", "name": "E", "symbols": ["A"]}), "R.f0", "no enum"),
        (record({"type": "map", "values": "long"}), "R.f0", "no map"),
        (record("null"), "R.f0", "null stands only in a union"),
        (record(["null", "string", "long"]), "R.f0", "no wider"),
        (record(["string", "long"]), "R.f0", "no wider"),
        (record(["string"]), "R.f0", "no wider"),
        (record(["null", ["null", "string"]]), "R.f0", "a union holds no union"),
        (record(FIXED, FIXED), "R.f1", "n.F is used twice"),
        (record(FIXED, {"type": "array", "items": FIXED}), "R.f1[]", "n.F is used twice"),
        (record(FIXED, "F"), "R.f1", "no reference to a named type (F)"),
        (record({**FIXED, "size": 0}), "R.f0", "a size of at least 1"),
        (record({**FIXED, "logicalType": "decimal"}), "R.f0", "no logical type decimal"),
        (record({"type": "long", "logicalType": "timestamp-millis"}), "R.f0", "no logical type timestamp-millis"),
        (record({"type": "string", "logicalType": "uuid"}), "R.f0", "no logical type uuid"),
        (record({**FIXED, "aliases": ["G"]}), "R.f0", "no aliases"),
        (record(record()), "R.f0", "n.R is used twice"),
        (record(record(name="I")), "R.f0", "a record has fields"),
        (record(), "R", "a record has fields"),
        (record(7), "R.f0", "not a schema"),
        (record("long", fields=[{"name": "x", "type": "long"}] * 2), "R.x", "each field has a name of its own"),
        (record("long", fields=[{"name": "x", "type": "long", "aliases": ["y"]}]), "R.x", "no aliases"),
        ({"type": "array", "items": "long"}, "schema", "the outermost type must be a record"),
    ],
)
def test_a_schema_that_breaks_a_rule_is_refused_by_name(schema: dict[str, Any], where: str, rule: str) -> None:
    """What can't be read in columns, or can't evolve, is refused from the schema, naming field and rule."""
    with pytest.raises(UnsupportedSchema) as refused:
        parse(schema)
    assert refused.value.field == where
    assert rule in refused.value.rule
    assert refused.value.exit_code == 3


@pytest.mark.parametrize(
    ("type_", "default"),
    [
        ("long", "x"),
        ("long", True),
        ("long", 2**63),
        ("int", 2**31),
        ("boolean", 0),
        ("string", None),
        ("double", "x"),
        ("bytes", "\u0100"),
        (FIXED, "x"),
        (["null", "string"], "x"),
        (["string", "null"], None),
        ({"type": "array", "items": "long"}, ["x"]),
        ({"type": "array", "items": "long"}, 1),
        (record("long", name="I"), {}),
        (record("long", name="I"), {"f0": "x"}),
        (record("long", name="I"), None),
    ],
)
def test_a_default_that_does_not_fit_is_refused(type_: Any, default: Any) -> None:
    """A default is a value of the type, or of a union's first branch."""
    schema = record("long", fields=[{"name": "x", "type": type_, "default": default}])
    with pytest.raises(UnsupportedSchema, match="x: the default does not fit"):
        parse(schema)


@pytest.mark.parametrize(
    ("type_", "default"),
    [
        ("long", -1),
        ("double", 1),
        ("float", 0.5),
        ("boolean", False),
        ("bytes", "\u00ff"),
        (FIXED, "\u0000" * 16),
        (["null", "string"], None),
        (["string", "null"], "x"),
        ({"type": "array", "items": "long"}, [1]),
        (record("long", name="I"), {"f0": 1}),
    ],
)
def test_a_default_that_fits_is_kept(type_: Any, default: Any) -> None:
    """A well-formed default is there for readers of older values."""
    parsed = parse(record("long", fields=[{"name": "x", "type": type_, "default": default}]))
    assert parsed.fields[0].default == default


def test_avro_types_follow_the_schema() -> None:
    """A schema's tree has its names, sizes and branches."""
    avro_type = parse(record(FIXED, ["string", "null"], {"type": "array", "items": "boolean"}))
    assert avro_type == Record(
        "n.R",
        (
            Field("f0", Fixed("n.F", 16), avro_type.fields[0].default),
            Field("f1", Optional(Scalar("string"), 1), avro_type.fields[0].default),
            Field("f2", Array(Scalar("boolean")), avro_type.fields[0].default),
        ),
    )


def test_sizes_are_known_where_they_do_not_vary() -> None:
    """Fixed values, floats and records of them have one size."""
    assert fixed_size(parse(record(FIXED, "float", "double"))) == 28
    assert fixed_size(parse(record(FIXED, "long"))) is None

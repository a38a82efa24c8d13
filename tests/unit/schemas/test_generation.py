"""Plant's schema rules, and the files that are made from the event structs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar
from uuid import UUID

import fastavro
import msgspec
import pytest
from msgspec import Meta

from operations.reference.events import REFERENCE_FILE, events_page
from schemas.binary.avro_types import Array, Field, Fixed, Optional, Record, Scalar, fixed_size, parse
from schemas.errors import UnsupportedSchema
from schemas.events import EVENT_TYPES, Event
from schemas.examples import examples, webhook_body
from schemas.field_limits import limits_of
from schemas.generation import AVRO_FOLDER, avro_file_text, schema_of, stale_files

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


def test_layouts_follow_the_schema() -> None:
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


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_every_event_follows_the_rules(name: str) -> None:
    """Each event's schema is columnar, has checkable limits, parses in fastavro, and says what its fields mean."""
    schema = schema_of(EVENT_TYPES[name])
    parse(schema)
    limits_of(EVENT_TYPES[name])
    assert fastavro.parse_schema(schema)["name"] == f"{name.split('.')[0]}.{EVENT_TYPES[name].__name__}"
    assert schema["doc"]
    fields: Any = schema["fields"]
    assert [field["name"] for field in fields] == list(EVENT_TYPES[name].__struct_fields__)
    assert all(field["doc"] for field in fields)
    assert [field["name"] for field in fields][::2][:2] == ["event_id", "occurred_at"]


def test_avro_files_are_those_of_the_structs() -> None:
    """The committed `.avsc` files are what `plant schemas generate` writes."""
    assert stale_files() == {}
    assert sorted(path.stem for path in AVRO_FOLDER.glob("*.avsc")) == sorted(EVENT_TYPES)


def test_stale_missing_and_foreign_files_are_found(tmp_path: Path) -> None:
    """A file that differs, is missing, or has no event type is named with what it should hold."""
    rated = {"genesis.agent.rated": EVENT_TYPES["genesis.agent.rated"]}
    path = tmp_path / "genesis.agent.rated.avsc"
    wanted = avro_file_text(rated["genesis.agent.rated"])
    assert stale_files(tmp_path, rated) == {path: wanted}
    path.write_text(wanted, "utf-8")
    (tmp_path / "gone.avsc").write_text("{}", "utf-8")
    assert stale_files(tmp_path, rated) == {tmp_path / "gone.avsc": ""}
    path.write_text("{}", "utf-8")
    assert stale_files(tmp_path, rated) == {path: wanted, tmp_path / "gone.avsc": ""}


def test_the_reference_page_is_that_of_the_structs() -> None:
    """docs/reference/events.md is what `plant schemas docs` writes."""
    assert REFERENCE_FILE.read_text("utf-8") == events_page()


def test_the_page_names_every_event_and_its_limits() -> None:
    """Types, keys, limits and a body are on the page."""
    page = events_page()
    assert all(f"## {name}\n" in page for name in EVENT_TYPES)
    assert "| `rating` | integer | 1 to 5 |" in page
    assert "| `seniority` | text, may be left out | `junior`, `mid`, `senior` |" in page
    assert "| `agent` | [AgentState](#agentstate), may be left out |" in page


def test_example_bodies_are_events_again() -> None:
    """A page's JSON body, with the two fields that ingress adds, is the example event."""
    for event in examples().values():
        body = json.loads(webhook_body(event))
        fields = {**body["data"], "event_id": str(event.event_id), "occurred_at": body["timestamp"]}
        assert body["type"] == event.event_type
        assert msgspec.convert(fields, type(event)) == event


def test_unknown_fields_are_refused_in_json() -> None:
    """A misspelt field is an error, not silence."""
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"skil_ids": []}, EVENT_TYPES["genesis.agent.onboarded"])


class Tagged(Event, frozen=True, kw_only=True):
    """A type that no schema rule covers."""

    event_type: ClassVar[str] = "test.tagged"
    tags: dict[str, str]


class Unchecked(Event, frozen=True, kw_only=True):
    """A text that lets NUL characters through."""

    event_type: ClassVar[str] = "test.unchecked"
    text: str


class Items(Event, frozen=True, kw_only=True):
    """A limit on an array's items."""

    event_type: ClassVar[str] = "test.items"
    scores: tuple[Annotated[int, Meta(ge=0)], ...]


class Multiple(Event, frozen=True, kw_only=True):
    """A limit that columns can't check."""

    event_type: ClassVar[str] = "test.multiple"
    even: Annotated[int, Meta(multiple_of=2)]
    other: UUID


def test_structs_that_no_rule_covers_are_refused() -> None:
    """A field type without an Avro type, and limits without a columnar check, are refused by name."""
    with pytest.raises(UnsupportedSchema, match="TaggedTags: no Avro type for DictType"):
        schema_of(Tagged)
    with pytest.raises(UnsupportedSchema, match="text: every text refuses NUL"):
        limits_of(Unchecked)
    with pytest.raises(UnsupportedSchema, match=r"scores: no limits on the items of an array"):
        limits_of(Items)
    with pytest.raises(UnsupportedSchema, match="even: no columnar check"):
        limits_of(Multiple)


def test_an_event_that_names_no_type_or_time_says_so() -> None:
    """The parts that every event type must give are not silently empty."""
    bare = Event(event_id=UUID(int=1))
    with pytest.raises(NotImplementedError):
        _ = bare.entity_type
    with pytest.raises(NotImplementedError):
        _ = bare.occurred_at

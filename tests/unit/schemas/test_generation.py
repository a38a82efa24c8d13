"""Avro schemas and their files, made from the event structs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import fastavro
import pytest

from schemas.binary.avro_types import parse
from schemas.errors import UnsupportedSchema
from schemas.events import EVENT_TYPES, Event
from schemas.field_limits import limits_of
from schemas.generation import AVRO_FOLDER, avro_file_text, schema_of, stale_files
from schemas.record_types import RECORD_TYPES


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
    assert sorted(path.stem for path in AVRO_FOLDER.glob("*.avsc")) == sorted(RECORD_TYPES)


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


class Tagged(Event, frozen=True, kw_only=True):
    """A type that no schema rule covers."""

    event_type: ClassVar[str] = "test.tagged"
    tags: dict[str, str]


def test_a_field_without_an_avro_type_is_refused() -> None:
    """A type that no schema rule covers is refused by its field."""
    with pytest.raises(UnsupportedSchema, match="TaggedTags: no Avro type for DictType"):
        schema_of(Tagged)

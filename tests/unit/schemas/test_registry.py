"""The bundled registry, fingerprints, and values in older versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch
from uuid import UUID

import msgspec
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import batch_decoder, codec, registry
from schemas import compatibility_gate as gate
from schemas.binary import block
from schemas.binary.avro_types import parse
from schemas.binary.reader import compile_reader, read_whole, to_datetime
from schemas.binary.writer import compile_writer
from schemas.errors import SchemaError, Undecodable
from schemas.events import Event
from schemas.generation import schema_of
from schemas.registry import (
    Registry,
    canonical,
    is_same_schema,
    next_version,
    read_registry,
    render_registry,
    schema_fingerprint,
)
from tests.support.made_versions import FIRST, Described, ThingMade, WithNote, named, registered

Loosened = named(with_note=False, max_length=20)


def test_the_file_is_what_render_writes() -> None:
    """The registry file has one version a line and survives being read and written."""
    text = registry.REGISTRY_FILE.read_text("utf-8")
    assert render_registry(read_registry(text)) == text
    with pytest.raises(SchemaError, match="can't be read"):
        read_registry('[{"id": 1}]')


def test_a_fingerprint_leaves_out_descriptions_alone() -> None:
    """A description changes nothing; a default, a name or an order does."""
    schema: Any = schema_of(ThingMade)
    assert (
        schema_fingerprint(schema) == schema_fingerprint(canonical(schema)) == schema_fingerprint(schema_of(Described))
    )
    assert "doc" not in json.dumps(canonical(schema))
    assert schema_fingerprint({**schema, "fields": schema["fields"][::-1]}) != schema_fingerprint(schema)
    defaulted = [{**field, "default": {"doc": 1}} for field in schema["fields"]]
    assert schema_fingerprint({**schema, "fields": defaulted}) != schema_fingerprint(schema)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.floats(0, 2) | st.sampled_from(["doc", "default", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["doc", "default", "a", "b"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_schemas_are_the_same_where_their_fingerprints_are(asked: Any, known: Any) -> None:
    """The comparison that leaves a stranger's schema at the first difference agrees with the hash of all of it."""
    for one, other in ((asked, known), (known, canonical(known)), ({"doc": 1, "a": known}, {"a": known})):
        assert is_same_schema(one, other) == (schema_fingerprint(one) == schema_fingerprint(other))


@pytest.mark.parametrize("other", [1.0, True, "1", None, [1], {"a": 1}])
def test_values_that_python_calls_equal_are_others_in_a_schema(other: Any) -> None:
    """1, 1.0 and true are three defaults."""
    for known, asked in ((1, other), ({"default": 1}, {"default": other}), ({"default": [1]}, {"default": [other]})):
        assert not is_same_schema(asked, known)
    assert is_same_schema({"default": [1]}, {"default": [1]})


def test_an_unlocked_type_has_no_current_version() -> None:
    """Nothing is encoded in a schema that no id stands for."""
    with pytest.raises(SchemaError, match="is not locked"):
        registered().current(ThingMade)


@pytest.fixture
def two_versions() -> Iterator[Registry]:
    """A registry in which WithNote is today's struct and ThingMade wrote before it."""
    reg = registered(FIRST, *gate.lock_schemas(registered(FIRST, event=WithNote)), event=WithNote)
    with patch.object(codec, "bundled", lambda: reg), patch.object(batch_decoder, "_READERS", {}):
        codec._reader.cache_clear()
        yield reg
    codec._reader.cache_clear()


def written(struct: type[Event], schema_id: int, number: int) -> bytes:
    plain = {
        "event_id": UUID(int=number),
        "thing_id": UUID(int=number),
        "occurred_at": datetime(2026, 1, 1, tzinfo=UTC),
        "name": f"thing {number}",
        "note": "new",
    }
    return codec.WIRE_PREFIX.pack(0, schema_id) + compile_writer(parse(schema_of(struct)))(plain)


def test_older_values_are_decoded_into_todays_struct(two_versions: Registry) -> None:
    """A value without the new field is read with its default."""
    old, new = codec.decode(written(ThingMade, 1, 1)), codec.decode(written(WithNote, 2, 2))
    assert isinstance(old, WithNote)
    assert isinstance(new, WithNote)
    assert (old.note, old.name, new.note, new.name) == (None, "thing 1", "new", "thing 2")


@pytest.mark.parametrize("least", [1, 10**9], ids=["block", "one by one"])
def test_versions_of_one_type_share_a_frame(two_versions: Registry, least: int) -> None:
    """Rows written in different versions come in one frame of today's columns, in the batch's order."""
    values: list[bytes | None] = [
        written(WithNote, 2, number) if number % 3 else written(ThingMade, 1, number) for number in range(30)
    ]
    with patch.object(block, "BLOCK_ROWS_MIN", least):
        decoded, rejected = batch_decoder.decode_batch(values)
    assert rejected == []
    assert len(decoded) == 1
    frame = decoded[0].frame
    assert decoded[0].rows.tolist() == list(range(30))
    assert frame.columns == ["event_id", "note", "thing_id", "occurred_at", "name"]
    assert frame["name"].to_list() == [f"thing {number}" for number in range(30)]
    assert frame["note"].to_list() == ["new" if number % 3 else None for number in range(30)]


@pytest.fixture
def two_limits() -> Iterator[Registry]:
    """A registry in which today's name has 20 characters at most, and the version before had 10 and a note of 5."""
    first = next_version(registered(event=named(max_length=10)), named(max_length=10))
    loosened = registered(first, *gate.lock_schemas(registered(first, event=Loosened)), event=Loosened)
    with patch.object(codec, "bundled", lambda: loosened), patch.object(batch_decoder, "_READERS", {}):
        codec.activate(None)
        yield loosened
    codec.activate(None)


def named_value(schema_id: int, name: str, note: str | None = None) -> bytes:
    plain = {
        "event_id": UUID(int=1),
        "thing_id": UUID(int=2),
        "occurred_at": datetime(2026, 1, 1, tzinfo=UTC),
        "name": name,
        "note": note,
    }
    write = compile_writer(parse(schema_of(named() if schema_id == 1 else Loosened)))
    return codec.WIRE_PREFIX.pack(0, schema_id) + write(plain)


@pytest.mark.parametrize("repeated", [1, 40], ids=["one by one", "block"])
def test_a_record_is_judged_by_the_limits_of_its_own_id(two_limits: Registry, repeated: int) -> None:
    """The same content is an event under the loosened version's id and none under the first's, by value and in batches.

    A field that is gone today keeps its limit for those who wrote it.
    """
    bad = {
        named_value(1, "x" * 11): "name has more than 10 characters",
        named_value(1, "x", "123456"): "note has more than 5 characters",
        named_value(1, "x", "\0"): "note has a NUL character",
        named_value(2, "x" * 21): "name has more than 20 characters",
    }
    good = [named_value(1, "x" * 10, "12345"), named_value(2, "x" * 11), named_value(2, "x" * 20)]
    for value in good:
        codec.decode(value)
    for value, reason in bad.items():
        with pytest.raises(Undecodable):
            codec.decode(value)
        decoded, rejected = batch_decoder.decode_batch([*good * repeated, *[value] * repeated])
        assert {refusal.reason for refusal in rejected} == {reason}
        assert [len(each.rows) for each in decoded] == [len(good) * repeated]
        assert [refusal.row for refusal in rejected] == list(range(len(good) * repeated, (len(good) + 1) * repeated))


def test_new_records_carry_the_id_of_todays_limits(two_limits: Registry) -> None:
    """So a worker that knows the tighter limits alone does not know it."""
    assert two_limits.wire_id(two_limits.current(Loosened)) == 2


def test_defaults_of_records_and_bytes_fill_old_values() -> None:
    """A record's default may leave fields to their own defaults; bytes stand in JSON as Latin-1."""
    inner = {"type": "record", "name": "I", "fields": [{"name": "x", "type": "long", "default": 3}]}
    old: Any = {"type": "record", "name": "R", "fields": [{"name": "a", "type": "long"}]}
    new = {
        **old,
        "fields": [
            {"name": "i", "type": inner, "default": {}},
            {"name": "b", "type": "bytes", "default": "\u00ff"},
            {"name": "a", "type": "long"},
            {"name": "l", "type": {"type": "array", "items": "bytes"}, "default": ["\u0001"]},
        ],
    }
    read_record = compile_reader(parse(old), parse(new), to_datetime)
    wanted = {"i": {"x": 3}, "b": b"\xff", "a": 1, "l": [b"\x01"]}
    assert read_whole(read_record, b"\x02", 0) == wanted
    values = [b"\x02", b"\x04"]
    reader = block.BlockReader(parse(old), parse(new))
    _, one_by_one, _ = reader.read_records(values, 0, numpy.arange(2))
    with patch.object(block, "BLOCK_ROWS_MIN", 1):
        _, as_block, _ = reader.read(values, 0)
    assert as_block.equals(one_by_one)
    assert as_block.row(0, named=True) == wanted


def test_versions_that_do_not_fit_are_never_resolved() -> None:
    """The gate keeps such a pair out; should one come in, it is an error at once and no wrong value."""
    one: Any = {"type": "record", "name": "R", "fields": [{"name": "a", "type": "long"}]}
    other: Any = {"type": "record", "name": "R", "fields": [{"name": "a", "type": ["null", "long"]}]}
    with pytest.raises(AssertionError, match="can't be read as"):
        compile_reader(parse(one), parse(other))


def test_versions_count_within_their_subject() -> None:
    """The first id is 1; a version's number is that of its subject, its id that of the whole registry."""
    assert (FIRST.id, FIRST.version) == (1, 1)
    elsewhere = msgspec.structs.replace(FIRST, id=7, subject="elsewhere-test.Thing")
    following = next_version(registered(FIRST, elsewhere, event=WithNote), WithNote)
    assert (following.id, following.version) == (8, 2)


def test_history_is_oldest_first_in_any_order_of_the_file() -> None:
    """The current version is the last of its subject, wherever it stands in the registry."""
    second = next_version(registered(FIRST, event=WithNote), WithNote)
    reg = registered(second, FIRST, event=WithNote)
    assert reg.history(FIRST.subject) == [FIRST, second]
    assert reg.current(WithNote) == second

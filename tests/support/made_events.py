"""Hypothesis strategies for events, and for events that break a limit, made from the structs' own types."""

from __future__ import annotations

from datetime import UTC
from typing import Any
from uuid import UUID

import msgspec
from hypothesis import strategies as st
from msgspec import inspect as types

from schemas import codec
from schemas.binary.writer import compile_writer
from schemas.events import EVENT_TYPES, STATE_FIELDS, EntityAmended, EntityRetired, Event, RecordValue

TEXT = st.characters(exclude_characters="\0", exclude_categories=("Cs",))
Plain = dict[str, Any]


def events(kind: type[Event] | None = None) -> st.SearchStrategy[Event]:
    """Events of one type, or of any."""
    if kind is None:
        return st.sampled_from(list(EVENT_TYPES.values())).flatmap(events)
    fields = _fields(kind)
    if issubclass(kind, (EntityAmended, EntityRetired)):
        return st.sampled_from(STATE_FIELDS).flatmap(
            lambda chosen: st.builds(
                kind,
                **{
                    **fields,
                    **{name: st.none() for name in STATE_FIELDS},
                    "entity_type": st.just(chosen),
                    chosen: _state(kind, chosen),
                },
            )
        )
    return st.builds(kind, **fields)


def unchecked_value(kind: type[RecordValue], plain: Plain) -> bytes:
    """What a writer without Plant's limits would write."""
    version = codec.bundled().current(kind)
    return codec.WIRE_PREFIX.pack(0, version.id) + compile_writer(codec.avro_type_of(kind))(plain)


@st.composite
def broken_values(draw: st.DrawFn) -> bytes:
    """The value of an event of which one field, at any depth, may break a limit."""
    event = draw(events())
    plain = msgspec.to_builtins(event, builtin_types=codec._PLAIN)
    target = draw(st.sampled_from(list(_records(plain))))
    name = draw(st.sampled_from(list(target)))
    target[name] = draw(_odd(target[name]))
    return unchecked_value(type(event), plain)


def _records(plain: Plain) -> list[Plain]:
    return [plain, *(value for value in plain.values() if isinstance(value, dict))]


def _odd(value: object) -> st.SearchStrategy[Any]:
    """A value of the same Avro type that may be outside the field's limits."""
    match value:
        case str():
            return st.sampled_from(
                ["", "x" * 200, "é" * 200, "x" * 201, "x" * 10_001, "a\0b", "\0", "agent", "industry"]
            )
        case bool():
            return st.booleans()
        case int():
            return st.sampled_from([-(2**63), -1, 0, 1, 5, 6, 100, 101, 2**62, 2**63 - 1])
        case tuple() | list():
            return st.sampled_from([0, 1, 1_000, 1_001]).map(lambda count: (UUID(int=count),) * count)
        case dict():
            return st.none()
        case _:
            return st.just(value)


def _state(kind: type[Event], name: str) -> st.SearchStrategy[Any]:
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    field = next(field for field in info.fields if field.name == name)
    assert isinstance(field.type, types.UnionType)
    return _values(next(member for member in field.type.types if not isinstance(member, types.NoneType)))


def _fields(struct: type[msgspec.Struct]) -> dict[str, st.SearchStrategy[Any]]:
    info = types.type_info(struct)
    assert isinstance(info, types.StructType)
    return {field.name: _values(field.type) for field in info.fields}


def _values(type_: types.Type) -> st.SearchStrategy[Any]:
    match type_:
        case types.Metadata(type=inner):
            return _values(inner)
        case types.UnionType(types=members):
            return st.one_of([_values(member) for member in members])
        case types.NoneType():
            return st.none()
        case types.UUIDType():
            return st.uuids()
        case types.DateTimeType():
            return st.datetimes(timezones=st.just(UTC))
        case types.BoolType():
            return st.booleans()
        case types.IntType(ge=least, le=most):
            return st.integers(least, most)
        case types.StrType(min_length=least):
            return st.text(TEXT, min_size=least or 0, max_size=20)
        case types.LiteralType(values=values):
            return st.sampled_from(values)
        case types.VarTupleType(item_type=item):
            return st.lists(_values(item), max_size=4).map(tuple)
        case types.StructType(cls=struct):
            return st.builds(struct, **_fields(struct))
        case _:
            raise AssertionError(type_)

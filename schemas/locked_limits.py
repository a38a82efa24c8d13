"""The limits of an event type as data, as they are locked with each schema id: the struct's `Meta` is their source.

A record is judged by the limits that its own id was locked with. So limits may only be loosened, and that takes a new
version: a worker that knows the older limits alone does not know its id, and waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import msgspec
from msgspec import inspect as types

from schemas.entity_states import NO_NUL
from schemas.errors import UnsupportedSchema
from schemas.events import STATE_FIELDS, EntityAmended, EntityRetired, RecordValue

FieldLimits = dict[str, int | list[str]]
"""Of a text `min_length`, `max_length`, or `one_of`, which lists all; of a number `ge`, `le`; of an array `max_items`.

`states`, on the field that names an entity's type, lists the fields that hold states: the one that is named is set.
"""

LockedLimits = dict[str, FieldLimits]
"""Limits by field; `agent.name` is the field `name` of the nested record `agent`. A field without one is left out."""

_LEAST: Final = ("min_length", "ge")


class TightenedLimit(NamedTuple):
    """A limit that refuses values which an earlier version allows."""

    field: str
    rule: str


def limits_to_lock(event: type[RecordValue]) -> LockedLimits:
    """Return the limits of an event's struct; raises UnsupportedSchema for one that columns can't check."""
    limits = {path: found for path, found in _struct_limits(event, "") if found}
    if issubclass(event, (EntityAmended, EntityRetired)):
        limits["entity_type"] = {**limits["entity_type"], "states": list(STATE_FIELDS)}
    return limits


def tightened(limits: Mapping[str, FieldLimits], earlier: Mapping[str, FieldLimits]) -> Iterator[TightenedLimit]:
    """Yield each limit that is tighter than an earlier version's, of the fields that both versions have."""
    for path, new in limits.items():
        old = earlier.get(path, {})
        if isinstance(listed := old.get("one_of"), list):  # as a free text may allow all of them
            lengths = [len(text) for text in listed]
            old = {**old, "min_length": min(lengths), "max_length": max(lengths)}
        for name, value in new.items():
            before = old.get(name)
            if before != value and (before is None or _is_tighter(name, value, before)):
                allowed = "there was none" if before is None else f"it was {_shown(before)}"
                yield TightenedLimit(path, f"{name} is {_shown(value)} and {allowed}: a limit may only be loosened")


def _is_tighter(name: str, value: int | list[str], before: int | list[str]) -> bool:
    if isinstance(value, list) or isinstance(before, list):
        assert isinstance(value, list)
        assert isinstance(before, list)
        return not set(before) <= set(value)
    return value > before if name in _LEAST else value < before


def _shown(value: int | list[str]) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _struct_limits(struct: type[msgspec.Struct], path: str) -> Iterator[tuple[str, FieldLimits]]:
    """Yield the limits of a struct's fields; `path` names the struct within the event: empty, or `agent.`."""
    info = types.type_info(struct)
    assert isinstance(info, types.StructType)
    for field in info.fields:
        yield from _limits(field.type, f"{path}{field.name}")


def _limits(type_: types.Type, path: str) -> Iterator[tuple[str, FieldLimits]]:
    match type_:
        case types.Metadata(type=inner):
            yield from _limits(inner, path)
        case types.UnionType(types=members):
            for member in members:
                yield from _limits(member, path)
        case types.StrType(min_length=least, max_length=most, pattern=pattern):
            if pattern != NO_NUL:
                raise UnsupportedSchema(path, "every text refuses NUL characters, and has no other pattern")
            yield path, _given(min_length=least, max_length=most)
        case types.IntType(ge=least, le=most, gt=None, lt=None, multiple_of=None):
            yield path, _given(ge=least, le=most)
        case types.LiteralType(values=values):
            yield path, {"one_of": sorted(map(str, values))}
        case types.VarTupleType(item_type=item, min_length=None, max_length=most):
            if isinstance(item, types.StrType) or any(found for _, found in _limits(item, path)):
                raise UnsupportedSchema(path, "no limits on the items of an array")
            yield path, _given(max_items=most)
        case types.StructType(cls=struct):
            yield from _struct_limits(struct, f"{path}.")
        case types.UUIDType() | types.DateTimeType() | types.BoolType() | types.NoneType():
            # Their bytes allow nothing else: the reader has refused times that are out of range.
            return
        case types.BytesType(min_length=None, max_length=None):
            return
        case _:
            raise UnsupportedSchema(path, f"no columnar check for {type_}")


def _given(**limits: int | None) -> FieldLimits:
    return {name: value for name, value in limits.items() if value is not None}

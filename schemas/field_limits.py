"""The limits of an event's struct, checked on whole columns. The struct's `Meta` is the one source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect as types

from schemas.entity_states import NO_NUL
from schemas.errors import UnsupportedSchema
from schemas.events import STATE_FIELDS, EntityAmended, EntityRetired, Event
from schemas.polars_import import polars

NUL = "\0"

FEW_ROWS = 24
"""Up to this many rows a loop over the values is faster than an expression."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit as an expression: `broken` is true where a row breaks it. `reason` names the field; null breaks nothing.

    `breaks` says the same of one value of the field at `path`, if it isn't null; a limit on several fields has none.
    """

    broken: polars.Expr
    reason: str
    path: tuple[str, ...]
    breaks: Callable[[Any], bool] | None

    @property
    def column(self) -> str:
        """The event's field that the limit is on, or in."""
        return self.path[0]


@cache
def limits_of(event: type[Event]) -> tuple[Limit, ...]:
    """Return the limits of an event type, in field order; raises UnsupportedSchema for one that columns can't check."""
    limits = list(_struct_limits(event, None, ""))
    if issubclass(event, (EntityAmended, EntityRetired)):
        limits += _one_state_limits()
    return tuple(limits)


def first_broken(event: type[Event], frame: polars.DataFrame) -> dict[int, str]:
    """Return, by row of the frame, the reason of the first limit it breaks; rows within their limits are left out."""
    empty = {column.name for column in frame.iter_columns() if column.null_count() == frame.height}
    limits = [limit for limit in limits_of(event) if limit.column not in empty]
    if not limits or (frame.height <= FEW_ROWS and not any(_is_broken(limit, frame) for limit in limits)):
        return {}
    any_broken = frame.select(limit.broken.any().alias(str(index)) for index, limit in enumerate(limits))
    reasons: dict[int, str] = {}
    for limit, broken in zip(limits, any_broken.row(0), strict=True):
        if broken:
            for row in frame.select(limit.broken.fill_null(False).arg_true()).to_series().to_list():
                reasons.setdefault(row, limit.reason)
    return reasons


def _is_broken(limit: Limit, frame: polars.DataFrame) -> bool:
    """Return whether some row may break the limit."""
    breaks = limit.breaks
    if breaks is None:
        return True
    values = frame[limit.column]
    for name in limit.path[1:]:
        values = values.struct.field(name)
    return any(value is not None and breaks(value) for value in values.to_list())


def _struct_limits(struct: type[msgspec.Struct], parent: polars.Expr | None, path: str) -> Iterator[Limit]:
    """Yield the limits of a struct's fields; `path` names the struct within the event: empty, or `agent.`."""
    info = types.type_info(struct)
    assert isinstance(info, types.StructType)
    for field in info.fields:
        value = polars.col(field.name) if parent is None else parent.struct.field(field.name)
        yield from _limits(field.type, value, f"{path}{field.name}")


def _limits(type_: types.Type, value: polars.Expr, path: str) -> Iterator[Limit]:
    match type_:
        case types.Metadata(type=inner):
            yield from _limits(inner, value, path)
        case types.UnionType(types=members):
            for member in members:
                yield from _limits(member, value, path)
        case types.StrType():
            yield from _text_limits(type_, value, path)
        case types.IntType(ge=least, le=most, gt=None, lt=None, multiple_of=None):
            if least is not None:
                yield _limit(value < least, lambda number: number < least, path, f"is less than {least}")
            if most is not None:
                yield _limit(value > most, lambda number: number > most, path, f"is more than {most}")
        case types.LiteralType(values=values):
            rule = f"is none of {', '.join(map(str, values))}"
            yield _limit(~value.is_in(list(values)), lambda text: text not in values, path, rule)
        case types.VarTupleType(item_type=item, min_length=None, max_length=most):
            if most is not None:
                yield _limit(
                    value.list.len() > most, lambda items: len(items) > most, path, f"has more than {most} items"
                )
            if list(_limits(item, value, path)):
                raise UnsupportedSchema(path, "no limits on the items of an array")
        case types.StructType(cls=struct):
            yield from _struct_limits(struct, value, f"{path}.")
        case types.UUIDType() | types.DateTimeType() | types.BoolType() | types.NoneType():
            # Their bytes allow nothing else: the reader has refused times that are out of range.
            return
        case _:
            raise UnsupportedSchema(path, f"no columnar check for {type_}")


def _text_limits(type_: types.StrType, value: polars.Expr, path: str) -> Iterator[Limit]:
    least, most = type_.min_length, type_.max_length
    length = value.str.len_chars()
    if least is not None:
        yield _limit(length < least, lambda text: len(text) < least, path, f"has fewer than {least} characters")
    if most is not None:
        yield _limit(length > most, lambda text: len(text) > most, path, f"has more than {most} characters")
    if type_.pattern != NO_NUL:
        raise UnsupportedSchema(path, "every text refuses NUL characters, and has no other pattern")
    yield _limit(value.str.contains(NUL, literal=True), lambda text: NUL in text, path, "has a NUL character")


def _one_state_limits() -> Iterator[Limit]:
    for field in STATE_FIELDS:
        named = polars.col("entity_type") == field
        present = polars.col(field).is_not_null()
        yield Limit(named & ~present, f"{field} is not set, and entity_type is {field}", ("entity_type",), None)
        yield Limit(~named & present, f"{field} is set, and entity_type is not {field}", ("entity_type",), None)


def _limit(broken: polars.Expr, breaks: Callable[[Any], bool], path: str, rule: str) -> Limit:
    return Limit(broken, f"{path} {rule}", tuple(path.split(".")), breaks)

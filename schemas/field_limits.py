"""Locked limits, checked on whole columns and on single values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from schemas.binary.avro_types import Array, AvroType, Optional, Record, Scalar, parse
from schemas.events import RecordValue
from schemas.generation import schema_of
from schemas.locked_limits import FieldLimits, LockedLimits, limits_to_lock
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
def limits_of(event: type[RecordValue]) -> tuple[Limit, ...]:
    """Return the limits of an event type today; raises UnsupportedSchema for one that columns can't check."""
    return limits_in(parse(schema_of(event)), limits_to_lock(event))


def limits_in(writer: Record, locked: LockedLimits) -> tuple[Limit, ...]:
    """Return the limits of a schema version, in the order of its fields."""
    limits = list(_record_limits(writer, locked, None, ""))
    states = cast("list[str]", locked.get("entity_type", {}).get("states", ()))
    return (*limits, *_one_state_limits(states))


def first_broken(limits_of_all: Sequence[Limit], frame: polars.DataFrame) -> dict[int, str]:
    """Return, by row of the frame, the reason of the first limit it breaks; rows within their limits are left out."""
    empty = {column.name for column in frame.iter_columns() if column.null_count() == frame.height}
    limits = [limit for limit in limits_of_all if limit.column not in empty]
    if not limits or (frame.height <= FEW_ROWS and not any(_is_broken(limit, frame) for limit in limits)):
        return {}
    any_broken = frame.select(limit.broken.any().alias(str(index)) for index, limit in enumerate(limits))
    reasons: dict[int, str] = {}
    for limit, broken in zip(limits, any_broken.row(0), strict=True):
        if broken:
            for row in frame.select(limit.broken.fill_null(False).arg_true()).to_series().to_list():
                reasons.setdefault(row, limit.reason)
    return reasons


def first_broken_in(limits: Sequence[Limit], record: Mapping[str, Any]) -> str | None:
    """Return the reason of the first limit on one field that a record breaks; None: it breaks none."""
    for limit in limits:
        value: Any = record
        for name in limit.path:
            value = None if value is None else value[name]
        if limit.breaks is not None and value is not None and limit.breaks(value):
            return limit.reason
    return None


def _is_broken(limit: Limit, frame: polars.DataFrame) -> bool:
    """Return whether some row may break the limit."""
    breaks = limit.breaks
    if breaks is None:
        return True
    values = frame[limit.column]
    for name in limit.path[1:]:
        values = values.struct.field(name)
    return any(value is not None and breaks(value) for value in values.to_list())


def _record_limits(record: Record, locked: LockedLimits, parent: polars.Expr | None, path: str) -> Iterator[Limit]:
    """Yield the limits of a record's fields; `path` names the record within the event: empty, or `agent.`."""
    for field in record.fields:
        value = polars.col(field.name) if parent is None else parent.struct.field(field.name)
        yield from _limits(field.type, locked, value, f"{path}{field.name}")


def _limits(avro_type: AvroType, locked: LockedLimits, value: polars.Expr, path: str) -> Iterator[Limit]:
    limits = locked.get(path, {})
    match avro_type:
        case Optional(item=item):
            yield from _limits(item, locked, value, path)
        case Record():
            yield from _record_limits(avro_type, locked, value, f"{path}.")
        case Scalar(kind="string") if "one_of" in limits:
            values = cast("list[str]", limits["one_of"])
            yield _limit(~value.is_in(values), lambda text: text not in values, path, f"is none of {', '.join(values)}")
        case Scalar(kind="string"):
            yield from _text_limits(limits, value, path)
        case Scalar(kind="int" | "long"):
            least, most = _number(limits, "ge"), _number(limits, "le")
            if least is not None:
                yield _limit(value < least, lambda number: number < least, path, f"is less than {least}")
            if most is not None:
                yield _limit(value > most, lambda number: number > most, path, f"is more than {most}")
        case Array():
            most = _number(limits, "max_items")
            if most is not None:
                yield _limit(
                    value.list.len() > most, lambda items: len(items) > most, path, f"has more than {most} items"
                )


def _text_limits(limits: FieldLimits, value: polars.Expr, path: str) -> Iterator[Limit]:
    least, most = _number(limits, "min_length"), _number(limits, "max_length")
    length = value.str.len_chars()
    if least is not None:
        yield _limit(length < least, lambda text: len(text) < least, path, f"has fewer than {least} characters")
    if most is not None:
        yield _limit(length > most, lambda text: len(text) > most, path, f"has more than {most} characters")
    yield _limit(value.str.contains(NUL, literal=True), lambda text: NUL in text, path, "has a NUL character")


def _number(limits: FieldLimits, name: str) -> int | None:
    return cast("int | None", limits.get(name))


def _one_state_limits(states: Sequence[str]) -> Iterator[Limit]:
    for field in states:
        named = polars.col("entity_type") == field
        present = polars.col(field).is_not_null()
        yield Limit(named & ~present, f"{field} is not set, and entity_type is {field}", ("entity_type",), None)
        yield Limit(~named & present, f"{field} is set, and entity_type is not {field}", ("entity_type",), None)


def _limit(broken: polars.Expr, breaks: Callable[[Any], bool], path: str, rule: str) -> Limit:
    return Limit(broken, f"{path} {rule}", tuple(path.split(".")), breaks)

"""Limits on whole columns, at their last value, and limits that no column can check."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

import msgspec
import pytest
from msgspec import Meta

from schemas import codec
from schemas.binary.block import BlockReader
from schemas.errors import UnsupportedSchema
from schemas.events import AgentOnboarded, Event
from schemas.examples import examples
from schemas.field_limits import FEW_ROWS, first_broken, limits_of
from schemas.polars_import import polars
from tests.support.made_events import unchecked_value


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


def test_limits_without_a_columnar_check_are_refused() -> None:
    """A limit that columns can't check is refused by field."""
    with pytest.raises(UnsupportedSchema, match="text: every text refuses NUL"):
        limits_of(Unchecked)
    with pytest.raises(UnsupportedSchema, match=r"scores: no limits on the items of an array"):
        limits_of(Items)
    with pytest.raises(UnsupportedSchema, match="even: no columnar check"):
        limits_of(Multiple)


def onboarded(count: int, **changes: Any) -> polars.DataFrame:
    """A frame of onboarded events whose last row has these fields."""
    event = examples()["genesis.agent.onboarded"]
    plain = msgspec.to_builtins(event, builtin_types=(UUID, datetime))
    values = [codec.encode(event)] * (count - 1)
    return frame_of([*values, unchecked_value(AgentOnboarded, {**plain, **changes})])


def frame_of(values: list[bytes]) -> polars.DataFrame:
    """The frame of values before their limits are checked."""
    known = codec.registered(values[0])
    return BlockReader(known.writer, known.reader).read(values, codec.WIRE_PREFIX.size).frame


@pytest.mark.parametrize("count", [1, FEW_ROWS, FEW_ROWS + 1], ids=["one", "few", "many"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": ""}, "name has fewer than 1 characters"),
        ({"name": "x"}, None),
        ({"name": "x" * 200}, None),
        ({"name": "é" * 200}, None),
        ({"name": "x" * 201}, "name has more than 200 characters"),
        ({"name": "a\0"}, "name has a NUL character"),
        ({"name": "\0" * 201}, "name has more than 200 characters"),
        ({"skill_ids": (UUID(int=1),) * 1_000}, None),
        ({"skill_ids": (UUID(int=1),) * 1_001}, "skill_ids has more than 1000 items"),
    ],
    ids=["empty", "least", "most", "most in bytes", "too long", "NUL at its end", "two limits", "full", "too many"],
)
def test_limits_hold_to_the_last_value(changes: dict[str, Any], reason: str | None, count: int) -> None:
    """The value at a limit passes and the next is refused, by the loop over few rows and by the expression over many.

    A row that breaks two limits has the reason of the first.
    """
    broken = first_broken(limits_of(AgentOnboarded), onboarded(count, **changes))
    assert broken == ({} if reason is None else {count - 1: reason})

"""Fields of bodies: each with its schema, and what reads its value and says why it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from api.parameters import read_time

REASON_MAX_CHARACTERS: Final = 500


class FieldRefused(Exception):
    """A field of a body does not fit; the text says why."""


class BodyField(msgspec.Struct, frozen=True, kw_only=True):
    """A field, its JSON schema without the words, and what reads its value; that raises FieldRefused."""

    name: str
    meaning: str
    schema: dict[str, Any]
    read: Callable[[Any], Any]


def text_field(name: str, meaning: str, max_characters: int, *, min_characters: int = 0) -> BodyField:
    """Return a field of one line of text."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not min_characters <= len(value) <= max_characters or not value.isprintable():
            raise FieldRefused(f"It is no line of {min_characters} to {max_characters} printable characters.")
        return value

    schema = {"type": "string", "maxLength": max_characters} | ({"minLength": min_characters} if min_characters else {})
    return BodyField(name=name, meaning=meaning, schema=schema, read=read)


def choice_field(name: str, meaning: str, *choices: str) -> BodyField:
    """Return a field with one of some texts."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise FieldRefused(f"It is none of {', '.join(choices)}.")
        return value

    return BodyField(name=name, meaning=meaning, schema={"type": "string", "enum": list(choices)}, read=read)


def number_field(name: str, meaning: str, lowest: int, highest: int, *, nullable: bool = False) -> BodyField:
    """Return a field with a whole number."""

    def read(value: Any) -> int | None:
        if nullable and value is None:
            return None
        if type(value) is not int or not lowest <= value <= highest:
            raise FieldRefused(f"It is no whole number from {lowest} to {highest}.")
        return value

    kind: Any = ["integer", "null"] if nullable else "integer"
    return BodyField(
        name=name, meaning=meaning, schema={"type": kind, "minimum": lowest, "maximum": highest}, read=read
    )


def boolean_field(name: str, meaning: str) -> BodyField:
    """Return a field that is true or false."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise FieldRefused("It is neither true nor false.")
        return value

    return BodyField(name=name, meaning=meaning, schema={"type": "boolean"}, read=read)


def time_of(value: Any) -> datetime:
    """Return the time that a value is. Raises FieldRefused."""
    moment = read_time(value) if isinstance(value, str) else None
    if moment is None:
        raise FieldRefused("It is no time with a zone, such as 2026-11-27T08:00:00Z.")
    return moment


def past_time_of(value: Any) -> datetime:
    """Return the time that a value is, if it has been. Raises FieldRefused."""
    moment = time_of(value)
    if moment > datetime.now(UTC):
        raise FieldRefused("It is in the future.")
    return moment


REASON: Final = text_field("reason", "Why; kept permanently.", REASON_MAX_CHARACTERS, min_characters=1)

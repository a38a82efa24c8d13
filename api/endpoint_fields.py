"""The fields of bodies that add or change an endpoint: each is read by itself, so that all faults are told at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from api.parameters import read_time
from deliveries.custom_headers import HEADERS_MAX, check_custom_headers
from deliveries.endpoints import DESCRIPTION_MAX_CHARACTERS, RATE_MAX_PER_SECOND, TIMEOUT_MAX_SECONDS
from deliveries.errors import CustomHeadersRefused, EndpointFilterRefused
from deliveries.event_filters import EVENT_TYPES_MAX, parse_event_filter, parse_event_types
from deliveries.new_endpoints import DELIVERED_TYPES

REASON_MAX_CHARACTERS: Final = 500
OVERLAP_MAX_SECONDS: Final = 30 * 86_400
OVERLAP_SECONDS: Final = 86_400


class FieldRefused(Exception):
    """A field of a body does not fit; the text says why."""


class BodyField(msgspec.Struct, frozen=True, kw_only=True):
    """A field, its JSON schema without the words, and what reads its value; that raises FieldRefused."""

    name: str
    meaning: str
    schema: dict[str, Any]
    read: Callable[[Any], Any]


def _text(name: str, meaning: str, max_characters: int, *, min_characters: int = 0) -> BodyField:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not min_characters <= len(value) <= max_characters or not value.isprintable():
            raise FieldRefused(f"It is no line of {min_characters} to {max_characters} printable characters.")
        return value

    schema = {"type": "string", "maxLength": max_characters} | ({"minLength": min_characters} if min_characters else {})
    return BodyField(name=name, meaning=meaning, schema=schema, read=read)


def _choice(name: str, meaning: str, *choices: str) -> BodyField:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise FieldRefused(f"It is none of {', '.join(choices)}.")
        return value

    return BodyField(name=name, meaning=meaning, schema={"type": "string", "enum": list(choices)}, read=read)


def _number(name: str, meaning: str, lowest: int, highest: int, *, nullable: bool = False) -> BodyField:
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


def _boolean(name: str, meaning: str) -> BodyField:
    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise FieldRefused("It is neither true nor false.")
        return value

    return BodyField(name=name, meaning=meaning, schema={"type": "boolean"}, read=read)


def _read_event_types(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise FieldRefused("It is no list of event types.")
    try:
        parse_event_types(value, DELIVERED_TYPES)
    except EndpointFilterRefused as error:
        raise FieldRefused(error.why) from None
    return tuple(value)


def _read_filter(value: Any) -> dict[str, object]:
    if not isinstance(value, dict):
        raise FieldRefused('It is no object of fields and values, such as {"rating": [4, 5]}.')
    try:
        parse_event_filter(value)
    except EndpointFilterRefused as error:
        raise FieldRefused(error.why) from None
    return value


def _read_headers(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise FieldRefused("It is no object of names and texts.")
    try:
        return check_custom_headers(value.items())
    except CustomHeadersRefused as error:
        raise FieldRefused(error.why) from None


def _read_past_time(value: Any) -> datetime:
    moment = read_time(value) if isinstance(value, str) else None
    if moment is None:
        raise FieldRefused("It is no time with a zone, such as 2026-11-27T08:00:00Z.")
    if moment > datetime.now(UTC):
        raise FieldRefused("It is in the future.")
    return moment


URL: Final = _text("url", "Where its deliveries go: https, a public address.", 2048, min_characters=1)
EVENT_TYPES: Final = BodyField(
    name="event_types",
    meaning="Types such as `genesis.agent.rated`, types such as `genesis.agent.*`, or `*` for every Genesis event.",
    schema={"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": EVENT_TYPES_MAX},
    read=_read_event_types,
)
FILTER: Final = BodyField(
    name="filter",
    meaning="Fields of the event's data, by dotted path, and the value or the values that each must have.",
    schema={"type": "object"},
    read=_read_filter,
)
HEADERS: Final = BodyField(
    name="headers",
    meaning="Headers that are sent with each request; kept encrypted, and shown nowhere.",
    schema={"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": HEADERS_MAX},
    read=_read_headers,
)
REASON: Final = _text("reason", "Why; kept permanently.", REASON_MAX_CHARACTERS, min_characters=1)

SENDING: Final = (
    URL,
    _text("description", "What it is for, in one line.", DESCRIPTION_MAX_CHARACTERS),
    _choice("payload_form", "Standard Webhooks' body, or a structured CloudEvent.", "standard", "cloud_event"),
    _choice("retry_schedule", "Five retries within 31 seconds; `long`: then over three days.", "short", "long"),
    _number("rate_per_second", "Most deliveries a second; null: no limit.", 1, RATE_MAX_PER_SECOND, nullable=True),
    _number("timeout_seconds", "How long an attempt may take in all.", 1, TIMEOUT_MAX_SECONDS),
    _boolean("handshake", "Whether the receiver has to agree first (CloudEvents' abuse protection)."),
    HEADERS,
    REASON,
)
"""How events are sent: what can be changed."""
CHOOSING: Final = (
    EVENT_TYPES,
    FILTER,
    _choice("ordering", "`per_entity`: an entity's later events wait for the earlier one.", "none", "per_entity"),
    _choice("after_dead_letter", "What they do behind a dead letter.", "proceed", "block"),
    _choice("scheme", "A shared secret (HMAC-SHA256), a key pair (ed25519), or both.", "v1", "v1a", "both"),
    BodyField(
        name="from",
        meaning="A time in the past: events from then on. Without it, from now.",
        schema={"type": "string", "format": "date-time"},
        read=_read_past_time,
    ),
    _text("tenant", "Whose events it gets: the token's own tenant, which it is without it.", 200, min_characters=1),
)
"""Which events there are, in which order: what stays as it was added."""
ROTATION: Final = (
    _choice("scheme", "Of which kind the new key is.", "v1", "v1a"),
    _number("overlap_seconds", "How long the key before it signs too; a day without it.", 0, OVERLAP_MAX_SECONDS),
    REASON,
)
EXAMPLE: Final = (_text("event_type", "The example's type; the first that it gets without it.", 200, min_characters=1),)
ACTION: Final = (REASON,)

ADDED: Final[Mapping[str, BodyField]] = {each.name: each for each in (*SENDING, *CHOOSING)}
CHANGED: Final[Mapping[str, BodyField]] = {each.name: each for each in SENDING}

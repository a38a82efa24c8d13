"""The fields of bodies that add or change an endpoint: each is read by itself, so that all faults are told at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from api.body_fields import (
    REASON,
    BodyField,
    FieldRefused,
    boolean_field,
    choice_field,
    number_field,
    past_time_of,
    text_field,
)
from deliveries.endpoints import DESCRIPTION_MAX_CHARACTERS, RATE_MAX_PER_SECOND, TIMEOUT_MAX_SECONDS
from deliveries.errors import CustomHeadersRefused, EndpointFilterRefused
from deliveries.event_filters import EVENT_TYPES_MAX, parse_event_filter, parse_event_types
from deliveries.guard.custom_headers import HEADERS_MAX, check_custom_headers
from deliveries.new_endpoints import DELIVERED_TYPES

OVERLAP_MAX_SECONDS: Final = 30 * 86_400
OVERLAP_SECONDS: Final = 86_400


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


URL: Final = text_field("url", "Where its deliveries go: https, a public address.", 2048, min_characters=1)
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

SENDING: Final = (
    URL,
    text_field("description", "What it is for, in one line.", DESCRIPTION_MAX_CHARACTERS),
    choice_field("payload_form", "Standard Webhooks' body, or a structured CloudEvent.", "standard", "cloud_event"),
    choice_field("retry_schedule", "Five retries within 31 seconds; `long`: then over three days.", "short", "long"),
    number_field("rate_per_second", "Most deliveries a second; null: no limit.", 1, RATE_MAX_PER_SECOND, nullable=True),
    number_field("timeout_seconds", "How long an attempt may take in all.", 1, TIMEOUT_MAX_SECONDS),
    boolean_field("handshake", "Whether the receiver has to agree first (CloudEvents' abuse protection)."),
    HEADERS,
    REASON,
)
"""How events are sent: what can be changed."""
CHOOSING: Final = (
    EVENT_TYPES,
    FILTER,
    choice_field("ordering", "`per_entity`: an entity's later events wait for the earlier one.", "none", "per_entity"),
    choice_field("after_dead_letter", "What they do behind a dead letter.", "proceed", "block"),
    choice_field("scheme", "A shared secret (HMAC-SHA256), a key pair (ed25519), or both.", "v1", "v1a", "both"),
    BodyField(
        name="from",
        meaning="A time in the past: events from then on. Without it, from now.",
        schema={"type": "string", "format": "date-time"},
        read=past_time_of,
    ),
    text_field(
        "tenant", "Whose events it gets: the token's own tenant, which it is without it.", 200, min_characters=1
    ),
)
"""Which events there are, in which order: what stays as it was added."""
ROTATION: Final = (
    choice_field("scheme", "Of which kind the new key is.", "v1", "v1a"),
    number_field("overlap_seconds", "How long the key before it signs too; a day without it.", 0, OVERLAP_MAX_SECONDS),
    REASON,
)
EXAMPLE: Final = (
    text_field("event_type", "The example's type; the first that it gets without it.", 200, min_characters=1),
)
ACTION: Final = (REASON,)

ADDED: Final[Mapping[str, BodyField]] = {each.name: each for each in (*SENDING, *CHOOSING)}
CHANGED: Final[Mapping[str, BodyField]] = {each.name: each for each in SENDING}

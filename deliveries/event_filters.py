"""An endpoint's choice of events: their types, and the values that fields of their data must have. Pure.

    types   ["genesis.agent.rated", "genesis.skill.*"]     any of them; "*" stands for all Genesis events
    filter  {"agent_id": "…", "rating": [4, 5]}            all of the fields, each with any of its values

A field is named by a dotted path into objects. Values are compared with their kind: true is not 1, and 1 is not 1.0. A
field that is absent has no value, not null. There are no regular expressions, and all sizes are bounded, so an event
is judged in a bounded number of steps.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from deliveries.errors import EndpointFilterRefused

EVENT_TYPES_MAX: Final = 64
EVENT_TYPE_MAX_CHARACTERS: Final = 128
FIELDS_MAX: Final = 8
VALUES_MAX: Final = 16
DEPTH_MAX: Final = 8
PATH_MAX_CHARACTERS: Final = 200
FILTER_MAX_BYTES: Final = 4096
INTEGER_MAX: Final = 2**63 - 1

ALL_GENESIS_EVENTS: Final = "*"
_EVENT_TYPE: Final = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)+|[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*\.\*")
_DELIVERED_PREFIXES: Final = ("genesis.", "plant.endpoint.")
_FIELD_PATH: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*")

Scalar: TypeAlias = str | int | bool | None
ScalarKey: TypeAlias = tuple[type, Scalar]
"""A value with its kind. Only with it do `true` and `1` differ, which are equal and hash alike in Python."""

_SCALAR_KINDS: Final = frozenset({str, int, bool, type(None)})


class EventTypes(msgspec.Struct, frozen=True):
    """The event types that an endpoint asks for."""

    names: frozenset[str]
    prefixes: frozenset[str]
    """What the types of patterns begin with, with the dot: `genesis.agent.` for `genesis.agent.*`."""

    def include(self, event_type: str) -> bool:
        """Return whether events of a type are asked for."""
        return event_type in self.names or not self.prefixes.isdisjoint(prefixes_of(event_type))


class FieldFilter(msgspec.Struct, frozen=True):
    """A field, by its path, and the values of which it must have one."""

    path: tuple[str, ...]
    values: frozenset[ScalarKey]

    def passes(self, data: object) -> bool:
        """Return whether the field of an event's data has one of the values. Never raises."""
        for segment in self.path:
            if type(data) is not dict or segment not in data:
                return False
            data = data[segment]
        return scalar_key(data) in self.values


class EventFilter(msgspec.Struct, frozen=True):
    """The fields that must hold, in the order of their paths. Without any, all events pass."""

    fields: tuple[FieldFilter, ...] = ()


def parse_event_types(types: Sequence[str], known_types: Collection[str] | None = None) -> EventTypes:
    """Return the types of a list. A pattern is the beginning of a type, then `.*` for the rest of it.

    With known types, a name or pattern that stands for none of them is refused, as a misspelt one would be. Raises
    EndpointFilterRefused.

    >>> chosen = parse_event_types(["genesis.agent.*", "genesis.team.formed"])
    >>> chosen.include("genesis.agent.rated"), chosen.include("genesis.team.formed"), chosen.include("genesis.skill.x")
    (True, True, False)
    >>> parse_event_types(["*"]).include("plant.endpoint.disabled")
    False
    """
    if isinstance(types, str) or not 1 <= len(types) <= EVENT_TYPES_MAX:
        raise EndpointFilterRefused(why=f"The event types are a list of 1 to {EVENT_TYPES_MAX}: write * for all.")
    chosen = [_parse_event_type(text) for text in types]
    if known_types is not None:
        for text, pattern in zip(types, chosen, strict=True):
            if not any(pattern.include(known) for known in known_types):
                raise EndpointFilterRefused(why=f"{text} stands for no event type: see docs/reference/events.md.")
    return EventTypes(
        frozenset().union(*(each.names for each in chosen)), frozenset().union(*(each.prefixes for each in chosen))
    )


def parse_event_filter(fields: Mapping[str, object]) -> EventFilter:
    """Return the filter of an object as JSON brings it: paths, and a value or a list of values each.

    Raises EndpointFilterRefused.

    >>> parse_event_filter({"rating": 5, "agent.name": ["a", None]}).fields[0].path
    ('agent', 'name')
    >>> parse_event_filter({"rating": 4.5})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    deliveries.errors.EndpointFilterRefused: ... A value of rating is a fraction: only whole numbers are compared.
    """
    if not isinstance(fields, Mapping):
        raise EndpointFilterRefused(why='A filter is an object of fields and values, such as {"rating": [4, 5]}.')
    if len(fields) > FIELDS_MAX:
        raise EndpointFilterRefused(why=f"A filter names at most {FIELDS_MAX} fields.")
    parsed = [FieldFilter(_parse_path_of(path), _parse_values(path, values)) for path, values in fields.items()]
    try:
        size_bytes = len(msgspec.json.encode(fields))
    except UnicodeEncodeError as error:
        raise EndpointFilterRefused(why="A text holds half of a surrogate pair: write whole characters.") from error
    if size_bytes > FILTER_MAX_BYTES:
        raise EndpointFilterRefused(why=f"A filter has at most {FILTER_MAX_BYTES} bytes as JSON.")
    return EventFilter(tuple(sorted(parsed, key=lambda each: each.path)))


def passes_filter(event_filter: EventFilter, data: object) -> bool:
    """Return whether all fields of a filter hold for an event's data, decoded from JSON. Never raises.

    >>> filtered = parse_event_filter({"rating": [4, 5]})
    >>> passes_filter(filtered, {"rating": 5}), passes_filter(filtered, {"rating": "5"}), passes_filter(filtered, {})
    (True, False, False)
    """
    return all(each.passes(data) for each in event_filter.fields)


def scalar_key(value: object) -> ScalarKey | None:
    """Return a value with its kind, None for what no filter compares: numbers with a fraction, lists, objects."""
    kind = type(value)
    return (kind, value) if kind in _SCALAR_KINDS else None  # type: ignore[return-value]  # the set says which it is


def prefixes_of(event_type: str) -> list[str]:
    """Return what patterns for a type begin with.

    >>> prefixes_of("genesis.agent.rated")
    ['genesis.', 'genesis.agent.']
    """
    return [event_type[: at + 1] for at, character in enumerate(event_type) if character == "."]


def _parse_event_type(text: object) -> EventTypes:
    if text == ALL_GENESIS_EVENTS:
        return EventTypes(frozenset(), frozenset({"genesis."}))
    if not isinstance(text, str) or len(text) > EVENT_TYPE_MAX_CHARACTERS or not _EVENT_TYPE.fullmatch(text):
        raise EndpointFilterRefused(
            why=f"{_quoted(text)} is no event type: write genesis.agent.rated, genesis.agent.* or * for all."
        )
    if not text.startswith(_DELIVERED_PREFIXES):
        raise EndpointFilterRefused(
            why=f"{_quoted(text)} is not delivered: types begin with genesis. or are of plant.endpoint.*."
        )
    if text.endswith(".*"):
        return EventTypes(frozenset(), frozenset({text[:-1]}))
    return EventTypes(frozenset({text}), frozenset())


def _parse_path_of(text: object) -> tuple[str, ...]:
    if not isinstance(text, str) or len(text) > PATH_MAX_CHARACTERS or not _FIELD_PATH.fullmatch(text):
        raise EndpointFilterRefused(
            why=f"{_quoted(text)} names no field: write agent_id, or agent.status for one inside."
        )
    segments = tuple(text.split("."))
    if len(segments) > DEPTH_MAX:
        raise EndpointFilterRefused(why=f"{_quoted(text)} is too deep: a field is at most {DEPTH_MAX} objects down.")
    return segments


def _parse_values(path: str, values: object) -> frozenset[ScalarKey]:
    listed = values if isinstance(values, list | tuple) else [values]
    if not 1 <= len(listed) <= VALUES_MAX:
        raise EndpointFilterRefused(why=f"{_quoted(path)} has a value, or a list of 1 to {VALUES_MAX}.")
    return frozenset(_parse_value(path, value) for value in listed)


def _parse_value(path: str, value: object) -> ScalarKey:
    if isinstance(value, float):
        raise EndpointFilterRefused(why=f"A value of {path} is a fraction: only whole numbers are compared.")
    key = scalar_key(value)
    if key is None:
        raise EndpointFilterRefused(
            why=f"A value of {path} is an object or a list: write a text, a whole number, true, false or null."
        )
    if type(value) is int and not -INTEGER_MAX <= value <= INTEGER_MAX:
        raise EndpointFilterRefused(why=f"A number for {path} has more than 63 bits: no field holds such a number.")
    if isinstance(value, str) and "\x00" in value:
        raise EndpointFilterRefused(why=f"A text for {path} holds a NUL character: no field holds one.")
    return key


def _quoted(text: object) -> str:
    return repr(text)[:100]

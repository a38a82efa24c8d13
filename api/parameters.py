"""The parameters of requests: read once each, by name and kind; whatever does not fit is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import unquote_to_bytes
from uuid import UUID

from projections.listing import Kind, ListingFilter
from schemas.control import LOGGED_TOPICS
from server.problems import ParameterError, Problem
from streams.record_position import RecordPosition

QUERY_MAX_BYTES: Final = 8 * 1024
PARAMETERS_MAX: Final = 100
TEXT_MAX_CHARACTERS: Final = 200
POSITIONS_MAX: Final = 64
OFFSET_MAX: Final = 2**63 - 1
PARTITION_MAX: Final = 2**31 - 1

Parameters = dict[str, list[str]]

_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_NUMBER: Final = re.compile(r"[0-9]{1,19}")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:[Zz]|[+-]\d\d:\d\d)")
_HOW: Final[Mapping[Kind, str]] = {
    "uuid": "It is no UUID, such as 4228a261-6de2-546e-aab9-13a90b189527.",
    "boolean": "It is neither true nor false.",
    "text": f"It is no text of 1 to {TEXT_MAX_CHARACTERS} characters without control characters.",
    "time": "It is no time with a zone, such as 2026-11-27T08:00:00Z.",
}


def refused(parameter: str, detail: str) -> Problem:
    """Return the problem of one parameter."""
    return Problem("parameter", errors=(ParameterError(detail, parameter),))


def read_query(query: bytes, known: Collection[str]) -> Parameters:
    """Return the values of each parameter, in their order. Raises Problem where one is not known."""
    if len(query) > QUERY_MAX_BYTES:
        raise Problem("parameter", f"A query has at most {QUERY_MAX_BYTES} bytes.")
    pairs = [pair for pair in query.split(b"&") if pair]
    if len(pairs) > PARAMETERS_MAX:
        raise Problem("parameter", f"A query has at most {PARAMETERS_MAX} parameters.")
    found: Parameters = {}
    for pair in pairs:
        name, _, value = pair.partition(b"=")
        try:
            found.setdefault(_decoded(name), []).append(_decoded(value))
        except UnicodeDecodeError:
            raise Problem("parameter", "The query is not UTF-8.") from None
    unknown = [name for name in found if name not in known]
    if unknown:
        detail = f"Nothing here has this parameter. Known are: {', '.join(sorted(known)) or 'none'}."
        raise Problem("parameter", errors=[ParameterError(detail, _shown(name)) for name in unknown])
    return found


def single(parameters: Parameters, name: str) -> str | None:
    """Return the one value of a parameter, None where it is absent. Raises Problem where there are several."""
    values = parameters.get(name)
    if values is None:
        return None
    if len(values) > 1:
        raise refused(name, "It may be there once.")
    return values[0]


def read_count(parameters: Parameters, name: str, default: int, highest: int) -> int:
    """Return a whole number from 1 on. Raises Problem."""
    text = single(parameters, name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= highest):
        raise refused(name, f"It is no whole number from 1 to {highest}.")
    return int(text)


def read_value(name: str, kind: Kind, text: str) -> object:
    """Return a value of this kind. Raises Problem."""
    value: object = None
    if kind == "uuid":
        value = UUID(text) if _UUID.fullmatch(text) else None
    elif kind == "boolean":
        value = {"true": True, "false": False}.get(text)
    elif kind == "time":
        value = read_time(text)
    elif 0 < len(text) <= TEXT_MAX_CHARACTERS and text.isprintable():
        value = text
    if value is None:
        raise refused(name, _HOW[kind])
    return value


def read_time(text: str) -> datetime | None:
    """Return a time in UTC, None where the text is none.

    >>> read_time("2026-11-27T09:00:00+01:00")
    datetime.datetime(2026, 11, 27, 8, 0, tzinfo=datetime.timezone.utc)
    """
    if not (text.isascii() and _TIME.fullmatch(text)):
        return None
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def read_filters(parameters: Parameters, filters: Sequence[ListingFilter]) -> dict[str, object]:
    """Return the value of each filter that a request has. Raises Problem."""
    values: dict[str, object] = {}
    for each in filters:
        text = single(parameters, each.name)
        if text is None:
            continue
        if each.choices and text not in each.choices:
            raise refused(each.name, f"It is none of {', '.join(each.choices)}.")
        values[each.name] = read_value(each.name, each.kind, text)
    return values


def read_positions(values: Sequence[str]) -> list[RecordPosition]:
    """Return the positions that a request waits for, the highest of each partition. Raises Problem.

    >>> read_positions(["genesis.events/3/7", "genesis.events/3/9"])
    [RecordPosition(topic='genesis.events', partition=3, offset=9)]
    """
    if len(values) > POSITIONS_MAX:
        raise refused("at-least", f"It may be there {POSITIONS_MAX} times.")
    highest: dict[tuple[str, int], RecordPosition] = {}
    for text in values:
        position = _position(text)
        known = highest.get((position.topic, position.partition))
        if known is None or known.offset < position.offset:
            highest[position.topic, position.partition] = position
    return list(highest.values())


def read_wait(prefer: Sequence[bytes], default_seconds: float, highest_seconds: float) -> float:
    """Return how long a request waits, of its Prefer headers (RFC 7240); other preferences are skipped.

    >>> read_wait([b"respond-async, wait=3"], 10, 30), read_wait([], 10, 30), read_wait([b"wait=90"], 10, 30)
    (3.0, 10, 30)
    """
    for preference in b",".join(prefer).split(b","):
        name, equals, value = preference.partition(b";")[0].strip().partition(b"=")
        if name.strip().lower() == b"wait":
            text = value.strip().strip(b'"').decode("latin-1")
            if not equals or not (text.isascii() and text.isdecimal() and len(text) < 10):
                raise refused("Prefer", "The preference `wait` has whole seconds, such as wait=5.")
            return min(float(text), highest_seconds)
    return default_seconds


def _position(text: str) -> RecordPosition:
    topic, _, rest = text.partition("/")
    partition, _, offset = rest.partition("/")
    fits = _TOPIC.fullmatch(topic) and _NUMBER.fullmatch(partition) and _NUMBER.fullmatch(offset)
    if not fits or int(partition) > PARTITION_MAX or int(offset) > OFFSET_MAX:
        raise refused("at-least", "It is no topic/partition/offset, such as genesis.events/3/1041.")
    if topic.partition("-")[0] not in LOGGED_TOPICS:  # a dash begins the number of a generation
        raise refused("at-least", f"Read models are made of {' and '.join(LOGGED_TOPICS)} alone.")
    return RecordPosition(topic, int(partition), int(offset))


def _decoded(text: bytes) -> str:
    return unquote_to_bytes(text.replace(b"+", b" ")).decode()


def _shown(name: str) -> str:
    """Return a name that a stranger chose as an answer may repeat it."""
    return name[:100].encode("unicode_escape").decode("ascii")

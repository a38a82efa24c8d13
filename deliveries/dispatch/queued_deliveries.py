"""The deliveries of an event: one record for each endpoint that asks for it, in the order of their ids. Pure.

The records of one event differ in two ids alone. They are encoded once, and the ids are put in: Avro's fixed(16) are
their own bytes, and stand at the beginning.

    0..5    Confluent's prefix
    5..21   event_id
    21..37  delivery_id
    37..53  endpoint_id
    53..    all that the event's deliveries share
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from audit.canonical import NULL
from deliveries.delivery_id import delivery_id
from deliveries.endpoints import EndpointId
from deliveries.signed_request import outgoing_event
from projections.effective_events import EffectiveEvent
from schemas import codec
from schemas.delivery_records import DeliveryQueued, DeliveryStream
from schemas.events import Event

NO_SOURCE: Final = ""
"""Of an event whose record names none."""
SOURCE_MAX_CHARACTERS: Final = 2_000
TRACEPARENT_MAX_CHARACTERS: Final = 200
KEYS_REMEMBERED: Final = 50_000
"""Endpoints whose ids are kept as the bytes that their records have."""

_DELIVERY_AT: Final = 21
_ENDPOINT_AT: Final = 37
_SHARED_AT: Final = 53
_NO_ID: Final = UUID(int=0)
_READ_HEADERS: Final = {b"ce_source": SOURCE_MAX_CHARACTERS, b"traceparent": TRACEPARENT_MAX_CHARACTERS}


class DeliveryRecord(NamedTuple):
    """A delivery as it is published: the endpoint's id as key, and the value."""

    key: bytes
    value: bytes


class DispatchedStream(NamedTuple):
    """A stream of deliveries: of a partition's events, by the owner of a token. `hop` is that of their records."""

    partition: int
    token: int
    stream: DeliveryStream
    hop: int = 0


Match = Callable[[str, object], Sequence[EndpointId]]
"""Returns the endpoints that ask for an event of a type and data, in the order of their ids."""
MatchAt = Callable[[int], Match]
"""Returns how the endpoints are found of an event that takes effect at an offset."""


def deliveries_of(
    effective: EffectiveEvent, event: Event, match: Match, by: DispatchedStream
) -> Iterator[DeliveryRecord]:
    """Yield the deliveries of an event that takes effect, in the order of the endpoints' ids."""
    outgoing = outgoing_event(event, source=NO_SOURCE)
    endpoint_ids = match(event.event_type, msgspec.json.decode(outgoing.data))
    if not endpoint_ids:
        return
    source, traceparent = sender_of(effective.headers)
    queued = DeliveryQueued(
        event_id=event.event_id, delivery_id=_NO_ID, endpoint_id=_NO_ID, type=event.event_type, source=source,
        occurred_at=event.occurred_at, entity_id=event.entity_id, traceparent=traceparent, data=outgoing.data,
        stream=by.stream, source_partition=by.partition, source_offset=effective.effective_offset,
        source_rank=effective.rank, attempt=1, hop=by.hop, due_at=None, token=by.token,
    )  # fmt: skip
    yield from spliced(codec.encode_checked(queued), event.event_id, endpoint_ids)


def spliced(template: bytes, event_id: UUID, endpoint_ids: Iterable[EndpointId]) -> Iterator[DeliveryRecord]:
    """Yield the records of an event's deliveries, from the value of one whose ids do not matter."""
    head, shared = template[:_DELIVERY_AT], template[_SHARED_AT:]
    event = event_id.bytes
    for endpoint_id in endpoint_ids:
        key, endpoint = _id_bytes(endpoint_id)
        yield DeliveryRecord(key, b"".join((head, delivery_id(event, endpoint), endpoint, shared)))


def sender_of(headers: bytes) -> tuple[str, str | None]:
    """Return the CloudEvents source and the traceparent that a record's headers name, in canonical bytes.

    The first header of a name counts. What is no text, is too long, or has a character that none may have is left out.

    >>> from audit.canonical import headers_bytes
    >>> sender_of(headers_bytes([("ce_source", b"ats"), ("traceparent", None)]))
    ('ats', None)
    """
    found: dict[bytes, str] = {}
    at, end = 4, len(headers)
    while at < end and len(found) < len(_READ_HEADERS):
        after_name = at + 4 + int.from_bytes(headers[at : at + 4], "big")
        name = headers[at + 4 : after_name]
        length = headers[after_name : after_name + 4]
        start = after_name + 4
        at = start if length == NULL else start + int.from_bytes(length, "big")
        if name in _READ_HEADERS and name not in found:
            found[name] = "" if length == NULL else _text(headers[start:at], _READ_HEADERS[name])
    return found.get(b"ce_source") or NO_SOURCE, found.get(b"traceparent") or None


def _text(value: bytes, characters_max: int) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() and len(text) <= characters_max else ""


@lru_cache(KEYS_REMEMBERED)
def _id_bytes(endpoint_id: EndpointId) -> tuple[bytes, bytes]:
    """Return an endpoint's key, and its id as 16 bytes."""
    return codec.json_text(endpoint_id), endpoint_id.bytes

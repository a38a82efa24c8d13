"""The request of an attempt: body, Standard Webhooks headers, and the subscriber's own. Pure: the time is given.

    standard    {"type": …, "timestamp": …, "data": …}
    CloudEvent  {"specversion": "1.0", "id": …, "source": …, "type": …, "subject": …, "time": …,
                 "datacontenttype": "application/json", "data": …}

The body is the same in every attempt, and so is `webhook-id`; `webhook-timestamp` and the signatures are the attempt's.

Sources: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md, CloudEvents 1.0.2
(JSON format, HTTP binding 3.2), https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, Literal, assert_never

import msgspec

from schemas.events import Event
from signing.ed25519 import PrivateKey
from signing.signatures import sign

PayloadForm = Literal["standard", "cloud_event"]

KEYS_MAX: Final = 2
"""Keys of a scheme: the new one and, during a rotation, the one before it."""

UNKNOWN_SOURCE: Final = "unknown"
"""The source of a CloudEvent, which has to have one, where the event's record names none."""

_BESIDE_DATA: Final = frozenset({"event_id", "occurred_at"})
_MESSAGE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class OutgoingEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The event of a delivery; its data is JSON already."""

    id: str
    type: str
    source: str
    occurred_at: datetime
    data: bytes
    subject: str | None = None
    traceparent: str | None = None


class EndpointKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The keys that an endpoint's requests are signed with, the newest first. Its repr shows none of them."""

    secrets: tuple[bytes, ...] = ()
    """For `v1`."""
    private_keys: tuple[PrivateKey, ...] = ()
    """For `v1a`."""

    def __post_init__(self) -> None:
        """Raise ValueError for no key, or for more keys than a rotation has."""
        if not self.secrets and not self.private_keys:
            raise ValueError("an endpoint has a key at least")
        if max(len(self.secrets), len(self.private_keys)) > KEYS_MAX:
            raise ValueError(f"an endpoint has at most {KEYS_MAX} keys of a scheme")

    def __repr__(self) -> str:
        return f"EndpointKeys({len(self.secrets)} secrets, {len(self.private_keys)} private keys)"

    def __rich_repr__(self) -> list[tuple[str, int]]:
        return [("secrets", len(self.secrets)), ("private_keys", len(self.private_keys))]


class AttemptRequest(msgspec.Struct, frozen=True):
    """Headers, their names in lower case, and the body that they sign."""

    headers: dict[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"AttemptRequest({self.headers.get('webhook-id')}, {len(self.body)} bytes)"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("webhook_id", self.headers.get("webhook-id")), ("body_bytes", len(self.body))]


def outgoing_event(event: Event, *, source: str, traceparent: str | None = None) -> OutgoingEvent:
    """Return what is sent of an event: its fields as data, but for id and time, which stand beside it.

    >>> from schemas.examples import examples
    >>> outgoing_event(examples()["genesis.agent.available"], source="plant").data  # doctest: +ELLIPSIS
    b'{"agent_id":"...","available":...}'
    """
    fields = {name: getattr(event, name) for name in event.__struct_fields__ if name not in _BESIDE_DATA}
    return OutgoingEvent(
        id=str(event.event_id),
        type=event.event_type,
        source=source,
        occurred_at=event.occurred_at,
        data=msgspec.json.encode(fields),
        subject=str(event.entity_id),
        traceparent=traceparent,
    )


def encode_payload(event: OutgoingEvent, form: PayloadForm) -> bytes:
    """Return the body of an event's requests: the same bytes each time.

    >>> at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    >>> event = OutgoingEvent(id="e1", type="a.b", source="plant", occurred_at=at, data=b'{"n":1}')
    >>> encode_payload(event, "standard")
    b'{"type":"a.b","timestamp":"2026-03-01T12:00:00Z","data":{"n":1}}'
    """
    time, data = event.occurred_at.astimezone(UTC), msgspec.Raw(event.data)
    match form:
        case "standard":
            return msgspec.json.encode({"type": event.type, "timestamp": time, "data": data})
        case "cloud_event":
            subject = {} if event.subject is None else {"subject": event.subject}
            source = event.source or UNKNOWN_SOURCE
            head = {"specversion": "1.0", "id": event.id, "source": source, "type": event.type, **subject}
            return msgspec.json.encode({**head, "time": time, "datacontenttype": "application/json", "data": data})
        case _:
            assert_never(form)


def signature_header(keys: EndpointKeys, message_id: str, timestamp_seconds: int, body: bytes) -> str:
    """Return the `webhook-signature` of a message: a signature for each key, separated by blanks.

    >>> signature_header(EndpointKeys(secrets=(bytes(24),)), "msg_1", 1763884800, b"{}")[:10]
    'v1,G/X3N7O'
    """
    signed = message_id.encode("ascii"), str(timestamp_seconds).encode("ascii"), body
    signatures = [sign(secret, *signed) for secret in keys.secrets]
    signatures += [key.sign(*signed) for key in keys.private_keys]
    return b" ".join(signatures).decode("ascii")


def sign_attempt(
    event: OutgoingEvent,
    form: PayloadForm,
    keys: EndpointKeys,
    *,
    delivery_id: str,
    now: datetime,
    custom_headers: Iterable[tuple[str, str]] = (),
) -> AttemptRequest:
    """Return the request of an attempt. `custom_headers` are those that `check_custom_headers` returned.

    Raises ValueError for a delivery id that is not 1 to 64 letters, digits, `_` and `-`: a dot in it would leave open
    where the id ends in what is signed.
    """
    if not _MESSAGE_ID.fullmatch(delivery_id):
        raise ValueError("a delivery's id is 1 to 64 letters, digits, _ and -")
    body = encode_payload(event, form)
    timestamp_seconds = int(now.timestamp())
    headers = dict(custom_headers)
    headers["content-type"] = "application/json" if form == "standard" else "application/cloudevents+json"
    headers["webhook-id"] = delivery_id
    headers["webhook-timestamp"] = str(timestamp_seconds)
    headers["webhook-signature"] = signature_header(keys, delivery_id, timestamp_seconds, body)
    if event.traceparent is not None and _TRACEPARENT.fullmatch(event.traceparent):
        headers["traceparent"] = event.traceparent
    return AttemptRequest(headers, body)

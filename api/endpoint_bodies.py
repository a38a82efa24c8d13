"""Bodies of requests about endpoints: JSON within bounds, its fields read, and every fault told with its pointer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, cast

import msgspec
from litestar.types import Receive, Scope

from api.body_fields import BodyField, FieldRefused
from api.endpoint_fields import ADDED, CHANGED, CHOOSING
from api.request_heads import RequestHead
from deliveries.endpoints import Endpoint, EndpointConfiguration, check_endpoint_tenant
from deliveries.errors import ConfigurationRefused
from deliveries.new_endpoints import SchemeChoice
from server.bodies import receive_part
from server.peers import peer_of
from server.problems import CLOSE, FieldError, Problem

BODY_MAX_BYTES: Final = 64 * 1024
FIELDS_MAX: Final = 64
MEDIA_TYPES: Final = (b"application/json", b"application/merge-patch+json")
NO_CHANGE: Final = "It can't be changed, since it decides which events there are: add another endpoint."

_CONFIGURATION: Final = frozenset(EndpointConfiguration.__struct_fields__)


class AddedEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a body asks to add. The configuration's URL is as it was written. Its repr shows no header."""

    configuration: EndpointConfiguration
    headers: tuple[tuple[str, str], ...]
    scheme: SchemeChoice
    start_at: datetime | None
    reason: str

    def __repr__(self) -> str:
        return f"AddedEndpoint({self.configuration!r})"


class ChangedEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a body asks to change, on top of what there is; `headers` None leaves them. Its repr shows no header."""

    configuration: EndpointConfiguration
    headers: tuple[tuple[str, str], ...] | None
    reason: str

    def __repr__(self) -> str:
        return f"ChangedEndpoint({self.configuration!r})"


class RequestBody:
    """The body of one request, and whether there is some of it that was not read."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.unread = announces_body(scope)
        self._scope = scope
        self._receive = receive

    async def read(self, head: RequestHead) -> dict[str, Any]:
        """Return the object that it holds, an empty one where there is no body.

        Raises Problem: media-type (415), body-too-large (413), malformed-body (400); and PeerGone.
        """
        if not head.has_body:
            return {}
        if head.content_type is None or head.content_type.partition(b";")[0].strip().lower() not in MEDIA_TYPES:
            raise Problem("media-type", "Send application/json.", headers=(CLOSE,))
        peer = peer_of(self._scope)
        body = None if peer is None else peer.take_body(self._scope)
        if body is None:
            body = await self._received()
        self.unread = False
        if len(body) > BODY_MAX_BYTES:
            raise _too_large()
        try:
            document = msgspec.json.decode(body)
            json.loads(body, object_pairs_hook=_refuse_repeated)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise Problem("malformed-body") from None
        if not isinstance(document, dict):
            raise Problem("malformed-body", "It is no object.")
        return document

    async def _received(self) -> bytes:
        parts, size_bytes, more = [], 0, True
        while more:
            part, more = await receive_part(self._receive)
            size_bytes += len(part)
            if size_bytes > BODY_MAX_BYTES:
                raise _too_large()
            parts.append(part)
        return b"".join(parts)


def announces_body(scope: Scope) -> bool:
    """Return whether the head of a request says that a body follows, which stands in front of the next request."""
    headers = cast("Any", scope)["headers"]
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")) for name, value in headers
    )


def body_values(document: Mapping[str, Any], known: Mapping[str, BodyField], kind: str = "endpoint") -> dict[str, Any]:
    """Return the values of a body's fields. Raises a problem (422) with an error for each that does not fit."""
    values, errors = {}, []
    for name, value in document.items():
        if name not in known:
            errors.append(
                FieldError(f"Nothing here has this field. Known are: {', '.join(sorted(known))}.", pointer_to(name))
            )
            continue
        try:
            values[name] = known[name].read(value)
        except FieldRefused as refused:
            errors.append(FieldError(str(refused), pointer_to(name)))
    refuse_fields(errors, kind)
    return values


def read_added(document: Mapping[str, Any], tenant: str) -> AddedEndpoint:
    """Return the endpoint that a body describes. Raises Problem (422), EndpointTenantRefused."""
    check_endpoint_tenant(tenant)
    missing = [
        FieldError("It has to be there.", pointer_to(name)) for name in ("url", "event_types") if name not in document
    ]
    try:
        values = body_values(document, ADDED)
    except Problem as problem:
        raise Problem("endpoint", errors=[*problem.errors, *missing]) from None
    refuse_fields(missing)
    if values.get("tenant", tenant) != tenant:
        raise not_fitting(f"Events carry no tenant yet, and all of them belong to {tenant!r}.", "tenant")
    chosen = {name: value for name, value in values.items() if name in _CONFIGURATION}
    try:
        configuration = EndpointConfiguration(**chosen)
    except ConfigurationRefused as refused:
        raise not_fitting(refused.why, refused.field) from None
    return AddedEndpoint(
        configuration=configuration,
        headers=values.get("headers", ()),
        scheme=values.get("scheme", "v1"),
        start_at=values.get("from"),
        reason=values.get("reason", "A subscriber wants events."),
    )


def read_changed(document: Mapping[str, Any], endpoint: Endpoint) -> ChangedEndpoint:
    """Return an endpoint's configuration with what a body changes of it (RFC 7396). Raises Problem (422)."""
    fixed = {each.name for each in CHOOSING} & document.keys()
    refuse_fields([FieldError(NO_CHANGE, pointer_to(name)) for name in sorted(fixed)])
    values = body_values(document, CHANGED)
    chosen = {name: value for name, value in values.items() if name in _CONFIGURATION}
    return ChangedEndpoint(
        configuration=msgspec.structs.replace(endpoint.configuration, **chosen),
        headers=values.get("headers"),
        reason=values.get("reason", "Its subscriber wants it otherwise."),
    )


def refuse_fields(errors: Iterable[FieldError], kind: str = "endpoint") -> None:
    """Raise a problem (422) where there are errors."""
    told = list(errors)[:FIELDS_MAX]
    if told:
        raise Problem(kind, errors=told)


def missing_fields(document: Mapping[str, Any], names: Iterable[str]) -> list[FieldError]:
    """Return an error for each field that has to be there and is not."""
    return [FieldError("It has to be there.", pointer_to(name)) for name in names if name not in document]


def not_fitting(why: str, field: str) -> Problem:
    """Return the problem of one field."""
    return Problem("endpoint", errors=(FieldError(why, pointer_to(field)),))


def _refuse_repeated(fields: list[tuple[str, Any]]) -> None:
    """Raise Problem (400) for an object that names a field twice: who read it before may have taken the other one."""
    if len({name for name, _ in fields}) < len(fields):
        raise Problem("malformed-body", "An object in it names a field twice.")


def _too_large() -> Problem:
    return Problem("body-too-large", f"At most {BODY_MAX_BYTES} bytes are read.", headers=(CLOSE,))


def pointer_to(name: str) -> str:
    """Return the pointer of a field, as a URI fragment; the name may be a stranger's."""
    shown = name[:100].replace("~", "~0").replace("/", "~1")
    return "#/" + "".join(
        each if each.isascii() and (each.isalnum() or each in "_-.~") else
        "".join(f"%{byte:02X}" for byte in each.encode("utf-8", "surrogatepass"))
        for each in shown
    )  # fmt: skip

"""Changes of endpoints over HTTP: checked, then recorded as an operator's action, then done.

What a lost answer leaves behind is seen by asking again. With an `Idempotency-Key` an endpoint's id follows from the
tenant and the key, so that a request that comes again finds the endpoint; an action whose state is reached changes
nothing. Secrets are shown in the answer that made them, and in no other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID, uuid4, uuid5

import msgspec

from api.access_tokens import AccessToken
from api.body_fields import BodyField
from api.endpoint_answers import endpoint_document, new_endpoint_document
from api.endpoint_bodies import AddedEndpoint, body_values, not_fitting, read_added, read_changed
from api.endpoint_fields import ACTION, EXAMPLE, OVERLAP_SECONDS, ROTATION
from api.parameters import refused
from database.errors import ConstraintRefused
from deliveries.endpoint_examples import example_fields, send_example
from deliveries.endpoint_refusals import is_repeated_rotation, refuse_action, refuse_rotation
from deliveries.endpoint_store import EndpointStore
from deliveries.endpoints import (
    TRANSITIONS,
    Endpoint,
    EndpointAction,
    EndpointConfiguration,
    EndpointId,
    EndpointStart,
    ReceiverAgreement,
    refuse_handshake,
)
from deliveries.errors import EndpointStateRefused, EndpointUnresolved, TooManyEndpoints, UnknownEndpoint
from deliveries.guard.connections import DeliveryClient
from deliveries.handshake import ask_receiver, request_origin
from deliveries.new_endpoints import NewEndpoint, new_endpoint, new_endpoint_key
from runtime.clock import Clock
from runtime.logging import get_logger
from runtime.settings import Settings
from server.problems import Problem

log = get_logger(__name__)

KEY_NAMESPACE: Final = UUID("5f0d2a9e-7c0b-4e53-9a55-0f4f6a3c1d27")
DEFAULT_REASONS: Final[Mapping[EndpointAction, str]] = {
    "pause": "Its subscriber needs a pause.",
    "resume": "Its subscriber is ready again.",
    "disable": "Its subscriber turned it off.",
    "enable": "Its subscriber says that it works again.",
    "remove": "Its subscriber no longer wants events.",
}
_KEY: Final = re.compile(rb"[!-~]{1,200}")

RecordChange = Callable[[str, str, str, str, UUID], Awaitable[None]]
"""Records an action, its target, the reason, the actor and the operation's id. The change is made after that."""
ReadStart = Callable[[Any], Awaitable[EndpointStart]]
"""Returns where a new endpoint's events begin: from a time, or from now for None."""


class EndpointParts(NamedTuple):
    """What changes are made with, of a process."""

    settings: Settings
    client: DeliveryClient
    record: RecordChange
    read_start: ReadStart
    clock: Clock


class Changed(NamedTuple):
    """What a change is answered with."""

    status: int
    document: dict[str, Any] | None
    location: str | None = None


class EndpointChanges:
    """The changes of one request, for the tenant of its token."""

    def __init__(self, parts: EndpointParts, store: EndpointStore, token: AccessToken) -> None:
        self._parts = parts
        self._store = store
        self._token = token

    async def add(self, document: Mapping[str, Any], key: bytes | None) -> Changed:
        """Add an endpoint, once for each Idempotency-Key. Raises Problem, and the errors of `endpoint_failures`."""
        asked = read_added(document, self._token.tenant)
        endpoint_id = None if key is None else endpoint_id_of(key, self._token.tenant)
        digest = None if key is None else digest_of(asked)
        if endpoint_id is not None and (known := await self._find(endpoint_id)) is not None:
            return await self._repeated(known, digest)
        endpoints_max = self._parts.settings.api_endpoints_max
        if await self._store.count() >= endpoints_max:
            raise _too_many_endpoints(endpoints_max)
        configuration = await self._checked(asked.configuration)
        agreement = await self._agreement(configuration) if configuration.handshake else None
        new = new_endpoint(asked.scheme, asked.headers, endpoint_id)
        await self._record("add", new.id, asked.reason, new.facts(configuration))
        start = await self._parts.read_start(asked.start_at)
        try:
            await self._store.add(
                new.id, configuration, new.secrets, start,
                tenant=self._token.tenant, agreement=agreement, creation_digest=digest, endpoints_max=endpoints_max,
            )  # fmt: skip
        except (ConstraintRefused, TooManyEndpoints) as error:
            if endpoint_id is not None and (known := await self._find(endpoint_id)) is not None:
                return await self._repeated(known, digest)  # the same request was under way a second time
            if isinstance(error, TooManyEndpoints):  # others came at once
                raise _too_many_endpoints(endpoints_max) from None
            raise
        return await self._answered(201, new.id, new)

    async def change(self, endpoint: Endpoint, document: Mapping[str, Any]) -> Changed:
        """Change how an endpoint's events are sent. Raises as `add` does."""
        asked = read_changed(document, endpoint)
        if endpoint.state == "removed":
            raise EndpointStateRefused(f"The endpoint {endpoint.id} is removed.")
        former, configuration, agreement = endpoint.configuration, asked.configuration, endpoint.agreement
        if configuration.url != former.url:
            configuration = await self._checked(configuration)
            if asked.headers is None and endpoint.custom_header_names and not is_same_host(configuration, former):
                raise not_fitting("Its headers are for the host before: send those for this one too.", "headers")
        if not configuration.handshake:
            agreement = None
        elif agreement is None or configuration.url != former.url:
            agreement = await self._agreement(configuration)
        if (configuration, agreement, asked.headers) != (former, endpoint.agreement, None):
            facts = [name for name in document if name not in ("reason",)]
            await self._record("change", endpoint.id, asked.reason, [f"fields {' '.join(facts)}"])
            await self._store.configure(endpoint, configuration, agreement, asked.headers)
        return await self._answered(200, endpoint.id)

    async def act(self, endpoint: Endpoint, action: EndpointAction, document: Mapping[str, Any]) -> Changed:
        """Do an action, unless its state is reached already. Raises EndpointStateRefused, UnknownEndpoint, Problem."""
        reason = body_values(document, by_name(*ACTION)).get("reason", DEFAULT_REASONS[action])
        if endpoint.state != TRANSITIONS[action][1]:
            refuse_action(endpoint, action)
            await self._record(action, endpoint.id, reason)
            start = await self._parts.read_start(None) if TRANSITIONS[action][1] == "active" else None
            await self._store.change_state(endpoint.id, action, reason, start)
        return Changed(204, None) if action == "remove" else await self._answered(200, endpoint.id)

    async def rotate(self, endpoint: Endpoint, document: Mapping[str, Any], key: bytes | None = None) -> Changed:
        """Give an endpoint a new key; with an Idempotency-Key that comes again, instead of that of before.

        Raises EndpointStateRefused, TooManyEndpointKeys, Problem.
        """
        fields = body_values(document, by_name(*ROTATION))
        scheme, overlap_seconds = fields.get("scheme", "v1"), fields.get("overlap_seconds", OVERLAP_SECONDS)
        key_id = None
        if key is not None:  # another scheme or overlap is another request
            key_id = keyed_id(key, "rotation", self._token.tenant, str(endpoint.id), scheme, str(overlap_seconds))
        keys = await self._store.keys([endpoint.id])
        if not is_repeated_rotation(keys, key_id):
            refuse_rotation(endpoint.id, endpoint.state, keys, scheme)
        new = new_endpoint_key(scheme)
        facts = [f"scheme {scheme}", f"overlap {overlap_seconds}s"]
        facts += [f"public key {new.shown}"] if new.public_key is not None else []
        reason = fields.get("reason", "Keys are rotated regularly.")
        await self._record("rotate_key", endpoint.id, reason, facts)
        overlap = timedelta(seconds=overlap_seconds)
        await self._store.rotate(endpoint.id, scheme, new.secret, new.public_key, overlap, key_id)
        shown = (
            {"secret": None, "public_key": new.shown} if new.public_key else {"secret": new.shown, "public_key": None}
        )
        return Changed(200, {"id": endpoint.id, "scheme": scheme, **shown})

    async def test(self, endpoint: Endpoint, document: Mapping[str, Any]) -> Changed:
        """Send an endpoint one signed example, and answer with what came back. Raises UnknownExample, Problem."""
        event_type = body_values(document, by_name(*EXAMPLE)).get("event_type")
        made = await send_example(self._store, self._parts.client, endpoint, event_type, self._parts.clock.now())
        fields = example_fields(made)
        log.info(
            "endpoint.tested", endpoint=str(endpoint.id), token=self._token.prefix, status=fields["status"],
            outcome=fields["outcome"], error=fields["error"], seconds=fields["seconds"],
        )  # fmt: skip
        return Changed(200, fields)

    async def ask(self, endpoint: Endpoint, document: Mapping[str, Any]) -> Changed:
        """Ask an endpoint's receiver again. Raises HandshakeRefused, EndpointStateRefused, Problem."""
        fields = body_values(document, by_name(*ACTION))
        refuse_handshake(endpoint)
        agreement = await self._agreement(endpoint.configuration)
        reason = fields.get("reason", "Its receiver may allow another rate now.")
        await self._record("handshake", endpoint.id, reason)
        await self._store.agree(endpoint, agreement)
        return await self._answered(200, endpoint.id)

    async def _checked(self, configuration: EndpointConfiguration) -> EndpointConfiguration:
        try:
            url = await self._parts.client.check(configuration.url)
        except (OSError, TimeoutError) as error:
            raise EndpointUnresolved() from error
        return msgspec.structs.replace(configuration, url=str(url))

    async def _agreement(self, configuration: EndpointConfiguration) -> ReceiverAgreement:
        origin = request_origin(self._parts.settings)
        return await ask_receiver(self._parts.client, configuration, origin, self._parts.clock.now())

    async def _find(self, endpoint_id: UUID) -> Endpoint | None:
        try:
            return await self._store.find(endpoint_id)
        except UnknownEndpoint:
            return None

    async def _repeated(self, known: Endpoint, digest: bytes | None) -> Changed:
        if known.creation_digest != digest:
            raise Problem("id-reused", "The Idempotency-Key was used for another endpoint.")
        return await self._answered(200, known.id)

    async def _answered(self, status: int, endpoint_id: UUID, new: NewEndpoint | None = None) -> Changed:
        endpoint = await self._store.find(endpoint_id)
        keys = await self._store.keys([endpoint_id])
        if status == 201:
            return Changed(201, new_endpoint_document(endpoint, keys, new), f"/endpoints/{endpoint_id}")
        return Changed(status, endpoint_document(endpoint, keys))

    async def _record(self, action: str, endpoint_id: UUID, reason: str, facts: list[str] | None = None) -> None:
        await self._store.refuse_unfit()  # the database must answer before the record
        why = f"{reason} [{'; '.join(facts)}]" if facts else reason
        actor = actor_of(self._token)
        await self._parts.record(f"endpoints.{action}", str(endpoint_id), why, actor, uuid4())
        log.info("endpoint.changed", endpoint=str(endpoint_id), action=action, token=self._token.prefix)


def _too_many_endpoints(endpoints_max: int) -> Problem:
    return Problem("too-many-endpoints", f"It has {endpoints_max}.")


def actor_of(token: AccessToken) -> str:
    """Return who acts, as it is recorded."""
    return f"token {token.name}/{token.prefix}"


def endpoint_id_of(key: bytes, tenant: str) -> EndpointId:
    """Return the id of the endpoint that a request with this Idempotency-Key adds. Raises Problem (400)."""
    return EndpointId(keyed_id(key, tenant))


def keyed_id(key: bytes, *names: str) -> UUID:
    """Return the id of what a request with this Idempotency-Key makes, for a tenant. Raises Problem (400).

    No id can be chosen, so none can be tried out: another tenant's keys lead to other ids.
    """
    if not _KEY.fullmatch(key):
        raise refused("Idempotency-Key", "It is not 1 to 200 visible ASCII characters.")
    return uuid5(KEY_NAMESPACE, "\n".join([*names, key.decode("ascii")]))


def digest_of(asked: AddedEndpoint) -> bytes:
    """Return a digest of what was asked for, by which a repeat is told from another request; of headers, the names."""
    names = [name for name, _ in asked.headers]
    return hashlib.sha256(
        msgspec.json.encode([asked.configuration, names, asked.scheme, asked.start_at], order="sorted")
    ).digest()


def is_same_host(configuration: EndpointConfiguration, former: EndpointConfiguration) -> bool:
    """Return whether scheme, host and port of normalised URLs are the same: headers may be for no other."""
    return urlsplit(configuration.url)[:2] == urlsplit(former.url)[:2]


def by_name(*fields: BodyField) -> dict[str, BodyField]:
    """Return fields by their names."""
    return {each.name: each for each in fields}

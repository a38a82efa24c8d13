"""A request about endpoints or deliveries, from its token to its answer.

The order is by cost: the token and its scope, the path and the method, the body, the limits; then the tenant's rows, as
plant_endpoints. What changes something, or connects to a receiver, is bounded apart from what reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

import msgspec
from litestar.types import Receive, Scope, Send

from api.access_tokens import ENDPOINTS_SCOPE, AccessToken
from api.answers import PRIVATE_JSON, Answer, answer_document
from api.endpoint_answers import delivery_document, endpoint_document
from api.endpoint_bodies import RequestBody
from api.endpoint_changes import Changed, EndpointChanges, EndpointParts
from api.endpoint_failures import endpoint_problem
from api.endpoint_pages import list_attempts, list_deliveries, list_endpoints
from api.parameters import read_query, read_value, refused
from api.read_limits import ReadLimit, ReadLimits, query_limit, query_wait_seconds
from api.redrive_changes import RedriveChanges, find_redrive, list_redrives
from api.redrive_searches import SearchChanges, list_searches, search_document
from api.request_heads import READING, RequestHead, read_head, require_method
from api.request_records import RequestRecords
from api.token_cache import AccessTokenCache
from database.connector import Database
from deliveries.endpoint_store import EndpointStore
from deliveries.endpoints import EndpointAction
from deliveries.redrive.missing_searches import MissingSearches
from deliveries.redrive.orders import Redrives
from deliveries.state.delivery_rows import DeliveryRows
from runtime.clock import Clock
from runtime.settings import Settings
from server.peers import peer_of
from server.problems import CLOSE, Problem
from signing.master_key import MasterKeys

RESOURCE_NAMES: Final = ("endpoints", "deliveries", "redrives", "searches")
METHODS: Final = (*READING, "POST", "PATCH", "DELETE")
ACTIONS: Final[Sequence[EndpointAction]] = ("pause", "resume", "disable", "enable")
POSTED: Final = (*ACTIONS, "rotate-key", "test", "handshake")
"""What is posted to, under an endpoint."""
UNDER: Final = {"endpoints": POSTED, "deliveries": ("attempts",), "redrives": ("stop",), "searches": ()}
NUMBERED: Final = ("redrives", "searches")
ORDINAL_MAX: Final = 2**31 - 1


class EndpointPath(NamedTuple):
    """What a path names: a resource, one of it, and what is under that."""

    resource: str
    id: UUID | int | None = None
    under: str | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that it knows."""
        if self.resource == "deliveries":
            return READING
        if self.id is None:
            return (*READING, "POST")
        if self.resource in NUMBERED:
            return READING if self.under is None else ("POST",)
        return (*READING, "PATCH", "DELETE") if self.under is None else ("POST",)


class EndpointRequests:
    """Answers what is asked about endpoints and what they are sent. One a process; `start` gives it connections."""

    def __init__(
        self, settings: Settings, database: Database, tokens: AccessTokenCache, clock: Clock, limits: ReadLimits
    ) -> None:
        self._database = database
        self._master_keys = MasterKeys(settings)
        self._tokens = tokens
        self._page_max = settings.api_page_max
        self._records = RequestRecords("endpoints", clock)
        self._requests = limits.requests
        self._queries = query_limit(settings)
        self._query_wait_seconds = query_wait_seconds(settings)
        self._changes = ReadLimit("changes", settings.api_changes_max, settings.api_changes_per_token)
        self._parts: EndpointParts | None = None

    def start(self, parts: EndpointParts) -> None:
        """Change endpoints from now on."""
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send, resource: str, segments: list[str]) -> None:
        """Answer one request; `segments` are those of the path behind the resource."""
        body = RequestBody(scope, receive)

        def problem_of(error: Exception) -> Problem:
            problem = endpoint_problem(error) or Problem("unexpected")
            if body.unread and CLOSE not in problem.headers:
                problem.headers = (*problem.headers, CLOSE)
            return problem

        asked = self._answer(scope, body, resource, segments)
        await self._records.answer(asked, resource, problem_of, scope, receive, send)

    async def _answer(self, scope: Scope, body: RequestBody, resource: str, segments: list[str]) -> Answer:
        head = read_head(scope, METHODS)
        token = await self._tokens.authenticate(head.authorization)
        peer = peer_of(scope)
        if peer is not None and not peer.proved:
            peer.prove()
        if not token.may_change_endpoints():
            challenge = b'Bearer realm="plant", error="insufficient_scope", scope="%b"' % ENDPOINTS_SCOPE.encode(
                "ascii"
            )
            raise Problem("scope", "It has no scope endpoints.", headers=((b"www-authenticate", challenge),))
        path = read_path(resource, segments)
        require_method(head.method, path.methods)
        if head.method in READING:
            with self._requests.one_more(token.prefix):
                async with self._queries.in_turn(token.prefix, self._query_wait_seconds):
                    document = await self._read(path, head, token)
            await self._tokens.require_usable(token)  # it may have ended while its query ran
            return answer_document(document, head.if_none_match)
        if self._parts is None:
            raise Problem("starting")
        read_query(head.query, ())
        document = await body.read(head)
        with self._changes.one_more(token.prefix):
            await self._tokens.require_usable(token)  # a body may take its time
            changed = await self._change(path, head, document, token, self._parts)
        return _answer_to(changed)

    async def _read(self, path: EndpointPath, head: RequestHead, token: AccessToken) -> dict[str, Any]:
        tenant = token.tenant
        if path.resource == "redrives":
            redrives = Redrives(self._database, tenant)
            if path.id is None:
                return await list_redrives(redrives, head.query, tenant, self._page_max)
            read_query(head.query, ())
            return await find_redrive(redrives, cast("int", path.id))
        if path.resource == "searches":
            searches = MissingSearches(self._database, tenant)
            if path.id is None:
                return await list_searches(searches, head.query, tenant, self._page_max)
            read_query(head.query, ())
            return search_document(await searches.find(cast("int", path.id)))
        if path.resource == "deliveries":
            rows = DeliveryRows(self._database, tenant)
            if path.id is None:
                return await list_deliveries(rows, head.query, tenant, self._page_max)
            if path.under is not None:
                return await list_attempts(rows, cast("UUID", path.id), head.query, tenant, self._page_max)
            read_query(head.query, ())
            return delivery_document(await rows.find(cast("UUID", path.id)))
        store = self._store(tenant)
        if path.id is None:
            return await list_endpoints(store, head.query, tenant, self._page_max)
        read_query(head.query, ())
        endpoint_id = cast("UUID", path.id)
        return endpoint_document(await store.find(endpoint_id), await store.keys([endpoint_id]))

    async def _change(
        self, path: EndpointPath, head: RequestHead, body: Mapping[str, Any], token: AccessToken, parts: EndpointParts
    ) -> Changed:
        store = self._store(token.tenant)
        if path.resource == "redrives":
            orders = RedriveChanges(parts, self._database, store, token)
            if path.id is None:
                return await orders.ask(body, head.idempotency_key)
            return await orders.stop(cast("int", path.id), body)
        if path.resource == "searches":
            return await SearchChanges(parts, self._database, store, token).ask(body, head.idempotency_key)
        changes = EndpointChanges(parts, store, token)
        if path.id is None:
            return await changes.add(body, head.idempotency_key)
        endpoint = await store.find(cast("UUID", path.id))
        if head.method == "DELETE":
            return await changes.act(endpoint, "remove", body)
        match path.under:
            case None:
                return await changes.change(endpoint, body)
            case "rotate-key":
                return await changes.rotate(endpoint, body, head.idempotency_key)
            case "test":
                return await changes.test(endpoint, body)
            case "handshake":
                return await changes.ask(endpoint, body)
            case action:
                return await changes.act(endpoint, cast("EndpointAction", action), body)

    def _store(self, tenant: str) -> EndpointStore:
        return EndpointStore(self._database, self._master_keys, tenant)


def read_path(resource: str, segments: Sequence[str]) -> EndpointPath:
    """Return what a path names. Raises Problem: not-found (404), parameter (400)."""
    if len(segments) > 2 or (len(segments) == 2 and segments[1] not in UNDER[resource]):
        raise Problem("not-found")
    if not segments:
        return EndpointPath(resource)
    found = _number(segments[0]) if resource in NUMBERED else cast("UUID", read_value("id", "uuid", segments[0]))
    return EndpointPath(resource, found, segments[1] if len(segments) == 2 else None)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 11 and 1 <= int(text) <= ORDINAL_MAX):
        raise refused("number", f"It is no whole number from 1 to {ORDINAL_MAX}.")
    return int(text)


def _answer_to(changed: Changed) -> Answer:
    if changed.document is None:
        return Answer(changed.status, (), b"")
    location = () if changed.location is None else ((b"location", changed.location.encode("ascii")),)
    return Answer(changed.status, (*PRIVATE_JSON, *location), msgspec.json.encode(changed.document))
